"""The quality page: what it says, that it is safe to open, and what a browser makes of it."""

import json
import re
import shutil
from html import unescape

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs
from support.headless import open_page
from support.quality_content import CHANNELS, fields_table, make_content
from support.report_samples import words_of

from cellclr_jax.data.dataset import find_dataset, read_manifest
from cellclr_jax.data.quality.measures import columns_of
from cellclr_jax.data.quality.page import render_page, write_quality_page
from cellclr_jax.errors import BadData

HOSTILE = "<script>alert(1)</script>"
QUOTED = '"5\'-azacytidine" & co'


def hostile_content():
    """A dataset in which every name is an attempt."""
    fields = fields_table(wells=("B02", "B03", "B04"))
    fields["compound"] = fields["compound"].replace({"taxol": HOSTILE, "latrunculin": QUOTED})
    fields["plate"] = fields["plate"].replace({"Week1_100": HOSTILE, "Week1_101": QUOTED})
    fields["moa"] = HOSTILE
    fields.loc[0, ["field", "problem", "cells"]] = HOSTILE, HOSTILE, 0
    fields.loc[9, ["field", "cells"]] = HOSTILE, 0
    channels = ("dna", HOSTILE, QUOTED)
    measures = dict(zip(columns_of(CHANNELS), columns_of(channels), strict=True))
    light = {HOSTILE: np.ones((8, 8, 3))}
    fields = fields.rename(columns=measures)
    return make_content(fields, channels=channels, name=HOSTILE, illumination=light)


def own_parts(page):
    """A page without the library that it holds."""
    return page.replace(get_plotlyjs(), "")


def test_a_good_dataset_is_said_to_be_good():
    words = words_of(render_page(make_content(fields_table())))
    assert "Nothing stands out All fields could be used, and none is unlike the others." in words
    for number in ("2 plates", "6 wells", "2 treatments", "24 fields", "0 standing out"):
        assert number in words
    assert "Fields that" not in words


def test_the_verdict_counts_what_the_tables_explain():
    fields = fields_table()
    fields.loc[3, "focus_tubulin"] = 20
    fields.loc[5, "cells"] = 0
    fields.loc[7, ["problem", "cells"]] = "no file B02_w2.tif", 0
    fields.loc[7, columns_of(CHANNELS)] = np.nan
    words = words_of(render_page(make_content(fields)))
    assert "2 of 24 fields stand out, 1 field could not be used" in words
    assert re.search(r"Week1_100/B02/s4 DMSO 0 \d+ out of focus in tubulin \d+\.\d", words)
    assert "Week1_100/B03/s2 taxol 0.3 0 no cells –" in words
    assert "Week1_100/B03/s4 no file B02_w2.tif" in words


def test_a_plate_that_differs_as_a_whole_is_named():
    fields = fields_table(plates=9, sites=3)
    fields.loc[fields["plate"] == "Week1_104", "mean_dna"] *= 4
    words = words_of(render_page(make_content(fields)))
    assert "1 plate stands out Have a look before you train" in words
    assert re.search(r"Week1_104 \d+ dna bright: mean (39|40)\d, the median 1?\d\d", words)


def test_a_table_of_hundreds_is_cut_and_says_so():
    skipped = [(f"field {i}", "no file") for i in range(250)]
    words = words_of(render_page(make_content(fields_table(), skipped=skipped)))
    assert "field 199 " in words
    assert "field 200 " not in words
    assert "… and 50 more: manifest.json lists all." in words


def test_too_few_fields_are_not_judged():
    words = words_of(render_page(make_content(fields_table(plates=1, sites=1))))
    assert "There are too few fields to tell what is usual" in words


def test_rows_are_labels_where_there_are_no_treatments():
    fields = fields_table()[["field", "cells", "problem", *columns_of(CHANNELS)]]
    fields["label"] = np.where(np.arange(len(fields)) % 2, QUOTED, "healthy")
    words = words_of(render_page(make_content(fields, columns=("label",))))
    assert "2 labels" in words
    assert "A row a label" in words
    assert QUOTED in words


def test_a_dataset_of_which_nothing_is_known_has_a_page():
    fields = fields_table()[["field", "cells", "problem", *columns_of(CHANNELS)]]
    words = words_of(render_page(make_content(fields, columns=())))
    assert "Rows in the order of the dataset" in words
    assert "cells 1 to" in words
    assert "plate" not in words.lower()


def test_names_from_the_data_are_text_and_nothing_else():
    page = render_page(hostile_content())
    own = own_parts(page)
    assert "<script>alert" not in own
    figures = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert len(figures) == 2
    assert not any("<" in figure for figure in figures)
    words = words_of(page)
    assert words.count(HOSTILE) > 10
    assert words.count(QUOTED) > 2
    # Of every attribute with a name from the data, the quotes are its own.
    for label in re.findall(r'aria-label="([^"]*)"', own):
        assert "<" not in label
    assert own.count('aria-label="') == own.count('class="strip" role="img" aria-label="')


def test_the_page_names_no_address():
    own = own_parts(render_page(hostile_content()))
    assert "default-src 'none'; img-src data: blob:;" in own
    assert not re.findall(r"https?:|src=\"(?!data:)|href=\"(?!#)|url\((?!data:)|@import", own)


