"""Charts of scores, of measures under each correction, and of the training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.pages import COLOURS, GREY, PALE_GRID, SYMBOLS, base_layout, label, percent
from cellclr_jax.profiling.measures import MEASURES
from cellclr_jax.profiling.report.metrics_json import Scores, Summary
from cellclr_jax.profiling.report.verdict import KINDS, counted, points

Chart = dict[str, Any]
"""A Plotly figure: 'data' and 'layout'."""
_ROW_HEIGHT, _FRAME_HEIGHT = 26, 110


def score_charts(scores: Scores) -> list[Chart]:
    """Draws a chart for each score that is defined somewhere: dots, intervals and chance."""
    rows = [(name, correction) for name, found in scores.items() for correction in found]
    charts = []
    for kind in KINDS:
        found = [(y, name, getattr(scores[name][c], kind)) for y, (name, c) in enumerate(rows)]
        found = [(y, name, score) for y, name, score in found if not score.undefined]
        if not found:
            continue
        known = [(y, 100 * s.chance) for y, _, s in found if s.chance is not None]
        chance = _dots(
            "shuffled mechanisms",
            known,
            [f"shuffled mechanisms: {x:.1f} %" for _, x in known],
            {"symbol": "line-ns", "size": 14, "line": {"width": 2, "color": GREY}},
        )
        traces = [chance]
        for number, name in enumerate(scores):
            own = [(y, s) for y, profiles, s in found if profiles == name]
            colour = COLOURS[number % len(COLOURS)]
            words = [f"{label(name)}: {counted(s)} ({percent(s.accuracy)})" for _, s in own]
            places = [(y, 100 * s.accuracy) for y, s in own]
            dots = _dots(name, places, words, {"color": colour, "size": 10})
            ends = [s.interval or (s.accuracy, s.accuracy) for _, s in own]
            dots["error_x"] = {
                "type": "data",
                "symmetric": False,
                "array": [100 * end[1] - x for end, (_, x) in zip(ends, places, strict=True)],
                "arrayminus": [x - 100 * end[0] for end, (_, x) in zip(ends, places, strict=True)],
                "color": colour,
                "thickness": 2,
                "width": 5,
            }
            traces.append(dots)
        titles = [f"{label(name)}, {label(correction)}" for name, correction in rows]
        charts.append(_rows_chart(traces, titles, f"{kind.upper()}, right answers in %"))
    return charts


def _dots(
    name: str, places: Sequence[tuple[int, float]], words: Sequence[str], marker: dict[str, Any]
) -> dict[str, Any]:
    """Marks at (row, per cent), with words on hover."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(name),
        "x": [x for _, x in places],
        "y": [y for y, _ in places],
        "marker": marker,
        "hoverinfo": "text",
        "hovertext": words,
    }


def _rows_chart(
    traces: list[dict[str, Any]], rows: Sequence[str], title: str = "", **settings: Any
) -> Chart:
    """Lays out marks in per cent, a titled row each."""
    layout = base_layout(
        _FRAME_HEIGHT + _ROW_HEIGHT * len(rows),
        title=title,
        margin={"l": 10, "r": 16, "t": 40, "b": 40},
        xaxis={"range": [-3, 103], "title": {"text": "" if title else "per cent"}},
        yaxis={
            "automargin": True,
            "range": [len(rows) - 0.5, -0.5],
            "tickvals": list(range(len(rows))),
            "ticktext": rows,
            "gridcolor": PALE_GRID,
        },
        **settings,
    )
    return {"data": traces, "layout": layout}


@dataclass(frozen=True)
class Corrections:
    """A table of measures under each correction, and its chart.

    Attributes:
      heads: the corrections.
      rows: title, then a text for each correction.
      chart: None where there is nothing to draw.
      reasons: why something is missing, and what to be careful with.
    """

    heads: list[str]
    rows: list[list[str]]
    chart: Chart | None
    reasons: list[str]


def compare_corrections(
    scores: Mapping[str, Summary], measures: Mapping[str, Mapping[str, Any]]
) -> Corrections:
    """Sets scores and measures under each correction side by side.

    Args:
      scores: by correction, of one kind of profiles.
      measures: summaries by correction and measure; any of them may be missing.
    """
    of = {name: measures.get(name, {}) for name in scores}
    shares = {kind.upper(): [getattr(scores[n], kind).accuracy for n in scores] for kind in KINDS}
    places: list[tuple[str, tuple[str, ...]]] = []
    for kind in KINDS:
        voters = {v for m in of.values() for v in _at(m, ("k_nearest", kind)) or () if v != "1"}
        for count in sorted(filter(str.isdecimal, voters), key=int):
            title = f"{kind.upper()}, {count} neighbours vote"
            places.append((title, ("k_nearest", kind, count, "accuracy")))
    places += [
        (title, (name, *place.split(".")))
        for name, measure in MEASURES.items()
        for place, title in measure.shares.items()
    ]
    for title, place in places:
        values = [_at(measured, place) for measured in of.values()]
        if any(value is not None for value in values):
            shares[title] = values
    rows = [[title, *map(percent, values)] for title, values in shares.items()]
    drops = [summary.drop for summary in scores.values()]
    rows.insert(2, ["Drop, points", *("–" if drop is None else points(drop) for drop in drops)])
    return Corrections(list(scores), rows, _chart(shares, list(scores)), _reasons(scores, of))


