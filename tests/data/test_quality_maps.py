"""Plate maps and histograms of the quality page."""

import re

import numpy as np
import pandas as pd
import pytest
from support.quality_content import CHANNELS, fields_table, figures_of, make_content, squares_of
from support.report_samples import words_of

from cellclr_jax.data.quality import plate_maps
from cellclr_jax.data.quality.measures import columns_of
from cellclr_jax.data.quality.page import UNKNOWN, render_page
from cellclr_jax.data.quality.plate_maps import lay_out, parse_wells, row_name


@pytest.mark.parametrize(
    ("name", "place", "written"),
    [
        ("A01", (0, 0), "A1"),
        ("h12", (7, 11), "H12"),
        ("P24", (15, 23), "P24"),
        ("B2", (1, 1), "B2"),
        (" C03 ", (2, 2), "C3"),
        ("AF48", (31, 47), "AF48"),
    ],
)
def test_wells_are_parsed(name, place, written):
    ((row, column),) = parse_wells([name])
    assert (row, column) == place
    assert f"{row_name(row)}{column + 1}" == written


@pytest.mark.parametrize("name", ["A00", "A49", "BA01", "AG01", "well 3", "12", "", "A1\n2"])
def test_other_names_are_no_wells(name):
    np.testing.assert_array_equal(parse_wells(["B02", name]), [[1, 1], [-1, -1]])


@pytest.mark.parametrize("plates", [1, 12, 300])
@pytest.mark.parametrize("last", [(0, 0), (15, 23), (31, 47)])
def test_plates_do_not_overlap(plates, last):
    grid = lay_out([f"p{i}" for i in range(plates)], np.array([(0, 0), last]), 1_000_000)
    used = np.zeros(grid.size, int)
    for plate in range(plates):
        top, left = grid.corner(plate)
        used[top - grid.gap_rows : top + grid.rows, left : left + grid.columns] += 1
    assert used.max() == 1
    assert used.sum() == plates * (grid.rows + grid.gap_rows) * grid.columns
    assert grid.rows > last[0]
    assert grid.columns > last[1]


def test_55_plates_fit_on_a_screen():
    grid = lay_out([f"p{i}" for i in range(55)], np.array([(7, 11)]), 40_000)
    assert grid.size[0] * grid.side < 800
    assert grid.size[1] * grid.side < 1100
    assert grid.side > 8


@pytest.fixture(scope="module")
def drawn():
    """A table of fields, and its two maps."""
    fields = fields_table(plates=5, wells=("A01", "B02", "H12"))
    return fields, *figures_of(render_page(make_content(fields)))


def wells_of(figure):
    """Plate and well of each square, its value, its row and column."""
    return [
        (re.match(r"<b>(\S+) (\S+)</b>", words).groups(), value, at)
        for value, words, at in squares_of(figure)
    ]


def test_every_well_has_its_place_and_value(drawn):
    fields, wells, _ = drawn
    cells = fields.groupby(["plate", "well"])["cells"].sum()
    places = {}
    for well, value, at in wells_of(wells):
        assert value == cells[well]
        places[well] = np.array(at)
    assert len(places) == len(cells) == 15
    for plate in fields["plate"].unique():
        np.testing.assert_array_equal(places[plate, "B02"] - places[plate, "A01"], (1, 1))
        np.testing.assert_array_equal(places[plate, "H12"] - places[plate, "A01"], (7, 11))


