"""Turns a field into serialised cells: reads, corrects the light, finds nuclei, cuts, measures."""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cellclr_jax.data import (
    cell_masks,
    crops,
    segmentation,
)
from cellclr_jax.data.columns import COLUMNS
from cellclr_jax.data.illumination import Illumination
from cellclr_jax.data.quality.measures import measure_crops, measure_field
from cellclr_jax.data.readers import (
    read_cell,
    read_field,
)
from cellclr_jax.data.readers.formats import fit
from cellclr_jax.data.sources.source import Field
from cellclr_jax.errors import BadData

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# Raised when the same field and settings give other cells: pieces of an earlier build are then
# made again.
CUTTING_VERSION = 2
# Whose pixels a crop shows: all; all, with a mask beside them; the cell's own, the others zero.
MASKS = ("none", "keep", "zero")
_DIGEST_BYTES = 16
# A field's unusable crops that its problem names; it may have hundreds.
_PROBLEMS_NAMED = 3


@dataclass(frozen=True)
class CropSettings:
    """How cells become images; lengths in pixels.

    Attributes:
      size: side S of a stored crop.
      channels: stored order.
      columns: of the metadata.
      dtype: of a stored pixel.
      border: what becomes of a window that leaves the field (see `crops.extract_crops`).
      min_area: smaller nuclei are debris.
      masks: one of `MASKS`.
      cell_radius: how far a cell reaches from its nucleus, for masks.
      layout: of given crops (see `fields.LAYOUTS`).
      fit: what becomes of given crops of another size (see `fit_size.fit`).
    """

    size: int
    channels: tuple[str, ...]
    columns: tuple[str, ...]
    dtype: str = "uint16"
    border: str = "drop"
    min_area: int = 100
    masks: str = "none"
    cell_radius: int = 30
    layout: str = "stacked"
    fit: str = "exact"


@dataclass(frozen=True)
class FieldCells:
    """The cells of one field.

    `records` are serialised examples and `rows` their features but images, in the same order;
    `quality` are measures of the field and `digest` stands for the content. `problem` is the reason
    why it gave none of its cells, or not all of them, or ''; `lost` is their share.
    """

    records: list[bytes]
    rows: list[dict[str, Any]]
    quality: Mapping[str, float] = field(default_factory=dict)
    digest: bytes = b""
    problem: str = ""
    lost: float = 0.0


class _Cut(NamedTuple):
    """Cells cut from one field: images [K, S, S, C], masks [K, S, S] or None, ids, (row, column)
    [K, 2] in the field, NaN where unknown, the field's quality, and what became of given crops that
    cannot be used.
    """

    images: np.ndarray
    masks: np.ndarray | None
    ids: list[str]
    centers: np.ndarray
    quality: dict[str, float]
    problems: Sequence[str] = ()


def cell_features(settings: CropSettings) -> "tfds.features.FeaturesDict":
    """The features of one cell's record.

    `image` is stored as it is: the shards' own compression makes it as small as zlib would, and
    reads several times as fast.
    """
    import tensorflow_datasets as tfds

    kinds = {str: np.object_, int: np.int32, float: np.float32}
    shape = (settings.size, settings.size)
    features = {
        "image": tfds.features.Tensor(
            shape=(*shape, len(settings.channels)),
            dtype=np.dtype(settings.dtype),
            encoding="bytes",
        ),
        "cell_id": tfds.features.Text(doc="<field>/<number in it>, or the name of its file"),
        "x": tfds.features.Scalar(np.float32, doc="Column of the nucleus, NaN if unknown"),
        "y": tfds.features.Scalar(np.float32, doc="Row of the nucleus, NaN if unknown"),
    }
    if settings.masks == "keep":
        features["mask"] = tfds.features.Tensor(
            shape=shape,
            dtype=np.dtype(np.uint8),
            encoding="bytes",
            doc="2 in the nucleus, 1 in the cell's territory, 0 elsewhere",
        )
    for name in settings.columns:
        kind = COLUMNS[name]
        features[name] = tfds.features.Text() if kind is str else tfds.features.Scalar(kinds[kind])
    return tfds.features.FeaturesDict(features)


def extract_field(
    field: Field, settings: CropSettings, illumination: Illumination | None = None
) -> FieldCells:
    """Cuts and serialises the cells of one field; a field that cannot be used is a `problem`.

    Args:
      field: what to read.
      settings: how to cut.
      illumination: the light of its plate, to be corrected.

    Raises:
      BadData: the memory is too small.
      RuntimeError: anything that was not foreseen, with the field's name.
    """
    try:
        if field.cells:
            cut = _given_cells(field, settings)
        else:
            cut = _found_cells(field, settings, illumination)
        return _serialize(field, cut, settings)
    except BadData as error:
        return FieldCells([], [], problem=str(error), lost=1.0)
    except MemoryError as error:
        raise BadData(
            f"field {field.name} does not fit into the memory: use fewer --workers"
        ) from error
    except Exception as error:
        raise RuntimeError(f"field {field.name}: {type(error).__name__}: {error}") from error


