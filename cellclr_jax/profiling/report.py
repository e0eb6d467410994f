"""Writes an evaluation down: metrics.json, profile tables, figures, the HTML page, the console."""

import base64
import functools
import html
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

import pandas as pd
from threadpoolctl import threadpool_limits

from cellclr_jax.profiling import figures
from cellclr_jax.profiling.evaluation import (
    Evaluation,
    describe_protocol,
    describe_scores,
)
from cellclr_jax.profiling.moa import Score

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ccc; padding: .3rem .8rem; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
img { max-width: 100%; height: auto; }
.undefined { color: #6b4a00; }
"""


def write_evaluation(
    out_dir: str | Path,
    evaluation: Evaluation,
    *,
    name: str = "trained",
    baselines: Mapping[str, Evaluation] | None = None,
    details: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Writes metrics.json, wells and treatments, neighbours, figures and report.html.

    Each file is written under another name and then moved into place: whoever reads the folder
    finds a whole file or none.

    Args:
      out_dir: the folder; made where it is missing.
      evaluation: the profiles this is about.
      name: what they are called in the report.
      baselines: other profiles of the same cells ('untrained', 'intensity'), by name.
      details: what else belongs to the record (step, checkpoint, cells), JSON values; it goes to
        metrics["run"] and into the report.

    Returns:
      What was written to metrics.json.
    """
    out, baselines = Path(out_dir), dict(baselines or {})
    out.mkdir(parents=True, exist_ok=True)
    with threadpool_limits(limits=1, user_api="blas"):  # as in `evaluate`
        drawn, skipped = figures.draw(evaluation)
    metrics = describe(evaluation, name=name, baselines=baselines, details=details)
    metrics["figures_skipped"] = skipped
    page = render_report(metrics, drawn)
    # Where there is a metrics.json, all that it speaks of is there too: it goes first, comes last.
    (out / "metrics.json").unlink(missing_ok=True)
    for file, png in drawn.items():
        _write(out / file, functools.partial(Path.write_bytes, data=png))
    for file in skipped:
        (out / file).unlink(missing_ok=True)  # an earlier evaluation's figure would mislead
    _write(out / "wells.parquet", evaluation.wells.to_parquet)
    _write(out / "treatments.parquet", evaluation.treatments.to_parquet)
    table = neighbours_table(evaluation)
    _write(out / "neighbours.csv", lambda path: table.to_csv(path, index=False))
    _write(out / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    _write(out / "metrics.json", lambda path: path.write_text(text, encoding="utf-8"))
    return metrics


def describe(
    evaluation: Evaluation,
    *,
    name: str = "trained",
    baselines: Mapping[str, Evaluation] | None = None,
    details: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """What goes into metrics.json; see `write_evaluation`.

    Returns:
      {"profiles": name, "protocol": {…}, "scores": {correction: {"nsc": {"correct", "total",
      "accuracy"}, "nscb": {…}, "drop"}}, "baselines": {name: scores}, "baseline_protocols":
      {name: {…}} of those whose settings differ, "data": counts, "notes": [str], "run": details}.
      Accuracies are in [0, 1], the drop in percentage points; an undefined score is {"correct":
      null, "total": 0, "accuracy": null, "undefined": reason}.
    """
    baselines = baselines or {}
    notes = [*evaluation.notes]
    for baseline, other in baselines.items():
        notes += [f"{baseline}: {note}" for note in other.notes if note not in evaluation.notes]
    return {
        "profiles": name,
        "protocol": describe_protocol(evaluation),
        "scores": describe_scores(evaluation),
        "baselines": {key: describe_scores(other) for key, other in baselines.items()},
        "baseline_protocols": {
            key: describe_protocol(other)
            for key, other in baselines.items()
            if other.protocol != evaluation.protocol
        },
        "data": evaluation.data,
        "notes": notes,
        "run": dict(details or {}),
    }


def neighbours_table(evaluation: Evaluation) -> pd.DataFrame:
    """One row a query: correction, score ('nsc', 'nscb'), treatment, neighbour, right or not."""
    tables = [
        _labelled(score, correction, kind)
        for correction, scores in evaluation.scores.items()
        for kind, score in (("nsc", scores.nsc), ("nscb", scores.nscb))
        if not score.undefined
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def print_scores(
    evaluation: Evaluation,
    *,
    name: str = "trained",
    baselines: Mapping[str, Evaluation] | None = None,
    file: TextIO | None = None,
) -> None:
    """Prints the scores as a table: counts, percentages, and the reason where there is none."""
    out = file or sys.stdout
    sets = {name: evaluation, **(baselines or {})}
    width = max(len("profiles"), *(len(key) for key in sets))
    print(f"{'profiles':{width}}  {'correction':10}  {'NSC':>17}  {'NSCB':>17}  drop", file=out)
    reasons: dict[str, list[str]] = {}
    rows = sum(len(entry.scores) for entry in sets.values())
    for key, entry in sets.items():
        for correction, scores in entry.scores.items():
            cells = [_cell(score) for score in (scores.nsc, scores.nscb)]
            drop = "undefined" if scores.drop is None else f"{scores.drop:.1f}"
            row = f"{key:{width}}  {correction:10}  {cells[0]:>17}  {cells[1]:>17}  {drop}"
            print(row, file=out)
            for kind, score in (("NSC", scores.nsc), ("NSCB", scores.nscb)):
                if score.undefined:
                    reason = f"{kind} is undefined: {score.undefined}"
                    reasons.setdefault(reason, []).append(f"{key}, {correction}")
    for reason, where in reasons.items():
        print(reason if len(where) == rows else f"{'; '.join(where)}: {reason}", file=out)
    for note in evaluation.notes:
        # What makes a correction undefined has been said with its scores.
        if " is undefined: " not in note:
            print(f"note: {note}", file=out)


def render_report(metrics: Mapping[str, object], pngs: Mapping[str, bytes]) -> str:
    """The HTML page: scores, protocol, data, notes, figures, in one file without scripts.

    Args:
      metrics: what `describe` returns.
      pngs: figures by file name; they are laid into the page.
    """
    sets = {str(metrics["profiles"]): metrics["scores"], **_mapping(metrics["baselines"])}
    rows = [
        _score_row(name, correction, _mapping(entry))
        for name, scores in sets.items()
        for correction, entry in _mapping(scores).items()
    ]
    head = "".join(
        f"<th>{title}</th>" for title in ("Profiles", "Correction", "NSC", "NSCB", "Drop (points)")
    )
    body = [
        "<h1>Mechanism of action by nearest neighbour</h1>",
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>",
        "<p>NSC: the nearest treatment of another compound has the same mechanism. NSCB: of "
        "another compound and another experimental batch. Drop: NSC − NSCB, in percentage points; "
        "a large drop says that profiles resemble their batch.</p>",
        *_section("Notes", _list(metrics["notes"])),
        *_section("Protocol", _definitions(_mapping(metrics["protocol"]))),
        *_section("Data", _definitions(_mapping(metrics["data"]))),
        *_section("Run", _definitions(_mapping(metrics["run"]))),
        "<h2>Figures</h2>",
        *(_image(file, png) for file, png in pngs.items()),
        *(
            f"<p class='undefined'>{_escape(file)} was not drawn: {_escape(reason)}</p>"
            for file, reason in _mapping(metrics.get("figures_skipped", {})).items()
        ),
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>CellCLR evaluation</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _labelled(score: Score, correction: str, kind: str) -> pd.DataFrame:
    """A score's neighbours with the correction and the score's name in front."""
    table = score.neighbours.copy()
    table.insert(0, "score", kind)
    table.insert(0, "correction", correction)
    return table


def _cell(score: Score) -> str:
    """'88/103 (85.4 %)' or 'undefined'."""
    if score.accuracy is None:
        return "undefined"
    return f"{score.correct}/{score.total} ({100 * score.accuracy:.1f} %)"


def _score_row(name: str, correction: str, entry: Mapping[str, object]) -> str:
    """One row of the page's table of scores."""
    cells = []
    for kind in ("nsc", "nscb"):
        score = _mapping(entry[kind])
        if "undefined" in score:
            cells.append(f"<td class='undefined'>undefined: {_escape(score['undefined'])}</td>")
        else:
            percent = f"{100 * float(str(score['accuracy'])):.1f} %"
            count = f"{score['correct']}/{score['total']}"
            cells.append(f"<td class='number'>{count} ({percent})</td>")
    drop = "undefined" if entry["drop"] is None else f"{float(str(entry['drop'])):.1f}"
    return (
        f"<tr><td>{_escape(name)}</td><td>{_escape(correction)}</td>{''.join(cells)}"
        f"<td class='number'>{drop}</td></tr>"
    )


def _section(title: str, content: str) -> list[str]:
    """A heading and its content; nothing where there is none."""
    return [f"<h2>{title}</h2>", content] if content else []


def _list(items: object) -> str:
    """An unordered list."""
    entries = "".join(f"<li>{_escape(item)}</li>" for item in list(items))  # type: ignore[call-overload]
    return f"<ul>{entries}</ul>" if entries else ""


def _definitions(values: Mapping[str, object]) -> str:
    """A table of names and values."""
    rows = "".join(
        f"<tr><td>{_escape(key.replace('_', ' '))}</td><td>{_escape(_plain(value))}</td></tr>"
        for key, value in values.items()
    )
    return f"<table>{rows}</table>" if rows else ""


def _plain(value: object) -> str:
    """A setting in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _image(file: str, png: bytes) -> str:
    """A figure within the page."""
    data = base64.b64encode(png).decode("ascii")
    return f"<p><img alt='{_escape(file)}' src='data:image/png;base64,{data}'></p>"


def _escape(value: object) -> str:
    """Text that is safe in HTML, attributes included."""
    return html.escape(str(value), quote=True)


def _mapping(value: object) -> Mapping[str, object]:
    """The value, known to be a JSON object."""
    if not isinstance(value, Mapping):
        raise TypeError(f"a mapping was expected, not {type(value).__name__}")
    return value


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Writes beside `path`, then moves it there."""
    # The process in the name: two evaluations of one step do not write into one file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
