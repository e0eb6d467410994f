"""Writes qc.html, the quality page of a dataset."""

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
from cellclr_jax.data.sources import SOURCES
from cellclr_jax.errors import BadData
from cellclr_jax.files import write_text
from cellclr_jax.pages import COLOURS, SCALE, base_layout, label, render
from cellclr_jax.pages.crop_strips import ReadImages, channel_style, composite, data_uri, shown_side

PAGE = "qc.html"


def write_quality_page(
    dataset_dir: str | Path, illumination: Mapping[str, np.ndarray] | None = None
) -> Path:
    """Writes the quality page of a dataset into its folder; replaces an older one.

    The page is one self-contained file and reproducible.

    Args:
      dataset_dir: see `dataset.find_dataset`.
      illumination: [h, w, C] float by plate, the illumination that was divided out of its images,
        relative to its mean; None or empty: the page has no such section.

    Returns:
      The page, <dataset_dir>/qc.html.

    Raises:
      BadData: a table, the manifest or an image of the dataset cannot be read.
    """
    folder = Path(dataset_dir)
    manifest = read_manifest(folder)
    try:
        image = manifest["image"]
        # Numbers if the channels have no names.
        channels = tuple(map(str, image["channels"] or range(1, image["shape"][2] + 1)))
        skipped = [(str(one["field"]), str(one["reason"])) for one in manifest["skipped"]]
        source = SOURCES.get(manifest["settings"]["source"])
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
            whole_fields=source is None or source.whole_fields,
        )
    )
    write_text(folder / PAGE, page)
    return folder / PAGE


def _typed(table: pd.DataFrame, channels: tuple[str, ...], folder: Path) -> pd.DataFrame:
    """Selects the columns that the page needs, in a fixed order, and converts their types.

    Raises:
      BadData: a column cannot be converted.
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


UNKNOWN = "not measured"
"""Marks a measure without any value."""
_INTENSITIES = {
    "mean": "mean intensity (gray levels)",
    "p50": "median intensity (gray levels)",
    "p99": "99th percentile of intensity (gray levels)",
}
_SHARPNESS = {"focus": "focus score", "saturated": "saturated pixels (%)"}
_FOCUS = (
    "The focus score is the ratio of fine to coarse detail: it falls with blur, and if a treatment "
    "removes fine structures. Saturated pixels have the largest value of the camera."
)
_PLATES = (
    "Each square is a well. Rows, columns, corners or plates that differ from the others are "
    "technical effects that a network learns as easily as biology."
)
_HISTOGRAMS = f"Distribution of each measure over the fields of view. {_FOCUS}"
_CLASSES = "The dataset consists of images of single cells, not of fields of view."


@dataclass(frozen=True)
class Content:
    """Content of the page.

    Attributes:
      name: of the dataset.
      channels: names.
      fields: the table of fields.
      cells: the table of cells.
      skipped: (field, reason) of each field that was excluded.
      read: reads images [k, S, S, C] of rows of `cells`.
      illumination: [h, w, C] by plate, relative to its mean.
      whole_fields: whether a row of `fields` is a field of view, not a group of single-cell images.
    """

    name: str
    channels: Sequence[str]
    fields: pd.DataFrame
    cells: pd.DataFrame
    skipped: Sequence[tuple[str, str]]
    read: ReadImages
    illumination: Mapping[str, np.ndarray] = field(default_factory=dict)
    whole_fields: bool = True


def render_page(content: Content) -> str:
    """Renders the page as one self-contained HTML file, which requests nothing."""
    outliers = find_outliers(content.fields, content.channels)
    plates = find_outlying_plates(content.fields, content.channels)
    counts = summary.Counts(
        len(content.fields),
        len(content.cells),
        len(plates),
        len(outliers),
        len(content.skipped),
        "field" if content.whole_fields else "image group",
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
        figures=_figures(content, outliers),
        light=draw_light(content.illumination) if content.illumination else None,
        tables=summary.tables(plates, outliers, content.skipped, counts.unit),
        channels=content.channels,
        montage=montage,
        side=side,
        plural=plural,
        composite=composite(content.channels),
        style=channel_style(len(content.channels), side),
    )


def _figures(content: Content, outliers: pd.DataFrame) -> list[dict[str, Any]]:
    """Plate maps; without wells, histograms of fields of view or the cells per class."""
    placed = place_fields(content.fields)
    if placed is None and not content.whole_fields:
        drawn = draw_classes(content.cells)
        return [_figure("classes", "Cells per class", _CLASSES, drawn)] if drawn else []
    if placed is None:
        usable = _in_percent(content.fields[content.fields["problem"] == ""])
        titles = {"cells": "cells per field"}
        titles |= _choices(_INTENSITIES | _SHARPNESS, content.channels, usable)
        drawn = draw_histograms(usable, titles)
        return [_figure("fields", "Distributions of fields", _HISTOGRAMS, drawn, titles)]
    grid, fields = placed
    wells, fields = well_squares(grid, fields, content.channels)
    squares = _in_percent(field_squares(grid, fields, outliers))
    titles = {"cells": "cells per well", **_choices(_INTENSITIES, content.channels, wells)}
    text = f"{_PLATES}{_left_out(grid, content.fields)}"
    figures = [_figure("plates", "Plate maps", text, draw_map(grid, wells, titles), titles)]
    if sharp := _choices(_SHARPNESS, content.channels, squares):
        worst = len(squares) < len(fields)
        unit = "a well, with its worst field" if worst else "a field within its well"
        drawn = draw_map(grid, squares, sharp)
        text = f"Each square is {unit}. {_FOCUS}"
        figures.append(_figure("focus", "Focus and saturation", text, drawn, sharp) | {"marked": 1})
    return figures


def _figure(
    anchor: str,
    title: str,
    text: str,
    drawn: dict[str, Any],
    titles: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Makes a section with a drawing; `titles` are the options of its selection."""
    choices = list((titles or {}).values())
    return {"anchor": anchor, "title": title, "text": text, "drawn": drawn, "choices": choices}


