"""Writes and prints a comparison of runs: comparison.html, .csv, .json and the console."""

import json
import sys
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from cellclr_jax.files import atomic_write, write_json, write_text
from cellclr_jax.pages import percent, render
from cellclr_jax.profiling.comparison import Comparison, EvaluatedRun, data_of
from cellclr_jax.profiling.report.metrics_json import Summary
from cellclr_jax.profiling.report.score_charts import score_charts
from cellclr_jax.profiling.report.verdict import score_rows

PAGE, RECORD, TABLE = "comparison.html", "comparison.json", "comparison.csv"


def write_comparison(out_dir: str | Path, found: Comparison) -> None:
    """Writes comparison.html, comparison.csv (one row a run, correction and score) and .json.

    Args:
      out_dir: the folder; created if missing.
      found: from `comparison.compare`.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    record = {
        "runs": [{"name": run.name, "folder": str(run.folder)} for run in found.runs],
        "scores": _rows(found.scores),
        "tests": _rows(found.tests),
        "seeds": _rows(found.seeds),
        "notes": found.notes,
    }
    page = render_comparison(found)
    with atomic_write(out / TABLE) as part:
        found.scores.to_csv(part, index=False)
    write_text(out / PAGE, page)
    write_json(out / RECORD, record)


def render_comparison(found: Comparison) -> str:
    """Renders the page as one self-contained HTML file, which requests nothing."""
    scores = {
        run.name: {name: Summary.from_json(both) for name, both in run.metrics["scores"].items()}
        for run in found.runs
    }
    return render(
        "profiling/report/comparison.html.jinja",
        title="CellCLR comparison",
        name="CellCLR comparison",
        heading=_heading(found),
        notes=found.notes,
        score_rows=score_rows(scores, {}),
        charts=score_charts(scores),
        seeds=[_seed_row(row) for row in _rows(found.seeds)],
        tests=[_test_row(row) for row in _rows(found.tests)],
        runs=[_run_row(run) for run in found.runs],
    )


def print_comparison(found: Comparison, *, file: TextIO | None = None) -> None:
    """Prints scores, their variation between seeds, and McNemar's test of each pair of runs."""
    out = file or sys.stdout
    width = max(len("run"), *(len(run.name) for run in found.runs))
    wide = max(len("correction"), *(len(name) for name in found.scores["correction"]))
    print(f"{'run':{width}}  {'correction':{wide}}  {'NSC':>17}  {'NSCB':>17}", file=out)
    for (run, correction), rows in found.scores.groupby(["run", "correction"], sort=False):
        cells = [_score(row) for row in _rows(rows)]
        print(f"{run:{width}}  {correction:{wide}}  {cells[0]:>17}  {cells[1]:>17}", file=out)
    for row in _rows(found.seeds):
        print(
            f"{row['score'].upper()}, {row['correction']}, {row['count']} seeds: "
            f"{100 * row['mean']:.1f} ± {100 * row['deviation']:.1f} % ({row['runs']})",
            file=out,
        )
    for row in _rows(found.tests):
        print(
            f"{row['score'].upper()}, {row['correction']}: only {row['first']} correct: "
            f"{row['first_only']}, only {row['second']}: {row['second_only']}, p = {_p(row['p'])}"
            + (f" ({row['left_out']} treatments are not in both)" if row["left_out"] else ""),
            file=out,
        )
    for note in found.notes:
        print(f"note: {note}", file=out)


def _heading(found: Comparison) -> str:
    """Names the run with the highest NSC under any correction."""
    defined = [
        row for row in _rows(found.scores) if row["score"] == "nsc" and row["accuracy"] is not None
    ]
    if not defined:
        return f"{len(found.runs)} runs without a defined NSC"
    if len({data_of(run) for run in found.runs}) > 1:
        return f"{len(found.runs)} runs on different data"
    highest = max(float(row["accuracy"]) for row in defined)
    best = [row for row in defined if float(row["accuracy"]) == highest]
    names = " and ".join(dict.fromkeys(row["run"] for row in best))
    return (
        f"Highest NSC of {len(found.runs)} runs: {names}, "
        f"{best[0]['correct']} of {best[0]['total']}"
    )


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns the rows as JSON values; None for NaN."""
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=15))
    return rows


def _score(row: dict[str, Any]) -> str:
    """Formats a score, such as '88/103 (85.4 %)'."""
    if row["accuracy"] is None:
        return "undefined"
    return f"{row['correct']}/{row['total']} ({percent(row['accuracy'])})"


def _p(value: float) -> str:
    """Formats a p-value with three decimals."""
    return "under 0.001" if value < 0.001 else f"{value:.3f}"


def _seed_row(row: dict[str, Any]) -> list[str]:
    mean, deviation, least, greatest = (
        f"{100 * row[name]:.1f}" for name in ("mean", "deviation", "least", "greatest")
    )
    spread = [f"{mean} ± {deviation}", least, greatest, str(row["count"])]
    return [row["runs"], row["correction"], row["score"].upper(), *spread]


def _test_row(row: dict[str, Any]) -> list[str]:
    counts = [
        str(row[name]) for name in ("both", "first_only", "second_only", "neither", "left_out")
    ]
    names = [row["first"], row["second"], row["correction"], row["score"].upper()]
    return [*names, *counts, _p(row["p"])]


def _run_row(run: EvaluatedRun) -> list[str]:
    return [run.name, str(run.folder), data_of(run), str(run.metrics["run"].get("step", ""))]
