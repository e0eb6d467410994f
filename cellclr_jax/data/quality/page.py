"""qc.html: the quality page of a dataset."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.console import plural
from cellclr_jax.data.columns import COLUMNS
from cellclr_jax.data.dataset import open_images, read_cells, read_fields, read_manifest
from cellclr_jax.data.quality import summary
from cellclr_jax.data.quality.measures import columns_of
from cellclr_jax.data.quality.outliers import find_outliers, find_outlying_plates
from cellclr_jax.data.quality.plate_maps import (
    PlateGrid,
    draw_fields,
    draw_histograms,
    draw_light,
    draw_wells,
    field_squares,
    place_fields,
    well_squares,
)
from cellclr_jax.errors import BadData
from cellclr_jax.pages import UNKNOWN, template
from cellclr_jax.pages.crop_strips import (
    Montage,
    ReadImages,
    channel_style,
    composite,
    make_montage,
    shown_side,
)

PAGE = "qc.html"


def write_quality_page(
    dataset_dir: str | Path, illumination: Mapping[str, np.ndarray] | None = None
) -> Path:
    """Writes the quality page of a dataset into its folder, in the place of an older one.

    The same dataset gives the same page: one file, which loads nothing from anywhere.

    Args:
      dataset_dir: see `dataset.find_dataset`.
      illumination: [h, w, C] by plate, the light that was taken out of its images, relative to
        its mean; None or empty: the page does not speak of it.

    Returns:
      The page, <dataset_dir>/qc.html.

    Raises:
      BadData: a table, the manifest or an image of the dataset cannot be read.
    """
    folder = Path(dataset_dir)
    manifest = read_manifest(folder)
    channels = _channels(folder, manifest)
    page = render_page(
        Content(
            name="/".join(folder.resolve().parts[-3:-1]),
            channels=channels,
            fields=_typed(read_fields(folder), channels, folder),
            cells=_typed(read_cells(folder), (), folder),
            skipped=_skipped(folder, manifest),
            read=open_images(folder).read,
            illumination=illumination or {},
        )
    )
    path = folder / PAGE
    # The process in the name: two of them do not write into one file.
    temporary = folder / f".{PAGE}.{os.getpid()}"
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _channels(folder: Path, manifest: dict[str, Any]) -> tuple[str, ...]:
    """The names of the channels; numbers for those without."""
    image = manifest["image"]
    try:
        number = int(image["shape"][2])
        named = [str(name) for name in image["channels"]]
    except (LookupError, TypeError, ValueError) as error:
        raise BadData(f"{folder}: its manifest does not tell the images' channels") from error
    return tuple(named) if len(named) == number else tuple(str(i + 1) for i in range(number))


def _skipped(folder: Path, manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """(field, reason) of what could not be used."""
    try:
        return [(str(one["field"]), str(one["reason"])) for one in manifest["skipped"]]
    except (LookupError, TypeError) as error:
        raise BadData(f"{folder}: its manifest does not tell why fields were skipped") from error


def _typed(table: pd.DataFrame, channels: tuple[str, ...], folder: Path) -> pd.DataFrame:
    """The columns that the page reads, each of its type and in their known order.

    Raises:
      BadData: a column holds something else.
    """
    kinds: dict[str, type] = {"field": str, "cells": int, "problem": str, **COLUMNS}
    kinds |= dict.fromkeys(columns_of(channels), float)
    typed = pd.DataFrame(index=pd.RangeIndex(len(table)))
    for name, kind in kinds.items():
        if name in table:
            column = table[name].reset_index(drop=True)
            try:
                typed[name] = column.fillna("").astype(str) if kind is str else column.astype(kind)
            except (TypeError, ValueError) as error:
                raise BadData(
                    f"{folder}: column {name} of its tables is damaged: {error}"
                ) from error
    return typed


_INTENSITIES = {"mean": "mean intensity", "p50": "median intensity", "p99": "99th percentile"}
_SHARPNESS = {"focus": "focus", "saturated": "saturated"}
_PLATES = (
    "A square is a well. Look for rows, columns and corners that differ from the middle, and for "
    "plates that differ from the others: a network learns such patterns as readily as biology."
)
_FIELDS = (
    "A square is a field within its well. Focus compares fine with coarse detail; it falls with "
    "blur, and also where a treatment dissolves what is fine. Saturated is the share of pixels at "
    "the camera's ceiling, in per cent."
)
_WORST = _FIELDS.replace("a field within its well", "a well with the worst of its fields")
_HISTOGRAMS = (
    "How the fields differ: tails and separate humps are worth a look. Focus compares fine with "
    "coarse detail and falls with blur; saturated is the share of pixels at the camera's ceiling, "
    "in per cent."
)


@dataclass(frozen=True)
class Content:
    """What the page is about.

    Attributes:
      name: of the dataset.
      channels: names.
      fields: the table of fields.
      cells: the table of cells.
      skipped: (field, reason).
      read: images [k, S, S, C] of rows of `cells`.
      illumination: [h, w, C] by plate, relative to its mean.
    """

    name: str
    channels: Sequence[str]
    fields: pd.DataFrame
    cells: pd.DataFrame
    skipped: Sequence[tuple[str, str]]
    read: ReadImages
    illumination: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class _Figure:
    """A drawing with its heading; `choices` are the measures that it can show."""

    anchor: str
    title: str
    text: str
    json: str
    choices: Sequence[str] = ()
    marked: bool = False


def render_page(content: Content) -> str:
    """The quality page as HTML in one file without links."""
    from jinja2 import Environment
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    outliers = find_outliers(content.fields, content.channels)
    plates = find_outlying_plates(content.fields, content.channels)
    counts = summary.Counts(
        len(content.fields), len(content.cells), len(plates), len(outliers), len(content.skipped)
    )
    heading, advice = summary.verdict(counts)
    figures = _figures(content, outliers)
    tables = [
        *([summary.plate_table(plates)] if len(plates) else []),
        *([summary.field_table(outliers)] if len(outliers) else []),
        *([summary.skipped_table(content.skipped)] if content.skipped else []),
    ]
    montage = make_montage(content.cells, content.read)
    side = shown_side(montage.side)
    page = Environment(autoescape=True).from_string(template.PAGE)
    return page.render(
        name=content.name,
        verdict=heading,
        advice=advice,
        numbers=summary.numbers(counts, content.cells),
        # Its JSON has no '<', the only letter that could end the element it stands in.
        figures=[{**vars(one), "json": Markup(one.json)} for one in figures],
        light=draw_light(content.illumination) if content.illumination else None,
        tables=tables,
        channels=content.channels,
        montage=montage,
        montage_text=_montage_text(montage),
        side=side,
        plural=plural,
        composite=composite(content.channels),
        style=Markup(template.STYLE + channel_style(len(content.channels), side)),
        script=Markup(template.SCRIPT),
        plotly=Markup(get_plotlyjs()),
    )


def _figures(content: Content, outliers: pd.DataFrame) -> list[_Figure]:
    """The plates, or histograms where the fields lie on none."""
    placed = place_fields(content.fields)
    if placed is None:
        usable = _in_percent(content.fields[content.fields["problem"] == ""])
        return [_Figure("fields", "Fields", _HISTOGRAMS, draw_histograms(usable, content.channels))]
    grid, fields = placed
    wells, fields = well_squares(grid, fields, content.channels)
    squares = _in_percent(field_squares(grid, fields, outliers))
    levels = {"cells": "cells", **_choices(_INTENSITIES, content.channels, wells)}
    sharp = _choices(_SHARPNESS, content.channels, squares)
    text = f"{_PLATES}{_left_out(grid, content.fields)}"
    figures = [
        _Figure("plates", "Plates", text, draw_wells(grid, wells, levels), [*levels.values()])
    ]
    if sharp:
        text = _FIELDS if len(squares) == len(fields) else _WORST
        drawn, choices = draw_fields(grid, squares, sharp), [*sharp.values()]
        figures.append(_Figure("focus", "Focus and saturation", text, drawn, choices, marked=True))
    return figures


def _choices(
    measures: Mapping[str, str], channels: Sequence[str], table: pd.DataFrame
) -> dict[str, str]:
    """Titles of the measures that a table has, by column; they tell where no value is known."""
    names = {f"{m}_{c}": f"{title}, {c}" for m, title in measures.items() for c in channels}
    return {
        name: title if table[name].notna().any() else f"{title} ({UNKNOWN})"
        for name, title in names.items()
        if name in table
    }


def _left_out(grid: PlateGrid, fields: pd.DataFrame) -> str:
    """Says that plates are not drawn."""
    plates = fields["plate"].nunique() if "plate" in fields else 1
    shown = len(grid.plates)
    if shown == plates:
        return ""
    first = "The first" if shown == 1 else f"The first {shown:,}"
    return f" {first} of {plates:,} plates {'is' if shown == 1 else 'are'} shown."


def _in_percent(fields: pd.DataFrame) -> pd.DataFrame:
    """The table with saturation as people read it."""
    shares = [name for name in fields if str(name).startswith("saturated_")]
    return fields.assign(**{str(name): 100 * fields[name] for name in shares})


def _montage_text(montage: Montage) -> str:
    """What the crops are."""
    what = " and ".join(montage.columns).replace("compound and concentration", "treatment")
    rows = f"A row a {what}" if what else "Rows in the order of the dataset"
    are = "is" if montage.left_out == 1 else "are"
    more = f" {plural(montage.left_out, 'more row')} {are} not shown."
    rest = more if montage.left_out else ""
    return (
        f"{rows}; the crops are drawn by chance. A channel has the same range of brightness "
        f"everywhere, so that rows can be compared.{rest}"
    )