def test_fields_are_in_order_within_their_well(drawn):
    fields, wells, sites = drawn
    focus = fields.set_index(["plate", "well", "site"])["focus_dna"]
    places = {well: at for well, _, at in wells_of(wells)}
    assert len(wells_of(sites)) == len(fields)
    for well, value, (y, x) in wells_of(sites):
        assert (y // 2, x // 2) == places[well]
        number = 1 + 2 * (y % 2) + x % 2
        assert value == pytest.approx(focus[*well, number], rel=1e-4)
        assert f"<br>field {number}: " in sites["data"][0]["customdata"][y][x]


def test_order_of_the_table_has_no_effect(drawn):
    fields, _, sites = drawn
    shuffled = fields.sort_values(["plate", "site"], ascending=[True, False], kind="stable")
    _, again = figures_of(render_page(make_content(shuffled.reset_index(drop=True))))
    assert again["data"][0]["z"] == sites["data"][0]["z"]


def test_wells_without_usable_fields_differ_from_wells_without_cells():
    fields = fields_table(sites=1)
    fields.loc[0, ["problem", "cells"]] = "no file", 0
    fields.loc[0, columns_of(CHANNELS)] = np.nan
    fields.loc[1, "cells"] = 0
    wells, sites = figures_of(render_page(make_content(fields)))
    values = [value for _, value, _ in wells_of(wells)]
    assert values[:2] == [None, 0]
    assert "no usable field in 1 field" in squares_of(wells)[0][1]
    crosses = next(t for t in sites["data"] if t.get("marker", {}).get("symbol") == "x-thin-open")
    assert crosses["hovertext"] == ["<b>Week1_100/B02/s1</b><br>no file"]


def test_too_many_fields_are_reduced_to_the_worst_of_each_well(monkeypatch):
    monkeypatch.setattr(plate_maps, "_MOST_SQUARES", 700)
    fields = fields_table()
    fields.loc[2, "saturated_dna"] = 0.3
    page = render_page(make_content(fields))
    assert "a well, with its worst field" in words_of(page)
    _, worst = figures_of(page)
    least = fields.groupby(["plate", "well"])["focus_dna"].min()
    found = [value for value, _, _ in squares_of(worst)]
    np.testing.assert_allclose(sorted(found), sorted(least), rtol=1e-4)
    saturated = [value for value, _, _ in squares_of(worst, 3)]
    assert max(saturated) == pytest.approx(30)


def test_too_many_plates_are_cut(monkeypatch):
    monkeypatch.setattr(plate_maps, "_MOST_SQUARES", 1_000)
    page = render_page(make_content(fields_table(plates=12, wells=("B02",), sites=1)))
    wells, _ = figures_of(page)
    assert len(squares_of(wells)) == 1_000 // 96
    assert "The first 10 of 12 plates are shown." in words_of(page)


def test_a_well_of_thousands_of_fields_is_reduced():
    fields = fields_table(plates=4, sites=1)
    crowded = pd.concat([fields, *[fields.head(1)] * 3000], ignore_index=True)
    crowded["site"] = np.arange(len(crowded))
    page = render_page(make_content(crowded))
    assert "a well, with its worst field" in words_of(page)
    assert len(page) < 8_000_000


def test_wells_without_plate_names_are_one_plate():
    fields = fields_table(plates=1).drop(columns="plate")
    wells, _ = figures_of(render_page(make_content(fields)))
    named = [words.split("<br>")[0] for _, words, _ in squares_of(wells)]
    assert named == ["<b>B02</b>", "<b>B03</b>", "<b>C04</b>"]


def test_fields_without_wells_have_histograms():
    fields = fields_table()[["field", "cells", "problem", *columns_of(CHANNELS)]]
    page = render_page(make_content(fields.assign(focus_dna=np.nan)))
    (figure,) = figures_of(page)
    # Cells, and five measures of three channels, one of which is unknown.
    assert sorted(sum(bars["y"]) for bars in figure["data"]) == [0, *[len(fields)] * 15]
    assert figure["layout"]["xaxis"]["title"]["text"] == "cells per field"
    assert f"<option>dna: focus score, {UNKNOWN}</option>" in page


def test_single_cell_images_have_counts_of_their_classes():
    """Their 'fields' are groups of images: a histogram of them has no meaning."""
    fields = fields_table()[["field", "cells", "problem", *columns_of(CHANNELS)]]
    fields["label"] = ["round"] * 8 + ["flat"] * 16
    page = render_page(make_content(fields, columns=("label",), whole_fields=False))
    (figure,) = figures_of(page)
    cells = fields.groupby("label")["cells"].sum()
    bars = figure["data"][0]
    assert dict(zip(bars["y"], bars["x"], strict=True)) == dict(cells)
    assert "24 image groups" in words_of(page)


def test_measures_without_values_are_marked():
    page = render_page(make_content(fields_table().assign(focus_dna=np.nan)))
    _, focus = figures_of(page)
    assert f"<option>dna: focus score, {UNKNOWN}</option>" in page
    assert "<option>tubulin: focus score</option>" in page
    assert [heatmap["showscale"] for heatmap in focus["data"][:2]] == [False, True]


def test_counts_of_one_are_singular():
    one = fields_table(plates=1, wells=("B02",), sites=1).assign(cells=1)
    page = render_page(make_content(one))
    wells, focus = figures_of(page)
    assert squares_of(wells)[0][1].endswith("1 cell in 1 field")
    assert squares_of(focus)[0][1].endswith("<br>field 1: 1 cell")
    bare = one[["field", "cells", "problem", *columns_of(CHANNELS)]].assign(label="round")
    bars = render_page(make_content(bare, columns=("label",)))
    assert "1 field" in figures_of(bars)[0]["data"][0]["hovertext"]
    for words in (words_of(page), words_of(bars)):
        assert not re.search(r"\b1 (cells|fields|labels|plates|wells|rows|treatments)\b", words)


def test_fields_without_measures_have_a_map_of_cell_counts():
    bare = fields_table(plates=1, sites=1)[["field", "cells", "problem", "well"]]
    (figure,) = figures_of(render_page(make_content(bare)))
    assert [value for value, _, _ in squares_of(figure)] == bare["cells"].tolist()