def _choices(
    measures: Mapping[str, str], channels: Sequence[str], table: pd.DataFrame
) -> dict[str, str]:
    """Maps columns of measures to titles for a menu; says which columns have no values."""
    names = {f"{m}_{c}": f"{c}: {title}" for m, title in measures.items() for c in channels}
    return {
        name: title if table[name].notna().any() else f"{title}, {UNKNOWN}"
        for name, title in names.items()
        if name in table
    }


def _left_out(grid: PlateGrid, fields: pd.DataFrame) -> str:
    """Formats a sentence on the number of plates shown; '' if all are."""
    plates = fields["plate"].nunique() if "plate" in fields else 1
    shown = len(grid.plates)
    if shown == plates:
        return ""
    first = "The first" if shown == 1 else f"The first {shown:,}"
    return f" {first} of {plates:,} plates {'is' if shown == 1 else 'are'} shown."


def _in_percent(fields: pd.DataFrame) -> pd.DataFrame:
    """Converts the shares of saturated pixels to percent."""
    shares = [name for name in fields if str(name).startswith("saturated_")]
    return fields.assign(**{str(name): 100 * fields[name] for name in shares})


# The colour scale spans these percentiles of all plates.
_LIGHT_SPAN = (0.5, 99.5)


@dataclass(frozen=True)
class Light:
    """Images [h, C * w] by plate as PNG data URIs, and the values at the ends of the scale."""

    pictures: dict[str, str]
    low: float
    high: float


def draw_light(illumination: Mapping[str, np.ndarray]) -> Light:
    """Draws illumination functions with a shared colour scale.

    Args:
      illumination: [h, w, C] float by plate, relative to its mean; at least one.
    """
    from matplotlib.image import imsave

    values = np.concatenate([gain.ravel() for gain in illumination.values()])
    low, high = map(float, np.percentile(values, _LIGHT_SPAN))
    pictures = {}
    for plate, gain in illumination.items():
        # A transparent column separates the channels.
        planes = [
            np.pad(plane.astype(float), ((0, 0), (0, 1)), constant_values=np.nan)
            for plane in np.moveaxis(gain, -1, 0)
        ]
        joined, buffer = np.concatenate(planes, axis=1)[:, :-1], io.BytesIO()
        imsave(buffer, joined, vmin=low, vmax=max(high, low + 1e-6), cmap=SCALE.lower())
        pictures[plate] = data_uri(buffer.getvalue(), "png")
    return Light(pictures, low, high)


_BINS = 40
# Pixels of a chart of bars: its height; of a row of classes, and of their axis.
_HEIGHT, _ROW, _AXIS = 340, 24, 90
_MOST_CLASSES = 60


def draw_histograms(fields: pd.DataFrame, titles: Mapping[str, str]) -> dict[str, Any]:
    """Draws a histogram of each measure, of which the page shows one at a time.

    Args:
      fields: the usable rows of the table of fields.
      titles: of the measures by column; the first is the title of the axis at the start.

    Returns:
      A Plotly figure with a trace of bars per measure; one without values is empty.
    """
    traces = []
    for name in titles:
        values = fields[name].to_numpy(float)
        values = values[np.isfinite(values)]
        counts, edges = np.histogram(values, _BINS) if len(values) else (np.empty(0), np.empty(1))
        hover = [plural(int(count), "field") for count in counts]
        traces.append(_bars((edges[:-1] + edges[1:]) / 2, counts, hover))
    layout = base_layout(
        _HEIGHT,
        bargap=0.04,
        margin={"l": 60, "r": 10, "t": 20, "b": 60},
        xaxis={"showgrid": False, "title": {"text": next(iter(titles.values()))}},
        yaxis={"title": {"text": "fields"}},
    )
    return {"data": traces, "layout": layout}


def draw_classes(cells: pd.DataFrame) -> dict[str, Any] | None:
    """Draws the number of cells of each label, MoA or compound, the largest first.

    Args:
      cells: the table of cells.

    Returns:
      A Plotly figure; None if cells have none of these.
    """
    column = next((name for name in ("label", "moa", "compound") if name in cells), None)
    if column is None:
        return None
    counts = cells[column].replace("", f"no {column}").value_counts().head(_MOST_CLASSES)
    names = [label(name) for name in counts.index]
    hover = [plural(count, "cell") for count in counts.tolist()]
    bars = _bars(counts.to_numpy(), names, hover)
    bars |= {"orientation": "h", "hovertemplate": "%{y}: %{hovertext}<extra></extra>"}
    layout = base_layout(
        _AXIS + _ROW * len(counts),
        margin={"l": 10, "r": 10, "t": 10, "b": 60},
        xaxis={"title": {"text": "cells"}},
        yaxis={"automargin": True, "autorange": "reversed", "type": "category"},
    )
    return {"data": [bars], "layout": layout}


def _bars(x: Any, y: Any, hover: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "bar",
        "x": x,
        "y": y,
        "marker": {"color": COLOURS[0]},
        "hovertext": hover,
        "hovertemplate": "%{hovertext}, %{x:,.4~g}<extra></extra>",
    }
