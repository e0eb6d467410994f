"""Illumination correction: the light of a plate, fitted to its fields and divided out of them."""

import functools
import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.data.fields import Field
from cellclr_jax.data.images.image_files import read_field
from cellclr_jax.data.images.plate_files import ImageFile
from cellclr_jax.data.light_field import (
    LEAST_GAIN,
    block_means,
    median_light,
    relative_light,
)

# How the light is estimated: from the cells of all fields (see `light_field.relative_light`), or as
# CellProfiler does, which divides the camera's offset with the rest.
METHODS = ("regression", "median")
# Raised when the same fields give another light.
FIT_VERSION = 1
# Fewer fields say too little about the light: from 12 fields of an evenly lit plate a light is
# estimated that is uneven by a twentieth, half of what there usually is to be mended.
FEWEST_FIELDS = 20
# A plate of BBBC021 has 240 fields; more than these tell nothing new.
MOST_FIELDS = 256
# The camera's offset is below a field's darkest blocks, and below those of nearly all fields.
_DARKEST, _DARK_FIELDS = 1, 5
# A fit has a few thousand numbers.
_MOST_BYTES = 16 << 20
_DIGEST_BYTES = 16
_ARRAYS = ("gain", "offset", "shape", "channels", "fields")
_REDO = "delete it and build again, it is then fitted anew"
# Rows that are corrected together: their intermediate results stay in the processor's cache.
_ROWS = 32


