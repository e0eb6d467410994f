"""How training went: a chart for each kind of number that a run writes down."""

import numpy as np
import pandas as pd

from cellclr_jax.data.quality.look import base_layout
from cellclr_jax.profiling.reporting.escaping import label
from cellclr_jax.profiling.reporting.figures import COLOURS

# Title of each chart and its columns with their names in the legend.
_CHARTS = (
    ("Loss", {"loss": "training", "validation_loss": "validation"}),
    (
        "Contrastive accuracy",
        {
            "contrastive_accuracy": "training",
            "validation_contrastive_accuracy": "validation",
        },
    ),
    ("Learning rate", {"lr": "learning rate"}),
)
_ONLINE = "online_"
_HEIGHT = 280
# More points than a chart has pixels are drawn for nobody.
_MOST_POINTS = 1_000


def training_charts(history: pd.DataFrame | None) -> list[dict[str, object]]:
    """Plotly figures over epochs: loss, contrastive accuracy, learning rate, online scores.

    Args:
      history: one row an entry of `metrics.jsonl`: step, epoch, and numbers, NaN where the entry
        has none; None or empty: no charts.
    """
    if history is None or history.empty or "step" not in history:
        return []
    online = {str(c): str(c).removeprefix(_ONLINE) for c in history if str(c).startswith(_ONLINE)}
    across, unit = _epochs(history)
    charts: list[dict[str, object]] = []
    for title, columns in (*_CHARTS, ("Scores in training", online)):
        traces = [
            trace
            for colour, (column, name) in zip(COLOURS, columns.items(), strict=False)
            if column in history and (trace := _line(across, history[column], name, colour))
        ]
        if traces:
            charts.append({"data": traces, "layout": _layout(title, unit, len(traces) > 1)})
    return charts


def _epochs(history: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Where each row lies, in epochs where they are told, else in steps.

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


def _line(
    across: np.ndarray, values: pd.Series, name: str, colour: str
) -> dict[str, object] | None:
    """A line through what is known; None where nothing is."""
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(float)
    known = np.flatnonzero(np.isfinite(numbers) & np.isfinite(across))
    if not len(known):
        return None
    kept = known[:: -(-len(known) // _MOST_POINTS)]
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(kept) <= 60 else "lines",
        "name": label(name),
        "x": across[kept].round(4),
        "y": numbers[kept],
        "line": {"color": colour, "width": 2, "dash": "dot" if name == "validation" else "solid"},
        "marker": {"size": 5},
        "hovertemplate": "%{y:.4g}<extra></extra>",
    }


def _layout(title: str, unit: str, legend: bool) -> dict[str, object]:
    """Axes of a chart."""
    return base_layout(
        _HEIGHT,
        title={"text": title, "font": {"size": 14}, "x": 0},
        showlegend=legend,
        legend={"x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom", "orientation": "h"},
        margin={"l": 10, "r": 12, "t": 50, "b": 40},
        xaxis={"title": {"text": unit}, "gridcolor": "#eef0f2", "zeroline": False},
        yaxis={"automargin": True, "gridcolor": "#dfe3e8", "zeroline": False},
    )
