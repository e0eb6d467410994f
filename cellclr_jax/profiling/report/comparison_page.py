"""Several runs on one page, in files that programs read, and on the console."""

import json
import sys
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from cellclr_jax.files import atomic_write, write_json, write_text
from cellclr_jax.pages import percent, render, script_json
from cellclr_jax.profiling.comparison import Comparison, EvaluatedRun, data_of
from cellclr_jax.profiling.report.metrics_json import Summary
from cellclr_jax.profiling.report.score_charts import score_charts
from cellclr_jax.profiling.report.verdict import score_rows

PAGE, RECORD, TABLE = "comparison.html", "comparison.json", "comparison.csv"
_TITLES = {"nsc": "NSC", "nscb": "NSCB"}


def write_comparison(out_dir: str | Path, found: Comparison) -> None:
    """Writes comparison.html, comparison.csv (one row a run, correction and score) and .json.

    Args:
      out_dir: the folder; created if missing.
      found: of `comparison.compare`.
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
    """Renders the page as one HTML file that loads nothing from anywhere."""
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
        charts=[script_json(chart) for chart in score_charts(scores)],
        seeds=[_seed_row(row) for row in _rows(found.seeds)],
        tests=[_test_row(row) for row in _rows(found.tests)],
        runs=[_run_row(run) for run in found.runs],
    )


def print_comparison(found: Comparison, *, file: TextIO | None = None) -> None:
    """Prints scores, the spread over seeds, and where two runs differ by more than chance."""
    out = file or sys.stdout
    width = max(len("run"), *(len(run.name) for run in found.runs))
    wide = max(len("correction"), *(len(name) for name in found.scores["correction"]))
    print(f"{'run':{width}}  {'correction':{wide}}  {'NSC':>17}  {'NSCB':>17}", file=out)
    for (run, correction), rows in found.scores.groupby(["run", "correction"], sort=False):
        cells = [_score(row) for row in _rows(rows)]
        print(f"{run:{width}}  {correction:{wide}}  {cells[0]:>17}  {cells[1]:>17}", file=out)
    for row in _rows(found.seeds):
        print(
            f"{_TITLES[row['score']]}, {row['correction']}, {row['count']} seeds: "
            f"{100 * row['mean']:.1f} ± {100 * row['deviation']:.1f} % ({row['runs']})",
            file=out,
        )
    for row in _rows(found.tests):
        print(
            f"{_TITLES[row['score']]}, {row['correction']}: only {row['first']} right "
            f"{row['first_only']}, only {row['second']} {row['second_only']}, p = {_p(row['p'])}"
            + (f" ({row['left_out']} queries are not shared)" if row["left_out"] else ""),
            file=out,
        )
    for note in found.notes:
        print(f"note: {note}", file=out)


def _heading(found: Comparison) -> str:
    """The run with the highest NSC of any correction, and how many there are."""
    defined = [
        row for row in _rows(found.scores) if row["score"] == "nsc" and row["accuracy"] is not None
    ]
    if not defined:
        return f"{len(found.runs)} runs, of which none has an NSC"
    if len({data_of(run) for run in found.runs}) > 1:
        return f"{len(found.runs)} runs, not all of them on the same data"
    highest = max(float(row["accuracy"]) for row in defined)
    best = [row for row in defined if float(row["accuracy"]) == highest]
    names = " and ".join(dict.fromkeys(row["run"] for row in best))
    return (
        f"Highest NSC of {len(found.runs)} runs: {names}, "
        f"{best[0]['correct']} of {best[0]['total']}"
    )


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as plain Python that JSON can hold; None for NaN."""
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=15))
    return rows


def _score(row: dict[str, Any]) -> str:
    """'88/103 (85.4 %)' or 'undefined'."""
    if row["accuracy"] is None:
        return "undefined"
    return f"{row['correct']}/{row['total']} ({percent(row['accuracy'])})"


def _p(value: object) -> str:
    """A p-value in three digits."""
    number = float(str(value))
    return "under 0.001" if number < 0.001 else f"{number:.3f}"


def _seed_row(row: dict[str, Any]) -> list[str]:
    mean, deviation, least, greatest = (
        f"{100 * float(row[name]):.1f}" for name in ("mean", "deviation", "least", "greatest")
    )
    kind = _TITLES[str(row["score"])]
    spread = [f"{mean} ± {deviation} %", f"{least} %", f"{greatest} %", str(row["count"])]
    return [str(row["runs"]), str(row["correction"]), kind, *spread]


def _test_row(row: dict[str, Any]) -> list[str]:
    names = [str(row[name]) for name in ("first", "second", "correction")]
    counts = [
        str(row[name]) for name in ("both", "first_only", "second_only", "neither", "left_out")
    ]
    return [*names, _TITLES[str(row["score"])], *counts, _p(row["p"])]


def _run_row(run: EvaluatedRun) -> list[str]:
    return [run.name, str(run.folder), data_of(run), str(run.metrics["run"].get("step", ""))]