def _serialize(field: Field, cut: _Cut, settings: CropSettings) -> FieldCells:
    """Makes records of what was cut."""
    encode, serialize = _encoder(settings)
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    records, rows = [], []
    for number, (cell, center) in enumerate(zip(cut.ids, cut.centers.tolist(), strict=True)):
        row = {"cell_id": cell, **field.metadata, "x": center[1], "y": center[0]}
        pixels = {"image": cut.images[number]}
        if cut.masks is not None:
            pixels["mask"] = cut.masks[number]
        # Sorted keys: a protocol buffer's map has otherwise no fixed order of bytes.
        example = serialize(encode({**pixels, **row}))
        records.append(example.SerializeToString(deterministic=True))
        digest.update(records[-1])
        rows.append(row)
    lost = len(cut.problems) / (len(cut.problems) + len(rows)) if cut.problems else 0.0
    return FieldCells(records, rows, cut.quality, digest.digest(), _named(cut.problems), lost)


def _given_cells(field: Field, settings: CropSettings) -> _Cut:
    """Cells that come as files; each that cannot be used is lost alone."""
    depth = len(settings.channels)
    images = np.empty((len(field.files), settings.size, settings.size, depth), settings.dtype)
    problems = []
    kept = []
    for number, file in enumerate(field.files):
        try:
            crop = read_cell(file, channels=depth, layout=settings.layout, dtype=settings.dtype)
            images[number] = fit(crop, settings.size, settings.fit)
            kept.append(number)
        except BadData as error:
            # A size that does not fit is told without the file's name.
            where = "" if file.where in str(error) else f"{file.where}: "
            problems.append(f"{where}{error}")
    if not kept:
        raise BadData(_named(problems))
    images = images[kept]
    centers = np.full((len(field.files), 2), np.nan, np.float32)
    if field.centers is not None:
        centers[:] = field.centers
    return _Cut(
        images,
        None,
        [field.cells[number] for number in kept],
        centers[kept],
        measure_crops(images, settings.channels),
        problems,
    )


def _named(problems: Sequence[str]) -> str:
    """The first few problems in one line."""
    more = len(problems) - _PROBLEMS_NAMED
    return "; ".join(problems[:_PROBLEMS_NAMED]) + (f"; … and {more} more" if more > 0 else "")


def _found_cells(field: Field, settings: CropSettings, illumination: Illumination | None) -> _Cut:
    """Cells around the nuclei of a field."""
    image = read_field(field.files)
    # Measured as it was photographed: a correction would hide what is wrong with it.
    quality = measure_field(image, settings.channels)
    if illumination is not None:
        image = illumination.apply(image)
    labels, centers = _nuclei(field, image, settings)
    numbers = np.arange(1, len(centers) + 1)
    if settings.border == "drop":
        kept = crops.fits(centers, image.shape, settings.size)
        centers, numbers = centers[kept], numbers[kept]
    size, border = settings.size, settings.border
    try:
        images = crops.extract_crops(image, centers, size=size, border=border)
    except ValueError as error:
        raise BadData(f"{field.files[0].where}: {error}") from error
    masks = None
    if settings.masks != "none" and labels is not None:
        reach = settings.cell_radius
        masks = cell_masks.crop_masks(
            labels, numbers, centers, size=size, border=border, radius=reach
        )
        if settings.masks == "zero":
            images, masks = cell_masks.zero_elsewhere(images, masks), None
    ids = [f"{field.name}/{number}" for number in numbers.tolist()]
    return _Cut(images, masks, ids, centers, quality)


def _nuclei(
    field: Field, image: np.ndarray, settings: CropSettings
) -> tuple[np.ndarray | None, np.ndarray]:
    """Labels [H, W], None where centres are given, and centres [N, 2]."""
    if field.centers is None:
        dna = image[..., settings.channels.index("dna")]
        labels = segmentation.segment_nuclei(dna, min_area=settings.min_area)
        return labels, crops.nucleus_centers(labels)
    centers = np.asarray(field.centers, np.float32).reshape(-1, 2)
    outside = ((centers < 0) | (centers > np.array(image.shape[:2]) - 1)).any(axis=1)
    if outside.any():
        row, column = centers[outside][0].tolist()
        raise BadData(
            f"a centre at row {row:g}, column {column:g} lies outside its {image.shape[0]}x"
            f"{image.shape[1]} pixels: does --centers belong to these images?"
        )
    return None, centers


@functools.cache
def _encoder(settings: CropSettings) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """How TFDS encodes an example, and makes a tf.train.Example of it."""
    from tensorflow_datasets.core import example_serializer

    features = cell_features(settings)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    return features.encode_example, serializer.get_tf_example
