"""Turns fields into serialised cells, in many processes, in the fields' order."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cellclr_jax.cli import BadData
from cellclr_jax.data import crops, segmentation
from cellclr_jax.data.fields import Field
from cellclr_jax.data.image_files import read_crop, read_field
from cellclr_jax.data.pool import map_in_order

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_DIGEST_BYTES = 16
# A field's unusable crops that its problem names; it may have hundreds.
_PROBLEMS_NAMED = 3


@dataclass(frozen=True)
class CropSettings:
    """How cells are cut: side S in pixels, border rule, least nucleus in pixels, channels."""

    size: int
    border: str
    min_area: int
    channels: tuple[str, ...]


@dataclass(frozen=True)
class FieldCells:
    """The cells of one field.

    `records` are serialised examples and `rows` their features but the image, in the same order;
    `digest` stands for the content. `problem` is the reason why the field gave none, or ''.
    """

    records: list[bytes]
    rows: list[dict[str, Any]]
    digest: bytes
    problem: str = ""


def cell_features(size: int, channels: int) -> "tfds.features.FeaturesDict":
    """The features of one cell's record.

    `image` is stored as it is: the shards' own compression makes it as small as zlib would, and
    reads several times as fast.
    """
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Tensor(
                shape=(size, size, channels), dtype=np.uint16, encoding="bytes"
            ),
            "cell_id": tfds.features.Text(doc="<plate>/<well>/s<site>/<number in the field>"),
            "plate": tfds.features.Text(),
            "well": tfds.features.Text(),
            "site": tfds.features.Scalar(np.int32),
            "batch": tfds.features.Text(doc="The experimental batch (BBBC021: the week)"),
            "compound": tfds.features.Text(),
            "concentration": tfds.features.Scalar(np.float32, doc="µM"),
            "moa": tfds.features.Text(doc="Mechanism of action, '' where not annotated"),
            "replicate": tfds.features.Scalar(np.int32),
            "x": tfds.features.Scalar(np.float32, doc="Column of the nucleus, NaN if unknown"),
            "y": tfds.features.Scalar(np.float32, doc="Row of the nucleus, NaN if unknown"),
        }
    )


def extract(fields: Sequence[Field], settings: CropSettings, workers: int) -> Iterator[FieldCells]:
    """Reads, segments, cuts and serialises fields.

    Args:
      fields: what to read.
      settings: how to cut.
      workers: processes; 1 works in this one. The result does not depend on it.

    Yields:
      One item a field, in their order.

    Raises:
      BadData: a worker process was killed.
    """
    work = functools.partial(extract_field, settings=settings)
    yield from map_in_order(work, fields, workers)


def extract_field(field: Field, settings: CropSettings) -> FieldCells:
    """Cuts and serialises the cells of one field; a field that cannot be used is a `problem`.

    Raises:
      BadData: the memory is too small.
      RuntimeError: anything that was not foreseen, with the field's name.
    """
    try:
        return _serialize(field, settings)
    except BadData as error:
        return FieldCells([], [], b"", str(error))
    except MemoryError as error:
        raise BadData(
            f"field {field.name} does not fit into the memory: use fewer --workers"
        ) from error
    except Exception as error:
        raise RuntimeError(f"field {field.name}: {type(error).__name__}: {error}") from error


def _serialize(field: Field, settings: CropSettings) -> FieldCells:
    """Cuts and serialises the cells of one field; BadData where that cannot be."""
    cut = _given_crops if field.numbers else _found_crops
    images, numbers, centers = cut(field, settings)
    encode, serialize = _encoder(settings.size, len(settings.channels))
    rows = [
        _row(field, number, center)
        for number, center in zip(numbers, centers.tolist(), strict=True)
    ]
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    records = []
    for image, row in zip(images, rows, strict=True):
        # Sorted keys: a protocol buffer's map has otherwise no fixed order of bytes.
        record = serialize(encode({"image": image, **row})).SerializeToString(deterministic=True)
        digest.update(record)
        records.append(record)
    return FieldCells(records, rows, digest.digest())


def _given_crops(
    field: Field, settings: CropSettings
) -> tuple[np.ndarray, tuple[int, ...], np.ndarray]:
    """Crops that come as files: images [K, S, S, C], their numbers, unknown centres [K, 2]."""
    shape = (settings.size, settings.size, len(settings.channels))
    images = np.empty((len(field.files), *shape), np.uint16)
    problems = []
    for image, file in zip(images, field.files, strict=True):
        try:
            crop = read_crop(file)
        except BadData as error:
            problems.append(str(error))
            continue
        if crop.shape == shape:
            image[:] = crop
        else:
            problems.append(f"{file.where}: shape {crop.shape}, most crops have {shape}")
    if problems:
        more = len(problems) - _PROBLEMS_NAMED
        raise BadData(
            "; ".join(problems[:_PROBLEMS_NAMED]) + (f"; … and {more} more" if more > 0 else "")
        )
    return images, field.numbers, np.full((len(images), 2), np.nan, np.float32)


def _found_crops(
    field: Field, settings: CropSettings
) -> tuple[np.ndarray, tuple[int, ...], np.ndarray]:
    """Crops around the nuclei of a field: images [K, S, S, C], numbers, centres [K, 2]."""
    image = read_field(field.files)
    dna = image[..., settings.channels.index("dna")]
    labels = segmentation.segment_nuclei(dna, min_area=settings.min_area)
    centers = crops.nucleus_centers(labels)
    numbers = np.arange(1, len(centers) + 1)
    if settings.border == "drop":
        kept = crops.fits(centers, image.shape, settings.size)
        centers, numbers = centers[kept], numbers[kept]
    try:
        images = crops.extract_crops(image, centers, size=settings.size, border=settings.border)
    except ValueError as error:
        raise BadData(f"{field.files[0].where}: {error}") from error
    return images, tuple(numbers.tolist()), centers


def _row(field: Field, number: int, center: list[float]) -> dict[str, Any]:
    """The features of a cell but its image."""
    return {
        "cell_id": f"{field.name}/{number}",
        "plate": field.plate,
        "well": field.well,
        "site": field.site,
        "batch": field.batch,
        "compound": field.compound,
        "concentration": field.concentration,
        "moa": field.moa,
        "replicate": field.replicate,
        "x": center[1],
        "y": center[0],
    }


@functools.cache
def _encoder(size: int, channels: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """How TFDS encodes an example, and makes a tf.train.Example of it."""
    from tensorflow_datasets.core import example_serializer

    features = cell_features(size, channels)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    return features.encode_example, serializer.get_tf_example
