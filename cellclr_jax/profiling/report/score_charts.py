"""Charts of scores, of measures under each correction, and of the training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.pages import COLOURS, GREY, PALE_GRID, SYMBOLS, base_layout, label, percent
from cellclr_jax.profiling.measures import MEASURES
from cellclr_jax.profiling.report.metrics_json import Scores, Summary
from cellclr_jax.profiling.report.verdict import KINDS, counted, points

Chart = dict[str, Any]
"""A Plotly figure: 'data' and 'layout'."""
# Pixels: of a row, and of title and axis together.
_ROW_HEIGHT, _FRAME_HEIGHT = 26, 120


def score_charts(scores: Scores) -> list[Chart]:
    """Draws NSC and NSCB, if any is defined: accuracy, confidence interval and chance level."""
    rows = [(name, correction) for name, found in scores.items() for correction in found]
    charts = []
    for kind in KINDS:
        found = [(y, name, getattr(scores[name][c], kind)) for y, (name, c) in enumerate(rows)]
        found = [(y, name, score) for y, name, score in found if not score.undefined]
        if not found:
            continue
        chance = [(y, 100 * s.chance) for y, _, s in found if s.chance is not None]
        marker = {"symbol": "line-ns", "size": 14, "line": {"width": 2, "color": GREY}}
        traces = [_dots("chance", chance, [f"chance: {x:.1f} %" for _, x in chance], marker)]
        for number, name in enumerate(scores):
            own = [(y, s) for y, profiles, s in found if profiles == name]
            texts = [f"{label(name)}: {counted(s)} ({percent(s.accuracy)})" for _, s in own]
            places = [(y, 100 * s.accuracy) for y, s in own]
            colour = COLOURS[number % len(COLOURS)]
            dots = _dots(name, places, texts, {"color": colour, "size": 10})
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
        charts.append(_rows_chart(traces, titles, f"{kind.upper()} accuracy (%)"))
    return charts


def _dots(
    name: str, places: Sequence[tuple[int, float]], hover: Sequence[str], marker: dict[str, Any]
) -> dict[str, Any]:
    """Markers at (row, percent)."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(name),
        "x": [x for _, x in places],
        "y": [y for y, _ in places],
        "marker": marker,
        "hoverinfo": "text",
        "hovertext": hover,
    }


def _rows_chart(
    traces: list[dict[str, Any]], rows: Sequence[str], axis: str, **settings: Any
) -> Chart:
    """Makes a chart of percentages with named rows."""
    layout = base_layout(
        _FRAME_HEIGHT + _ROW_HEIGHT * len(rows),
        margin={"l": 10, "r": 16, "t": 40, "b": 50},
        xaxis={"range": [-3, 103], "title": {"text": axis}},
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


def compare_corrections(
    scores: Mapping[str, Summary], measures: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Compares scores and measures under each correction.

    Args:
      scores: by correction, of one set of profiles.
      measures: summaries by correction and measure; any may be missing.

    Returns:
      heads: the corrections; rows: title, then a text for each correction; chart: None if no value
      is known; reasons: why values are undefined, and cautions.
    """
    of = {name: measures.get(name, {}) for name in scores}
    shares = {
        f"{kind.upper()} accuracy": [getattr(scores[n], kind).accuracy for n in scores]
        for kind in KINDS
    }
    places: list[tuple[str, tuple[str, ...]]] = []
    for kind in KINDS:
        counts = {k for m in of.values() for k in _at(m, ("k_nearest", kind)) or () if k != "1"}
        for count in sorted(filter(str.isdecimal, counts), key=int):
            title = f"{kind.upper()} accuracy, k = {count}"
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
    drops = ["–" if s.drop is None else points(s.drop) for s in scores.values()]
    rows.insert(2, ["Drop (percentage points)", *drops])
    return {
        "heads": list(scores),
        "rows": rows,
        "chart": _comparison_chart(shares, list(scores)),
        "reasons": _reasons(scores, of),
    }


def _at(values: Any, place: Sequence[str]) -> Any:
    """Looks up nested keys; None if one is missing."""
    for name in place:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _comparison_chart(
    shares: Mapping[str, Sequence[float | None]], corrections: Sequence[str]
) -> Chart | None:
    """Makes a chart with a row per measure and a marker per correction; None without values."""
    if not any(value is not None for values in shares.values() for value in values):
        return None
    traces = []
    for i, correction in enumerate(corrections):
        known = [(y, t, v[i]) for y, (t, v) in enumerate(shares.items()) if v[i] is not None]
        texts = [f"{title}, {label(correction)}: {percent(v)}" for _, title, v in known]
        colour, symbol = COLOURS[i % len(COLOURS)], SYMBOLS[i % len(SYMBOLS)]
        marker = {"color": colour, "symbol": symbol, "size": 11, "opacity": 0.85}
        traces.append(_dots(correction, [(y, 100 * (v or 0)) for y, _, v in known], texts, marker))
    legend = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"}
    return _rows_chart(traces, list(shares), "Value (%)", showlegend=True, legend=legend)


def _reasons(scores: Mapping[str, Summary], measures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lists why values are undefined, and cautions; repeated ones once."""
    where: dict[str, list[str]] = {}
    for correction, summary in scores.items():
        found = [
            f"{kind.upper()} is undefined: {getattr(summary, kind).undefined}"
            for kind in KINDS
            if getattr(summary, kind).undefined
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


# Title of each training chart, and its columns with their names in the legend.
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
# A chart has fewer pixels than this many points.
_MOST_POINTS = 1_000
# Lines of up to this many points have markers.
_MOST_MARKERS = 60


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
    for title, columns in (*_CURVES, ("Scores during training", online)):
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
                margin={"l": 10, "r": 12, "t": 50, "b": 45},
                xaxis={"title": {"text": unit}, "gridcolor": PALE_GRID},
                yaxis={"automargin": True},
            )
            charts.append({"data": traces, "layout": layout})
    return charts


def _epochs(history: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Returns the position of each row and its unit: epochs if recorded, otherwise steps.

    `epoch` is the number of the current epoch, from 1, and each epoch ends with a row, so the
    largest ratio of step to epoch is the number of steps per epoch.
    """
    steps = pd.to_numeric(history["step"], errors="coerce").to_numpy(float)
    if "epoch" not in history:
        return steps, "Step"
    epochs = pd.to_numeric(history["epoch"], errors="coerce").to_numpy(float)
    known = epochs > 0
    if not known.any() or not (steps[known] > 0).any():
        return steps, "Step"
    return steps / np.max(steps[known] / epochs[known]), "Epoch"


def _line(across: np.ndarray, values: pd.Series, name: str, colour: str) -> dict[str, Any] | None:
    """Makes a line through the finite values; None if there are none."""
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(float)
    known = np.flatnonzero(np.isfinite(numbers) & np.isfinite(across))
    if not len(known):
        return None
    shown = known[:: -(-len(known) // _MOST_POINTS)]
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(shown) <= _MOST_MARKERS else "lines",
        "name": label(name),
        "x": across[shown].round(4),
        "y": numbers[shown],
        "line": {"color": colour, "width": 2, "dash": "dot" if name == "validation" else "solid"},
        "marker": {"size": 5},
        "hovertemplate": "%{y:.4g}<extra></extra>",
    }
