"""Comparisons of runs: scores, McNemar's tests, spread over seeds, errors."""

import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from support.binaries import run

from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling import report
from cellclr_jax.profiling.comparison import compare
from cellclr_jax.profiling.evaluation import evaluate
from cellclr_jax.profiling.protocol import Protocol
from cellclr_jax.profiling.report.comparison_page import print_comparison, render_comparison


def wells(noise, seed=0):
    """Two compounds of each of four mechanisms in three weeks."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(4, 6)) * 3
    rows, values = [], []
    for week in range(3):
        for well in range(6):
            rows.append((f"Week{week}_1", f"A{well}", "DMSO", 0.0, ""))
            values.append(rng.normal(size=6))
        for kind in range(4):
            for well in range(2):
                compound = f"c{kind}{(week + kind) % 2}"
                rows.append((f"Week{week}_1", f"B{kind}{well}", compound, 1.0 + week, f"m{kind}"))
                values.append(directions[kind] + noise * rng.normal(size=6))
    table = pd.DataFrame(rows, columns=["plate", "well", "compound", "concentration", "moa"])
    return pd.concat([table, pd.DataFrame(values).add_prefix("cellclr_")], axis=1)


def written(folder, noise, *, config=None, protocol=None, seed=0):
    """A work directory with an evaluation."""
    found = evaluate(wells(noise, seed), protocol)
    report.write_evaluation(folder / "eval" / "10", report.Results(found, details={"dataset": "d"}))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _no_figures():
    """Writes tables only: comparisons read nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_write_pages", lambda *args, **settings: None)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    config = {"epochs": 3, "data_dir": "x"}
    return [
        written(place / "good", 0.1, config=config | {"seed": 0}),
        written(place / "good<b>", 3.0, config=config | {"seed": 1, "data_dir": "y"}, seed=5),
        written(place / "other", 9.0, config=config | {"epochs": 4}, seed=2),
    ]


def test_scores_and_tests_are_those_of_the_evaluations(runs):
    found = compare(runs)
    assert [run.name for run in found.runs] == ["good", "good<b>", "other"]
    assert len(found.scores) == 3 * 3 * 2
    row = found.scores.iloc[0]
    metrics = json.loads((runs[0] / "eval" / "10" / "metrics.json").read_text())
    assert row["accuracy"] == metrics["scores"]["none"]["nsc"]["accuracy"]
    assert [row["low"], row["high"]] == metrics["scores"]["none"]["nsc"]["interval"]
    assert len(found.tests) == 3 * 3 * 2
    for test in found.tests.itertuples():
        totals = found.scores.set_index(["run", "correction", "score"])["correct"]
        mine, yours = (
            totals[run, test.correction, test.score] for run in (test.first, test.second)
        )
        assert test.both + test.first_only == mine
        assert test.both + test.second_only == yours
    clear = found.tests[(found.tests["first"] == "good") & (found.tests["second"] == "other")]
    assert clear["p"].min() < 0.05


def test_the_spread_is_over_runs_that_differ_only_in_their_seed(runs):
    found = compare(runs)
    assert set(found.seeds["runs"]) == {"good, good<b>"}
    first = found.seeds.iloc[0]
    accuracies = found.scores.query("correction == 'none' and score == 'nsc'")["accuracy"][:2]
    np.testing.assert_allclose(first["mean"], accuracies.mean())
    np.testing.assert_allclose(first["deviation"], accuracies.std(ddof=1))
    assert compare([runs[0], runs[2]]).seeds.empty


def test_other_settings_and_other_data_are_noted(runs, tmp_path):
    other = written(tmp_path / "run", 1.0, protocol=Protocol(standardize="controls"))
    metrics = json.loads((other / "eval" / "10" / "metrics.json").read_text())
    metrics["run"]["dataset"] = "e"
    (other / "eval" / "10" / "metrics.json").write_text(json.dumps(metrics))
    notes = compare([runs[0], other]).notes
    assert any("other settings than good: standardize" in note for note in notes)
    assert any("other data than good" in note for note in notes)