def test_the_same_dataset_gives_the_same_page():
    assert render_page(hostile_content()) == render_page(hostile_content())


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "qc.html").write_text(render_page(hostile_content()), encoding="utf-8")
    return folder / "qc.html"


# What a reader does: looks, chooses the intensity of the second channel, then one channel of the
# crops, then points at a well. What is seen goes to the end of the page, a line a look.
READER = """
const plot = document.querySelector(".plot");
const choose = (selector, number) => {
  const select = document.querySelector(selector);
  select.selectedIndex = number;
  select.dispatchEvent(new Event("change"));
};
const seen = () => JSON.stringify({
  traces: plot.data.map((trace, i) => trace.visible === true ? i : -1).filter(i => i >= 0),
  crops: [...document.querySelector(".strip").children].map(i => getComputedStyle(i).display),
});
const looks = [seen()];
choose("#plates select", 2);
looks.push(seen());
choose("#channel", 3);
looks.push(seen());
const words = plot.data[2].customdata, y = words.findIndex(row => row.some(text => text));
Plotly.Fx.hover(plot, {xval: words[y].findIndex(text => text) + 0.5, yval: y + 0.5}, "xy");
looks.push(document.querySelector(".hoverlayer").textContent);
const told = document.createElement("pre");
told.id = "told";
told.textContent = looks.join("\\n");
document.body.append(told);
"""


def test_a_browser_draws_the_page_without_a_complaint_or_a_request(hostile_page, tmp_path):
    seen = open_page(hostile_page, tmp_path / "browser")
    assert seen.console == []
    assert seen.requests == []
    # Both maps are drawn: a picture of squares, a scale of colours.
    assert len(re.findall(r'<g class="hm"><image ', seen.dom)) == 2
    assert len(re.findall(r'<g class="[^"]*\bcolorbar\b', seen.dom)) == 2
    assert "<script>alert" not in own_parts(seen.dom)


def test_a_reader_chooses_and_points(hostile_page, tmp_path):
    seen = open_page(hostile_page, tmp_path / "browser", READER)
    assert seen.console == []
    told = unescape(re.search(r'<pre id="told">(.*?)</pre>', seen.dom, re.DOTALL)[1]).split("\n")
    first, second, third = (json.loads(look) for look in told[:3])
    assert first == {"traces": [0], "crops": ["block"] * 3}
    assert second == {"traces": [2], "crops": ["block"] * 3}
    assert third == {"traces": [2], "crops": ["none", "none", "block"]}
    # Names are shown as they are written.
    assert told[3].startswith(f"{HOSTILE} B02")
    assert f"mean intensity, {HOSTILE}: " in told[3]


def test_a_page_that_complains_or_asks_is_caught(tmp_path):
    page = tmp_path / "leak.html"
    page.write_text("<img src='https://example.com/x.png'><script>missing();</script>")
    seen = open_page(page, tmp_path / "browser")
    assert seen.requests == ["https://example.com/x.png"]
    assert any("missing is not defined" in line for line in seen.console)


@pytest.fixture(scope="module")
def dataset(data_dir, tmp_path_factory):
    """A folder with a copy of a built dataset of simulated cells."""
    copy = tmp_path_factory.mktemp("copy") / "bbbc021" / "annotated" / "1.0.0"
    shutil.copytree(find_dataset(data_dir), copy)
    return copy


def test_a_built_dataset_gets_its_page(dataset, tmp_path):
    page = write_quality_page(dataset)
    assert page == dataset / "qc.html"
    words = words_of(page.read_text(encoding="utf-8"))
    counts = read_manifest(dataset)["counts"]
    assert words.startswith("bbbc021/annotated: quality bbbc021/annotated ")
    for number, what in ((counts["cells"], "cells"), (counts["plates"], "plates")):
        assert f"{number:,} {what}" in words
    assert "focus, tubulin" in words
    seen = open_page(page, tmp_path / "browser")
    assert (seen.console, seen.requests) == ([], [])


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("fields.parquet", lambda table: table.assign(cells="many"), "column cells"),
        ("fields.parquet", lambda table: table.assign(focus_dna="sharp"), "column focus_dna"),
        ("cells.parquet", lambda table: table.assign(concentration="high"), "column conc"),
    ],
)
def test_damaged_tables_are_named_and_the_older_page_stays(dataset, file, damage, message):
    (dataset / "qc.html").write_text("older")
    before = sorted(path.name for path in dataset.iterdir())
    good = (dataset / file).read_bytes()
    damage(pd.read_parquet(dataset / file)).to_parquet(dataset / file)
    try:
        with pytest.raises(BadData, match=message):
            write_quality_page(dataset)
    finally:
        (dataset / file).write_bytes(good)
    assert (dataset / "qc.html").read_text() == "older"
    assert sorted(path.name for path in dataset.iterdir()) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": {"shape": [48]}}, "channels"),
        ({"image": {"shape": [48, 48, "x"], "channels": []}}, "channels"),
        ({"skipped": [{"field": "a"}]}, "skipped"),
        ({"skipped": ["a"]}, "skipped"),
    ],
)
def test_a_damaged_manifest_is_named(dataset, changes, message):
    path = dataset / "manifest.json"
    good = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(json.loads(good) | changes), encoding="utf-8")
    try:
        with pytest.raises(BadData, match=message):
            write_quality_page(dataset)
    finally:
        path.write_text(good, encoding="utf-8")
