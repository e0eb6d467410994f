"""Compares evaluations: scores, McNemar's test between runs, spread over seeds."""

import contextlib
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
from cellclr_jax.profiling.moa import name_treatment

NEIGHBOURS = "neighbours.csv"
_SCORES = ("nsc", "nscb")
_NUMBERS = ("concentration", "neighbour_concentration", "similarity")
# Columns of names, which may look like numbers.
_TEXT = [
    f"{prefix}{name}" for prefix in ("", "neighbour_") for name in ("compound", "moa", "batch")
]
# What runs of several seeds have in common besides config and protocol.
_DATA = ("dataset", "trained_on", "step", "checkpoint")
# Settings of a run that may differ between runs of several seeds.
_IGNORED_SETTINGS = ("seed", "data_dir", "data_access", "log_every", "online", "checkpoint")


@dataclass(frozen=True)
class EvaluatedRun:
    """One evaluation, read from its folder.

    Attributes:
      name: unique name for tables.
      folder: of the evaluation.
      metrics: content of metrics.json.
      neighbours: content of neighbours.csv.
      config: settings of the run; None for a table of profiles.
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
      runs: in the order of the arguments.
      scores: one row a run, correction and score: run, correction, score, correct, total,
        accuracy, low, high (NaN if undefined), undefined.
      tests: one row a pair of runs, correction and score: first, second, correction, score, both,
        first_only, second_only, neither, p (McNemar), left_out (queries of one run only).
      seeds: one row a group of runs that differ only in their seed, correction and score: runs
        (their names), correction, score, count, mean, deviation (n - 1), least, greatest.
      notes: warnings for the reader, such as settings that differ.
    """

    runs: list[EvaluatedRun]
    scores: pd.DataFrame
    tests: pd.DataFrame
    seeds: pd.DataFrame
    notes: list[str]


def compare(paths: Sequence[str | Path]) -> Comparison:
    """Reads and compares evaluations.

    Args:
      paths: work directories, of which the newest evaluation is read, or folders of evaluations.

    Raises:
      BadUse: fewer than two paths, a path given twice, or one without an evaluation of treatments.
      BadData: an evaluation cannot be read.
    """
    if len(paths) < 2:
        raise BadUse("--compare needs two runs or more")
    runs = [read_run(path) for path in paths]
    folders = [run.folder.resolve() for run in runs]
    if repeated := [folder for folder in folders if folders.count(folder) > 1]:
        raise BadUse(f"{repeated[0]} is given twice")
    names = [run.name for run in runs]
    runs = [r if names.count(r.name) == 1 else replace(r, name=str(r.folder)) for r in runs]
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
        metrics = _read_metrics(folder)
        neighbours = pd.read_csv(
            folder / NEIGHBOURS,
            keep_default_na=False,
            na_values=dict.fromkeys(_NUMBERS, ""),
            dtype=dict.fromkeys(_TEXT, str),
        )
    except (OSError, ValueError) as error:
        raise BadData(f"{folder}: cannot be read ({error}): evaluate it again") from error
    neighbours["correct"] = neighbours.get("correct", pd.Series(dtype=str)).astype(str) == "True"
    config = None
    with contextlib.suppress(OSError, ValueError, IndexError):  # not in a work directory
        config = json.loads((folder.resolve().parents[1] / "config.json").read_text("utf-8"))
    found = EvaluatedRun(_name(path.resolve()), folder, metrics, neighbours, config)
    for correction, kind in itertools.product(metrics["scores"], _SCORES):
        if len(_queries(found, correction, kind)) != metrics["scores"][correction][kind]["total"]:
            raise BadData(
                f"{folder / NEIGHBOURS} and {METRICS_JSON} count different numbers of queries "
                f"({kind}, {correction}): evaluate it again"
            )
    return found


