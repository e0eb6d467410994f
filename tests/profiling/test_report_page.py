"""The page as a reader has it: its parts, hostile names, and what a browser makes of it."""

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


def test_the_page_does_without_any_of_its_parts(found):
    alone = words_of(render_report(Results(found)))
    for title in ("Map of treatments", "Wrong treatments", "Dose series", "Corrections compared"):
        assert title in alone
    assert "Training" not in alone
    assert "Published" not in alone
    only = words_of(render_report(Results(cells=make_cell_evaluation(["round"]))))
    assert "There is no score" in only
    assert "Cells are not scored: one class" in only


def test_published_scores_stand_beside_bbbc021():
    names = ("taxol", "ALLN", "emetine", "AZ-A", "PP-2", "etoposide", "cisplatin", "vincristine")
    names = dict(enumerate(names))
    words = words_of(render_report(Results(evaluate(make_wells(names=names)))))
    assert "Published scores" in words
    assert "Ljosa 2013, factor analysis" in words


def test_classes_of_cells_have_their_tables():
    page = render_report(Results(cells=make_cell_evaluation([HOSTILE, "b"])))
    words = words_of(page)
    assert "How well classes of cells are told Trained features tell the label of cells" in words
    assert f"{HOSTILE} 1,000 90.0 % 90.0 %" in words
    assert "(5 folds, each plate kept whole). 1,020 cells; guessing gives 50.0 %" in words
    assert "<script>alert" not in page


def test_four_treatments_one_batch_and_no_controls_have_a_page():
    few = evaluate(make_wells(weeks=1, moas=2, doses=(1.0,)))
    data = page_data(render_report(Results(few)))
    assert "4 treatments: a map needs at least 8" in data["corrections"]["none"]["no_map"]
    assert "one batch" in data["confusion"]["none"]["nscb"]["undefined"]
    without = make_wells()
    without = evaluate(without[without["compound"] != "DMSO"])
    page = render_report(Results(without))
    assert "needed" in page_data(page)["corrections"]["tvn"]["undefined"]
    assert "There are no dose series" in words_of(page)


def test_figures_are_laid_in_where_the_page_draws_nothing(found, monkeypatch):
    pngs, skipped = {"a.png": b"x"}, {"tsne_none.png": "too few"}
    drawn = render_report(Results(found), pngs, skipped).replace(get_plotlyjs(), "")
    assert "image/png" not in drawn
    monkeypatch.setattr(figures, "MOST_TREATMENTS", 3)
    page = render_report(Results(found), pngs, skipped)
    assert "data:image/png;base64,eA==" in page
    assert "tsne_none.png was not drawn: too few" in words_of(page)


def test_the_same_evaluation_gives_the_same_page(page):
    assert hostile_page() == page.read_text(encoding="utf-8")


