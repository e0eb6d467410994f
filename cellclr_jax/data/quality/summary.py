"""The quality page in words and crops: verdict, counts, tables of fields, rows of cells."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellclr_jax.console import plural
from cellclr_jax.data.building.manifest import count_kinds
from cellclr_jax.data.quality.outliers import BOUND, FEWEST_FIELDS
from cellclr_jax.pages import number
from cellclr_jax.pages.crop_strips import SIDE, ReadImages, Strip, draw_strips

# Rows of a table; who has more of them needs another look at the data, not a longer table.
_MOST_ROWS = 200
_TITLES = {
    "field": "Field",
    "plate": "Plate",
    "compound": "Compound",
    "concentration": "µM",
    "label": "Label",
    "cells": "Cells",
    "reason": "What stands out",
    "score": "Robust z",
}
_NUMBERS = ("concentration", "cells", "score")


@dataclass(frozen=True)
class Counts:
    """How many there are; `plates_out`, `fields_out` stand out, `skipped` could not be used."""

    fields: int
    cells: int
    plates_out: int
    fields_out: int
    skipped: int


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
      anchor, title, text: of its section.
      heads: of the columns.
      numbers: which columns hold numbers.
      rows: texts.
      more: what is left out.
    """

    anchor: str
    title: str
    text: str
    heads: list[str]
    numbers: list[int]
    rows: list[list[str]]
    more: str


def verdict(counts: Counts) -> tuple[str, str]:
    """Returns the heading of the page, and what follows from it, in a sentence."""
    said = []
    if counts.plates_out:
        stand = f"stand{'s' * (counts.plates_out == 1)} out"
        said.append(f"{plural(counts.plates_out, 'plate')} {stand}")
    if counts.fields_out:
        of = f"{counts.fields_out:,} of {plural(counts.fields, 'field')}"
        said.append(f"{of} stand{'s' * (counts.fields_out == 1)} out")
    if counts.skipped:
        said.append(f"{plural(counts.skipped, 'field')} could not be used")
    heading = ", ".join(said) or "Nothing stands out"
    if counts.fields - counts.skipped < FEWEST_FIELDS:
        return heading, "There are too few fields to tell what is usual: look at the pictures."
    if said:
        return heading, "Have a look before you train: the tables below say what and why."
    return heading, "All fields could be used, and none is unlike the others."


def numbers(counts: Counts, cells: pd.DataFrame) -> list[tuple[str, str, bool]]:
    """Returns (number, of what, whether it is a warning) for the top of the page.

    Args:
      counts: of the dataset.
      cells: the table of cells.
    """
    found = {**count_kinds(cells), "field": counts.fields, "cell": counts.cells}
    told = [plural(n, what).split(" ", 1) for what, n in found.items()]
    shown = [(count, what, False) for count, what in told]
    shown.append((f"{counts.fields_out:,}", "standing out", counts.fields_out > 0))
    shown.append((f"{counts.skipped:,}", "not usable", counts.skipped > 0))
    return shown


def tables(
    plates: pd.DataFrame, fields: pd.DataFrame, skipped: Sequence[tuple[str, str]]
) -> list[Table]:
    """Returns the tables of the page; one without rows is left out.

    Args:
      plates: of `outliers.find_outlying_plates`.
      fields: of `outliers.find_outliers`.
      skipped: (field, reason) of what could not be used.
    """
    found = [
        _outlier_table(
            plates,
            "plates-out",
            "Plates that stand out",
            f"The median of a measure is more than {BOUND:g} robust standard deviations from that "
            "of the other plates; where the stain or the lamp differs, normalise by plate.",
        ),
        _outlier_table(
            fields,
            "fields-out",
            "Fields that stand out",
            f"A measure is more than {BOUND:g} robust standard deviations from the usual: the "
            "median of its plate, or of all fields where a plate has few of them. That is a fault "
            "or a strong treatment: look at the image before you drop it.",
        ),
        Table(
            "skipped",
            "Fields that could not be used",
            "They gave no cells. Where a file is missing or broken, put it right and build again.",
            ["Field", "Reason"],
            [],
            [list(one) for one in skipped[:_MOST_ROWS]],
            _rest(len(skipped), "manifest.json lists all"),
        ),
    ]
    return [table for table in found if table.rows]


