"""qc.html: the quality page of a dataset."""

import io
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
    draw_map,
    field_squares,
    place_fields,
    well_squares,
)
from cellclr_jax.errors import BadData
from cellclr_jax.files import write_text
from cellclr_jax.pages import COLOURS, PALE_INK, SCALE, base_layout, label, render, script_json
from cellclr_jax.pages.crop_strips import ReadImages, channel_style, composite, data_uri, shown_side

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
    try:
        image = manifest["image"]
        # Numbers for channels without names.
        channels = tuple(map(str, image["channels"] or range(1, image["shape"][2] + 1)))
        skipped = [(str(one["field"]), str(one["reason"])) for one in manifest["skipped"]]
    except (LookupError, TypeError) as error:
        raise BadData(
            f"{folder}: its manifest does not describe channels and skipped fields ({error!r})"
        ) from error
    page = render_page(
        Content(
            name="/".join(folder.resolve().parts[-3:-1]),
            channels=channels,
            fields=_typed(read_fields(folder), channels, folder),
            cells=_typed(read_cells(folder), (), folder),
            skipped=skipped,
            read=open_images(folder).read,
            illumination=illumination or {},
        )
    )
    write_text(folder / PAGE, page)
    return folder / PAGE


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


UNKNOWN = "not known for these images"
"""What is said of a measure that no field has."""
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
    drawn: dict[str, Any]
    choices: Sequence[str] = ()
    marked: bool = False


def render_page(content: Content) -> str:
    """Renders the quality page as one HTML file that loads nothing from anywhere."""
    outliers = find_outliers(content.fields, content.channels)
    plates = find_outlying_plates(content.fields, content.channels)
    counts = summary.Counts(
        len(content.fields), len(content.cells), len(plates), len(outliers), len(content.skipped)
    )
    heading, advice = summary.verdict(counts)
    montage = summary.make_montage(content.cells, content.read)
    side = shown_side(montage.side)
    return render(
        "data/quality/quality.html.jinja",
        title=f"{content.name}: quality",
        name=content.name,
        heading=heading,
        advice=advice,
        numbers=summary.numbers(counts, content.cells),
        figures=[
            {**vars(one), "json": script_json(one.drawn)} for one in _figures(content, outliers)
        ],
        light=draw_light(content.illumination) if content.illumination else None,
        tables=summary.tables(plates, outliers, content.skipped),
        channels=content.channels,
        montage=montage,
        side=side,
        plural=plural,
        composite=composite(content.channels),
        style=channel_style(len(content.channels), side),
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
    figures = [_Figure("plates", "Plates", text, draw_map(grid, wells, levels), [*levels.values()])]
    if sharp:
        text = _FIELDS if len(squares) == len(fields) else _WORST
        drawn, choices = draw_map(grid, squares, sharp), [*sharp.values()]
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


# The scale spans these percentiles of all plates.
_LIGHT_SPAN = (0.5, 99.5)


@dataclass(frozen=True)
class Light:
    """Pictures [h, C * w] by plate as PNG data URIs, and the light at the ends of the colours."""

    pictures: dict[str, str]
    low: float
    high: float


def draw_light(illumination: Mapping[str, np.ndarray]) -> Light:
    """Draws illumination functions, all in the same colours, a pixel for each of their blocks.

    Args:
      illumination: [h, w, C] by plate, the light relative to its mean; at least one.
    """
    from matplotlib.image import imsave

    values = np.concatenate([gain.ravel() for gain in illumination.values()])
    low, high = map(float, np.percentile(values, _LIGHT_SPAN))
    pictures = {}
    for plate, gain in illumination.items():
        # A transparent column after each channel but the last.
        planes = [
            np.pad(plane.astype(float), ((0, 0), (0, 1)), constant_values=np.nan)
            for plane in np.moveaxis(gain, -1, 0)
        ]
        joined, buffer = np.concatenate(planes, axis=1)[:, :-1], io.BytesIO()
        imsave(buffer, joined, vmin=low, vmax=max(high, low + 1e-6), cmap=SCALE.lower())
        pictures[plate] = data_uri(buffer.getvalue(), "png")
    return Light(pictures, low, high)


_MEASURES = {"mean": "mean intensity", "focus": "focus", "saturated": "saturated"}
_BINS = 40
_LONGEST = 60
# Pixels: of a row of histograms, around all of them, and of the titles' letters.
_ROW, _MARGIN, _TITLE_LETTERS = 180, 40, 12


def draw_histograms(fields: pd.DataFrame, channels: Sequence[str]) -> dict[str, Any]:
    """Draws the cells of a field, and below a row a measure and a column a channel.

    Args:
      fields: the usable rows of the table of fields.
      channels: names, at least one.

    Returns:
      A Plotly figure.
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
        subplot_titles=[label(title, _LONGEST) for row in rows for title, _ in row if title],
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
        base_layout(_ROW * len(rows) + _MARGIN, bargap=0.04, template="none"),
        margin={"l": _MARGIN, "r": 0, "t": _MARGIN, "b": _MARGIN},
    )
    figure.update_annotations(font_size=_TITLE_LETTERS, xanchor="center")
    axis = {"fixedrange": True, "tickfont_color": PALE_INK, "ticklabelstandoff": 5}
    figure.update_xaxes(**axis, showgrid=False, zeroline=False)
    figure.update_yaxes(**axis, nticks=4, gridcolor="#e6e8eb")
    for y, x in unknown:
        figure.update_xaxes(visible=False, row=y, col=x)
        figure.update_yaxes(visible=False, row=y, col=x)
    drawn: dict[str, Any] = figure.to_plotly_json()
    return drawn


def _values(fields: pd.DataFrame, name: str) -> np.ndarray:
    """A measure where it is known."""
    values = fields[name].to_numpy(float) if name in fields else np.empty(0)
    return values[np.isfinite(values)]


def _bars(values: np.ndarray) -> dict[str, Any]:
    """Numbers of fields by value: the page holds them, not every field."""
    counts, edges = np.histogram(values, _BINS)
    return {
        "type": "bar",
        "x": ((edges[:-1] + edges[1:]) / 2).tolist(),
        "y": counts.tolist(),
        "marker": {"color": COLOURS[0]},
        "hovertext": [plural(count, "field") for count in counts.tolist()],
        "hovertemplate": "%{hovertext} at about %{x:,.4~g}<extra></extra>",
    }