def _read_metrics(folder: Path) -> dict[str, Any]:
    """Reads metrics.json of an evaluation of treatments; see `metrics_json.describe`."""
    path = folder / METRICS_JSON
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(metrics, dict) and "scores" not in metrics:
        raise BadUse(f"{folder} has no scores of treatments: there is nothing to compare")
    try:
        dict(metrics["protocol"]), dict(metrics["run"])
        for scores in metrics["scores"].values():
            for kind in _SCORES:
                scores[kind]["correct"], scores[kind]["total"], scores[kind]["accuracy"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadData(f"{path} is incomplete: evaluate it again") from error
    return metrics


def _name(path: Path) -> str:
    """Name of a work directory, or `run/step` for an evaluation in one."""
    parts = path.parts
    if "eval" in parts[1:]:
        place = len(parts) - 1 - parts[::-1].index("eval")
        return "/".join((parts[place - 1], *parts[place + 1 :]))
    return path.name


def _newest(workdir: Path) -> Path:
    """Folder of the newest evaluation in a work directory, preferably one of treatments."""
    found = sorted(workdir.glob(f"eval/*/{METRICS_JSON}"), key=lambda path: path.stat().st_mtime)
    found = [path for path in found if '"scores"' in path.read_text(encoding="utf-8")] or found
    if not found:
        raise BadUse(
            f"{workdir} has no evaluation: run python -m cellclr_jax.eval --workdir={workdir}"
        )
    return found[-1].parent


def _score_rows(run: EvaluatedRun) -> list[dict[str, Any]]:
    """Rows of `Comparison.scores`."""
    rows = []
    for correction, kind in itertools.product(run.metrics["scores"], _SCORES):
        score = run.metrics["scores"][correction][kind]
        low, high = score.get("interval", (None, None))
        row = {"run": run.name, "correction": correction, "score": kind}
        row |= {name: score[name] for name in ("correct", "total", "accuracy")}
        rows.append(row | {"low": low, "high": high, "undefined": score.get("undefined", "")})
    return rows


def _queries(run: EvaluatedRun, correction: str, kind: str) -> pd.DataFrame:
    """Queries of one score."""
    table = run.neighbours
    return table[(table["correction"] == correction) & (table["score"] == kind)]


def _tests(runs: list[EvaluatedRun]) -> pd.DataFrame:
    """McNemar's test of each pair of runs under the corrections that both have."""
    rows = []
    for first, second in itertools.combinations(runs, 2):
        shared = [name for name in first.metrics["scores"] if name in second.metrics["scores"]]
        for correction, kind in itertools.product(shared, _SCORES):
            queries = [_queries(run, correction, kind) for run in (first, second)]
            if any(table.empty for table in queries):
                continue
            found = mcnemar(*queries)
            if not found.both + found.first_only + found.second_only + found.neither:
                continue  # no common treatments
            counts = asdict(found)
            left_out = counts.pop("not_in_first") + counts.pop("not_in_second")
            names = {"first": first.name, "second": second.name}
            which = {"correction": correction, "score": kind}
            rows.append(names | which | counts | {"left_out": left_out})
    return pd.DataFrame(rows)


def _seeds(runs: list[EvaluatedRun], scores: pd.DataFrame) -> pd.DataFrame:
    """Spread over runs that differ only in their seed; one evaluation of each seed counts."""
    groups: dict[str, dict[Any, str]] = {}
    for run in runs:
        if run.config is not None:
            rest = {name: v for name, v in run.config.items() if name not in _IGNORED_SETTINGS}
            data = {name: run.metrics["run"].get(name) for name in _DATA}
            key = json.dumps([rest, run.metrics["protocol"], data], sort_keys=True)
            groups.setdefault(key, {}).setdefault(run.config.get("seed"), run.name)
    tables = []
    for names in (list(seeds.values()) for seeds in groups.values() if len(seeds) > 1):
        defined = scores[scores["run"].isin(names) & scores["accuracy"].notna()]
        found = defined.astype({"accuracy": float}).groupby(["correction", "score"], sort=False)
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
    """Identifies the dataset, or the table of profiles, that a run was scored on."""
    details = run.metrics["run"]
    return str(details.get("dataset") or details.get("table_sha256") or details.get("table") or "")


def _notes(runs: list[EvaluatedRun]) -> list[str]:
    """Settings and data that differ from those of the first run."""
    first, notes = runs[0], []
    for run in runs[1:]:
        one, other = run.metrics["protocol"], first.metrics["protocol"]
        if names := [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]:
            listed = ", ".join(names)
            notes.append(f"{run.name} was scored with other settings than {first.name}: {listed}")
        if data_of(run) != data_of(first):
            notes.append(f"{run.name} was scored on other data than {first.name}")
    return notes


@dataclass(frozen=True)
class Agreement:
    """Counts of treatments by the runs that are right, and McNemar's test.

    Attributes:
      both: right in both runs.
      first_only: right only in the first run.
      second_only: right only in the second run.
      neither: wrong in both runs.
      p: of McNemar's exact test, two-sided: probability that a fair coin divides `first_only` and
        `second_only` at least as unevenly; 1 if both are 0.
      not_in_second: queries of the first run only, not counted above.
      not_in_first: queries of the second run only, not counted above.
    """

    both: int
    first_only: int
    second_only: int
    neither: int
    p: float
    not_in_second: int = 0
    not_in_first: int = 0


def mcnemar(first: pd.DataFrame, second: pd.DataFrame) -> Agreement:
    """Compares the queries of two runs, treatment by treatment.

    McNemar 1947, "Note on the sampling error of the difference between correlated proportions or
    percentages", exact: only treatments on which the runs differ show which is better. The test
    assumes independent treatments; those of one compound are not quite, so p is rather too small.

    Args:
      first: one row a query: compound, concentration (NaN if unknown), correct (bool), such as
        `Score.neighbours`.
      second: the same of the other run, in any order.

    Raises:
      BadData: a column is missing, or a treatment is listed twice.
    """
    from scipy.stats import binomtest

    tables = [_rounded(table, name) for table, name in ((first, "first"), (second, "second"))]
    joined = tables[0].merge(tables[1], on=["compound", "concentration"], suffixes=("_1", "_2"))
    one, other = joined["correct_1"].to_numpy(bool), joined["correct_2"].to_numpy(bool)
    first_only, second_only = int((one & ~other).sum()), int((~one & other).sum())
    differing = first_only + second_only
    return Agreement(
        both=int((one & other).sum()),
        first_only=first_only,
        second_only=second_only,
        neither=int((~one & ~other).sum()),
        p=float(binomtest(first_only, differing).pvalue) if differing else 1.0,
        not_in_second=len(tables[0]) - len(joined),
        not_in_first=len(tables[1]) - len(joined),
    )


def _rounded(neighbours: pd.DataFrame, run: str) -> pd.DataFrame:
    """compound, concentration (rounded) and correct, one row a query."""
    names = ["compound", "concentration", "correct"]
    if missing := [name for name in names if name not in neighbours]:
        raise BadData(f"the queries of the {run} run have no column {', '.join(missing)}")
    table = neighbours[names].copy()
    table["concentration"] = round_concentrations(np.asarray(table["concentration"], np.float64))
    repeated = table.duplicated(names[:2])
    if repeated.any():
        name = name_treatment(table[repeated].iloc[0])
        raise BadData(f"{name} is listed twice in the {run} run: one row a query was expected")
    return table
