"""Draws how the fields of a dataset without plates differ: a histogram a measure and channel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.data.counting import plural
from cellclr_jax.data.quality.look import (
    BARS,
    PALE_INK,
    UNKNOWN,
    base_layout,
    figure_json,
    safe,
)

_MEASURES = {"mean": "mean intensity", "focus": "focus", "saturated": "saturated"}
_BINS = 40
# Pixels: of a row of histograms, around all of them, and of the titles' letters.
_ROW, _MARGIN, _LETTERS = 180, 40, 12


def draw_histograms(fields: pd.DataFrame, channels: Sequence[str]) -> str:
    """Draws the cells of a field, and below a row a measure and a column a channel.

    Args:
      fields: the usable rows of the table of fields.
      channels: names, at least one.

    Returns:
      JSON for the page's script: 'data' and 'layout' of Plotly.
    """
    from plotly.subplots import make_subplots

    rows = [
        [(f"{title}, {channel}", _values(fields, f"{measure}_{channel}")) for channel in channels]
        for measure, title in _MEASURES.items()
    ]
    blank: list[tuple[str, np.ndarray]] = [("", np.empty(0))] * (len(channels) - 1)
    rows.insert(0, [("cells of a field", _values(fields, "cells")), *blank])
    figure = make_subplots(
        rows=len(rows),
        cols=len(channels),
        specs=[[{} if title else None for title, _ in row] for row in rows],
        subplot_titles=[safe(title) for row in rows for title, _ in row if title],
        vertical_spacing=0.4 / len(rows),
        horizontal_spacing=0.15 / len(channels),
    )
    unknown = []
    for y, row in enumerate(rows, start=1):
        for x, (title, values) in enumerate(row, start=1):
            if title and len(values):
                figure.add_trace(_bars(values), row=y, col=x)
            elif title:
                place = {"row": y, "col": x, "xref": "x domain", "yref": "y domain"}
                figure.add_annotation(text=UNKNOWN, x=0.5, y=0.5, showarrow=False, **place)
                unknown.append((y, x))
    figure.update_layout(
        base_layout(_ROW * len(rows) + _MARGIN, bargap=0.04),
        margin={"l": _MARGIN, "r": 0, "t": _MARGIN, "b": _MARGIN},
    )
    figure.update_annotations(font_size=_LETTERS, xanchor="center")
    axis = {"fixedrange": True, "tickfont_color": PALE_INK, "ticklabelstandoff": 5}
    figure.update_xaxes(**axis, showgrid=False, zeroline=False)
    figure.update_yaxes(**axis, nticks=4, gridcolor="#e6e8eb")
    for y, x in unknown:
        figure.update_xaxes(visible=False, row=y, col=x)
        figure.update_yaxes(visible=False, row=y, col=x)
    return figure_json(figure)


def _values(fields: pd.DataFrame, name: str) -> np.ndarray:
    """A measure where it is known."""
    values = fields[name].to_numpy(float) if name in fields else np.empty(0)
    return values[np.isfinite(values)]


def _bars(values: np.ndarray) -> dict[str, Any]:
    """Numbers of fields by value: the page holds them, not every field."""
    counts, edges = np.histogram(values, _BINS)
    return {
        "type": "bar",
        "x": (edges[:-1] + edges[1:]) / 2,
        "y": counts,
        "marker": {"color": BARS},
        "hovertext": [plural(count, "field") for count in counts.tolist()],
        "hovertemplate": "%{hovertext} at about %{x:,.4~g}<extra></extra>",
    }
