"""Sections of the report, hostile names, and its behaviour in a browser."""

import json
import re
from html import unescape

import pytest
from plotly.offline import get_plotlyjs
from support.headless import open_page
from support.report_samples import (
    HOSTILE,
    QUOTED,
    hostile_page,
    make_cell_evaluation,
    make_history,
    make_wells,
    page_data,
    words_of,
)

from cellclr_jax.profiling.evaluation import evaluate
from cellclr_jax.profiling.report import figures
from cellclr_jax.profiling.report.metrics_json import Results
from cellclr_jax.profiling.report.page import render_report


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(hostile_page(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def found():
    return evaluate(make_wells())


def test_sections_follow_from_the_results(found):
    words = words_of(render_report(Results(found), maps={}))
    for title in (
        "Treatment map",
        "Confusion matrix",
        "Misclassified treatments",
        "Dose response",
        "Comparison of batch corrections",
    ):
        assert title in words
    assert "Training curves" not in words
    assert "Published" not in words
    cells_only = words_of(render_report(Results(cells=make_cell_evaluation(["round"]))))
    assert "No score of single cells: one class" in cells_only


def test_published_results_are_shown_for_bbbc021(found, monkeypatch):
    monkeypatch.setattr("cellclr_jax.profiling.report.metrics_json.is_bbbc021", lambda names: True)
    words = words_of(render_report(Results(found), maps={}))
    assert "Published results on BBBC021" in words
    assert "Ljosa 2013, factor analysis" in words


def test_single_cells_have_tables():
    page = render_report(Results(cells=make_cell_evaluation([HOSTILE, "b"])))
    words = words_of(page)
    assert "Accuracy of single-cell classification Trained features predict the label" in words
    assert f"{HOSTILE} 1,000 90.0 % 90.0 %" in words
    assert "(5 folds, grouped by plate). 1,020 cells; chance is 50.0 %" in words
    assert "<script>alert" not in page


def test_evaluation_without_controls_has_a_page():
    wells = make_wells()
    page = render_report(Results(evaluate(wells[wells["compound"] != "DMSO"])), maps={})
    assert "needed" in page_data(page)["corrections"]["tvn"]["undefined"]
    assert "No dose response" in words_of(page)


def test_figures_are_embedded_without_a_map(found, monkeypatch):
    pngs, skipped = {"a.png": b"x"}, {"tsne_none.png": "too few"}
    page = render_report(Results(found), pngs, skipped, maps={}).replace(get_plotlyjs(), "")
    assert "image/png" not in page
    monkeypatch.setattr(figures, "MOST_TREATMENTS", 3)
    page = render_report(Results(found), pngs, skipped)
    assert "data:image/png;base64,eA==" in page
    assert "tsne_none.png was not drawn: too few" in words_of(page)


def test_names_from_the_data_are_escaped(page):
    text = page.read_text(encoding="utf-8").replace(get_plotlyjs(), "")
    assert "<script>alert" not in text
    for block in re.findall(
        r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL
    ):
        assert "<" not in block  # it cannot end the script
        json.loads(block)
    for attribute in re.findall(r'(?:value|aria-label|class|id)="([^"]*)"', text):
        assert "<" not in attribute
    assert 'onmouseover="alert' not in text
    words = words_of(text)
    assert words.count(HOSTILE) > 5
    assert QUOTED in words
    assert "default-src 'none'" in text
    assert not re.findall(r"src=\"(?!data:)|href=\"(?!#)|url\((?!data:|\$)|@import", text)


READER = """
const seen = [], record = value => seen.push(String(value));
const choose = (element, value) => {
  element.value = value;
  element.dispatchEvent(new Event(element.tagName === "SELECT" ? "change" : "input"));
};
const $ = selector => document.querySelector(selector);
const plot = $("#map-plot");
record(plot.data.length);
choose($("#colouring"), 1);
record(plot.data.map(trace => trace.name).join());
choose($("#colouring"), 3);
record(plot.data.reduce((sum, trace) => sum + trace.x.length, 0));
choose($("#colouring"), 0);
choose($("#map [data-choice=correction]"), "none");
record($("#wrong [data-choice=correction]").value + " " + $("#wrong-count").textContent);
choose($("#confusion [data-choice=kind]"), "nscb");
record($("#wrong-count").textContent);
record($("#confusion-plot").data[0].z.length);
const rows = () => document.querySelectorAll("#wrong-table tbody tr").length;
const all = rows();
const first = () => $("#wrong-table tbody td").textContent;
choose($("#filter"), first().toUpperCase());
record(rows() > 0 && rows() < all);
choose($("#filter"), "");
record(rows() === all);
const before = first();
document.querySelectorAll("#wrong-table th button")[0].click();
record(before !== first());
$("#wrong-table tbody tr").click();
record($("#panel").hidden + " " + ($("#panel-title").textContent === first()));
record(document.querySelectorAll("#panel .strip").length);
record(document.activeElement.id);
choose($("#channel"), "1");
record([...$("#panel .strip").children].map(i => getComputedStyle(i).display).join());
document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
record($("#panel").hidden);
choose($("#search"), "<SCRIPT>");
record($("#found").textContent);
$("#found button").click();
record($("#panel-title").textContent);
$("#close").click();
plot.emit("plotly_click", {points: [{customdata: 5}]});
record($("#panel").hidden);
const named = plot.data.findIndex(trace => trace.name.includes("script"));
Plotly.Fx.hover(plot, [{curveNumber: named, pointNumber: 0}]);
record($("#map-plot .hoverlayer").textContent);
$(".dose .plot").emit("plotly_click", {points: [{customdata: 0}]});
record($("#panel-title").textContent);
window.dispatchEvent(new Event("beforeprint"));
record([...document.querySelectorAll("details")].every(one => one.open));
const pictures = ".js-plotly-plot > .plot-container svg:first-child";
const narrow = () => [...document.querySelectorAll(pictures)].every(one => one.clientWidth < 700);
record(narrow());
window.dispatchEvent(new Event("afterprint"));
record(narrow());
record(document.documentElement.scrollWidth <= innerWidth);
const output = document.createElement("pre");
output.id = "seen";
output.textContent = JSON.stringify(seen);
document.body.append(output);
"""


def test_page_works_in_a_browser(page, tmp_path):
    """Without messages or requests; a reader chooses, searches and opens example crops."""
    opened = open_page(page, tmp_path / "browser", READER)
    assert opened.console == []
    assert opened.requests == []
    # Map, confusion matrix, two scores, comparison, three training curves, eight dose responses.
    assert opened.dom.count('class="main-svg"') >= 2 * 16
    assert "<script>alert" not in opened.dom.replace(get_plotlyjs(), "")
    seen = json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', opened.dom, re.DOTALL)[1]))
    moas, batches, points, nsc, nscb, matrix, filtered, emptied, turned, panel, *seen = seen
    strips, focus, shown, closed, listed, searched, clicked, hovered, dose, *seen = seen
    assert moas == "4"
    assert batches == "Week0,Week1,Week2"
    assert points == "24"
    assert re.fullmatch(r"none \d+ misclassified under NSC, correction none", nsc)
    assert re.fullmatch(r"\d+ misclassified under NSCB, correction none", nscb)
    assert matrix == "4"
    assert (filtered, emptied, turned) == ("true", "true", "true")
    assert panel == "false true"
    assert strips == "5", "the treatment, its three neighbours, the controls"
    assert focus == "panel-title"
    assert shown == "none,block,none"
    assert closed == "true"
    assert listed.startswith(f"3 treatments:{HOSTILE} 0.1 µM")
    assert searched == f"{HOSTILE} 0.1 µM"
    assert clicked == "false"
    assert re.search(r"[✓✗] -?\d\.\d\d", hovered)
    assert HOSTILE in hovered, "the mechanism as it is written"
    assert dose.endswith("0.1 µM")
    opens, fits_paper, fits_paper_later, fits_screen = seen
    assert (opens, fits_paper, fits_paper_later, fits_screen) == ("true", "true", "false", "true")


def test_undefined_scores_and_cells_work_in_a_browser(tmp_path):
    """Four treatments of one batch have neither map nor NSCB."""
    few = evaluate(make_wells(weeks=1, moas=2, doses=(1.0,)))
    results = Results(few, cells=make_cell_evaluation(), history=make_history())
    path = tmp_path / "report.html"
    path.write_text(render_report(results), encoding="utf-8")
    choose = (
        "const s = document.querySelector('[data-choice=kind]'); s.value = 'nscb';"
        "s.dispatchEvent(new Event('change')); document.querySelector('#search').value = 'c1';"
        "document.querySelector('#search').dispatchEvent(new Event('input'));"
        "document.querySelector('#found button').click();"
    )
    opened = open_page(path, tmp_path / "browser", choose)
    assert opened.console == []
    assert "No map: 4 treatments" in opened.dom
    assert "NSCB is undefined: all treatments lie in one batch" in opened.dom
    assert opened.dom.count("js-plotly-plot") >= 4
