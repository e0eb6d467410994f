"""Numbers and sentences of the report against plain loops over the evaluation."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.report_samples import CLOSING, HOSTILE, make_history, make_wells

from cellclr_jax.pages import flatten, label, script_json
from cellclr_jax.profiling.evaluation import evaluate
from cellclr_jax.profiling.feature_columns import own_features
from cellclr_jax.profiling.measures import MEASURES
from cellclr_jax.profiling.protocol import Protocol
from cellclr_jax.profiling.report import treatments, verdict
from cellclr_jax.profiling.report.metrics_json import Results, ScoreSummary, Summary
from cellclr_jax.profiling.report.score_charts import (
    compare_corrections,
    score_charts,
    training_charts,
)
from cellclr_jax.profiling.report.treatments import (
    distances_from_controls,
    dose_series,
    find_neighbourhoods,
)


def test_three_neighbours_equal_those_of_a_loop():
    for batches in ("joined", "disjoint"):
        found = evaluate(make_wells(noise=3.0), Protocol(batches=batches))
        for scores in found.scores.values():
            table, near = scores.treatments, find_neighbourhoods(scores, found.protocol)
            values = table[own_features(table)].to_numpy()
            unit = values / np.linalg.norm(values, axis=1, keepdims=True)
            for kind in ("nsc", "nscb"):
                for row in range(len(table)):
                    expected = naive_neighbours(table, unit, row, kind)
                    assert near[kind]["rows"][row].tolist() == expected
                    cosines = [unit[row] @ unit[other] for other in expected]
                    assert np.allclose(near[kind]["cosines"][row], cosines)


def naive_neighbours(table, unit, row, kind):
    query = table.iloc[row]
    candidates = [
        other
        for other in range(len(table))
        if table["Metadata_Compound"].iloc[other] != query["Metadata_Compound"]
        and (kind == "nsc" or table["Metadata_Batch"].iloc[other] != query["Metadata_Batch"])
    ]
    return sorted(candidates, key=lambda other: -(unit[row] @ unit[other]))[:3]


@pytest.mark.parametrize("batches", ["joined", "week1"])
def test_first_neighbour_is_that_of_the_score(batches):
    wells = make_wells(noise=3.0)
    # c1 is in several weeks: under week1, NSCB uses only some of its wells.
    c1 = wells["compound"] == "c1"
    wells.loc[c1, "batch"] = np.resize(["Week0", "Week2"], c1.sum())
    found = evaluate(wells, Protocol(batches=batches))
    for scores in found.scores.values():
        near = find_neighbourhoods(scores, found.protocol)
        table = scores.treatments
        for kind, score in (("nsc", scores.nsc), ("nscb", scores.nscb)):
            assert sum(one is not None for one in near[kind]["correct"]) == score.total
            assert sum(one is True for one in near[kind]["correct"]) == score.correct
            for query in score.neighbours.itertuples():
                same = table["Metadata_Compound"] == query.compound
                row = np.flatnonzero(
                    same & (table["Metadata_Concentration"] == query.concentration)
                )
                first = table.iloc[near[kind]["rows"][row[0], 0]]
                assert first["Metadata_Compound"] == query.neighbour_compound
                assert first["Metadata_Concentration"] == query.neighbour_concentration
                assert len(set(near[kind]["rows"][row[0]])) == 3


def test_missing_neighbours_are_minus_one():
    wells = make_wells(weeks=1, moas=1, doses=(1.0,), noise=0.0)
    found = evaluate(wells, Protocol(corrections=("none",)))
    near = find_neighbourhoods(found.scores["none"], found.protocol)
    assert near["nsc"]["rows"].tolist() == [[1, -1, -1], [0, -1, -1]]
    assert near["nscb"]["undefined"]
    assert near["nscb"]["rows"].tolist() == [[-1] * 3] * 2


def test_recall_and_precision_of_each_mechanism():
    found = evaluate(make_wells(noise=3.0), Protocol(corrections=("none",)))
    neighbours = found.scores["none"].nsc.neighbours
    rows = treatments.confusion_data(found)["none"]["nsc"]["table"]
    assert [row[0] for row in rows] == sorted(set(neighbours["moa"]))
    for moa, queries, right, recall, precision in rows:
        own, predicted = neighbours["moa"] == moa, neighbours["neighbour_moa"] == moa
        hits = (own & predicted).sum()
        assert (queries, right) == (own.sum(), hits)
        assert recall == pytest.approx(hits / own.sum())
        assert precision is None or precision == pytest.approx(hits / predicted.sum())


def test_distances_from_controls_equal_those_of_a_loop():
    wells = make_wells()
    found, reason = dose_series(evaluate(wells))
    assert reason == ""
    assert [one["compound"] for one in found["series"]] == [f"c{i}" for i in range(8)]
    features = [c for c in wells if c.startswith("cellclr_")]
    controls = wells[wells["compound"] == "DMSO"][features].to_numpy()
    for one in found["series"]:
        own = wells[wells["compound"] == one["compound"]]
        scaled = (own[features].to_numpy() - controls.mean(0)) / controls.std(0)
        expected = np.sqrt((scaled**2).mean(axis=1))
        np.testing.assert_allclose(sorted(one["wells"]["y"]), sorted(expected), atol=1e-3)
        assert one["treatments"]["x"] == [0.1, 1, 10]
        medians = [np.median(expected[own["concentration"] == d]) for d in (0.1, 1, 10)]
        np.testing.assert_allclose(one["treatments"]["y"], medians, atol=1e-3)
        assert max(expected) <= found["top"] + 1e-9


def test_controls_have_a_root_mean_square_distance_of_one():
    found = evaluate(make_wells())
    is_control = (found.wells["Metadata_Compound"] == "DMSO").to_numpy()
    distances = distances_from_controls(found.wells, is_control, found.protocol)[is_control]
    assert np.sqrt(np.mean(distances**2)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("wells", "reason"),
    [
        (make_wells(doses=(1.0, 2.0)), "no compound has 3 concentrations"),
        (make_wells().query("compound != 'DMSO'"), "control"),
    ],
)
def test_missing_dose_series_have_a_reason(wells, reason):
    series, why = dose_series(evaluate(wells))
    assert series is None
    assert reason in why


# ---- heading and sentences


def scored(correct, total, interval, *, p=0.0001, chance=0.09):
    return ScoreSummary(correct, total, correct / total, "", list(interval), chance, p)


class MadeUp(Results):
    """Results with made-up scores and measures."""

    scores = measures = None

    def __init__(self, scores, measures=None):
        super().__init__()
        self.__dict__.update(scores=scores, measures=measures or {})


def scores_of(nsc, nscb, drop, **baselines):
    others = {name: {"none": Summary(s, s, 0.0)} for name, s in baselines.items()}
    return {"trained": {"none": Summary(nsc, nscb, drop)}, **others}


GOOD = scored(43, 48, (0.78, 0.98))
NONE = ScoreSummary(None, 0, None, "only one batch")
BARE = ScoreSummary(3, 4, 0.75)


@pytest.mark.parametrize(
    ("scores", "heading"),
    [
        (
            scores_of(GOOD, GOOD, 0.0, untrained=scored(27, 48, (0.4, 0.7))),
            "and better than the best baseline (untrained)",
        ),
        (scores_of(GOOD, GOOD, 0.0, untrained=scored(40, 48, (0.7, 0.9))), "not clearly better"),
        (scores_of(GOOD, GOOD, 12.0), "better than chance; less so across batches"),
        (scores_of(scored(4, 48, (0, 0.2), p=0.4), GOOD, 0.0), "no better than chance"),
        (scores_of(BARE, GOOD, 0.0), "Accuracy of"),
    ],
)
def test_heading_follows_from_the_scores(scores, heading):
    assert heading in verdict.judge(MadeUp(scores))[0]


def test_sentences_have_counts_intervals_and_baselines():
    other = scored(40, 48, (0.7, 0.9))
    scores = scores_of(GOOD, other, 6.25, untrained=scored(27, 48, (0.4, 0.7)))
    assert verdict.judge(MadeUp(scores))[1] == [
        "Trained profiles predict the mechanism of 43 of 48 treatments correctly (89.6 %, 95 % CI "
        "78.0 to 98.0 %), from the nearest treatment of another compound (NSC, correction none).",
        "For comparison: untrained 27 of 48; mechanisms shuffled among compounds 9.0 %.",
        "If the nearest treatment must also be of another batch (NSCB): 40 of 48 (83.3 %, 95 % CI "
        "70.0 to 90.0 %), 6.2 percentage points lower.",
    ]


def test_heading_does_not_choose_the_best_correction():
    scores = scores_of(GOOD, GOOD, 0.0)
    scores["trained"]["tvn"] = Summary(scored(9, 48, (0.1, 0.3)), GOOD, 0.0)
    sentence = verdict.judge(MadeUp(scores))[1][0]
    assert "9 of 48" in sentence
    assert "9 to 43 over all corrections" in sentence
    scores["trained"]["combat"] = Summary(GOOD, GOOD, 0.0)
    assert "9 of 48" in verdict.judge(MadeUp(scores))[1][0]


def test_undefined_scores_have_a_reason():
    scores = scores_of(NONE, NONE, None)
    heading, sentences = verdict.judge(MadeUp(scores))
    assert heading == "No score"
    assert "NSC is undefined under none: only one batch." in sentences
    assert verdict.score_rows(scores, {})[0]["scores"][0]["undefined"] == "only one batch"
    assert score_charts(scores) == []
    half = scores_of(GOOD, NONE, None)
    expected = "The accuracy across batches (NSCB) is undefined: only one batch."
    assert verdict.judge(MadeUp(half))[1][-1] == expected
    assert len(score_charts(half)) == 1
    by_batch = verdict.judge(MadeUp(scores_of(NONE, GOOD, None)))[1][0]
    assert "another compound and batch (NSCB, correction none)" in by_batch


def test_table_has_intervals_over_compounds_and_wells():
    scores = scores_of(GOOD, GOOD, 0.0, untrained=GOOD)
    measures = {"none": {"well_intervals": {"nsc": [0.8, 0.9], "nscb": None}}}
    own, other = verdict.score_rows(scores, measures)
    nsc, nscb = own["scores"]
    assert nsc["lines"][:2] == [
        "95 % CI 78.0 to 98.0 % over compounds",
        "95 % CI 80.0 to 90.0 % over wells",
    ]
    assert len(nscb["lines"]) == len(other["scores"][0]["lines"]) == 2


def test_chart_has_the_scores_and_intervals():
    (chart, _) = score_charts(scores_of(GOOD, GOOD, 0.0, untrained=scored(24, 48, (0.4, 0.7))))
    chance, trained, untrained = chart["data"]
    assert chance["x"] == [9.0, 9.0]
    assert untrained["x"] == [50.0]
    assert untrained["y"] == [1]
    low, high = untrained["error_x"]["arrayminus"][0], untrained["error_x"]["array"][0]
    assert (50 - low, 50 + high) == (pytest.approx(40), pytest.approx(70))
    assert trained["hovertext"] == ["trained: 43 of 48 (89.6 %)"]


def test_scores_survive_json():
    for summary in (Summary(GOOD, NONE, None), Summary(GOOD, replace(BARE, unanswerable=1), 2.5)):
        assert Summary.from_json(json.loads(json.dumps(summary.as_json()))) == summary


def test_comparison_of_corrections_has_reasons_for_gaps():
    scores = dict.fromkeys(("none", "tvn"), Summary(GOOD, GOOD, -0.5))
    measures = {
        "none": {
            "activity": {"share": 0.5},
            "batch_effect": {"balanced_accuracy": {"logistic": 0.9, "knn": 0.8}, "chance": 0.1}
            | {"caution": "far below"},
            "k_nearest": {"nsc": {"1": {"accuracy": 0.1}, "5": {"accuracy": 0.7}}},
        },
        "tvn": {"activity": {"undefined": "no controls"}},
    }
    found = compare_corrections(scores, measures)
    assert found["heads"] == ["none", "tvn"]
    rows = {title: values for title, *values in found["rows"]}
    assert rows["Drop (percentage points)"] == ["−0.5", "−0.5"]
    assert rows["Active treatments"] == ["50.0 %", "–"]
    title = MEASURES["batch_effect"].shares["balanced_accuracy.logistic"]
    assert rows[title] == ["90.0 %", "–"]
    assert rows["NSC accuracy, k = 5"] == ["70.0 %", "–"]
    assert "NSC accuracy, k = 1" not in rows
    assert found["reasons"] == [
        "none: Batch effect: far below",
        "tvn: Activity is undefined: no controls",
    ]
    assert found["chart"]["data"][0]["x"][0] == pytest.approx(100 * 43 / 48)


def test_training_curves_are_over_epochs():
    loss, rate = training_charts(make_history())
    training, validation = loss["data"]
    assert training["x"].tolist() == [0.5, 1.0, 1.5, 2.0]
    assert training["y"].tolist() == [5, 4, 3, 2]
    assert (validation["x"].tolist(), validation["y"].tolist()) == ([1.0, 2.0], [4.5, 2.5])
    assert rate["data"][0]["y"].tolist() == [0.1, 0.2, 0.1, 0]
    assert training_charts(None) == training_charts(pd.DataFrame()) == []
    by_step = training_charts(make_history().drop(columns="epoch"))[0]
    assert by_step["data"][0]["x"].tolist() == [5, 10, 15, 20]


def test_long_histories_are_subsampled():
    history = pd.DataFrame({"step": range(1, 50_001), "loss": 1.0})
    assert 500 <= len(training_charts(history)[0]["data"][0]["x"]) <= 1_000


def test_settings_are_flattened():
    values = {"a_b": True, "c": {"d": [], "e": {"f": None}}, "g": {}, "h": [1, 2]}
    expected = [("a b", "yes"), ("c, d", "none"), ("c, e, f", "not set")]
    assert flatten(values) == [*expected, ("g", "none"), ("h", "1, 2")]


def test_json_in_a_page_cannot_end_the_script():
    text = script_json({HOSTILE: [CLOSING, "&\u2028", np.float32(0.5), np.nan, np.arange(2)]})
    assert not set("<>\u2028") & set(text)
    assert json.loads(text) == {HOSTILE: [CLOSING, "&\u2028", 0.5, None, [0, 1]]}
    assert label(HOSTILE) == "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert len(label("x" * 100)) == 42
