"""Compares evaluations: McNemar's test, seeds."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.data.columns import round_concentrations
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling.evaluation import METRICS_JSON

NEIGHBOURS = "neighbours.csv"
_SCORES = ("nsc", "nscb")
_AGREEMENT = ("both", "first_only", "second_only", "neither")
_NUMBERS = ("concentration", "neighbour_concentration", "similarity")
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
      name: in tables; no two runs have the same.
      folder: of the evaluation.
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
    """The result of `compare`.

    Attributes:
      runs: in the order given.
      scores: one row a run, correction and score: run, correction, score, correct, total,
        accuracy, low, high (NaN where undefined), undefined.
      tests: one row a pair of runs, correction and score: first, second, correction, score, both,
        first_only, second_only, neither, p (McNemar), left_out (queries of only one).
      seeds: one row a group of runs that differ only in their seed, correction and score: runs
        (their names), correction, score, count, mean, deviation (n - 1), least, greatest.
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
    folder = path if (path / METRICS_JSON).is_file() else _newest(path)
    try:
        metrics = _scored(folder)
        neighbours = pd.read_csv(
            folder / NEIGHBOURS,
            keep_default_na=False,
            na_values=dict.fromkeys(_NUMBERS, ""),
            dtype=dict.fromkeys(_TEXT, str),
        )
    except (OSError, ValueError) as error:
        raise BadData(f"{folder}: cannot be read ({error}): evaluate it again") from error
    neighbours["correct"] = neighbours.get("correct", pd.Series(dtype=str)).astype(str) == "True"
    found = EvaluatedRun(_name(path.resolve()), folder, metrics, neighbours, _config(folder))
    for correction, kind in itertools.product(metrics["scores"], _SCORES):
        if len(_answers(found, correction, kind)) != metrics["scores"][correction][kind]["total"]:
            raise BadData(
                f"{folder / NEIGHBOURS} does not hold what {METRICS_JSON} counts "
                f"({kind}, {correction}): evaluate it again"
            )
    return found


def _scored(folder: Path) -> dict[str, Any]:
    """Reads metrics.json of an evaluation of treatments; see `metrics_json.describe`."""
    path = folder / METRICS_JSON
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
    found = sorted(workdir.glob(f"eval/*/{METRICS_JSON}"), key=lambda path: path.stat().st_mtime)
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
        run if names.count(run.name) == 1 else replace(run, name=str(run.folder)) for run in runs
    ]


def _score_rows(run: EvaluatedRun) -> list[dict[str, Any]]:
    """One row a correction and score."""
    rows = []
    for correction, scores in run.metrics["scores"].items():
        for kind in _SCORES:
            score = scores[kind]
            low, high = score.get("interval", (None, None))
            row = {"run": run.name, "correction": correction, "score": kind}
            row |= {name: score[name] for name in ("correct", "total", "accuracy")}
            rows.append(row | {"low": low, "high": high, "undefined": score.get("undefined", "")})
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
            found = asdict(mcnemar(*answers))
            left_out = found.pop("not_in_first") + found.pop("not_in_second")
            if not sum(found[name] for name in _AGREEMENT):
                continue  # no treatment in common
            names = {"first": first.name, "second": second.name}
            which = {"correction": correction, "score": kind}
            rows.append(names | which | found | {"left_out": left_out})
    return pd.DataFrame(rows)


def _seeds(runs: list[EvaluatedRun], scores: pd.DataFrame) -> pd.DataFrame:
    """The spread over runs that differ only in their seed."""
    groups: dict[str, dict[Any, str]] = {}
    for run in runs:
        if run.config is not None:
            rest = {name: v for name, v in run.config.items() if name not in _OF_A_SEED}
            data = {name: run.metrics["run"].get(name) for name in _DATA}
            key = json.dumps([rest, run.metrics["protocol"], data], sort_keys=True)
            groups.setdefault(key, {}).setdefault(run.config.get("seed"), run.name)
    tables = []
    for names in (list(seeds.values()) for seeds in groups.values() if len(seeds) > 1):
        own = scores[scores["run"].isin(names) & scores["accuracy"].notna()]
        found = own.astype({"accuracy": float}).groupby(["correction", "score"], sort=False)
        table = found.agg(
            runs=("run", ", ".join),
            count=("accuracy", "size"),
            mean=("accuracy", "mean"),
            deviation=("accuracy", "std"),
            least=("accuracy", "min"),
            greatest=("accuracy", "max"),
        )
        tables.append(table[table["count"] > 1].reset_index())
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def data_of(run: EvaluatedRun) -> str:
    """An identifier of the dataset, or of the table of profiles, that a run was scored on."""
    details = run.metrics["run"]
    return str(details.get("dataset") or details.get("table_sha256") or details.get("table") or "")


def _notes(runs: list[EvaluatedRun]) -> list[str]:
    """Settings and data that differ between runs."""
    first, notes = runs[0], []
    for run in runs[1:]:
        mine, yours = run.metrics["protocol"], first.metrics["protocol"]
        if different := [
            name for name in sorted({*mine, *yours}) if mine.get(name) != yours.get(name)
        ]:
            listed = ", ".join(different)
            notes.append(f"{run.name} was scored with other settings than {first.name}: {listed}")
        if data_of(run) != data_of(first):
            notes.append(f"{run.name} was scored on other data than {first.name}")
    return notes


@dataclass(frozen=True)
class Agreement:
    """Counts of treatments by which of two runs has them right.

    Attributes:
      both: right in both.
      first_only: right only in the first.
      second_only: right only in the second.
      neither: wrong in both.
      p: of McNemar's exact test, two-sided: how often a fair coin divides `first_only` and
        `second_only` at least as unevenly; 1 where both are 0.
      not_in_second: queries of the first run only, which count nowhere else.
      not_in_first: of the second only.
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
    of one compound are assumed to be independent; they are not quite, so p is rather too small.

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
