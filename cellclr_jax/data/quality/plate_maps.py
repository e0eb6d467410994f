"""Draws all plates at a glance: a square a well, or a square a field within its well."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.data.quality.look import (
    BACKGROUND,
    MARK,
    PALE_INK,
    SCALE,
    SKIPPED,
    base_layout,
    figure_json,
    safe,
    short,
)
from cellclr_jax.data.quality.plate_grid import PlateGrid, row_name

# Colours span these percentiles: one blank or burnt well does not make all others one colour.
_SPAN = (1.0, 99.0)
# Wells of this side have their row's letter and their column's number at each.
_ROOMY = 15.0
# The least side of a square with a line around it; the least width of the line between wells.
_LINED = 6.0
# A plate's name: pixels of its letters in large and in small tiles, and of one letter of them.
_LETTERS, _SMALL_LETTERS, _LETTER_SHARE = 13, 10, 0.58
# Around the plates in pixels: letters and numbers of rows and columns, the scale of colours.
_LEFT, _RIGHT, _TOP, _BOTTOM = 26, 84, 4, 24
# Marks of single fields; beyond hundreds of them the colours say it.
_MOST_MARKS = 500


def draw_wells(grid: PlateGrid, wells: pd.DataFrame, measures: Mapping[str, str]) -> str:
    """Draws a square a well, coloured by one measure at a time.

    Args:
      grid: of the plates.
      wells: one row a well: `plate` (its number in the grid), `row`, `column` (int, from 0),
        `label` (shown on hover) and the measures.
      measures: titles by column; the page lets the reader choose one, the first one is shown.

    Returns:
      JSON for the page's script: 'data' and 'layout' of Plotly, and for the words on hover
      'labels' of wells, 'index' [rows][columns] among them (-1: none) and 'notes' [rows][columns].
    """
    numbered = wells.assign(well=np.arange(len(wells)), part=0, note="")
    return _draw(grid, numbered, measures, (1, 1), [], {"labels": wells["label"].tolist()})


def draw_fields(grid: PlateGrid, fields: pd.DataFrame, measures: Mapping[str, str]) -> str:
    """Draws a square a field within its well, the fields in reading order.

    Args:
      grid: of the plates.
      fields: one row a field: `plate`, `row`, `column`, `well` (its row in `draw_wells`), `part`
        (its number in the well), `note` (shown on hover), `outlier`, `skipped` (why it has a mark;
        '' for none) and the measures.
      measures: as in `draw_wells`.

    Returns:
      As `draw_wells`, whose labels it shares.
    """
    number = int(fields["part"].max()) + 1
    across = math.ceil(math.sqrt(number))
    parts = (math.ceil(number / across), across)
    marks = [
        _marks(grid, fields[fields[column] != ""], column, parts, symbol, colour, width)
        for column, symbol, colour, width in (
            ("skipped", "x-thin-open", SKIPPED, 2),
            ("outlier", "circle-open", "white", 5),  # the ring is seen on every colour
            ("outlier", "circle-open", MARK, 2.5),
        )
    ]
    return _draw(grid, fields, measures, parts, marks, {})


def _draw(
    grid: PlateGrid,
    squares: pd.DataFrame,
    measures: Mapping[str, str],
    parts: tuple[int, int],
    marks: list[dict[str, Any]],
    extra: dict[str, Any],
) -> str:
    """The figure: one heatmap a measure, of which one is seen."""
    import plotly.graph_objects as go

    shape = grid.size[0] * parts[0], grid.size[1] * parts[1]
    y, x = _positions(grid, squares, parts)
    index = np.full(shape, -1)
    index[y, x] = squares["well"]
    notes = np.full(shape, "", object)
    notes[y, x] = squares["note"]
    traces: list[dict[str, Any]] = []
    for column, title in measures.items():
        values = np.full(shape, np.nan, np.float32)
        values[y, x] = squares[column]
        traces.append(_heatmap(grid, values, title, parts, seen=not traces))
    extra |= {"index": index.tolist(), "notes": notes.tolist() if squares["note"].any() else []}
    return figure_json(go.Figure([*traces, *marks], _layout(grid, parts)), extra)


def _positions(
    grid: PlateGrid, squares: pd.DataFrame, parts: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each square in the matrix of all squares."""
    top, left = grid.corner(squares["plate"].to_numpy())
    down, right = np.divmod(squares["part"].to_numpy(), parts[1])
    y = (top + squares["row"].to_numpy()) * parts[0] + down
    x = (left + squares["column"].to_numpy()) * parts[1] + right
    return y, x


