"""Writes an evaluation: metrics.json, profile tables, figures, report.html; prints its scores."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import pandas as pd
from threadpoolctl import threadpool_limits

from cellclr_jax.console import QUICK_S, Progress
from cellclr_jax.files import atomic_write, write_text
from cellclr_jax.profiling.evaluation import METRICS_JSON, Evaluation
from cellclr_jax.profiling.exports import check_formats, write_table
from cellclr_jax.profiling.moa import Score
from cellclr_jax.profiling.protocol import Options
from cellclr_jax.profiling.report import figures
from cellclr_jax.profiling.report.metrics_json import (
    UNFINISHED,
    Results,
    check_folder,
    check_settings,
    describe,
    describe_protocol,
    remove_earlier,
)
from cellclr_jax.profiling.report.page import render_report
from cellclr_jax.profiling.single_cells import CellEvaluation, cell_table, describe_cells
from cellclr_jax.profiling.single_cells.probes import TITLES

__all__ = [
    "REPORT",
    "Results",
    "check_settings",
    "measures_tables",
    "neighbours_table",
    "print_cells",
    "print_scores",
    "write_evaluation",
]

REPORT = "report.html"


def write_evaluation(
    out_dir: str | Path,
    results: Results,
    *,
    options: Options | None = None,
    overwrite: bool = False,
) -> dict[str, object]:
    """Writes metrics.json, profile tables, neighbours, measures, cells, figures and report.html.

    Files are written atomically, the slow figures and report.html last; `.evaluating` exists until
    all are complete. An earlier evaluation with the same settings is replaced.

    Args:
      out_dir: the folder; created if missing.
      results: of the evaluation.
      options: formats of the tables, and whether the report has a UMAP map.
      overwrite: also replaces an evaluation with other settings.

    Returns:
      The content of metrics.json.

    Raises:
      BadUse: the library of a table format is missing; the folder contains an evaluation with other
        settings, or files that no evaluation has written. Nothing is written then.
    """
    out, options, evaluation = Path(out_dir), options or Options(), results.evaluation
    check_formats(options.formats)
    out.mkdir(parents=True, exist_ok=True)
    profiles, listings, metrics = _profile_tables(results), {}, describe(results)
    planned: dict[str, str] = {}
    if evaluation is not None:
        planned = figures.plan(evaluation)
        metrics["figures_skipped"] = {file: reason for file, reason in planned.items() if reason}
        listings = {"neighbours": neighbours_table(evaluation), **measures_tables(evaluation)}
    files = {f"{stem}.{kind}" for stem in profiles for kind in options.formats}
    files |= {f"{stem}.csv" for stem in listings}
    files |= {file for file, reason in planned.items() if not reason}
    check_folder(out, metrics, {*files, REPORT}, overwrite=overwrite)
    # Raises for numbers that are not finite, before earlier files are removed.
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    remove_earlier(out, files)
    for stem, table in profiles.items():
        write_table(table, out / stem, options.formats)
    for stem, table in listings.items():
        with atomic_write(out / f"{stem}.csv") as part:
            table.to_csv(part, index=False)
    write_text(out / METRICS_JSON, text)
    _write_pages(out, results, planned, with_umap=options.umap)
    (out / UNFINISHED).unlink(missing_ok=True)
    return metrics


def _write_pages(
    out: Path, results: Results, planned: Mapping[str, str], *, with_umap: bool
) -> None:
    """Writes figures and report.html; `planned` is from `figures.plan`."""
    maps: figures.Maps = {}
    pngs: dict[str, bytes] = {}
    skipped = {file: reason for file, reason in planned.items() if reason}
    if evaluation := results.evaluation:
        steps = len(evaluation.scores) + len(planned) - len(skipped)
        show = Progress(steps, True, unit="figure", task="drawn", delay=QUICK_S)
        with show as progress, threadpool_limits(limits=1, user_api="blas"):  # as in `evaluate`
            maps = figures.place(evaluation, with_umap=with_umap, after=progress.step)
            for file, png in figures.draw(evaluation, maps):
                pngs[file] = png
                with atomic_write(out / file) as part:
                    part.write_bytes(png)
                progress.step()
    write_text(out / REPORT, render_report(results, pngs, skipped, maps))


def neighbours_table(evaluation: Evaluation) -> pd.DataFrame:
    """Returns one row a query: correction, score ('nsc', 'nscb'), treatment, neighbour, correct."""
    tables = [
        _labelled(score, correction, kind)
        for correction, scores in evaluation.scores.items()
        for kind, score in (("nsc", scores.nsc), ("nscb", scores.nscb))
        if not score.undefined
    ]
    empty = pd.DataFrame(columns=["correction", "score", "compound", "concentration", "correct"])
    return pd.concat(tables, ignore_index=True) if tables else empty


def print_scores(
    evaluation: Evaluation,
    *,
    name: str = "trained",
    baselines: Mapping[str, Evaluation] | None = None,
    file: TextIO | None = None,
) -> None:
    """Prints a table of counts and percentages, why scores are undefined, protocol and notes."""
    out = file or sys.stdout
    sets = {name: evaluation, **(baselines or {})}
    width = max(len("profiles"), *(len(key) for key in sets))
    wide = max(len(name) for entry in sets.values() for name in ("correction", *entry.scores))
    print(f"{'profiles':{width}}  {'correction':{wide}}  {'NSC':>17}  {'NSCB':>17}  drop", file=out)
    reasons: dict[str, list[str]] = {}
    rows = sum(len(entry.scores) for entry in sets.values())
    for key, entry in sets.items():
        for correction, scores in entry.scores.items():
            cells = [_cell(score) for score in (scores.nsc, scores.nscb)]
            drop = "undefined" if scores.drop is None else f"{scores.drop:.1f}"
            row = f"{key:{width}}  {correction:{wide}}  {cells[0]:>17}  {cells[1]:>17}  {drop}"
            print(row, file=out)
            for kind, score in (("NSC", scores.nsc), ("NSCB", scores.nscb)):
                if score.undefined:
                    reason = f"{kind} is undefined: {score.undefined}"
                    reasons.setdefault(reason, []).append(f"{key}, {correction}")
    for reason, where in reasons.items():
        print(reason if len(where) == rows else f"{'; '.join(where)}: {reason}", file=out)
    settings = describe_protocol(evaluation)
    del settings["left_out_computed"]
    settings["left_out_of_NSCB"] = settings.pop("left_out")
    parts = (f"{name.replace('_', ' ')} {_setting(value)}" for name, value in settings.items())
    print(f"protocol: {', '.join(parts)}", file=out)
    for note in evaluation.notes:
        # The reasons of undefined corrections are printed above.
        if " is undefined: " not in note:
            print(f"note: {note}", file=out)


def print_cells(cells: CellEvaluation, *, file: TextIO | None = None) -> None:
    """Prints the balanced accuracies of single cells as a table, or why there are none."""
    out, described = file or sys.stdout, describe_cells(cells)
    if cells.undefined:
        print(f"cells are not scored: {cells.undefined}", file=out)
    else:
        groups = f" by {cells.grouped_by}" if cells.grouped_by else ""
        print(
            f"{len(described['classes'])} classes by {described['label_column']}, "
            f"{described['cells']:,} cells, {described['folds']} folds{groups}; balanced accuracy, "
            f"chance is {100 * described['chance']:.1f} %",
            file=out,
        )
        width = max(len("features"), *(len(name) for name in cells.probes))
        kinds = list(next(iter(cells.probes.values())).scores)
        print(f"{'features':{width}}", *(f"{TITLES[kind]:>19}" for kind in kinds), file=out)
        for name, probe in cells.probes.items():
            shares = [f"{100 * probe.scores[kind].balanced_accuracy:.1f} %" for kind in kinds]
            print(f"{name:{width}}", *(f"{share:>19}" for share in shares), file=out)
    for note in described["notes"]:
        print(f"note: {note}", file=out)


def _profile_tables(results: Results) -> dict[str, pd.DataFrame]:
    """Returns the profile tables by file name."""
    evaluation, cells = results.evaluation, results.cells
    tables = {} if cells is None else {"cells": cell_table(cells, results.name)}
    if evaluation is not None:
        tables |= {"wells": evaluation.wells, "treatments": evaluation.treatments}
    return tables


def measures_tables(evaluation: Evaluation) -> dict[str, pd.DataFrame]:
    """Returns the table of each measure, with the rows of all corrections (column `correction`)."""
    found: dict[str, list[pd.DataFrame]] = {}
    for correction, scores in evaluation.scores.items():
        for name, measured in scores.measures.items():
            if measured.table is not None:
                found.setdefault(name, []).append(measured.table.assign(correction=correction))
    tables = {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}
    return {
        name: table[["correction", *(c for c in table if c != "correction")]]
        for name, table in tables.items()
    }


def _labelled(score: Score, correction: str, kind: str) -> pd.DataFrame:
    """Adds columns for correction and score to the neighbours of a score."""
    table = score.neighbours.copy()
    table.insert(0, "score", kind)
    table.insert(0, "correction", correction)
    return table


def _setting(value: object) -> str:
    """Formats the value of a setting."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return " + ".join(f"{name}: {of}" for name, of in value.items()) or "nothing"
    if isinstance(value, list):
        return " + ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(score: Score) -> str:
    """Formats a score, such as '88/103 (85.4 %)'."""
    if score.accuracy is None:
        return "undefined"
    return f"{score.correct}/{score.total} ({100 * score.accuracy:.1f} %)"
