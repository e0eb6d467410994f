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
    make_history,
    make_metrics,
    make_wells,
    page_data,
    words_of,
)

from cellclr_jax.profiling.evaluation import evaluate
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
    metrics = make_metrics(found)
    bare = words_of(render_report(metrics))
    assert "Trained profiles name the mechanism of" in bare
    assert "Map of treatments" not in bare
    alone = words_of(render_report(metrics, evaluation=found))
    for title in ("Map of treatments", "Wrong treatments", "Dose series", "Corrections compared"):
        assert title in alone
    assert "Training" not in alone
    assert "Published" not in alone
    cells = {"undefined": "one class", "notes": ["a note"], "scores": {}}
    only = words_of(render_report({"profiles": "trained", "notes": [], "run": {}, "cells": cells}))
    assert "There is no score" in only
    assert "Cells are not scored: one class" in only


def test_classes_of_cells_have_their_tables():
    probes = {
        kind: {"balanced_accuracy": 0.8, "accuracy": 0.8, "recall": {HOSTILE: 0.9, "b": 0.7}}
        for kind in ("knn", "logistic")
    }
    cells = {"label_column": "label", "classes": {HOSTILE: 1000, "b": 20}, "cells": 1020}
    cells |= {"folds": 5, "grouped_by": "plate", "scores": {"trained": probes}, "chance": 0.5}
    cells |= {"settings": {"neighbours": 20}, "notes": []}
    page = render_report({"profiles": "trained", "notes": [], "run": {}, "cells": cells})
    words = words_of(page)
    assert "How well classes of cells are told Trained features tell the label of cells" in words
    assert f"{HOSTILE} 1,000 90.0 % 90.0 %" in words
    assert "(5 folds, each plate kept whole). 1,020 cells; guessing gives 50.0 %" in words
    assert "<script>alert" not in page


def test_four_treatments_one_batch_and_no_controls_have_a_page():
    few = evaluate(make_wells(weeks=1, moas=2, doses=(1.0,)))
    data = page_data(render_report(make_metrics(few), evaluation=few))
    assert "4 treatments: a map needs at least 8" in data["corrections"]["none"]["no_map"]
    assert "one batch" in data["confusion"]["none"]["nscb"]["undefined"]
    without = make_wells()
    without = evaluate(without[without["compound"] != "DMSO"])
    page = render_report(make_metrics(without), evaluation=without)
    assert "needed" in page_data(page)["corrections"]["tvn"]["undefined"]
    assert "There are no dose series" in words_of(page)


def test_figures_are_laid_in_where_nothing_is_drawn_from(found):
    metrics = make_metrics(found) | {"figures_skipped": {"tsne_none.png": "too few"}}
    assert "data:image/png;base64,eA==" in render_report(metrics, {"a.png": b"x"})
    assert "tsne_none.png was not drawn: too few" in words_of(render_report(metrics))
    assert "image/png" not in render_report(metrics, {"a.png": b"x"}, evaluation=found).replace(
        get_plotlyjs(), ""
    )


def test_the_same_evaluation_gives_the_same_page(page):
    assert hostile_page() == page.read_text(encoding="utf-8")


def test_names_from_the_data_are_text_and_nothing_else(page):
    text = page.read_text(encoding="utf-8").replace(get_plotlyjs(), "")
    assert "<script>alert" not in text
    for block in re.findall(
        r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL
    ):
        assert not set("<>&") & set(block)
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
$(".treatment").dispatchEvent(new MouseEvent("click", {bubbles: true}));
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
    # The map, the matrix, two scores, the comparison, three charts of the training.
    assert seen.dom.count('class="main-svg"') >= 2 * 8
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
    path.write_text(render_report(make_metrics(few), evaluation=few), encoding="utf-8")
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


def test_a_page_of_cells_alone_opens_without_a_complaint(tmp_path):
    cells = {"undefined": "one class", "notes": [], "scores": {}}
    path = tmp_path / "report.html"
    metrics = {"profiles": "trained", "notes": [], "run": {}, "cells": cells}
    path.write_text(render_report(metrics, history=make_history()), encoding="utf-8")
    seen = open_page(path, tmp_path / "browser")
    assert seen.console == []
    assert seen.dom.count("js-plotly-plot") >= 2