def test_names_from_the_data_are_text_and_nothing_else(page):
    text = page.read_text(encoding="utf-8").replace(get_plotlyjs(), "")
    assert "<script>alert" not in text
    for block in re.findall(
        r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL
    ):
        assert "<" not in block  # nothing in it can end the script
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
const looks = [], say = text => looks.push(String(text));
const choose = (element, value) => {
  element.value = value;
  element.dispatchEvent(new Event(element.tagName === "SELECT" ? "change" : "input"));
};
const $ = selector => document.querySelector(selector);
const plot = $("#map-plot");
say(plot.data.length);
choose($("#colouring"), 1);
say(plot.data.map(trace => trace.name).join());
choose($("#colouring"), 3);
say(plot.data.reduce((sum, trace) => sum + trace.x.length, 0));
choose($("#colouring"), 0);
choose($("#map [data-choice=correction]"), "none");
say($("#wrong [data-choice=correction]").value + " " + $("#wrong-count").textContent);
choose($("#confusion [data-choice=kind]"), "nscb");
say($("#wrong-count").textContent);
say($("#confusion-plot").data[0].z.length);
const rows = () => document.querySelectorAll("#wrong-table tbody tr").length;
const all = rows();
const first = () => $("#wrong-table tbody td").textContent;
choose($("#filter"), first().toUpperCase());
say(rows() > 0 && rows() < all);
choose($("#filter"), "");
say(rows() === all);
const before = first();
document.querySelectorAll("#wrong-table th button")[0].click();
say(before !== first());
$("#wrong-table tbody tr").click();
say($("#panel").hidden + " " + ($("#panel-title").textContent === first()));
say(document.querySelectorAll("#panel .strip").length);
say(document.activeElement.id);
choose($("#channel"), "1");
say([...$("#panel .strip").children].map(i => getComputedStyle(i).display).join());
document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
say($("#panel").hidden);
choose($("#search"), "<SCRIPT>");
say($("#found").textContent);
$("#found button").click();
say($("#panel-title").textContent);
$("#close").click();
plot.emit("plotly_click", {points: [{customdata: 5}]});
say($("#panel").hidden);
const named = plot.data.findIndex(trace => trace.name.includes("script"));
Plotly.Fx.hover(plot, [{curveNumber: named, pointNumber: 0}]);
say($("#map-plot .hoverlayer").textContent);
$(".dose .plot").emit("plotly_click", {points: [{customdata: 0}]});
say($("#panel-title").textContent);
window.dispatchEvent(new Event("beforeprint"));
say([...document.querySelectorAll("details")].every(one => one.open));
const pictures = ".js-plotly-plot > .plot-container svg:first-child";
const narrow = () => [...document.querySelectorAll(pictures)].every(one => one.clientWidth < 700);
say(narrow());
window.dispatchEvent(new Event("afterprint"));
say(narrow());
const told = document.createElement("pre");
told.id = "told";
told.textContent = JSON.stringify(looks);
document.body.append(told);
"""


def test_a_browser_draws_the_page_without_a_complaint_or_a_request(page, tmp_path):
    seen = open_page(page, tmp_path / "browser")
    assert seen.console == []
    assert seen.requests == []
    # The map, the matrix, two scores, the comparison, three charts of the training, eight doses.
    assert seen.dom.count('class="main-svg"') >= 2 * 16
    assert "<script>alert" not in seen.dom.replace(get_plotlyjs(), "")


def test_a_reader_chooses_points_searches_and_sees_cells(page, tmp_path):
    seen = open_page(page, tmp_path / "browser", READER)
    assert seen.console == []
    told = json.loads(unescape(re.search(r'<pre id="told">(.*?)</pre>', seen.dom, re.DOTALL)[1]))
    moas, batches, points, nsc, nscb, matrix, filtered, emptied, turned, opened, *told = told
    strips, focus, shown, closed, listed, searched, clicked, hovered, dose, *told = told
    assert moas == "4"
    assert batches == "Week0,Week1,Week2"
    assert points == "24"
    assert re.fullmatch(r"none \d+ wrong under NSC, correction none", nsc)
    assert re.fullmatch(r"\d+ wrong under NSCB, correction none", nscb)
    assert matrix == "4"
    assert (filtered, emptied, turned) == ("true", "true", "true")
    assert opened == "false true"
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
    opened, fits_paper, fits_paper_later = told
    assert (opened, fits_paper, fits_paper_later) == ("true", "true", "false")


def test_a_page_of_few_treatments_opens_without_a_complaint(tmp_path):
    few = evaluate(make_wells(weeks=1, moas=2, doses=(1.0,)))
    path = tmp_path / "report.html"
    path.write_text(render_report(Results(few)), encoding="utf-8")
    choose = (
        "const s = document.querySelector('[data-choice=kind]'); s.value = 'nscb';"
        "s.dispatchEvent(new Event('change')); document.querySelector('#search').value = 'c1';"
        "document.querySelector('#search').dispatchEvent(new Event('input'));"
        "document.querySelector('#found button').click();"
    )
    seen = open_page(path, tmp_path / "browser", choose)
    assert seen.console == []
    assert "There is no map: 4 treatments" in seen.dom
    assert "NSCB is undefined: all treatments lie in one batch" in seen.dom


def test_a_page_of_cells_only_opens_without_a_complaint(tmp_path):
    path = tmp_path / "report.html"
    results = Results(cells=make_cell_evaluation(), history=make_history())
    path.write_text(render_report(results), encoding="utf-8")
    seen = open_page(path, tmp_path / "browser")
    assert seen.console == []
    assert seen.dom.count("js-plotly-plot") >= 2
