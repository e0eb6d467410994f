"""Dots and intervals of all scores, beside what shuffled mechanisms score."""

from collections.abc import Mapping, Sequence

from cellclr_jax.data.quality.look import base_layout
from cellclr_jax.profiling.reporting.escaping import label
from cellclr_jax.profiling.reporting.figures import COLOURS
from cellclr_jax.profiling.reporting.json_values import is_undefined, pair, real
from cellclr_jax.profiling.reporting.neighbourhoods import KINDS
from cellclr_jax.profiling.reporting.verdict import (
    count_words,
    percent_words,
    profile_sets,
    score_of,
)

_ROW_HEIGHT, _FRAME_HEIGHT = 26, 110


def score_charts(metrics: Mapping[str, object]) -> list[dict[str, object]]:
    """A Plotly figure for each score that is defined somewhere: dots, intervals and chance."""
    sets = profile_sets(metrics)
    rows = [(name, correction) for name, scores in sets.items() for correction in scores]
    charts: list[dict[str, object]] = []
    for kind in KINDS:
        found = [score_of(sets[name], correction, kind) for name, correction in rows]
        if all(map(is_undefined, found)):
            continue
        traces = [
            _dots(name, [(r, s) for (r, s) in enumerate(found) if rows[r][0] == name], colour)
            for name, colour in zip(sets, COLOURS * len(sets), strict=False)
        ]
        charts.append({"data": [_chance(found), *traces], "layout": _layout(kind, rows)})
    return charts


def _dots(
    name: str, scores: Sequence[tuple[int, Mapping[str, object]]], colour: str
) -> dict[str, object]:
    """Accuracies and intervals of one kind of profiles."""
    kept = [(row, score) for row, score in scores if not is_undefined(score)]
    middles = [100 * (real(score, "accuracy") or 0.0) for _, score in kept]
    spans = [pair(score.get("interval")) for _, score in kept]
    ends = [s or (m / 100, m / 100) for s, m in zip(spans, middles, strict=True)]
    bar = {
        "type": "data",
        "symmetric": False,
        "array": [100 * end[1] - middle for end, middle in zip(ends, middles, strict=True)],
        "arrayminus": [middle - 100 * end[0] for end, middle in zip(ends, middles, strict=True)],
        "color": colour,
        "thickness": 2,
        "width": 5,
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(name),
        "x": middles,
        "y": [row for row, _ in kept],
        "error_x": bar,
        "marker": {"color": colour, "size": 10},
        "hoverinfo": "text",
        "hovertext": [
            f"{label(name)}: {count_words(score)} ({percent_words(score.get('accuracy'))})"
            for _, score in kept
        ],
    }


def _chance(scores: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """A tick where shuffled mechanisms score."""
    known = [(r, c) for r, s in enumerate(scores) if (c := real(s, "chance")) is not None]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [100 * chance for _, chance in known],
        "y": [row for row, _ in known],
        "marker": {
            "symbol": "line-ns",
            "size": 14,
            "line": {"width": 2, "color": "#7a8290"},
        },
        "hoverinfo": "text",
        "hovertext": [f"shuffled mechanisms: {100 * chance:.1f} %" for _, chance in known],
    }


def _layout(kind: str, rows: Sequence[tuple[str, str]]) -> dict[str, object]:
    """Axes of the chart of one score."""
    return base_layout(
        _FRAME_HEIGHT + _ROW_HEIGHT * len(rows),
        title={"text": f"{kind.upper()}, right answers in %", "font": {"size": 14}, "x": 0},
        margin={"l": 10, "r": 16, "t": 40, "b": 36},
        xaxis={"range": [-3, 103], "gridcolor": "#dfe3e8", "zeroline": False},
        yaxis={
            "automargin": True,
            "range": [len(rows) - 0.5, -0.5],
            "tickvals": list(range(len(rows))),
            "ticktext": [f"{label(name)}, {label(correction)}" for name, correction in rows],
            "showgrid": False,
            "zeroline": False,
        },
    )
