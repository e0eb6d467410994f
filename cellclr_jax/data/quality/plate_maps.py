"""Heatmaps of plates: each square is a well, or a field within its well."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.console import plural
from cellclr_jax.data.names import well_position
from cellclr_jax.data.quality.measures import columns_of
from cellclr_jax.pages import COLOURS, GREY, PALE_GRID, PALE_INK, SCALE, base_layout, label, number

# Of outlier fields; excluded ones are grey.
_MARK = COLOURS[3]
# Width of all plates in pixels, without the colour scale.
_WIDTH = 1060.0
# Rows and columns of plates of 96, 384 and 1536 wells.
_FORMATS = ((8, 12), (16, 24), (32, 48))
# Largest and smallest side of a well in pixels, and the height in pixels that all plates should fit
# into.
_LARGEST, _SMALLEST = 60.0, 6.0
_HEIGHT = 760.0
# Columns between plates, and pixels for the name above each.
_GAP, _NAME_HEIGHT = 2, 20.0


@dataclass(frozen=True)
class PlateGrid:
    """Layout of all plates, from left to right and from top to bottom, in units of a well.

    Attributes:
      plates: names in order.
      rows, columns: of a plate.
      across: plates side by side.
      gap_rows: above each plate, for its name.
      side: of a well in pixels.
    """

    plates: tuple[str, ...]
    rows: int
    columns: int
    across: int
    gap_rows: int
    side: float

    @property
    def down(self) -> int:
        """Rows of plates."""
        return math.ceil(len(self.plates) / self.across)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in wells."""
        return self.down * (self.rows + self.gap_rows), self.across * (self.columns + _GAP) - _GAP

    def corner(self, plate: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of a plate's first well."""
        down, right = np.divmod(plate, self.across)
        return down * (self.rows + self.gap_rows) + self.gap_rows, right * (self.columns + _GAP)


def parse_wells(names: Sequence[str]) -> np.ndarray:
    """Parses names of wells; see `names.well_position`.

    Returns:
      [N, 2] int, row and column from 0; -1 for other names.
    """
    places = [well_position(str(name)) or (-1, -1) for name in names]
    return np.array(places, np.int64).reshape(-1, 2)


def row_name(row: int) -> str:
    """Name of a row: 'A' to 'Z', then 'AA' to 'AF'."""
    return ("A" if row >= 26 else "") + chr(ord("A") + row % 26)


def lay_out(plates: Sequence[str], places: np.ndarray, most: int) -> PlateGrid:
    """Arranges plates of the smallest format that contains all wells.

    Args:
      plates: names in order, at least one.
      places: [N, 2] int, rows and columns of the wells of all plates, from 0.
      most: wells of the figure, approximately; further plates are left out.
    """
    last = places.max(axis=0)
    rows, columns = next(size for size in _FORMATS if (np.array(size) > last).all())
    shown = tuple(plates[: max(1, most // (rows * columns))])
    grids: list[PlateGrid] = []
    for across in range(1, len(shown) + 1):
        side = min(_LARGEST, _WIDTH / (across * (columns + _GAP)))
        if side < _SMALLEST and grids:
            break
        gap_rows = math.ceil(_NAME_HEIGHT / side)
        grids.append(PlateGrid(shown, rows, columns, across, gap_rows, side))
    fitting = [grid for grid in grids if grid.size[0] * grid.side <= _HEIGHT]
    # The largest wells, then the most plates side by side.
    return max(fitting or grids[-1:], key=lambda grid: (grid.side, grid.across))


# The colour scale spans these percentiles, so that a single extreme well has no effect on it.
_SPAN = (1.0, 99.0)
# From this side of a well in pixels, every row and column is labelled.
_LABELLED = 15.0
# Least side in pixels of squares that are separated by lines.
_LINED = 6.0
# Font size of a plate's name on large and small plates, and width of a character relative to it.
_LETTERS, _SMALL_LETTERS, _LETTER_SHARE = 13, 10, 0.58
# Margins in pixels.
_LEFT, _RIGHT, _TOP, _BOTTOM = 26, 84, 4, 24
# Markers of fields.
_MOST_MARKS = 500
# Significant digits of a value; characters of a name and of a reason in hover texts.
_DIGITS, _LONGEST, _LONGEST_REASON = 5, 60, 160


def draw_map(grid: PlateGrid, squares: pd.DataFrame, measures: Mapping[str, str]) -> dict[str, Any]:
    """Draws a heatmap of wells, or of fields within their wells, for each measure.

    Args:
      grid: of the plates.
      squares: one row a square: `plate` (its number in the grid), `row`, `column` (int, from 0),
        `label` (hover text) and the measures; for fields also `part` (index in the well, in reading
        order), `outlier` and `skipped` (reason for a marker; '' for none).
      measures: titles by column; the page shows one at a time.

    Returns:
      A Plotly figure: a heatmap for each measure, of which the first has the hover texts, then the
      markers.
    """
    marks = []
    if "part" not in squares:
        squares = squares.assign(part=0)
    number = int(squares["part"].max()) + 1
    across = math.ceil(math.sqrt(number))
    parts = (math.ceil(number / across), across)
    if "outlier" in squares:
        marks = [
            _marks(grid, squares[squares[column] != ""], column, parts, symbol, colour, width)
            for column, symbol, colour, width in (
                ("skipped", "x-thin-open", GREY, 2),
                ("outlier", "circle-open", "white", 5),  # visible on every colour
                ("outlier", "circle-open", _MARK, 2.5),
            )
        ]
    shape = grid.size[0] * parts[0], grid.size[1] * parts[1]
    place = _positions(grid, squares, parts)
    traces: list[dict[str, Any]] = []
    for column, title in measures.items():
        values = np.full(shape, np.nan)
        values[place] = squares[column]
        traces.append(_heatmap(grid, values, title, parts, seen=not traces))
    hover = np.full(shape, "", object)
    hover[place] = squares["label"]
    traces[0]["customdata"] = hover
    return {"data": [*traces, *marks], "layout": _layout(grid, parts)}


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
    """Heatmap of one measure; squares are centred at (index + 1/2) / parts."""
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, _SPAN) if len(known) else (0.0, 1.0)
    line = 1 if grid.side / max(parts) >= _LINED else 0
    return {
        "type": "heatmap",
        "z": [[_rounded(value) for value in row] for row in values.tolist()],
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
        "hovertemplate": "%{customdata}<br>"
        f"{label(title, _LONGEST)}: <b>%{{z:,.4~g}}</b><extra></extra>",
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


def _rounded(value: float) -> float | None:
    """Rounds to few digits, as a page has thousands of values."""
    return None if math.isnan(value) else float(f"{value:.{_DIGITS}g}")


def _marks(
    grid: PlateGrid,
    fields: pd.DataFrame,
    reason: str,
    parts: tuple[int, int],
    symbol: str,
    colour: str,
    width: float,
) -> dict[str, Any]:
    """Markers of fields, with the reason as hover text."""
    fields = fields.head(_MOST_MARKS)
    y, x = _positions(grid, fields, parts)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": (x + 0.5) / parts[1],
        "y": (y + 0.5) / parts[0],
        "hovertext": [
            f"<b>{label(name, _LONGEST_REASON)}</b><br>{label(why, _LONGEST_REASON)}"
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
    """Axes, names of plates, a background for each plate, lines between wells."""
    height, width = grid.size
    top, left = grid.corner(np.arange(len(grid.plates)))
    step = 1 if grid.side >= _LABELLED else grid.rows - 1
    rows = range(0, grid.rows, step)
    # Column numbers are below the last row of plates.
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
        shapes=_backgrounds(grid, top, left) + (_lines(grid) if parts != (1, 1) else []),
    )


def _names(grid: PlateGrid, top: np.ndarray, left: np.ndarray) -> list[dict[str, Any]]:
    """Makes annotations with the name of each plate, shortened to the plate's width."""
    tile = grid.columns * grid.side
    letters = _LETTERS if tile >= 16 * _LETTERS * _LETTER_SHARE else _SMALL_LETTERS
    most = int(tile / (letters * _LETTER_SHARE))
    return [
        {
            "text": label(name, most),
            "x": float(x),
            "y": float(y),
            "xanchor": "left",
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"size": letters},
        }
        for name, y, x in zip(grid.plates, top, left, strict=True)
    ]


def _backgrounds(grid: PlateGrid, top: np.ndarray, left: np.ndarray) -> list[dict[str, Any]]:
    """Makes a background rectangle for each plate."""
    rectangle = {"type": "rect", "layer": "below", "fillcolor": PALE_GRID, "line": {"width": 0}}
    return [
        {**rectangle, "x0": x, "x1": x + grid.columns, "y0": y, "y1": y + grid.rows}
        for y, x in zip(top.tolist(), left.tolist(), strict=True)
    ]


def _lines(grid: PlateGrid) -> list[dict[str, Any]]:
    """White lines between wells, across all plates."""
    height, width = grid.size
    line = {"type": "line", "line": {"color": "white", "width": 2 if grid.side > _LABELLED else 1}}
    return [{**line, "x0": x, "x1": x, "y0": 0, "y1": height} for x in range(width + 1)] + [
        {**line, "x0": 0, "x1": width, "y0": y, "y1": y} for y in range(height + 1)
    ]


# Squares of a figure, including blank ones between plates; each takes tens of bytes. With more, a
# square is a well instead of a field, and then the last plates are left out.
_MOST_SQUARES = 40_000
_SQUARE = ["plate", "row", "column"]


def place_fields(fields: pd.DataFrame) -> tuple[PlateGrid, pd.DataFrame] | None:
    """Finds the wells of fields.

    Args:
      fields: the table of fields.

    Returns:
      The grid, of the first plates if there are too many, and the fields in its wells, with `plate`
      (its index in the grid), `row`, `column` and `part`, the field's index in its well; None
      without wells.
    """
    if "well" not in fields:
        return None
    places = parse_wells(fields["well"].tolist())
    known = places[:, 0] >= 0
    if not known.any():
        return None
    placed, places = fields[known].copy(), places[known]
    names = placed["plate"].astype(str) if "plate" in placed else pd.Series("", placed.index)
    placed["plate"], plates = pd.factorize(names)
    placed["row"], placed["column"] = places.T
    grid = lay_out(plates.tolist(), places, _MOST_SQUARES)
    placed = placed[placed["plate"] < len(grid.plates)]
    sites = placed.sort_values("site", kind="stable") if "site" in placed else placed
    return grid, placed.assign(part=sites.groupby(_SQUARE).cumcount())


def well_squares(
    grid: PlateGrid, placed: pd.DataFrame, channels: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Makes the table of wells that `draw_map` takes.

    Args:
      grid, placed: from `place_fields`.
      channels: names.

    Returns:
      The wells: sum of cells, means of the measures, `label`; and the fields with the label of
      their well.
    """
    measures = [name for name in columns_of(channels) if name in placed]
    # The count of a well without usable fields is unknown, not 0.
    counted = placed.assign(cells=placed["cells"].where(placed["problem"] == ""))
    grouped = counted.groupby(_SQUARE, sort=False)
    wells = grouped[measures].mean()
    wells["cells"] = grouped["cells"].sum(min_count=1)
    wells = wells.reset_index()
    first = grouped.head(1).to_dict("records")
    wells["label"] = [
        _words(grid.plates[plate], row, cells, fields)
        for plate, row, cells, fields in zip(
            wells["plate"], first, wells["cells"], grouped.size(), strict=True
        )
    ]
    return wells, placed.assign(label=wells["label"].to_numpy()[grouped.ngroup()])


def field_squares(grid: PlateGrid, placed: pd.DataFrame, outliers: pd.DataFrame) -> pd.DataFrame:
    """Makes the table of fields that `draw_map` takes; of too many fields, the worst of each well.

    Args:
      grid: from `place_fields`.
      placed: from `well_squares`.
      outliers: from `outliers.find_outliers`, with the index of the fields' table.
    """
    sites = placed["site"] if "site" in placed else placed["part"] + 1
    fields = placed.assign(
        outlier=outliers["reason"].reindex(placed.index).fillna(""),
        skipped=placed["problem"],
        label=[
            f"{words}<br>field {site}: {'excluded' if problem else plural(cells, 'cell')}"
            for words, site, cells, problem in zip(
                placed["label"], sites, placed["cells"], placed["problem"], strict=True
            )
        ],
        well=placed["label"],
    )
    squares = grid.size[0] * grid.size[1] * (int(fields["part"].max()) + 1)
    return fields if squares <= _MOST_SQUARES else _worst_of_wells(fields)


def _worst_of_wells(fields: pd.DataFrame) -> pd.DataFrame:
    """One row a well: least focus, highest saturation, a reason if any field has one."""
    rules: dict[Hashable, str] = dict.fromkeys((*_SQUARE, "field", "well"), "first")
    rules |= dict.fromkeys(("outlier", "skipped"), "max")  # '' is the smallest text
    rules |= {name: "min" for name in fields if str(name).startswith("focus_")}
    rules |= {name: "max" for name in fields if str(name).startswith("saturated_")}
    worst = fields.groupby(_SQUARE, sort=False).agg(rules).reset_index(drop=True)
    return worst.assign(part=0, label=worst["well"] + "<br>worst field")


def _words(plate: str, row: Mapping[Hashable, Any], cells: float, fields: int) -> str:
    """Hover text of a well, escaped."""
    dose = row.get("concentration")
    treatment = [
        str(row.get("compound") or ""),
        f"{number(dose)} µM" if dose and dose == dose else "",
    ]
    known = [" ".join(filter(None, treatment)), row.get("moa"), row.get("label")]
    count = "no usable field" if np.isnan(cells) else plural(int(cells), "cell")
    lines = [
        f"<b>{label(' '.join(filter(None, (plate, str(row['well'])))), _LONGEST)}</b>",
        *(label(text, _LONGEST) for text in known if text),
        f"{count} in {plural(fields, 'field')}",
    ]
    return "<br>".join(lines)
