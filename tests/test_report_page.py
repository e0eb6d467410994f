"""The report: what it says, that hostile names are harmless, what a browser and a reader do."""

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from headless import open_page
from plotly.offline import get_plotlyjs

from cellclr_jax.data.pipeline import Cells
from cellclr_jax.profiling.columns import own_features
from cellclr_jax.profiling.evaluation import evaluate
from cellclr_jax.profiling.protocol import Protocol
from cellclr_jax.profiling.record import describe
from cellclr_jax.profiling.reporting import confusion, verdict
from cellclr_jax.profiling.reporting.correction_comparison import compare_corrections
from cellclr_jax.profiling.reporting.crop_pictures import treatment_pictures
from cellclr_jax.profiling.reporting.dose_series import dose_series
from cellclr_jax.profiling.reporting.escaping import label, script_json
from cellclr_jax.profiling.reporting.neighbourhoods import find_neighbourhoods
from cellclr_jax.profiling.reporting.page import render_report
from cellclr_jax.profiling.reporting.score_charts import score_charts
from cellclr_jax.profiling.reporting.settings import flatten
from cellclr_jax.profiling.reporting.training_curves import training_charts

HOSTILE = "<script>alert(1)</script>"
QUOTED = '"onmouseover="alert(1)'
CLOSING = "</script><b>'"


def make_wells(seed=0, weeks=3, moas=4, doses=(0.1, 1.0, 10.0), dims=6, names=None, noise=0.6):
    """Two compounds a mechanism, in different weeks, some concentrations, two wells each."""
    rng = np.random.default_rng(seed)
    rows, values = [], []
    directions = rng.normal(size=(moas, dims))
    for week in range(weeks):
        for well in range(5):
            rows.append((f"Week{week}_1", f"A{well}", f"Week{week}", "DMSO", 0.0, "DMSO"))
            values.append(rng.normal(size=dims))
    for compound in range(2 * moas):
        week, moa = compound % weeks, compound % moas
        name = (names or {}).get(compound, f"c{compound}")
        for number, dose in enumerate(doses):
            for well in range(2):
                place = f"{compound}{number}{well}"
                rows.append((f"Week{week}_1", place, f"Week{week}", name, dose, f"m{moa}"))
                values.append(directions[moa] * (1 + number) + noise * rng.normal(size=dims))
    columns = ["plate", "well", "batch", "compound", "concentration", "moa"]
    table = pd.DataFrame(rows, columns=columns)
    return pd.concat([table, pd.DataFrame(values).add_prefix("cellclr_")], axis=1)


class Images:
    """Crops that are kept in memory, in the place of a dataset's."""

    def __init__(self, pixels):
        self.pixels, self.asked = pixels, []

    def read(self, rows):
        self.asked += [int(row) for row in rows]
        return self.pixels[rows]


def make_cells(wells, each=4, side=24, channels=("dna", "tubulin", "actin"), seed=0):
    """Some cells of every well, of random pixels."""
    table = wells[["plate", "well", "batch", "compound", "concentration", "moa"]]
    table = table.loc[table.index.repeat(each)].reset_index(drop=True)
    shape = (side, side, len(channels))
    pixels = np.random.default_rng(seed).integers(0, 4000, (len(table), *shape), np.uint16)
    image = {"shape": list(shape), "dtype": "uint16", "channels": list(channels)}
    return Cells(Path(), Images(pixels), table, {"image": image})