def _outlier_table(outliers: pd.DataFrame, anchor: str, title: str, text: str) -> Table:
    """What stands out and why."""
    columns = [name for name in _TITLES if name in outliers]
    if "field" in columns and "plate" in columns:
        columns.remove("plate")  # the field's name tells it
    return Table(
        anchor,
        title,
        text,
        [_TITLES[name] for name in columns],
        [place for place, name in enumerate(columns) if name in _NUMBERS],
        [
            [_cell(name, row[name]) for name in columns]
            for row in outliers.head(_MOST_ROWS).to_dict("records")
        ],
        _rest(len(outliers), "fields.parquet has the measures of all"),
    )


def _cell(name: str, value: object) -> str:
    """A value in a table."""
    if not isinstance(value, (int, float)):
        return str(value)
    if name == "score":
        return "–" if np.isinf(value) else f"{value:.1f}"
    return "" if np.isnan(value) else number(value)


def _rest(rows: int, where: str) -> str:
    """What a table leaves out."""
    return f"… and {rows - _MOST_ROWS:,} more: {where}." if rows > _MOST_ROWS else ""


# Crops in a row; fewer where there are many rows.
_MOST_CROPS, _FEWEST_CROPS = 8, 2
_ALL_CROPS = 900
# Beyond so many rows the concentrations of a compound go into one, and then rows are left out.
_MOST_STRIPS = 200
# Of all pictures in base64.
_BUDGET = 2_700_000
_SEED = 0
# What a row is: the first of these that cells have, and that does not give too many rows.
_GROUPINGS = (("compound", "concentration"), ("compound",), ("label",), ("moa",))
# Cells of which nothing is known: so many rows, in the order of the table.
_PARTS = 6


@dataclass(frozen=True)
class Row:
    """Crops of one treatment or label.

    Attributes:
      title, subtitle: such as 'taxol 0.3 µM', 'Microtubule stabilizers'.
      cells: how many there are.
      strip: some of them.
    """

    title: str
    subtitle: str
    cells: int
    strip: Strip


@dataclass(frozen=True)
class Montage:
    """All rows of crops, the side of a crop in its picture in pixels, and what the rows are."""

    rows: list[Row]
    side: int
    text: str


def make_montage(cells: pd.DataFrame, read: ReadImages) -> Montage:
    """Draws crops at random, the same ones every time.

    Args:
      cells: the table of cells, at least one.
      read: images of rows of the table.
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
    what = " and ".join(columns).replace("compound and concentration", "treatment")
    text = (
        f"{f'A row a {what}' if what else 'Rows in the order of the dataset'}; the crops are drawn "
        "by chance. A channel has the same range of brightness everywhere, so that rows can be "
        "compared."
    )
    if left_out := len(groups) - len(rows):
        text += f" {plural(left_out, 'more row')} {'is' if left_out == 1 else 'are'} not shown."
    return Montage(rows, side, text)


def _groups(cells: pd.DataFrame) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Returns the columns that name rows, and the cells of each row; mechanisms lie together."""
    tried = [columns for columns in _GROUPINGS if set(columns) <= set(cells)]
    if not tried:
        return (), np.array_split(np.arange(len(cells)), min(_PARTS, len(cells)))
    for columns in tried:
        by = list(dict.fromkeys([*({"moa"} & set(cells)), *columns]))
        codes = cells.groupby(by, dropna=False).ngroup().to_numpy()
        if codes.max() < _MOST_STRIPS:
            break
    groups = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    # Without a mechanism, or a label: last.
    return columns, sorted(groups, key=lambda members: not cells[by[0]].iloc[members[0]])


def _name(cells: pd.DataFrame, members: np.ndarray, columns: Sequence[str]) -> tuple[str, str]:
    """Returns title and subtitle of a row."""
    if not columns:
        first, last = members[0] + 1, members[-1] + 1
        return f"cell {first:,}" if first == last else f"cells {first:,} to {last:,}", ""
    cell = cells.iloc[members[0]]
    name = str(cell[columns[0]]) or f"no {columns[0]}"
    dose = cell["concentration"] if "concentration" in columns else 0
    title = f"{name} {number(dose)} µM" if dose and dose == dose else name
    moa = str(cell.get("moa", ""))
    return title, "" if moa == name else moa
