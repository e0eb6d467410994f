"""All measures: JSON and tables, choice by a flag, a new measure by one registry line."""

import json

import numpy as np
import pandas as pd
import pytest
from absl.testing import flagsaver
from support.corrected_wells import corrected, planted, table

from cellclr_jax import eval as eval_binary
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling import evaluation, report
from cellclr_jax.profiling.comparison import mcnemar
from cellclr_jax.profiling.evaluation import evaluate
from cellclr_jax.profiling.measures import MEASURES, Measure
from cellclr_jax.profiling.measures.measure import Measured, measure


def strength(profiles):
    """A toy measure: how long the profiles of treatments are."""
    lengths = np.linalg.norm(profiles.treatments[profiles.features], axis=1)
    share = float((lengths > 1).mean())
    named = profiles.named_treatments().assign(length=lengths)
    return Measured({"share": share, "longest": {"length": float(lengths.max())}}, named)


@pytest.fixture
def parsed():
    """Parses flags of eval, and forgets them after the test."""
    with flagsaver.flagsaver():
        yield lambda *flags: eval_binary.FLAGS(["eval", *flags])


def test_a_new_measure_is_in_metrics_csv_report_and_flags(tmp_path, monkeypatch, parsed):
    shares = {"share": "Strong treatments"}
    monkeypatch.setitem(MEASURES, "strength", Measure(f"{__name__}:strength", shares))
    parsed("--measures=strength")
    options = eval_binary.option_flags()
    found = evaluate(planted(), measures=options.measures)
    report.write_evaluation(tmp_path, report.Results(found), options=options)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["measures"]) == {"none", "whitening", "tvn"}
    assert 0 < metrics["measures"]["tvn"]["strength"]["share"] <= 1
    written = pd.read_csv(tmp_path / "strength.csv")
    assert set(written["correction"]) == {"none", "whitening", "tvn"}
    assert written["length"].max() == pytest.approx(
        max(one["strength"]["longest"]["length"] for one in metrics["measures"].values())
    )
    assert "Strong treatments" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("flag", "measures"),
    [("all", None), ("none", ()), ("activity,mechanisms", ("activity", "mechanisms"))],
)
def test_measures_are_chosen_by_a_flag(parsed, flag, measures):
    parsed(f"--measures={flag}")
    assert eval_binary.option_flags().measures == measures


@pytest.mark.parametrize(
    ("flag", "message"), [("activty", "measure 'activty': one of activity"), ("all,none", "all")]
)
def test_measures_that_do_not_exist_are_refused(parsed, flag, message):
    parsed(f"--measures={flag}")
    with pytest.raises(BadUse, match=message):
        eval_binary.option_flags()


def test_of_many_wells_only_named_measures_are_computed(monkeypatch):
    monkeypatch.setattr(evaluation, "MOST_MEASURED", 20)
    wells = planted()
    found = evaluate(wells, measures=None)
    assert not found.scores["none"].measures
    assert f"{len(wells)} wells: measures are computed only if --measures names them" in (
        found.notes
    )
    named = evaluate(wells, measures=["mechanisms"])
    assert list(named.scores["none"].measures) == ["mechanisms"]
    assert not any("measures are computed" in note for note in named.notes)


def test_every_measure_is_plain_json_and_plain_columns_whatever_the_order_of_wells():
    pytest.importorskip("copairs")
    wells = planted(0, noise=3.0)
    found = measure(corrected(wells))
    again = measure(corrected(wells.sample(frac=1, random_state=1)))
    assert list(found) == list(MEASURES)
    for name, one in found.items():
        assert "undefined" not in one.summary, name
        assert json.loads(json.dumps(one.summary, allow_nan=False)) == one.summary
        assert again[name].summary == one.summary, name
        if one.table is not None:
            assert not [column for column in one.table if column != column.lower()]
            assert one.table.to_csv(index=False)
            pd.testing.assert_frame_equal(again[name].table, one.table)


def test_an_unknown_concentration_is_not_zero():
    """Both of one compound are two treatments in scores, tables, measures and comparisons."""
    doses, weeks = (0.0, np.nan, 1.0), ("Week1", "Week2", "Week3")
    rows = [(f"{week}_1", week, "DMSO", 0.0, "") for week in weeks for _ in range(4)]
    rows += [
        (f"{week}_1", week, f"c{number}", dose, f"m{number % 3}")
        for week in weeks
        for number in range(6)
        for dose in doses
        for _ in range(2)
    ]
    wells = table(rows, np.random.default_rng(0).normal(size=(len(rows), 5)))
    profiles = corrected(wells)
    counts = np.bincount(profiles.treatment_of_wells() + 1)
    assert counts.tolist() == [12] + 18 * [6]
    for name in ("activity", "reproducibility", "across_plates"):
        found = MEASURES[name](profiles).table
        assert found["wells"].tolist() == 18 * [6]
        assert found["concentration"].isna().sum() == 6
    found = evaluate(wells)
    assert found.data["treatments"] == 18
    neighbours = found.scores["none"].nsc.neighbours
    assert mcnemar(neighbours, neighbours).both == neighbours["correct"].sum()
    with pytest.raises(BadData, match="'c0' at an unknown concentration is listed twice"):
        mcnemar(neighbours, pd.concat([neighbours, neighbours[neighbours["concentration"].isna()]]))