def words_of(page):
    """What a page says, without its data, style and script."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", bare)).split())


def page_data(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def make_metrics(evaluation, **more):
    return describe(evaluation, details={"step": 3, "note": HOSTILE}) | more


def make_history():
    return pd.DataFrame(
        {
            "step": [5, 10, 10, 15, 20, 20],
            "epoch": [1, 1, 1, 2, 2, 2],
            "loss": [5, 4, np.nan, 3, 2, np.nan],
            "lr": [0.1, 0.2, np.nan, 0.1, 0, np.nan],
            "validation_loss": [np.nan, np.nan, 4.5, np.nan, np.nan, 2.5],
        }
    )


def hostile_page():
    wells = make_wells(names={0: HOSTILE, 1: QUOTED, 2: CLOSING}, noise=2.0)
    wells["moa"] = wells["moa"].replace({"m0": HOSTILE, "m1": QUOTED})
    wells["plate"] = wells["plate"].replace({"Week0_1": CLOSING})
    found = evaluate(wells)
    measures = {name: {"activity": {"undefined": HOSTILE}} for name in found.scores}
    published = [{"method": HOSTILE, "kind": "k", "nsc": 90.0, "source": QUOTED}]
    metrics = make_metrics(found, measures=measures, published=published)
    metrics["notes"] = [HOSTILE]
    cells = make_cells(wells, channels=(HOSTILE, QUOTED, CLOSING))
    return render_report(
        metrics,
        evaluation=found,
        pictures=treatment_pictures(cells, "DMSO"),
        history=make_history().assign(**{f"online_{HOSTILE}": 0.5}),
        provenance={HOSTILE: {CLOSING: QUOTED}},
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(hostile_page(), encoding="utf-8")
    return path


# ---- what is computed


def test_three_neighbours_are_a_naive_loops():
    for batches in ("joined", "disjoint"):
        found = evaluate(make_wells(noise=3.0), Protocol(batches=batches))
        for scores in found.scores.values():
            table, near = scores.treatments, find_neighbourhoods(scores, found.protocol)
            values = table[own_features(table)].to_numpy()
            unit = values / np.linalg.norm(values, axis=1, keepdims=True)
            for kind in ("nsc", "nscb"):
                for row in range(len(table)):
                    expected = naive_neighbours(table, unit, row, kind)
                    assert near[kind].rows[row].tolist() == expected
                    cosines = [unit[row] @ unit[other] for other in expected]
                    assert np.allclose(near[kind].cosines[row], cosines)


def naive_neighbours(table, unit, row, kind):
    asked = table.iloc[row]
    candidates = [
        other
        for other in range(len(table))
        if table["Metadata_Compound"].iloc[other] != asked["Metadata_Compound"]
        and (kind == "nsc" or table["Metadata_Batch"].iloc[other] != asked["Metadata_Batch"])
    ]
    return sorted(candidates, key=lambda other: -(unit[row] @ unit[other]))[:3]


@pytest.mark.parametrize("batches", ["joined", "week1"])
def test_the_first_neighbour_is_the_scores_own(batches):
    wells = make_wells(noise=3.0)
    # One compound lies in several weeks: under week1, NSCB sees some of its wells alone.
    c1 = wells["compound"] == "c1"
    wells.loc[c1, "batch"] = np.resize(["Week0", "Week2"], c1.sum())
    found = evaluate(wells, Protocol(batches=batches))
    for scores in found.scores.values():
        near = find_neighbourhoods(scores, found.protocol)
        table = scores.treatments
        for kind, score in (("nsc", scores.nsc), ("nscb", scores.nscb)):
            assert sum(one is not None for one in near[kind].correct) == score.total
            assert sum(one is True for one in near[kind].correct) == score.correct
            for asked in score.neighbours.itertuples():
                same = table["Metadata_Compound"] == asked.compound
                row = np.flatnonzero(
                    same & (table["Metadata_Concentration"] == asked.concentration)
                )
                first = table.iloc[near[kind].rows[row[0], 0]]
                assert first["Metadata_Compound"] == asked.neighbour_compound
                assert first["Metadata_Concentration"] == asked.neighbour_concentration
                assert len(set(near[kind].rows[row[0]])) == 3


def test_a_profile_of_zeros_and_few_candidates_have_no_neighbours():
    wells = make_wells(weeks=1, moas=1, doses=(1.0,), noise=0.0)
    found = evaluate(wells, Protocol(corrections=("none",)))
    near = find_neighbourhoods(found.scores["none"], found.protocol)
    assert near["nsc"].rows.tolist() == [[1, -1, -1], [0, -1, -1]]
    assert near["nscb"].undefined
    assert near["nscb"].rows.tolist() == [[-1] * 3] * 2


def test_confusion_counts_are_a_naive_loops():
    table = pd.DataFrame(
        {"moa": ["b", "b", "a", "a", "C"], "neighbour_moa": ["b", "a", "a", "", "b"]}
    )
    moas, answers, counts = confusion.count_answers(table)
    assert (moas, answers) == (["a", "b", "C"], ["a", "b", "C", ""])
    for i, moa in enumerate(moas):
        for j, answer in enumerate(answers):
            pairs = zip(table["moa"], table["neighbour_moa"], strict=True)
            assert counts[i, j] == sum(pair == (moa, answer) for pair in pairs)
    voted = table.assign(predicted=table["moa"])
    assert np.trace(confusion.count_answers(voted)[2]) == 5


def test_precision_and_recall_of_each_mechanism():
    found = evaluate(make_wells(noise=3.0), Protocol(corrections=("none",)))
    neighbours = found.scores["none"].nsc.neighbours
    rows = confusion.confusion_data(found)["none"]["nsc"]["table"]
    assert [row[0] for row in rows] == sorted(set(neighbours["moa"]))
    for moa, asked, right, recall, precision in rows:
        own, told = neighbours["moa"] == moa, neighbours["neighbour_moa"] == moa
        assert (asked, right) == (own.sum(), (own & told).sum())
        assert recall == pytest.approx((own & told).sum() / own.sum())
        assert precision is None or precision == pytest.approx((own & told).sum() / told.sum())


def test_distances_from_controls_are_a_naive_loops():
    wells = make_wells()
    series, reason = dose_series(evaluate(wells))
    assert reason == ""
    assert [one.compound for one in series] == [f"c{i}" for i in range(8)]
    features = [c for c in wells if c.startswith("cellclr_")]
    controls = wells[wells["compound"] == "DMSO"][features].to_numpy()
    for one in series:
        own = wells[wells["compound"] == one.compound]
        scaled = (own[features].to_numpy() - controls.mean(0)) / controls.std(0)
        expected = sorted(round(float(np.sqrt((z**2).mean())), 2) for z in scaled)
        assert sorted(float(dot.text.split(": ")[1]) for dot in one.wells) == expected
        assert [dot.text.split(" ")[0] for dot in one.treatments] == ["0.1", "1", "10"]
        # A logarithmic axis: 0.1, 1 and 10 lie at equal distances; further away is higher up.
        places = [dot.x for dot in one.treatments]
        assert places[2] - places[1] == pytest.approx(places[1] - places[0], abs=0.2)
        assert all(0 <= dot.y <= 170 for dot in one.wells)


def test_controls_that_lie_where_they_lie_have_a_distance_of_one():
    found = evaluate(make_wells())
    from cellclr_jax.profiling.reporting.dose_series import _distances

    is_control = (found.wells["Metadata_Compound"] == "DMSO").to_numpy()
    distances = _distances(found, is_control)[is_control]
    assert np.sqrt(np.mean(distances**2)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("wells", "reason"),
    [
        (make_wells(doses=(1.0, 2.0)), "no compound has 3 concentrations"),
        (make_wells().query("compound != 'DMSO'"), "control"),
    ],
)
def test_without_doses_or_controls_there_is_a_reason(wells, reason):
    series, why = dose_series(evaluate(wells))
    assert series == []
    assert reason in why


# ---- what is said


def scored(correct, total, interval, *, p=0.0001, chance=0.09):
    entry = {"correct": correct, "total": total, "accuracy": correct / total}
    return entry | {"interval": list(interval), "p": p, "chance": chance}


def metrics_of(nsc, nscb, drop, **baselines):
    metrics = {"profiles": "trained", "notes": [], "run": {}}
    metrics["scores"] = {"none": {"nsc": nsc, "nscb": nscb, "drop": drop}}
    others = {n: {"none": {"nsc": s, "nscb": s, "drop": 0}} for n, s in baselines.items()}
    return metrics | {"baselines": others}


GOOD = scored(43, 48, (0.78, 0.98))


@pytest.mark.parametrize(
    ("metrics", "heading"),
    [
        (
            metrics_of(GOOD, GOOD, 0.0, untrained=scored(27, 48, (0.4, 0.7))),
            "and than the best baseline (untrained)",
        ),
        (metrics_of(GOOD, GOOD, 0.0, untrained=scored(40, 48, (0.7, 0.9))), "not clearly better"),
        (metrics_of(GOOD, GOOD, 12.0), "better than chance; less so across batches"),
        (metrics_of(scored(4, 48, (0, 0.2), p=0.4), GOOD, 0.0), "no better than chance"),
        (metrics_of({"correct": 3, "total": 4, "accuracy": 0.75}, GOOD, 0.0), "How well"),
    ],
)
def test_the_heading_follows_from_the_numbers(metrics, heading):
    assert heading in verdict.judge(metrics)[0]


def test_the_verdict_names_counts_intervals_and_baselines():
    other = scored(40, 48, (0.7, 0.9))
    metrics = metrics_of(GOOD, other, 6.25, untrained=scored(27, 48, (0.4, 0.7)))
    said = verdict.judge(metrics)[1]
    assert said == [
        "Trained profiles name the mechanism of 43 of 48 treatments (89.6 %, 95 % interval 78.0 to "
        "98.0 %) from the nearest treatment of another compound (NSC, correction none).",
        "For comparison: untrained 27 of 48; mechanisms shuffled among compounds 9.0 %.",
        "Where the neighbour has to come from another batch, too, 40 of 48 (83.3 %, 95 % interval "
        "70.0 to 90.0 %): 6.2 points less.",
    ]


def test_the_correction_of_the_verdict_is_not_the_one_that_scores_best():
    metrics = metrics_of(GOOD, GOOD, 0.0)
    metrics["scores"]["tvn"] = {"nsc": scored(9, 48, (0.1, 0.3)), "nscb": GOOD, "drop": 0.0}
    said = verdict.judge(metrics)[1][0]
    assert "9 of 48" in said
    assert "9 to 43 over the corrections" in said


def test_undefined_scores_are_told_with_the_reason():
    why = {"correct": None, "total": 0, "accuracy": None, "undefined": "one batch alone"}
    metrics = metrics_of(why, why, None)
    heading, said = verdict.judge(metrics)
    assert heading == "There is no score"
    assert "NSC is undefined under none: one batch alone." in said
    assert verdict.score_rows(metrics)[0]["nsc"] == {"undefined": "one batch alone"}
    assert score_charts(metrics) == []
    half = verdict.judge(metrics_of(GOOD, why, None))[1]
    assert half[-1] == "Whether that holds in another batch is not known: one batch alone."
    assert len(score_charts(metrics_of(GOOD, why, None))) == 1
    by_batch = verdict.judge(metrics_of(why, GOOD, None))[1][0]
    assert "another compound and batch (NSCB, correction none)" in by_batch


def test_intervals_over_wells_stand_beside_those_over_compounds():
    metrics = metrics_of(GOOD, GOOD, 0.0, untrained=GOOD)
    metrics["measures"] = {"none": {"well_intervals": {"nsc": [0.8, 0.9], "nscb": None}}}
    own, other = verdict.score_rows(metrics)
    assert own["nsc"]["lines"][:2] == [
        "95 %: 78.0 to 98.0 % over compounds",
        "95 %: 80.0 to 90.0 % over wells",
    ]
    assert len(own["nscb"]["lines"]) == len(other["nsc"]["lines"]) == 2
    metrics["measures"] = {"none": {"well_intervals": {"undefined": "too many"}}}
    assert len(verdict.score_rows(metrics)[0]["nsc"]["lines"]) == 2


def test_dots_and_intervals_are_those_of_the_table():
    (chart, _) = score_charts(metrics_of(GOOD, GOOD, 0.0, untrained=scored(24, 48, (0.4, 0.7))))
    chance, trained, untrained = chart["data"]
    assert chance["x"] == [9.0, 9.0]
    assert untrained["x"] == [50.0]
    assert untrained["y"] == [1]
    low, high = untrained["error_x"]["arrayminus"][0], untrained["error_x"]["array"][0]
    assert (50 - low, 50 + high) == (pytest.approx(40), pytest.approx(70))
    assert trained["hovertext"] == ["trained: 43 of 48 (89.6 %)"]


def test_published_rows_are_shown_as_given():
    assert verdict.published_rows({}) == []
    rows = [{"method": "x", "kind": "y", "nsc": 96.0, "nscb": None, "source": "z 2020"}]
    assert verdict.published_rows({"published": rows}) == [["x", "y", "96", "–", "–", "z 2020"]]


def test_corrections_are_compared_and_gaps_have_reasons():
    metrics = metrics_of(GOOD, GOOD, -0.5)
    metrics["scores"]["tvn"] = metrics["scores"]["none"]
    metrics["measures"] = {
        "none": {
            "activity": {"share": 0.5},
            "batch_effect": {"balanced_accuracy": {"logistic": 0.9, "knn": 0.8}, "chance": 0.1}
            | {"caution": "far below"},
            "k_nearest": {"nsc": {"1": {"accuracy": 0.1}, "5": {"accuracy": 0.7}}},
        },
        "tvn": {"activity": {"undefined": "no controls"}},
    }
    found = compare_corrections(metrics)
    assert found.heads == ["none", "tvn"]
    rows = {title: values for title, *values in found.rows}
    assert rows["Drop, points"] == ["−0.5", "−0.5"]
    assert rows["Active treatments"] == ["50.0 %", "–"]
    assert rows["Batch told, logistic"] == ["90.0 %", "–"]
    assert rows["NSC, 5 neighbours vote"] == ["70.0 %", "–"]
    assert "NSC, 1 neighbours vote" not in rows
    assert found.reasons == [
        "none: Batch effect: far below",
        "tvn: Activity is undefined: no controls",
    ]
    assert found.chart["data"][0]["x"][0] == pytest.approx(100 * 43 / 48)
    assert compare_corrections({"profiles": "x"}) is None


def test_training_is_drawn_over_epochs():
    loss, rate = training_charts(make_history())
    training, validation = loss["data"]
    assert training["x"].tolist() == [0.5, 1.0, 1.5, 2.0]
    assert training["y"].tolist() == [5, 4, 3, 2]
    assert (validation["x"].tolist(), validation["y"].tolist()) == ([1.0, 2.0], [4.5, 2.5])
    assert rate["data"][0]["y"].tolist() == [0.1, 0.2, 0.1, 0]
    assert training_charts(None) == training_charts(pd.DataFrame()) == []
    by_step = training_charts(make_history().drop(columns="epoch"))[0]
    assert by_step["data"][0]["x"].tolist() == [5, 10, 15, 20]


def test_long_histories_are_thinned():
    history = pd.DataFrame({"step": range(1, 50_001), "loss": 1.0})
    assert 500 <= len(training_charts(history)[0]["data"][0]["x"]) <= 1_000


def test_settings_are_flat_and_in_words():
    values = {"a_b": True, "c": {"d": [], "e": {"f": None}}, "g": {}, "h": [1, 2]}
    expected = [("a b", "yes"), ("c, d", "none"), ("c, e, f", "not set")]
    assert flatten(values) == [*expected, ("g", "none"), ("h", "1, 2")]


def test_json_within_a_page_can_end_nothing():
    text = script_json({HOSTILE: [CLOSING, "&\u2028", np.float32(0.5), np.nan, np.arange(2)]})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {HOSTILE: [CLOSING, "&\u2028", 0.5, None, [0, 1]]}
    assert label(HOSTILE) == "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert len(label("x" * 100)) == 42


# ---- crops


def test_crops_show_every_plate_then_every_well_before_a_second_cell():
    wells = pd.DataFrame(
        [(p, w, "W", "c", 1.0, "m") for p in "PQR" for w in ("1", "2")],
        columns=["plate", "well", "batch", "compound", "concentration", "moa"],
    )
    cells = make_cells(wells, each=5)
    strip = treatment_pictures(cells, "DMSO").tiles["c", 1.0]
    assert strip.crops == 8
    assert {p.split()[0] for p in strip.places} == {"P", "Q", "R"}
    assert len(set(strip.places)) == 6
    from cellclr_jax.profiling.reporting.crop_pictures import _choose, _places_of

    three = _choose(_places_of(cells.table), np.arange(30), 3, ("c", 1.0), 0)
    assert set(cells.table["plate"].iloc[three]) == {"P", "Q", "R"}


def test_crops_do_not_depend_on_other_treatments_and_come_again():
    cells = make_cells(make_wells())
    first = treatment_pictures(cells, "dmso")
    assert first == treatment_pictures(cells, "dmso")
    table = cells.table
    kept = table["compound"].isin(["DMSO", "c1"]).to_numpy()
    fewer = Cells(
        Path(),
        Images(cells.images.pixels[kept]),
        table[kept].reset_index(drop=True),
        cells.manifest,
    )
    assert (
        treatment_pictures(fewer, "DMSO").tiles["c1", 1.0].places == first.tiles["c1", 1.0].places
    )
    assert len(first.tiles) == 24
    assert first.controls.crops == 8
    assert "control crops" in first.scale


def grey(strip):
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(strip.picture)).convert("L")).astype(int)


def test_one_brightness_for_all_pictures_told_by_the_controls():
    cells = make_cells(make_wells(), channels=("dna",))
    treated = (cells.table["compound"] != "DMSO").to_numpy()
    cells.images.pixels[treated] = 2000
    cells.images.pixels[(cells.table["compound"] == "c1").to_numpy()] = 1000
    cells.images.pixels[(cells.table["compound"] == "c2").to_numpy()] = 60_000
    found = treatment_pictures(cells, "DMSO")
    dim, usual, bright = (
        grey(found.tiles[name, 1.0])[:, 4:20].mean() for name in ("c1", "c0", "c2")
    )
    assert usual == pytest.approx(255 * 0.5**0.75, abs=6)
    assert dim == pytest.approx(255 * 0.25**0.75, abs=6)
    assert bright > 250
    before = found.controls
    cells.images.pixels[treated] = 0
    assert treatment_pictures(cells, "DMSO").controls == before


def test_many_treatments_have_smaller_pictures_within_the_budget():
    cells = make_cells(make_wells(moas=4), each=3, side=96)
    found = treatment_pictures(cells, "DMSO", budget_bytes=300_000)
    assert len(found.tiles) == 24
    assert bytes_in_page(found) <= 300_000
    assert found.side < 96
    assert treatment_pictures(cells, "DMSO").side == 96
    few = treatment_pictures(cells, "DMSO", budget_bytes=50_000)
    assert 2 < len(few.tiles) < 24
    assert few.controls is not None
    assert bytes_in_page(few) <= 50_000


def bytes_in_page(pictures):
    return sum(len(s.picture) for s in [*pictures.tiles.values(), pictures.controls]) * 4 / 3


def test_cells_without_treatments_or_controls_have_what_they_have():
    cells = make_cells(make_wells())
    bare = Cells(Path(), cells.images, cells.table[["plate", "well"]], cells.manifest)
    assert treatment_pictures(bare, "DMSO").tiles == {}
    alone = make_cells(make_wells().query("compound != 'DMSO'"))
    found = treatment_pictures(alone, "DMSO")
    assert found.controls is None
    assert len(found.tiles) == 24
    assert "crops of all treatments" in found.scale
    unnamed = Cells(Path(), cells.images, cells.table[["compound"]], cells.manifest)
    assert treatment_pictures(unnamed, "DMSO").tiles["c1", 0.0].places == [""] * 8


# ---- the page


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
