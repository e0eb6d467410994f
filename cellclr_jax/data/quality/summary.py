"""The page in words and numbers: the verdict, the counts, the tables of fields."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellclr_jax.console import plural
from cellclr_jax.data.building.manifest import count_kinds
from cellclr_jax.data.quality.outliers import BOUND, FEWEST_FIELDS
from cellclr_jax.pages import number

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
      heads: (title, 'n' for numbers) of each column.
      rows: texts.
      more: what is left out.
    """

    anchor: str
    title: str
    text: str
    heads: list[tuple[str, str]]
    rows: list[list[str]]
    more: str


def verdict(counts: Counts) -> tuple[str, str]:
    """The heading of the page, and what follows from it, in a sentence."""
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
    """(number, of what, whether it is a warning), for the top of the page.

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


def plate_table(outliers: pd.DataFrame) -> Table:
    """The plates that stand out, the worst first.

    Args:
      outliers: of `outliers.find_outlying_plates`.
    """
    return _outlier_table(
        outliers,
        "plates-out",
        "Plates that stand out",
        f"The median of a measure is more than {BOUND:g} robust standard deviations from that of "
        "the other plates; where the stain or the lamp differs, normalise by plate.",
    )


def field_table(outliers: pd.DataFrame) -> Table:
    """The fields that stand out, the worst first.

    Args:
      outliers: of `outliers.find_outliers`.
    """
    return _outlier_table(
        outliers,
        "fields-out",
        "Fields that stand out",
        f"A measure is more than {BOUND:g} robust standard deviations from the usual: the median "
        "of its plate, or of all fields where a plate has few of them. That is a fault or a strong "
        "treatment: look at the image before you drop it.",
    )


def skipped_table(skipped: Sequence[tuple[str, str]]) -> Table:
    """What could not be used.

    Args:
      skipped: (field, reason).
    """
    return Table(
        "skipped",
        "Fields that could not be used",
        "They gave no cells. Where a file is missing or broken, put it right and build again.",
        [("Field", ""), ("Reason", "")],
        [list(one) for one in skipped[:_MOST_ROWS]],
        _rest(len(skipped), "manifest.json lists all"),
    )


def _outlier_table(outliers: pd.DataFrame, anchor: str, title: str, text: str) -> Table:
    """What stands out and why."""
    columns = [name for name in _TITLES if name in outliers]
    if "field" in columns and "plate" in columns:
        columns.remove("plate")  # the field's name tells it
    return Table(
        anchor,
        title,
        text,
        [(_TITLES[name], "n" if name in _NUMBERS else "") for name in columns],
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
