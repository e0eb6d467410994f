"""Several evaluated runs in one table: scores, McNemar's test, the spread over seeds."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.profiling.measures.agreement import mcnemar
from cellclr_jax.profiling.measures.seeds import spread
from cellclr_jax.profiling.reporting.evaluation_folder import METRICS

NEIGHBOURS = "neighbours.csv"
_SCORES = ("nsc", "nscb")
# Settings of a run that runs of several seeds may differ in.
_OF_A_SEED = ("seed", "data_dir", "data_access", "log_every", "online", "checkpoint")


@dataclass(frozen=True)
class EvaluatedRun:
    """One evaluation, as it was written.

    Attributes:
      name: what it is called in tables; no two runs have the same.
      folder: where it lies.
      metrics: its metrics.json.
      neighbours: its neighbours.csv.
      config: the run's settings; None for a table of profiles.
    """

    name: str
    folder: Path
    metrics: dict[str, Any] = field(repr=False)
    neighbours: pd.DataFrame = field(repr=False)
    config: dict[str, Any] | None = field(repr=False)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
      runs: in the order given.
      scores: one row a run, correction and score: run, correction, score, correct, total,
        accuracy, low, high (NaN where undefined), undefined.
      tests: one row a pair of runs, correction and score: first, second, correction, score, both,
        first_only, second_only, neither, p (McNemar), left_out (queries of one alone).
      seeds: one row a group of runs that differ in their seed alone, correction and score: runs
        (their names), correction, score, count, mean, deviation, least, greatest.
      notes: what a reader must know, such as settings that differ.
    """

    runs: list[EvaluatedRun]
    scores: pd.DataFrame
    tests: pd.DataFrame
    seeds: pd.DataFrame
    notes: list[str]


def compare(paths: Sequence[str | Path]) -> Comparison:
    """Reads evaluations and sets them side by side.

    Args:
      paths: of work directories, whose newest evaluation is taken, or of evaluations' folders.

    Raises:
      BadUse: fewer than two, one is given twice, or one holds no evaluation of treatments.
      BadData: one cannot be read.
    """
    if len(paths) < 2:
        raise BadUse("--compare needs two runs or more")
    runs = _named([read_run(path) for path in paths])
    scores = pd.DataFrame([row for run in runs for row in _score_rows(run)])
    return Comparison(runs, scores, _tests(runs), _seeds(runs, scores), _notes(runs))


def read_run(path: str | Path) -> EvaluatedRun:
    """Reads one evaluation; see `compare`."""
    path = Path(path)
    if not path.is_dir():
        raise BadUse(f"{path}: no such folder")
    folder = path if (path / METRICS).is_file() else _newest(path)
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        neighbours = pd.read_csv(folder / NEIGHBOURS, keep_default_na=False, na_values={})
    except (OSError, ValueError) as error:
        raise BadData(f"{folder}: cannot be read ({error}): evaluate it again") from error
    if "scores" not in metrics:
        raise BadUse(f"{folder} scores no treatments: there is nothing to compare")
    for column in ("correct", "concentration"):
        if column not in neighbours:
            raise BadData(f"{folder / NEIGHBOURS}: no column {column}: evaluate it again")
    neighbours["correct"] = neighbours["correct"].astype(str) == "True"
    return EvaluatedRun(path.resolve().name, folder, metrics, neighbours, _config(folder))


def _newest(workdir: Path) -> Path:
    """The evaluation of a work directory that was written last."""
    found = sorted(workdir.glob(f"eval/*/{METRICS}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise BadUse(
            f"{workdir} holds no evaluation: python -m cellclr_jax.eval --workdir={workdir}"
        )
    return found[-1].parent


def _config(folder: Path) -> dict[str, Any] | None:
    """The settings of the run that an evaluation lies in, if it does."""
    path = folder.resolve().parent.parent / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config


def _named(runs: list[EvaluatedRun]) -> list[EvaluatedRun]:
    """The runs, by names that no two share."""
    folders = [run.folder.resolve() for run in runs]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise BadUse(f"{twice[0]} is given twice")
    names = [run.name for run in runs]
    return [
        run
        if names.count(run.name) == 1
        else EvaluatedRun(str(run.folder), run.folder, run.metrics, run.neighbours, run.config)
        for run in runs
    ]


def _score_rows(run: EvaluatedRun) -> list[dict[str, Any]]:
    """One row a correction and score."""
    rows = []
    for correction, scores in run.metrics["scores"].items():
        for kind in _SCORES:
            score = scores[kind]
            low, high = score.get("interval", (None, None))
            rows.append(
                {
                    "run": run.name,
                    "correction": correction,
                    "score": kind,
                    "correct": score["correct"],
                    "total": score["total"],
                    "accuracy": score["accuracy"],
                    "low": low,
                    "high": high,
                    "undefined": score.get("undefined", ""),
                }
            )
    return rows


def _answers(run: EvaluatedRun, correction: str, kind: str) -> pd.DataFrame:
    """The queries of one score."""
    table = run.neighbours
    return table[(table["correction"] == correction) & (table["score"] == kind)]


def _tests(runs: list[EvaluatedRun]) -> pd.DataFrame:
    """McNemar's test of each pair of runs under the corrections that both have."""
    rows = []
    for first, second in itertools.combinations(runs, 2):
        shared = [name for name in first.metrics["scores"] if name in second.metrics["scores"]]
        for correction, kind in itertools.product(shared, _SCORES):
            answers = [_answers(run, correction, kind) for run in (first, second)]
            if any(table.empty for table in answers):
                continue
            found = mcnemar(*answers)
            rows.append(
                {
                    "first": first.name,
                    "second": second.name,
                    "correction": correction,
                    "score": kind,
                    "both": found.both,
                    "first_only": found.first_only,
                    "second_only": found.second_only,
                    "neither": found.neither,
                    "p": found.p,
                    "left_out": found.not_in_first + found.not_in_second,
                }
            )
    return pd.DataFrame(rows)


def _seeds(runs: list[EvaluatedRun], scores: pd.DataFrame) -> pd.DataFrame:
    """The spread over runs that differ in their seed alone."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        if run.config is not None:
            rest = {name: v for name, v in run.config.items() if name not in _OF_A_SEED}
            key = json.dumps([rest, run.metrics["protocol"]], sort_keys=True)
            groups.setdefault(key, []).append(run.name)
    rows = []
    for names in (names for names in groups.values() if len(names) > 1):
        own = scores[scores["run"].isin(names) & scores["accuracy"].notna()]
        for (correction, kind), found in own.groupby(["correction", "score"], sort=False):
            if len(found) < 2:
                continue
            over = spread(found["accuracy"].tolist())
            rows.append(
                {
                    "runs": ", ".join(found["run"]),
                    "correction": correction,
                    "score": kind,
                    "count": over.runs,
                    "mean": over.mean,
                    "deviation": over.deviation,
                    "least": over.least,
                    "greatest": over.greatest,
                }
            )
    return pd.DataFrame(rows)


def _notes(runs: list[EvaluatedRun]) -> list[str]:
    """What differs between runs beside their profiles."""
    first, notes = runs[0], []
    for run in runs[1:]:
        mine, yours = run.metrics["protocol"], first.metrics["protocol"]
        different = sorted(name for name in {*mine, *yours} if mine.get(name) != yours.get(name))
        if different:
            notes.append(
                f"{run.name} was scored with other settings than {first.name}: "
                f"{', '.join(different)}"
            )
        datasets = [other.metrics.get("run", {}).get("dataset") for other in (run, first)]
        if datasets[0] != datasets[1]:
            notes.append(f"{run.name} was scored on other data than {first.name}")
    return notes