@dataclass(frozen=True, eq=False)
class Illumination:
    """The light of one plate.

    Attributes:
      gain: [h, w, C] float32, light in each block of the field relative to its mean, at least 1/3.
      offset: [C] float32, counts that are there without light.
      shape: (H, W) of the fields.
      channels: their names.
      fields: how many fields it was estimated from.
    """

    gain: np.ndarray
    offset: np.ndarray
    shape: tuple[int, int]
    channels: tuple[str, ...]
    fields: int

    def apply(self, field: np.ndarray) -> np.ndarray:
        """Divides the light out of a field: offset + (pixel - offset) / gain.

        Args:
          field: [H, W, C] uint16 of the fitted shape and channels.

        Returns:
          [H, W, C] uint16, rounded and cut to its range.

        Raises:
          BadData: a field of another shape.
        """
        expected = (*self.shape, len(self.channels))
        if field.shape != expected:
            raise BadData(
                f"a field of shape {field.shape}, the light of its plate was fitted to {expected}"
            )
        factor, summand = self._full
        corrected = np.empty(expected, np.uint16)
        for row in range(0, expected[0], _ROWS):
            rows = slice(row, row + _ROWS)
            pixels = field[rows] * factor[rows]
            pixels += summand[rows]
            np.clip(pixels, 0.5, 65535.5, out=pixels)  # the cast cuts the fraction off
            corrected[rows] = pixels
        return corrected

    @functools.cached_property
    def _full(self) -> tuple[np.ndarray, np.ndarray]:
        """[H, W, C] float32 twice: a pixel's factor, and what is added then (rounding included)."""
        from scipy import ndimage

        zoom = (self.shape[0] / self.gain.shape[0], self.shape[1] / self.gain.shape[1], 1)
        gain = ndimage.zoom(self.gain, zoom, order=1, mode="nearest", grid_mode=True)
        factor = np.float32(1) / gain
        return factor, self.offset * (1 - factor) + np.float32(0.5)

    def __getstate__(self) -> dict[str, Any]:
        # What other processes need: they make the rest themselves faster than it travels.
        return {name: value for name, value in self.__dict__.items() if name != "_full"}

    def digest(self) -> str:
        """Hex digest of everything that decides what `apply` does."""
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        digest.update(repr((self.shape, self.channels, self.gain.shape)).encode())
        digest.update(self.gain.astype("<f4").tobytes())
        digest.update(self.offset.astype("<f4").tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Writes an .npz file, complete or not at all; OSError where that cannot be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                np.savez(
                    file,
                    gain=self.gain,
                    offset=self.offset,
                    shape=np.array(self.shape, np.int64),
                    channels=np.array(self.channels, np.str_),
                    fields=np.array(self.fields, np.int64),
                    digest=np.array(self.digest()),
                )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> "Illumination":
        """Reads what `save` wrote.

        Raises:
          BadData: the file is missing, damaged, or something else.
        """
        try:
            arrays = _read_arrays(path)
            height, width = arrays["shape"].tolist()
            light = cls(
                gain=arrays["gain"],
                offset=arrays["offset"],
                shape=(height, width),
                channels=tuple(arrays["channels"].tolist()),
                fields=int(arrays["fields"]),
            )
            sound = _is_sound(light) and light.digest() == str(arrays["digest"])
        except Exception as error:
            # A damaged file makes its readers raise anything at all.
            raise BadData(f"{path}: not a readable illumination ({error}); {_REDO}") from error
        if not sound:
            raise BadData(f"{path}: its content does not fit together; {_REDO}")
        return light


class IlluminationFit:
    """Takes the fields of a plate one by one and estimates their light, in bounded memory."""

    def __init__(self, channels: Sequence[str], method: str = "regression") -> None:
        """Starts without a field.

        Args:
          channels: names.
          method: one of `METHODS`.
        """
        if method not in METHODS:
            raise BadUse(f"illumination {method!r}: one of {', '.join(METHODS)} was expected")
        self._channels, self._method = tuple(channels), method
        self._shape: tuple[int, ...] = ()
        self._kept: list[np.ndarray] = []
        self._every, self._seen = 1, 0

    def add(self, field: np.ndarray) -> None:
        """Takes a field; of very many, evenly spaced ones are kept.

        Args:
          field: [H, W, C] uint16.

        Raises:
          BadData: no field of these channels, or of another shape than the first.
        """
        if field.ndim != 3 or field.shape[2] != len(self._channels) or not field.size:
            raise BadData(
                f"a field of shape {field.shape}, (H, W, {len(self._channels)}) was expected"
            )
        if self._seen and field.shape != self._shape:
            raise BadData(f"a field of shape {field.shape}, the plate's others have {self._shape}")
        self._shape = field.shape
        if self._seen % self._every == 0:
            if len(self._kept) == MOST_FIELDS:
                self._kept = self._kept[::2]
                self._every *= 2
            self._kept.append(block_means(field))
        self._seen += 1

    @property
    def kept(self) -> int:
        """How many fields are remembered, at most `MOST_FIELDS`."""
        return len(self._kept)

    def result(self) -> Illumination:
        """Estimates the light of the fields so far.

        The order of the fields does not matter as long as all are kept.

        Raises:
          BadData: there was no field.
        """
        if not self._kept:
            raise BadData("no field to estimate the light from")
        # Sorted, so that the sums over fields come out alike to the last bit in any order.
        order = sorted(range(len(self._kept)), key=lambda field: self._kept[field].tobytes())
        blocks = np.stack([self._kept[field] for field in order])
        if self._method == "median":
            estimate, offset = median_light, np.zeros(blocks.shape[-1])
        else:
            darkest = np.percentile(blocks, _DARKEST, axis=(1, 2))
            estimate, offset = relative_light, np.percentile(darkest, _DARK_FIELDS, axis=0)
        gains = [estimate(blocks[..., channel]) for channel in range(blocks.shape[-1])]
        return Illumination(
            gain=np.stack(gains, axis=-1).astype(np.float32),
            offset=offset.astype(np.float32),
            shape=(self._shape[0], self._shape[1]),
            channels=self._channels,
            fields=len(self._kept),
        )


def fit_plate(
    fields: Sequence[Field],
    channels: Sequence[str],
    method: str = "regression",
    read: Callable[[tuple[ImageFile, ...]], np.ndarray] = read_field,
) -> Illumination:
    """Estimates the light of a plate from its files.

    Args:
      fields: of one plate. Of more than `MOST_FIELDS`, evenly spaced ones are read.
      channels: names, in the order of a field's files.
      method: one of `METHODS`.
      read: makes [H, W, C] uint16 of a field's files, or raises BadData.

    Returns:
      The light; its `fields` is the number of fields that it was estimated from. Fields that cannot
      be read, and those of another shape than most, are passed over: whoever reads them next names
      them.

    Raises:
      BadData: not one field can be read.
    """
    fits: dict[tuple[int, ...], IlluminationFit] = {}
    for field in fields[:: -(-len(fields) // MOST_FIELDS) or 1]:
        try:
            pixels = read(field.files)
        except BadData:
            continue
        fits.setdefault(pixels.shape, IlluminationFit(channels, method)).add(pixels)
    if not fits:
        plate = fields[0].plate if fields else ""
        raise BadData(f"plate {plate!r}: not one of its {len(fields)} fields can be read")
    return max(fits.values(), key=lambda fit: fit.kept).result()


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; ValueError and others where they are too large or not there."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > _MOST_BYTES:
        raise ValueError(f"it unpacks to {size:,} bytes, more than the {_MOST_BYTES:,} allowed")
    with np.load(path, allow_pickle=False) as there:
        return {name: there[name] for name in (*_ARRAYS, "digest")}


def _is_sound(light: Illumination) -> bool:
    """Whether types, shapes and ranges are those of a fit."""
    height, width, channels = light.gain.shape
    return (
        light.gain.dtype == light.offset.dtype == np.float32
        and light.offset.shape == (channels,)
        and len(light.channels) == channels
        and 0 < height <= light.shape[0]
        and 0 < width <= light.shape[1]
        and bool(np.isfinite(light.gain).all() and np.isfinite(light.offset).all())
        and bool((light.gain >= np.float32(LEAST_GAIN)).all())
        and light.fields > 0
    )
