"""Turns images into crops of cells: reads, corrects the light, finds nuclei, cuts, measures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cellclr_jax import files
from cellclr_jax.console import listed
from cellclr_jax.data import cell_masks, crops, segmentation
from cellclr_jax.data.illumination import Illumination
from cellclr_jax.data.quality.measures import measure_images
from cellclr_jax.data.readers.formats import fit
from cellclr_jax.data.sources.source import CellGroup, Field
from cellclr_jax.errors import BadData

# Raised when the same field and settings give other cells: pieces of an earlier build are then
# made again.
CUTTING_VERSION = 3
# Which pixels a crop shows: all; all, with a mask stored too; those of the cell, the others zero.
MASKS = ("none", "keep", "zero")


@dataclass(frozen=True)
class CropSettings:
    """How cells become images; lengths in pixels.

    Attributes:
      size: side S of a stored crop.
      channels: stored order.
      columns: of the metadata.
      dtype: of a stored pixel.
      nuclei: the channel in which nuclei are found; '': the first.
      border: what becomes of a window that leaves the field (see `crops.extract_crops`).
      min_area: smaller nuclei are debris.
      masks: one of `MASKS`.
      cell_radius: how far a cell reaches from its nucleus, for masks.
      fit: what becomes of given crops of another size (see `formats.fit`).
    """

    size: int
    channels: tuple[str, ...]
    columns: tuple[str, ...]
    dtype: str = "uint16"
    nuclei: str = ""
    border: str = "drop"
    min_area: int = 100
    masks: str = "none"
    cell_radius: int = 30
    fit: str = "exact"


@dataclass(frozen=True)
class FieldCells:
    """The cells of one field or group.

    Attributes:
      images: [K, S, S, C] of the settings' dtype.
      masks: [K, S, S] uint8, None if none are stored.
      rows: the other features of each cell.
      quality: measures of the field, sizes of its images, how many of its crops are blank in a
        channel or repeat another one.
      digest: hex digest of all of these.
      problem: why it gave none of its cells, or not all of them; ''.
      lost: the share of its cells that are lost.
    """

    images: np.ndarray
    masks: np.ndarray | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    quality: Mapping[str, float] = field(default_factory=dict)
    digest: str = ""
    problem: str = ""
    lost: float = 0.0


def extract_field(
    group: Field | CellGroup, settings: CropSettings, illumination: Illumination | None = None
) -> FieldCells:
    """Cuts the cells of one field, or reads those of a group.

    Args:
      group: what to read; if it cannot be used, the result has a `problem`.
      settings: how to cut.
      illumination: the light of its plate, to be corrected.

    Raises:
      BadData: the memory is too small.
      RuntimeError: any unforeseen error, with the name of the field.
    """
    try:
        if isinstance(group, CellGroup):
            return _given_cells(group, settings)
        return _found_cells(group, settings, illumination)
    except BadData as error:
        return FieldCells(no_images(settings), no_masks(settings), problem=str(error), lost=1.0)
    except MemoryError as error:
        raise BadData(
            f"field {group.name} does not fit into the memory: use fewer --workers"
        ) from error
    except Exception as error:
        raise RuntimeError(f"field {group.name}: {type(error).__name__}: {error}") from error


def no_images(settings: CropSettings) -> np.ndarray:
    """[0, S, S, C]: the images of no cell."""
    return np.empty((0, settings.size, settings.size, len(settings.channels)), settings.dtype)


def no_masks(settings: CropSettings) -> np.ndarray | None:
    """[0, S, S]: the masks of no cell; None if none are stored."""
    if settings.masks != "keep":
        return None
    return np.empty((0, settings.size, settings.size), np.uint8)


def _given_cells(group: CellGroup, settings: CropSettings) -> FieldCells:
    """Reads given crops; each that cannot be used is lost, not its group."""
    images = np.empty((len(group.cells), *no_images(settings).shape[1:]), settings.dtype)
    problems: list[str] = []
    kept: list[int] = []
    shapes: list[tuple[int, ...]] = []
    for number in range(len(group.cells)):
        try:
            image = group.read(number)
            images[number] = fit(image, settings.size, settings.fit)
            kept.append(number)
            shapes.append(image.shape)
        except BadData as error:
            # A size that does not fit is reported without the file's name.
            where = group.where(number)
            problems.append(f"{'' if where in str(error) else f'{where}: '}{error}")
    if not kept:
        raise BadData(listed(problems, separator="; "))
    centers = np.full((len(group.cells), 2), np.nan, np.float32)
    if group.centers is not None:
        centers[:] = group.centers
    return _described(
        group,
        images[kept],
        None,
        [group.cells[number] for number in kept],
        centers[kept],
        {**measure_images(images[kept], settings.channels), **_sizes(shapes)},
        settings.channels,
        problems,
    )


def _found_cells(
    group: Field, settings: CropSettings, illumination: Illumination | None
) -> FieldCells:
    """Cuts cells around the nuclei of a field."""
    image = group.read()
    # Measured as it was photographed: a correction would hide what is wrong with it.
    quality = {**measure_images(image[None], settings.channels), **_sizes([image.shape])}
    if illumination is not None:
        image = illumination.apply(image)
    labels, centers = _nuclei(group, image, settings)
    numbers = np.arange(1, len(centers) + 1)
    if settings.border == "drop":
        kept = crops.fits(centers, image.shape, settings.size)
        centers, numbers = centers[kept], numbers[kept]
    size, border = settings.size, settings.border
    try:
        images = crops.extract_crops(image, centers, size=size, border=border)
    except ValueError as error:
        raise BadData(f"field {group.name}: {error}") from error
    masks = None
    if settings.masks != "none" and labels is not None:
        reach = settings.cell_radius
        masks = cell_masks.crop_masks(
            labels, numbers, centers, size=size, border=border, radius=reach
        )
        if settings.masks == "zero":
            images, masks = cell_masks.zero_elsewhere(images, masks), None
    ids = [f"{group.name}/{number}" for number in numbers.tolist()]
    return _described(group, images, masks, ids, centers, quality, settings.channels)


def _nuclei(
    group: Field, image: np.ndarray, settings: CropSettings
) -> tuple[np.ndarray | None, np.ndarray]:
    """Labels [H, W], None if centres are given, and centres [N, 2]."""
    if group.centers is None:
        channel = settings.channels.index(settings.nuclei or settings.channels[0])
        labels = segmentation.segment_nuclei(image[..., channel], min_area=settings.min_area)
        return labels, crops.nucleus_centers(labels)
    centers = np.asarray(group.centers, np.float32).reshape(-1, 2)
    outside = ((centers < 0) | (centers > np.array(image.shape[:2]) - 1)).any(axis=1)
    if outside.any():
        row, column = centers[outside][0].tolist()
        raise BadData(
            f"a centre at row {row:g}, column {column:g} lies outside its {image.shape[0]}x"
            f"{image.shape[1]} pixels: does --centers belong to these images?"
        )
    return None, centers


def _described(
    group: Field | CellGroup,
    images: np.ndarray,
    masks: np.ndarray | None,
    ids: Sequence[str],
    centers: np.ndarray,
    quality: Mapping[str, float],
    channels: Sequence[str],
    problems: Sequence[str] = (),
) -> FieldCells:
    """Adds metadata, blank crops, digest and what was lost; `centers` are (row, column) [K, 2]."""
    rows = [
        {"cell_id": cell, **group.metadata, "x": column, "y": row}
        for cell, (row, column) in zip(ids, centers.tolist(), strict=True)
    ]
    pixels = [images.tobytes(), b"" if masks is None else masks.tobytes()]
    lost = len(problems) / (len(problems) + len(rows)) if problems else 0.0
    digest = files.digest(repr(rows), *pixels)
    blank = (images == images[:, :1, :1]).all(axis=(1, 2)).sum(axis=0)
    distinct = {files.digest(image.tobytes()) for image in images}
    quality = {
        **quality,
        **{f"blank_{name}": float(count) for name, count in zip(channels, blank, strict=True)},
        "repeated": float(len(images) - len(distinct)),
    }
    return FieldCells(images, masks, rows, quality, digest, listed(problems, separator="; "), lost)


def _sizes(shapes: Sequence[tuple[int, ...]]) -> dict[str, float]:
    """The least and the greatest height and width of images [H, W, C], in pixels."""
    heights, widths, *_ = zip(*shapes, strict=True)
    return {
        "height_min": float(min(heights)),
        "height_max": float(max(heights)),
        "width_min": float(min(widths)),
        "width_max": float(max(widths)),
    }
