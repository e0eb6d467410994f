"""Compares evaluations: McNemar's test, seeds."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.data.columns import round_concentrations
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling.report.metrics_json import METRICS

NEIGHBOURS = "neighbours.csv"
_SCORES = ("nsc", "nscb")
# Names that may look like numbers.
_TEXT = [f"{whose}{name}" for whose in ("", "neighbour_") for name in ("compound", "moa", "batch")]
# What else runs of several seeds have in common; of one seed, one evaluation counts.
_DATA = ("dataset", "trained_on", "step", "checkpoint")
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
    scores = scores.astype({"correct": "Int64", "total": "Int64"})
    return Comparison(runs, scores, _tests(runs), _seeds(runs, scores), _notes(runs))


def read_run(path: str | Path) -> EvaluatedRun:
    """Reads one evaluation; see `compare`."""
    path = Path(path)
    if not path.is_dir():
        raise BadUse(f"{path}: no such folder")
    folder = path if (path / METRICS).is_file() else _newest(path)
    try:
        metrics = _scored(folder)
        neighbours = pd.read_csv(
            folder / NEIGHBOURS,
            keep_default_na=False,
            na_values={"neighbour_concentration": "", "similarity": ""},
            dtype=dict.fromkeys(_TEXT, str),
        )
    except (OSError, ValueError) as error:
        raise BadData(f"{folder}: cannot be read ({error}): evaluate it again") from error
    neighbours["correct"] = neighbours.get("correct", pd.Series(dtype=str)).astype(str) == "True"
    found = EvaluatedRun(_name(path.resolve()), folder, metrics, neighbours, _config(folder))
    for correction, kind in itertools.product(metrics["scores"], _SCORES):
        if len(_answers(found, correction, kind)) != metrics["scores"][correction][kind]["total"]:
            raise BadData(
                f"{folder / NEIGHBOURS} does not hold what {METRICS} counts ({kind}, {correction}):"
                " evaluate it again"
            )
    return found


def _scored(folder: Path) -> dict[str, Any]:
    """metrics.json of an evaluation of treatments, of the form that `record.describe` gives it."""
    path = folder / METRICS
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(metrics, dict) and "scores" not in metrics:
        raise BadUse(f"{folder} scores no treatments: there is nothing to compare")
    try:
        dict(metrics["protocol"]), dict(metrics["run"])
        for scores in metrics["scores"].values():
            for kind in _SCORES:
                scores[kind]["correct"], scores[kind]["total"], scores[kind]["accuracy"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadData(f"{path} is not whole: evaluate it again") from error
    return metrics


def _name(path: Path) -> str:
    """Of a work directory its own; of an evaluation within one `run/step`."""
    parts = path.parts
    if "eval" in parts[1:]:
        place = len(parts) - 1 - parts[::-1].index("eval")
        return "/".join((parts[place - 1], *parts[place + 1 :]))
    return path.name


def _newest(workdir: Path) -> Path:
    """The evaluation of a work directory that was written last, of treatments if there is one."""
    found = sorted(workdir.glob(f"eval/*/{METRICS}"), key=lambda path: path.stat().st_mtime)
    found = [path for path in found if '"scores"' in path.read_text(encoding="utf-8")] or found
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
            if not found.both + found.first_only + found.second_only + found.neither:
                continue  # no treatment in common
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
    groups: dict[str, dict[Any, str]] = {}
    for run in runs:
        if run.config is not None:
            rest = {name: v for name, v in run.config.items() if name not in _OF_A_SEED}
            data = {name: run.metrics["run"].get(name) for name in _DATA}
            key = json.dumps([rest, run.metrics["protocol"], data], sort_keys=True)
            groups.setdefault(key, {}).setdefault(run.config.get("seed"), run.name)
    rows = []
    for names in (list(seeds.values()) for seeds in groups.values() if len(seeds) > 1):
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


def data_of(run: EvaluatedRun) -> str:
    """What tells one dataset, or table of profiles, from others."""
    told = run.metrics["run"]
    return str(told.get("dataset") or told.get("table_sha256") or told.get("table") or "")


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
        if data_of(run) != data_of(first):
            notes.append(f"{run.name} was scored on other data than {first.name}")
    return notes


@dataclass(frozen=True)
class Agreement:
    """How two runs' answers agree.

    Attributes:
      both: treatments that both have right.
      first_only: that the first alone has right.
      second_only: that the second alone has right.
      neither: that both have wrong.
      p: of McNemar's exact test, two-sided: how often a fair coin divides `first_only` and
        `second_only` at least as unevenly; 1 where both are 0.
      not_in_second: treatments that are queries of the first run alone, and count nowhere else.
      not_in_first: of the second alone.
    """

    both: int
    first_only: int
    second_only: int
    neither: int
    p: float
    not_in_second: int = 0
    not_in_first: int = 0


def mcnemar(first: pd.DataFrame, second: pd.DataFrame) -> Agreement:
    """Compares the answers of two runs, treatment by treatment.

    McNemar 1947, "Note on the sampling error of the difference between correlated proportions or
    percentages", exact: only treatments on which the runs differ say which is better. Treatments
    of one compound are taken for independent, which they are not quite: p is too
    small, if anything.

    Args:
      first: one row a query: compound, concentration, correct (bool); `Score.neighbours`.
      second: the same of the other run, in any order.

    Returns:
      See `Agreement`.

    Raises:
      BadData: a column is missing, or a treatment is listed twice.
    """
    from scipy.stats import binomtest

    answers = [
        _shared_answers(table, name) for table, name in ((first, "first"), (second, "second"))
    ]
    joined = answers[0].merge(answers[1], on=["compound", "concentration"], suffixes=("_1", "_2"))
    one, other = joined["correct_1"].to_numpy(bool), joined["correct_2"].to_numpy(bool)
    first_only, second_only = int((one & ~other).sum()), int((~one & other).sum())
    differing = first_only + second_only
    return Agreement(
        both=int((one & other).sum()),
        first_only=first_only,
        second_only=second_only,
        neither=int((~one & ~other).sum()),
        p=float(binomtest(first_only, differing).pvalue) if differing else 1.0,
        not_in_second=len(answers[0]) - len(joined),
        not_in_first=len(answers[1]) - len(joined),
    )


def _shared_answers(neighbours: pd.DataFrame, which: str) -> pd.DataFrame:
    """compound, concentration (rounded) and correct, one row a query."""
    names = ["compound", "concentration", "correct"]
    if missing := [name for name in names if name not in neighbours]:
        raise BadData(f"the answers of the {which} run have no column {', '.join(missing)}")
    table = neighbours[names].copy()
    table["concentration"] = round_concentrations(np.asarray(table["concentration"], np.float64))
    repeated = table.duplicated(names[:2])
    if repeated.any():
        row = table[repeated].iloc[0]
        raise BadData(
            f"{row['compound']!r} at {row['concentration']:g} is listed twice in the answers of "
            f"the {which} run: one row a query was expected"
        )
    return table


@dataclass(frozen=True)
class Spread:
    """Accuracies of several runs.

    Attributes:
      runs: how many.
      mean: their mean.
      deviation: their standard deviation (n - 1); None for one run.
      least: the smallest.
      greatest: the largest.
    """

    runs: int
    mean: float
    deviation: float | None
    least: float
    greatest: float


def spread(accuracies: Sequence[float]) -> Spread:
    """Mean, standard deviation, least and greatest.

    Args:
      accuracies: [R] of the runs, in [0, 1].

    Raises:
      ValueError: there are none.
    """
    values = np.asarray(accuracies, np.float64)
    if not len(values):
        raise ValueError("no accuracies were given")
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    return Spread(
        len(values), float(values.mean()), deviation, float(values.min()), float(values.max())
    )
