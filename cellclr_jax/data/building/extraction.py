"""Extracts cells: reads images, corrects illumination, finds nuclei, cuts crops."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cellclr_jax import files
from cellclr_jax.console import listed
from cellclr_jax.data import crops, segmentation
from cellclr_jax.data.illumination import Illumination
from cellclr_jax.data.quality.measures import measure_images
from cellclr_jax.data.readers.formats import fit
from cellclr_jax.data.sources.source import CellGroup, Field
from cellclr_jax.errors import BadData

# Increase it when the same field and settings give other cells: pieces of an earlier build are then
# extracted again.
CUTTING_VERSION = 3


@dataclass(frozen=True)
class CropSettings:
    """Settings for extracting cells; lengths are in pixels.

    Attributes:
      size: side S of a stored crop.
      channels: in stored order.
      columns: of the metadata.
      dtype: of a stored pixel.
      nuclei: the channel to find nuclei in; '': the first.
      border: how to handle a window that extends beyond the field (see `crops.extract_crops`).
      min_area: smaller nuclei are debris.
      masks: 'none'; 'keep' also stores a mask with each crop; 'zero' stores none and sets the
        pixels outside the cell to 0.
      cell_radius: for masks, how far a cell reaches from its nucleus.
      fit: how to resize single-cell images of another size (see `formats.fit`).
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
      masks: [K, S, S] uint8; None if none are stored.
      rows: the other features of each cell.
      quality: measures of the field, sizes of its images, number of crops that are blank in a
        channel or repeat another crop.
      digest: hex digest of images, masks and rows.
      problem: why some or all of its cells are lost; '' if none is.
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
      settings: how to extract cells.
      illumination: of its plate, to correct; None: no correction.

    Raises:
      BadData: the memory is too small.
      RuntimeError: any unforeseen error, with the name of the field.
    """
    try:
        if isinstance(group, CellGroup):
            return _read_cells(group, settings)
        return _cut_cells(group, settings, illumination)
    except BadData as error:
        side = settings.size
        images = np.empty((0, side, side, len(settings.channels)), settings.dtype)
        masks = np.empty((0, side, side), np.uint8) if settings.masks == "keep" else None
        return FieldCells(images, masks, problem=str(error), lost=1.0)
    except MemoryError as error:
        raise BadData(
            f"field {group.name} does not fit into the memory: use fewer --workers"
        ) from error
    except Exception as error:
        raise RuntimeError(f"field {group.name}: {type(error).__name__}: {error}") from error


def _read_cells(group: CellGroup, settings: CropSettings) -> FieldCells:
    """Reads single-cell images; an unusable image loses one cell, not the group."""
    images, ids, shapes = [], [], []
    centers: list[tuple[float, float]] = []
    problems: list[str] = []
    for number, cell in enumerate(group.cells):
        try:
            image = group.read(number)
            images.append(fit(image, settings.size, settings.fit))
        except BadData as error:
            # A message about the size does not contain the file's name.
            where = group.where(number)
            problems.append(f"{'' if where in str(error) else f'{where}: '}{error}")
            continue
        ids.append(cell)
        shapes.append(image.shape)
        centers.append((np.nan, np.nan) if group.centers is None else group.centers[number])
    if not images:
        raise BadData(listed(problems, separator="; "))
    crop_images = np.stack(images)
    quality = {**measure_images(crop_images, settings.channels), **_sizes(shapes)}
    places = np.array(centers, np.float32)
    return _field_cells(group, crop_images, None, ids, places, quality, settings.channels, problems)


def _cut_cells(
    group: Field, settings: CropSettings, illumination: Illumination | None
) -> FieldCells:
    """Cuts cells around the nuclei of a field."""
    image = group.read()
    # Measured before the correction, which would hide defects of the image.
    quality = {**measure_images(image[None], settings.channels), **_sizes([image.shape])}
    if illumination is not None:
        image = illumination.apply(image)
    labels, centers = _nuclei(group, image, settings)
    numbers = np.arange(1, len(centers) + 1)
    window: dict[str, Any] = {"size": settings.size, "border": settings.border}
    if settings.border == "drop":
        inside = crops.fits(centers, image.shape, settings.size)
        centers, numbers = centers[inside], numbers[inside]
    try:
        images = crops.extract_crops(image, centers, **window)
    except ValueError as error:
        raise BadData(f"field {group.name}: {error}") from error
    masks = None
    if settings.masks != "none" and labels is not None:
        masks = crops.crop_masks(labels, numbers, centers, radius=settings.cell_radius, **window)
        if settings.masks == "zero":
            images, masks = images * (masks > 0)[..., None], None
    ids = [f"{group.name}/{number}" for number in numbers.tolist()]
    return _field_cells(group, images, masks, ids, centers, quality, settings.channels)


def _nuclei(
    group: Field, image: np.ndarray, settings: CropSettings
) -> tuple[np.ndarray | None, np.ndarray]:
    """Labels [H, W], None if the source has centres, and centres [N, 2]."""
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


def _field_cells(
    group: Field | CellGroup,
    images: np.ndarray,
    masks: np.ndarray | None,
    ids: Sequence[str],
    centers: np.ndarray,
    quality: Mapping[str, float],
    channels: Sequence[str],
    problems: Sequence[str] = (),
) -> FieldCells:
    """Adds metadata, counts of blank and repeated crops, digest and lost share."""
    rows = [
        {"cell_id": cell, **group.metadata, "x": column, "y": row}
        for cell, (row, column) in zip(ids, centers.tolist(), strict=True)
    ]
    pixels = [images.tobytes(), b"" if masks is None else masks.tobytes()]
    blank = (images == images[:, :1, :1]).all(axis=(1, 2)).sum(axis=0)
    distinct = {files.digest(image.tobytes()) for image in images}
    return FieldCells(
        images,
        masks,
        rows,
        quality={
            **quality,
            **{f"blank_{name}": float(count) for name, count in zip(channels, blank, strict=True)},
            "repeated": float(len(images) - len(distinct)),
        },
        digest=files.digest(repr(rows), *pixels),
        problem=listed(problems, separator="; "),
        lost=len(problems) / (len(problems) + len(rows)) if problems else 0.0,
    )


def _sizes(shapes: Sequence[tuple[int, ...]]) -> dict[str, float]:
    """Smallest and largest height and width of images [H, W, C], in pixels."""
    heights, widths, *_ = zip(*shapes, strict=True)
    return {
        "height_min": float(min(heights)),
        "height_max": float(max(heights)),
        "width_min": float(min(widths)),
        "width_max": float(max(widths)),
    }
