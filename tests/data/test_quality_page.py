"""Text of the quality page, hostile names, and its behaviour in a browser."""

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
    """A dataset with hostile names."""
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
    """The page without Plotly."""
    return page.replace(get_plotlyjs(), "")


def test_dataset_without_outliers():
    words = words_of(render_page(make_content(fields_table())))
    assert "No outliers All fields are usable, and none differs much from the others." in words
    for number in ("2 plates", "6 wells", "2 treatments", "24 fields", "0 outlier fields"):
        assert number in words
    assert "Outlier" not in words


def test_heading_counts_outliers_and_excluded_fields():
    fields = fields_table()
    fields.loc[3, "focus_tubulin"] = 20
    fields.loc[5, "cells"] = 0
    fields.loc[7, ["problem", "cells"]] = "no file B02_w2.tif", 0
    fields.loc[7, columns_of(CHANNELS)] = np.nan
    words = words_of(render_page(make_content(fields)))
    assert "2 outlier fields of 24, 1 excluded field" in words
    assert re.search(r"Week1_100/B02/s4 DMSO 0 \d+ out of focus in tubulin \d+\.\d", words)
    assert "Week1_100/B03/s2 taxol 0.3 0 no cells –" in words
    assert "Week1_100/B03/s4 no file B02_w2.tif" in words


def test_outlier_plates_are_listed():
    fields = fields_table(plates=9, sites=3)
    fields.loc[fields["plate"] == "Week1_104", "mean_dna"] *= 4
    words = words_of(render_page(make_content(fields)))
    assert "1 outlier plate Check them before training" in words
    assert re.search(r"Week1_104 \d+ dna bright: mean (39|40)\d, the median 1?\d\d", words)


def test_long_tables_are_cut():
    skipped = [(f"field {i}", "no file") for i in range(250)]
    words = words_of(render_page(make_content(fields_table(), skipped=skipped)))
    assert "field 199 " in words
    assert "field 200 " not in words
    assert "… and 50 more, see manifest.json." in words


def test_too_few_fields_have_no_outliers():
    words = words_of(render_page(make_content(fields_table(plates=1, sites=1))))
    assert "Too few fields to detect outliers" in words


def test_labels_are_rows_without_treatments():
    fields = fields_table()[["field", "cells", "problem", *columns_of(CHANNELS)]]
    fields["label"] = np.where(np.arange(len(fields)) % 2, QUOTED, "healthy")
    words = words_of(render_page(make_content(fields, columns=("label",))))
    assert "2 labels" in words
    assert "One row per label" in words
    assert QUOTED in words


def test_dataset_without_metadata_has_a_page():
    fields = fields_table()[["field", "cells", "problem", *columns_of(CHANNELS)]]
    words = words_of(render_page(make_content(fields, columns=())))
    assert "Rows in the order of the dataset" in words
    assert "cells 1 to" in words
    assert "plate" not in words.lower()


def test_names_from_the_data_are_escaped():
    page = render_page(hostile_content())
    own = own_parts(page)
    assert "<script>alert" not in own
    figures = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert len(figures) == 2
    assert not any("<" in figure for figure in figures)
    words = words_of(page)
    assert words.count(HOSTILE) > 10
    assert words.count(QUOTED) > 2
    for label in re.findall(r'aria-label="([^"]*)"', own):
        assert "<" not in label
    assert own.count('aria-label="') == own.count('class="strip" role="img" aria-label="')


def test_page_has_no_address():
    own = own_parts(render_page(hostile_content()))
    assert "default-src 'none'; img-src data: blob:;" in own
    assert not re.findall(r"https?:|src=\"(?!data:)|href=\"(?!#)|url\((?!data:)|@import", own)


def test_page_is_reproducible():
    assert render_page(hostile_content()) == render_page(hostile_content())


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "qc.html").write_text(render_page(hostile_content()), encoding="utf-8")
    return folder / "qc.html"


# Chooses a measure, then a channel of the crops, then points at a well; writes what is visible to
# the end of the page.
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
const lines = [seen()];
choose("#plates select", 2);
lines.push(seen());
choose("#channel", 3);
lines.push(seen());
const words = plot.data[2].customdata, y = words.findIndex(row => row.some(text => text));
Plotly.Fx.hover(plot, {xval: words[y].findIndex(text => text) + 0.5, yval: y + 0.5}, "xy");
lines.push(document.querySelector(".hoverlayer").textContent);
lines.push(document.documentElement.scrollWidth <= innerWidth);
const output = document.createElement("pre");
output.id = "seen";
output.textContent = lines.join("\\n");
document.body.append(output);
"""


def test_page_works_in_a_browser(hostile_page, tmp_path):
    opened = open_page(hostile_page, tmp_path / "browser", READER)
    assert opened.console == []
    assert opened.requests == []
    # Two maps: an image of squares and a colour scale each.
    assert len(re.findall(r'<g class="hm"><image ', opened.dom)) == 2
    assert len(re.findall(r'<g class="[^"]*\bcolorbar\b', opened.dom)) == 2
    assert "<script>alert" not in own_parts(opened.dom)
    lines = unescape(re.search(r'<pre id="seen">(.*?)</pre>', opened.dom, re.DOTALL)[1]).split("\n")
    first, second, third = (json.loads(line) for line in lines[:3])
    assert first == {"traces": [0], "crops": ["block"] * 3}
    assert second == {"traces": [2], "crops": ["block"] * 3}
    assert third == {"traces": [2], "crops": ["none", "none", "block"]}
    # Names are shown as they are written.
    assert lines[3].startswith(f"{HOSTILE} B02")
    assert f"{HOSTILE}: mean intensity" in lines[3]
    assert lines[4] == "true", "the page does not scroll horizontally"


def test_messages_and_requests_of_a_page_are_detected(tmp_path):
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


def test_built_dataset_has_a_page(dataset):
    page = write_quality_page(dataset)
    assert page == dataset / "qc.html"
    words = words_of(page.read_text(encoding="utf-8"))
    counts = read_manifest(dataset)["counts"]
    assert words.startswith("bbbc021/annotated: quality bbbc021/annotated ")
    for number, what in ((counts["cells"], "cells"), (counts["plates"], "plates")):
        assert f"{number:,} {what}" in words
    assert "tubulin: focus score" in words


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("fields.parquet", lambda table: table.assign(cells="many"), "column cells"),
        ("fields.parquet", lambda table: table.assign(focus_dna="sharp"), "column focus_dna"),
        ("cells.parquet", lambda table: table.assign(concentration="high"), "column conc"),
    ],
)
def test_damaged_tables_are_reported_and_the_older_page_remains(dataset, file, damage, message):
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
def test_damaged_manifest_is_reported(dataset, changes, message):
    path = dataset / "manifest.json"
    good = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(json.loads(good) | changes), encoding="utf-8")
    try:
        with pytest.raises(BadData, match=message):
            write_quality_page(dataset)
    finally:
        path.write_text(good, encoding="utf-8")
