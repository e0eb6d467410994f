"""Heading, counts and tables of the quality page, and its rows of example cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.console import plural
from cellclr_jax.data.building.manifest import count_kinds
from cellclr_jax.data.quality.outliers import BOUND, FEWEST_FIELDS
from cellclr_jax.pages import number
from cellclr_jax.pages.crop_strips import SIDE, ReadImages, Strip, draw_strips

# Rows of a table.
_MOST_ROWS = 200
_TITLES = {
    "field": "Field",
    "plate": "Plate",
    "compound": "Compound",
    "concentration": "Concentration (µM)",
    "label": "Label",
    "cells": "Cells",
    "reason": "Reason",
    "score": "Robust z-score",
}
_NUMBERS = ("concentration", "cells", "score")


@dataclass(frozen=True)
class Counts:
    """Numbers of fields, cells, outlier plates, outlier fields and excluded fields.

    `unit` is the name of a row of the table of fields: 'field' or 'image group'.
    """

    fields: int
    cells: int
    outlier_plates: int
    outlier_fields: int
    excluded: int
    unit: str = "field"


def verdict(counts: Counts) -> tuple[str, str]:
    """Returns the heading of the page and a sentence of advice."""
    parts = []
    if counts.outlier_plates:
        parts.append(plural(counts.outlier_plates, "outlier plate"))
    if counts.outlier_fields:
        outliers = plural(counts.outlier_fields, f"outlier {counts.unit}")
        parts.append(f"{outliers} of {counts.fields:,}")
    if counts.excluded:
        parts.append(plural(counts.excluded, f"excluded {counts.unit}"))
    heading = ", ".join(parts) or "No outliers"
    if counts.fields - counts.excluded < FEWEST_FIELDS:
        return heading, f"Too few {counts.unit}s to detect outliers: check the images below."
    if parts:
        return heading, "Check them before training: the tables below have the reasons."
    return heading, f"All {counts.unit}s are usable, and none differs much from the others."


def numbers(counts: Counts, cells: pd.DataFrame) -> list[tuple[str, str, bool]]:
    """Returns the figures at the top of the page, each (number, unit, whether to warn).

    Args:
      counts: of the dataset.
      cells: the table of cells.
    """
    found = {**count_kinds(cells), counts.unit: counts.fields, "cell": counts.cells}
    found |= {f"outlier {counts.unit}": counts.outlier_fields}
    found |= {f"excluded {counts.unit}": counts.excluded}
    shown = []
    for kind, count in found.items():
        value, unit = plural(count, kind).split(" ", 1)
        shown.append((value, unit, count > 0 and kind.startswith(("outlier", "excluded"))))
    return shown


def tables(
    plates: pd.DataFrame, fields: pd.DataFrame, skipped: Sequence[tuple[str, str]], unit: str
) -> list[dict[str, Any]]:
    """Returns the tables of the page; empty ones are left out.

    Args:
      plates: from `outliers.find_outlying_plates`.
      fields: from `outliers.find_outliers`.
      skipped: (field, reason) of excluded fields.
      unit: see `Counts`.

    Returns:
      anchor, title, text, heads, numbers (indices of numeric columns), rows, more (a sentence on
      rows that are left out).
    """
    found = [
        _outlier_table(plates, "plates-out", "Outlier plates")
        | {
            "text": f"The median of a measure is more than {BOUND:g} robust standard deviations "
            "from that of the other plates. If stain or lamp differ, normalize by plate."
        },
        _outlier_table(fields, "fields-out", f"Outlier {unit}s")
        | {
            "text": f"A measure is more than {BOUND:g} robust standard deviations from the median "
            "of the plate, or of the dataset if the plate has few fields. The reason may be an "
            "artefact or a strong treatment: check the image before you exclude it."
        },
        {
            "anchor": "skipped",
            "title": f"Excluded {unit}s",
            "text": "They have no cells in the dataset. Repair missing or damaged files and build "
            "it again.",
            "heads": [unit.capitalize(), "Reason"],
            "numbers": [],
            "rows": skipped[:_MOST_ROWS],
            "more": _rest(len(skipped), "manifest.json"),
        },
    ]
    return [table for table in found if table["rows"]]


def _outlier_table(outliers: pd.DataFrame, anchor: str, title: str) -> dict[str, Any]:
    columns = [name for name in _TITLES if name in outliers]
    if "field" in columns and "plate" in columns:
        columns.remove("plate")  # it is part of the field's name
    rows = outliers.head(_MOST_ROWS).to_dict("records")
    return {
        "anchor": anchor,
        "title": title,
        "heads": [_TITLES[name] for name in columns],
        "numbers": [place for place, name in enumerate(columns) if name in _NUMBERS],
        "rows": [[_cell(name, row[name]) for name in columns] for row in rows],
        "more": _rest(len(outliers), "fields.parquet"),
    }


def _cell(name: str, value: object) -> str:
    """Formats a value of a table."""
    if not isinstance(value, (int, float)):
        return str(value)
    if name == "score":
        return "–" if np.isinf(value) else f"{value:.1f}"
    return "" if np.isnan(value) else number(value)


def _rest(rows: int, file: str) -> str:
    """Formats a sentence on the rows that a table leaves out; '' if it has all."""
    return f"… and {rows - _MOST_ROWS:,} more, see {file}." if rows > _MOST_ROWS else ""


# Crops in a row; fewer if there are many rows.
_MOST_CROPS, _FEWEST_CROPS = 8, 2
_ALL_CROPS = 900
# With more rows, concentrations of a compound are merged; then rows are left out.
_MOST_STRIPS = 200
# Bytes of all images in base64.
_BUDGET = 2_700_000
_SEED = 0
# Columns that define rows: the first of these that cells have and that gives few enough rows.
_GROUPINGS = (("compound", "concentration"), ("compound",), ("label",), ("moa",))
# Rows of cells without metadata, in the order of the table.
_PARTS = 6


@dataclass(frozen=True)
class Row:
    """Crops of one treatment or label.

    Attributes:
      title, subtitle: such as 'taxol 0.3 µM', 'Microtubule stabilizers'.
      cells: number of all cells.
      strip: crops of some of them.
    """

    title: str
    subtitle: str
    cells: int
    strip: Strip


@dataclass(frozen=True)
class Montage:
    """Rows of crops, the side of a crop in pixels, and a text that explains the rows."""

    rows: list[Row]
    side: int
    text: str


def make_montage(cells: pd.DataFrame, read: ReadImages) -> Montage:
    """Draws random crops of each treatment or label, reproducibly.

    Args:
      cells: the table of cells, at least one.
      read: reads the images of rows of the table.
    """
    columns, groups = _groups(cells)
    named = {_name(cells, members, columns): members for members in groups[:_MOST_STRIPS]}
    most = int(np.clip(_ALL_CROPS // len(named), _FEWEST_CROPS, _MOST_CROPS))
    sizes = ((most, SIDE), (most, 2 * SIDE // 3), (_FEWEST_CROPS, SIDE // 2))
    scale = ("", np.concatenate(list(named.values())))
    strips, side = draw_strips(
        read, cells, named, sizes=sizes, budget_bytes=_BUDGET, scale=scale, seed=_SEED
    )
    rows = [Row(*name, len(named[name]), strip) for name, strip in strips.items()]
    kind = " and ".join(columns).replace("compound and concentration", "treatment")
    text = (
        f"{f'One row per {kind}' if kind else 'Rows in the order of the dataset'}; random crops. "
        "Each channel has the same range of brightness in all rows."
    )
    if left_out := len(groups) - len(rows):
        text += f" {plural(left_out, 'more row')} {'is' if left_out == 1 else 'are'} not shown."
    return Montage(rows, side, text)


def _groups(cells: pd.DataFrame) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Returns the columns that define rows, and the cells of each row, sorted by mechanism."""
    usable = [columns for columns in _GROUPINGS if set(columns) <= set(cells)]
    if not usable:
        return (), np.array_split(np.arange(len(cells)), min(_PARTS, len(cells)))
    for columns in usable:
        by = list(dict.fromkeys([*({"moa"} & set(cells)), *columns]))
        codes = cells.groupby(by, dropna=False).ngroup().to_numpy()
        if codes.max() < _MOST_STRIPS:
            break
    groups = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    # Rows without a mechanism or label come last.
    return columns, sorted(groups, key=lambda members: not cells[by[0]].iloc[members[0]])


def _name(cells: pd.DataFrame, members: np.ndarray, columns: Sequence[str]) -> tuple[str, str]:
    """Title and subtitle of a row."""
    if not columns:
        first, last = members[0] + 1, members[-1] + 1
        return f"cell {first:,}" if first == last else f"cells {first:,} to {last:,}", ""
    cell = cells.iloc[members[0]]
    name = str(cell[columns[0]]) or f"no {columns[0]}"
    dose = cell["concentration"] if "concentration" in columns else 0
    title = f"{name} {number(dose)} µM" if dose and dose == dose else name
    moa = str(cell.get("moa", ""))
    return title, "" if moa == name else moa