def _heatmap(
    grid: PlateGrid, values: np.ndarray, title: str, parts: tuple[int, int], *, seen: bool
) -> dict[str, Any]:
    """One measure; squares are centred at (their number + 1/2) / parts."""
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, _SPAN) if len(known) else (0.0, 1.0)
    line = 1 if grid.side / max(parts) >= _LINED else 0
    return {
        "type": "heatmap",
        "z": values,
        "x0": 0.5 / parts[1],
        "dx": 1 / parts[1],
        "y0": 0.5 / parts[0],
        "dy": 1 / parts[0],
        "zmin": float(low),
        "zmax": float(high) if high > low else float(low) + 1,
        "colorscale": SCALE,
        "xgap": line,
        "ygap": line,
        "hoverongaps": False,
        "hovertemplate": f"%{{text}}<br>{safe(title)}: <b>%{{z:,.4~g}}</b><extra></extra>",
        "visible": seen,
        "showscale": bool(len(known)),
        "colorbar": {
            "thickness": 12,
            "lenmode": "pixels",
            "len": min(220, grid.size[0] * grid.side),
            "y": 1,
            "yanchor": "top",
            "x": 1.01,
            "outlinewidth": 0,
            "tickfont": {"color": PALE_INK},
        },
    }


def _marks(
    grid: PlateGrid,
    fields: pd.DataFrame,
    reason: str,
    parts: tuple[int, int],
    symbol: str,
    colour: str,
    width: float,
) -> dict[str, Any]:
    """Marks of single fields, with the reason on hover."""
    fields = fields.head(_MOST_MARKS)
    y, x = _positions(grid, fields, parts)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": (x + 0.5) / parts[1],
        "y": (y + 0.5) / parts[0],
        "hovertext": [
            f"<b>{safe(name)}</b><br>{safe(short(why, 160))}"
            for name, why in zip(fields["field"], fields[reason], strict=True)
        ],
        "hoverinfo": "text",
        "marker": {
            "symbol": symbol,
            "size": float(np.clip(0.75 * grid.side / max(parts), 5, 16)),
            "color": colour,
            "line": {"color": colour, "width": width},
        },
    }


def _layout(grid: PlateGrid, parts: tuple[int, int]) -> dict[str, Any]:
    """Axes that count wells, names of plates, a ground for each plate, lines between wells."""
    height, width = grid.size
    top, left = grid.corner(np.arange(len(grid.plates)))
    step = 1 if grid.side >= _ROOMY else grid.rows - 1
    rows = range(0, grid.rows, step)
    # Numbers lie below the last row of plates.
    tops, lefts = np.unique(top), left[top == top.max()]
    columns = [c for c in range(grid.columns) if step == 1 or c in (0, grid.columns - 1)]
    axis = {"showgrid": False, "zeroline": False, "fixedrange": True, "ticks": ""}
    axis["tickfont"] = {"color": PALE_INK, "size": 10}
    return base_layout(
        height * grid.side + _TOP + _BOTTOM,
        width=round(width * grid.side + _LEFT + _RIGHT),
        margin={"l": _LEFT, "r": _RIGHT, "t": _TOP, "b": _BOTTOM},
        xaxis={
            **axis,
            "range": [0, width],
            "tickvals": [left + c + 0.5 for left in lefts.tolist() for c in columns],
            "ticktext": [str(c + 1) for _ in lefts for c in columns],
            "tickangle": 0,
        },
        yaxis={
            **axis,
            "range": [height, 0],
            "tickvals": [top + r + 0.5 for top in tops.tolist() for r in rows],
            "ticktext": [row_name(r) for _ in tops for r in rows],
        },
        annotations=_names(grid, top, left),
        shapes=_ground(grid, top, left) + (_lines(grid) if parts != (1, 1) else []),
    )


def _names(grid: PlateGrid, top: np.ndarray, left: np.ndarray) -> list[dict[str, Any]]:
    """The name above each plate, as long as there is room."""
    tile = grid.columns * grid.side
    letters = _LETTERS if tile >= 16 * _LETTERS * _LETTER_SHARE else _SMALL_LETTERS
    most = int(tile / (letters * _LETTER_SHARE))
    return [
        {
            "text": safe(short(name, most)),
            "x": float(x),
            "y": float(y),
            "xanchor": "left",
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"size": letters},
        }
        for name, y, x in zip(grid.plates, top, left, strict=True)
    ]


def _ground(grid: PlateGrid, top: np.ndarray, left: np.ndarray) -> list[dict[str, Any]]:
    """A rectangle below each plate."""
    return [
        {
            "type": "rect",
            "layer": "below",
            "x0": float(x),
            "x1": float(x + grid.columns),
            "y0": float(y),
            "y1": float(y + grid.rows),
            "fillcolor": BACKGROUND,
            "line": {"width": 0},
        }
        for y, x in zip(top, left, strict=True)
    ]


def _lines(grid: PlateGrid) -> list[dict[str, Any]]:
    """White lines between wells, across all plates."""
    height, width = grid.size
    line = {"type": "line", "line": {"color": "white", "width": 2 if grid.side > _ROOMY else 1}}
    return [{**line, "x0": x, "x1": x, "y0": 0, "y1": height} for x in range(width + 1)] + [
        {**line, "x0": 0, "x1": width, "y0": y, "y1": y} for y in range(height + 1)
    ]
