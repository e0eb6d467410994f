"""Example cells and illumination on the quality page."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cellclr_jax.data.quality import summary
from cellclr_jax.data.quality.page import draw_light
from cellclr_jax.data.quality.summary import make_montage

SIDE = 20


def picture_of(uri):
    kind, content = uri.split(",")
    assert kind in ("data:image/webp;base64", "data:image/png;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


class Images:
    """Flat crops with the number of their row as intensity of channel 0."""

    def __init__(self, channels=3, side=SIDE, dtype=np.uint16):
        self.channels, self.side, self.dtype = channels, side, dtype

    def read(self, rows):
        images = np.zeros((len(rows), self.side, self.side, self.channels), self.dtype)
        images[..., 0] = np.reshape(rows, (-1, 1, 1))
        return images


def shown_cells(row):
    """Rows of the cells of a strip; the name of a cell's well is its row."""
    return [int(place) for place in row.strip.wells]


def test_a_row_shows_cells_of_its_treatment_only():
    names = [f"c{i % 5}" for i in range(100)]
    cells = pd.DataFrame({"compound": names, "concentration": [i % 2 * 0.3 for i in range(100)]})
    cells["well"] = cells.index.astype(str)
    shown = make_montage(cells, Images().read)
    assert "One row per treatment;" in shown.text
    assert [row.title for row in shown.rows] == [
        title for i in range(5) for title in (f"c{i}", f"c{i} 0.3 µM")
    ]
    for row in shown.rows:
        compound, dose = row.title.split(" ")[0], 0.3 if "µM" in row.title else 0.0
        of_it = cells[(cells["compound"] == compound) & (cells["concentration"] == dose)].index
        assert set(shown_cells(row)) <= set(of_it)
        assert len(set(shown_cells(row))) == row.strip.crops == min(8, len(of_it))
        assert row.cells == len(of_it)


def test_crops_do_not_depend_on_other_rows():
    wells = np.arange(100).astype(str)
    some = pd.DataFrame({"label": ["a"] * 50 + ["b"] * 50, "well": wells})
    more = pd.DataFrame({"label": ["a"] * 50 + ["c"] * 50, "well": wells})
    first, second = (make_montage(cells, Images().read).rows for cells in (some, more))
    assert shown_cells(first[0]) == shown_cells(second[0])
    assert shown_cells(first[1]) != shown_cells(second[1])


def test_rows_are_sorted_by_mechanism_and_unknown_ones_come_last():
    cells = pd.DataFrame(
        {
            "compound": ["a", "b", "c", "d"],
            "concentration": [1.0, 1.0, np.nan, 1.0],
            "moa": ["", "x", "w", "x"],
        }
    )
    rows = make_montage(cells, Images().read).rows
    assert [(row.title, row.subtitle) for row in rows] == [
        ("c", "w"),
        ("b 1 µM", "x"),
        ("d 1 µM", "x"),
        ("a 1 µM", ""),
    ]


def test_labels_are_rows():
    cells = pd.DataFrame({"label": ["b", "", "a", "b"]})
    rows = make_montage(cells, Images().read).rows
    assert [(row.title, row.cells) for row in rows] == [("a", 1), ("b", 2), ("no label", 1)]


def test_cells_without_metadata_are_shown_in_order():
    shown = make_montage(pd.DataFrame(index=range(60)), Images().read)
    assert "Rows in the order" in shown.text
    assert [row.title for row in shown.rows][:2] == ["cells 1 to 10", "cells 11 to 20"]
    assert sum(row.cells for row in shown.rows) == 60
    single = make_montage(pd.DataFrame(index=range(1)), Images().read)
    assert [row.title for row in single.rows] == ["cell 1"]


def test_many_treatments_are_merged_and_then_left_out():
    numbers = np.arange(2000)
    cells = pd.DataFrame({"compound": numbers // 10 % 150, "concentration": numbers % 10 + 1.0})
    shown = make_montage(cells.astype({"compound": str}), Images().read)
    assert "One row per compound;" in shown.text
    assert len(shown.rows) == 150
    assert all(2 <= row.strip.crops <= 8 for row in shown.rows)
    labels = make_montage(pd.DataFrame({"label": [f"l{i:03}" for i in range(300)]}), Images().read)
    assert len(labels.rows) == 200
    assert "100 more rows are not shown" in labels.text


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_channels_are_rows_and_crops_are_columns_of_the_image(dtype):
    cells = pd.DataFrame({"label": ["a"] * 8})
    (row,) = make_montage(cells, Images(dtype=dtype).read).rows
    picture = picture_of(row.strip.uri)
    grey = picture.reshape(3, SIDE, 8, SIDE, -1)[..., 0].transpose(0, 2, 1, 3)
    levels = grey[0, :, 5:-5, 5:-5].mean(axis=(1, 2))
    assert (np.diff(levels) > 10).all()
    assert levels[0] < 5
    assert levels[-1] > 245
    assert grey[1:].max() < 10


def test_a_channel_has_the_same_range_in_all_rows():
    cells = pd.DataFrame({"label": np.repeat(["a", "b"], 8)})
    dim, bright = (picture_of(row.strip.uri) for row in make_montage(cells, Images().read).rows)
    assert dim[:SIDE].max() < bright[:SIDE].max() - 50


@pytest.mark.parametrize(("channels", "side", "expected"), [(1, 97, 96), (5, 300, 96), (2, 24, 24)])
def test_any_channels_and_sizes(channels, side, expected):
    cells = pd.DataFrame({"label": ["a"] * 3})
    shown = make_montage(cells, Images(channels, side).read)
    assert shown.side == expected
    assert picture_of(shown.rows[0].strip.uri).shape[:2] == (channels * expected, 3 * expected)


def test_strips_shrink_to_the_budget(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 65536, (8, 96, 96, 3), np.uint16)
    cells = pd.DataFrame({"label": ["a"] * 8})
    fine = make_montage(cells, lambda rows: noise).rows[0].strip.uri
    monkeypatch.setattr(summary, "_BUDGET", len(fine) // 2)
    assert len(make_montage(cells, lambda rows: noise).rows[0].strip.uri) < 0.8 * len(fine)


def test_illumination_has_one_colour_scale():
    slope = np.linspace(0.8, 1.2, 120)[None, :, None] * np.ones((90, 1, 2))
    light = draw_light({"one": slope, "two": np.full((90, 120, 2), 1.2)})
    assert (round(light.low, 2), round(light.high, 2)) == (0.8, 1.2)
    one, two = (picture_of(picture) for picture in light.pictures.values())
    assert one.shape == two.shape
    # Viridis: from violet to yellow.
    assert tuple(one[5, 0]) < (90, 20, 110)
    np.testing.assert_allclose(one[5, -1].astype(int), two[5, -1], atol=12)
    assert tuple(two[5, 5]) > (230, 200, 0)
