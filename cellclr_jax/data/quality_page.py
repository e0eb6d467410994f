"""Writes `qc.html` beside a built dataset: what to look at before a network is trained on it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.cli import BadData
from cellclr_jax.data.fields import COLUMNS
from cellclr_jax.data.index import open_images, read_cells, read_fields, read_manifest
from cellclr_jax.data.quality.measures import columns_of
from cellclr_jax.data.quality.page import Content, render_page

PAGE = "qc.html"


def write_quality_page(
    dataset_dir: str | Path, illumination: Mapping[str, np.ndarray] | None = None
) -> Path:
    """Writes the quality page of a dataset into its folder, in the place of an older one.

    The same dataset gives the same page: one file, which loads nothing from anywhere.

    Args:
      dataset_dir: see `index.find_dataset`.
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