def _at(values: Any, place: Sequence[str]) -> Any:
    """Returns what lies at a place of nested mappings; None where one of them is missing."""
    for name in place:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _chart(
    shares: Mapping[str, Sequence[float | None]], corrections: Sequence[str]
) -> Chart | None:
    """A row a measure, a mark a correction."""
    if not any(value is not None for values in shares.values() for value in values):
        return None
    traces = []
    for i, correction in enumerate(corrections):
        known = [(y, t, v[i]) for y, (t, v) in enumerate(shares.items()) if v[i] is not None]
        words = [f"{title}, {label(correction)}: {percent(v)}" for _, title, v in known]
        colour, symbol = COLOURS[i % len(COLOURS)], SYMBOLS[i % len(SYMBOLS)]
        marker = {"color": colour, "symbol": symbol, "size": 11, "opacity": 0.85}
        traces.append(_dots(correction, [(y, 100 * (v or 0)) for y, _, v in known], words, marker))
    legend = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"}
    return _rows_chart(traces, list(shares), showlegend=True, legend=legend)


def _reasons(scores: Mapping[str, Summary], measures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Says what is undefined and why, and what asks for caution; the same of several once."""
    where: dict[str, list[str]] = {}
    for correction, summary in scores.items():
        found = [
            f"{kind.upper()} is undefined: {score.undefined}"
            for kind, score in (("nsc", summary.nsc), ("nscb", summary.nscb))
            if score.undefined
        ]
        for name, values in measures[correction].items():
            title = name.replace("_", " ").capitalize()
            if "undefined" in values:
                found.append(f"{title} is undefined: {values['undefined']}")
            if "caution" in values:
                found.append(f"{title}: {values['caution']}")
        for reason in found:
            where.setdefault(reason, []).append(correction)
    return [
        reason if len(names) == len(scores) else f"{', '.join(names)}: {reason}"
        for reason, names in where.items()
    ]


# Title of each chart of the training and its columns with their names in the legend.
_CURVES = (
    ("Loss", {"loss": "training", "validation_loss": "validation"}),
    (
        "Contrastive accuracy",
        {"contrastive_accuracy": "training", "validation_contrastive_accuracy": "validation"},
    ),
    ("Learning rate", {"lr": "learning rate"}),
)
_ONLINE = "online_"
_CURVE_HEIGHT = 280
# More points than a chart has pixels cannot be seen.
_MOST_POINTS = 1_000
# Up to so many points of a line are marked.
_MARKED = 60


def training_charts(history: pd.DataFrame | None) -> list[Chart]:
    """Draws loss, contrastive accuracy, learning rate and online scores over epochs.

    Args:
      history: one row an entry of `metrics.jsonl`: step, epoch, and numbers, NaN where the entry
        has none; None or empty: no charts.
    """
    if history is None or history.empty or "step" not in history:
        return []
    online = {str(c): str(c).removeprefix(_ONLINE) for c in history if str(c).startswith(_ONLINE)}
    across, unit = _epochs(history)
    charts = []
    for title, columns in (*_CURVES, ("Scores in training", online)):
        traces = [
            trace
            for colour, (column, name) in zip(COLOURS, columns.items(), strict=False)
            if column in history and (trace := _line(across, history[column], name, colour))
        ]
        if traces:
            layout = base_layout(
                _CURVE_HEIGHT,
                title=title,
                showlegend=len(traces) > 1,
                legend={"x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}
                | {"orientation": "h"},
                margin={"l": 10, "r": 12, "t": 50, "b": 40},
                xaxis={"title": {"text": unit}, "gridcolor": PALE_GRID},
                yaxis={"automargin": True},
            )
            charts.append({"data": traces, "layout": layout})
    return charts


def _epochs(history: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Returns where each row lies, and the unit: epochs where they are recorded, else steps.

    `epoch` is the number of the epoch that a row lies in; the last row of one lies at its end, so
    the most steps an epoch number are the steps of an epoch.
    """
    steps = pd.to_numeric(history["step"], errors="coerce").to_numpy(float)
    if "epoch" not in history:
        return steps, "step"
    epochs = pd.to_numeric(history["epoch"], errors="coerce").to_numpy(float)
    known = epochs > 0
    if not known.any() or not (steps[known] > 0).any():
        return steps, "step"
    return steps / np.max(steps[known] / epochs[known]), "epoch"


def _line(across: np.ndarray, values: pd.Series, name: str, colour: str) -> dict[str, Any] | None:
    """A line through what is known; None where nothing is."""
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(float)
    known = np.flatnonzero(np.isfinite(numbers) & np.isfinite(across))
    if not len(known):
        return None
    kept = known[:: -(-len(known) // _MOST_POINTS)]
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(kept) <= _MARKED else "lines",
        "name": label(name),
        "x": across[kept].round(4),
        "y": numbers[kept],
        "line": {"color": colour, "width": 2, "dash": "dot" if name == "validation" else "solid"},
        "marker": {"size": 5},
        "hovertemplate": "%{y:.4g}<extra></extra>",
    }