def test_runs_that_cannot_be_compared_are_errors(runs, tmp_path):
    with pytest.raises(BadUse, match="two runs or more"):
        compare(runs[:1])
    with pytest.raises(BadUse, match="given twice"):
        compare([runs[0], runs[0] / "eval" / "10"])
    with pytest.raises(BadUse, match="no such folder"):
        compare([runs[0], tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadUse, match=r"has no evaluation: run python -m cellclr_jax\.eval"):
        compare([runs[0], tmp_path / "empty"])
    damaged = written(tmp_path / "damaged", 1.0)
    (damaged / "eval" / "10" / "metrics.json").write_text('{"scores": ')
    with pytest.raises(BadData, match="cannot be read"):
        compare([runs[0], damaged])
    for text in ("3", '{"scores": null}', '{"scores": {"none": {"nsc": {}}}, "run": {}}'):
        (damaged / "eval" / "10" / "metrics.json").write_text(text)
        with pytest.raises(BadData, match=r"metrics\.json is incomplete: evaluate it again"):
            compare([runs[0], damaged])
    (damaged / "eval" / "10" / "metrics.json").write_text('{"cells": {}}')
    with pytest.raises(BadUse, match="has no scores of treatments"):
        compare([runs[0], damaged])
    cut = written(tmp_path / "cut", 1.0) / "eval" / "10" / "neighbours.csv"
    cut.write_text("\n".join(cut.read_text().splitlines()[:3]) + "\n")
    with pytest.raises(BadData, match=r"neighbours\.csv and metrics\.json count different"):
        compare([runs[0], tmp_path / "cut"])


def test_one_seed_has_no_spread(runs, tmp_path):
    twice = shutil.copytree(runs[0], tmp_path / "twice")
    assert compare([runs[0], twice]).seeds.empty


def test_undefined_scores_and_runs_without_common_treatments(tmp_path):
    one = tmp_path / "one" / "eval" / "1"
    report.write_evaluation(one, report.Results(evaluate(wells(0.1).assign(batch="Week1"))))
    other = tmp_path / "other" / "eval" / "1"
    renamed = wells(0.1).replace({"c00": "d00", "c01": "d01", "c10": "d10", "c11": "d11"})
    renamed = renamed.replace({f"c{k}{i}": f"d{k}{i}" for k in (2, 3) for i in (0, 1)})
    report.write_evaluation(other, report.Results(evaluate(renamed)))
    found = compare([tmp_path / "one", tmp_path / "other"])
    out = io.StringIO()
    print_comparison(found, file=out)
    assert "12/12 (100.0 %)          undefined" in out.getvalue()
    assert found.tests.empty
    assert "Highest NSC of 2 runs: one and other, 12 of 12" in render_comparison(found)


def test_compounds_whose_names_are_numbers_are_compared(tmp_path):
    numbered = wells(1.0).assign(compound=lambda t: t["compound"].str.replace("c", "1"))
    for name in ("one", "other"):
        report.write_evaluation(tmp_path / name, report.Results(evaluate(numbered)))
    assert len(compare([tmp_path / "one", tmp_path / "other"]).tests) == 6


def test_the_binary_takes_runs_as_arguments_and_writes_a_page(runs, tmp_path):
    done = run("eval", "--compare", *runs, f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "NSC, none, 2 seeds" in done.stdout
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert len(table) == 18
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert record["tests"][0]["first"] == "good"
    assert "good&lt;b&gt;" in (tmp_path / "out" / "comparison.html").read_text()
    refused = run("eval", "--compare", runs[0], runs[1], "--step=3")
    assert refused.returncode == 2
    assert "--step cannot be combined with --compare" in refused.stderr
    foreign = run("eval", "--compare", runs[0], runs[1], "--standardize=controls")
    assert "--standardize cannot be combined with --compare" in foreign.stderr
