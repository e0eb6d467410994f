"""Estimates the uneven illumination of a plate from its fields, and corrects fields for it.

In this module "light" is the illumination relative to its mean.
"""

import functools
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from cellclr_jax import files
from cellclr_jax.data.quality.measures import camera_ceiling
from cellclr_jax.data.sources.source import Field
from cellclr_jax.errors import BadData

# 'regression' uses the cells of all fields (see `relative_light`); 'median' works as CellProfiler,
# which does not subtract the camera's offset first.
METHODS = ("regression", "median")
# Increase it when the same fields give another light.
FIT_VERSION = 2
# Fewer fields are too few: from 12 fields of an evenly lit plate, the estimate is uneven by a
# twentieth, half of the usual unevenness of a plate.
FEWEST_FIELDS = 20
# A plate of BBBC021 has 240 fields; reading more than this number would not improve the estimate.
MOST_FIELDS = 256
# The camera's offset is estimated as this percentile over fields of a low percentile of blocks.
_DARKEST, _DARK_FIELDS = 1, 5
# Limit for reading a file; an estimate has a few thousand numbers.
_MOST_BYTES = 16 << 20
_REDO = "delete it and build again to fit it again"
# Rows to correct together, so that intermediate results stay in the processor's cache.
_ROWS = 32


@dataclass(frozen=True, eq=False)
class Illumination:
    """The illumination of one plate.

    Attributes:
      gain: [h, w, C] float32, light in each block of the field relative to its mean, at least 1/3.
      offset: [C] float32, counts of the camera without light.
      shape: (H, W) of the fields.
      channels: their names.
      fields: number of fields in the estimate.
    """

    gain: np.ndarray
    offset: np.ndarray
    shape: tuple[int, int]
    channels: tuple[str, ...]
    fields: int

    def apply(self, field: np.ndarray) -> np.ndarray:
        """Corrects a field: offset + (pixel - offset) / gain.

        A saturated pixel keeps its value, since its true brightness is unknown.

        Args:
          field: [H, W, C] uint16, with the shape and channels of the estimate.

        Returns:
          [H, W, C] uint16, rounded and clipped.

        Raises:
          BadData: the field has another shape.
        """
        expected = (*self.shape, len(self.channels))
        if field.shape != expected:
            raise BadData(
                f"a field of shape {field.shape}, the illumination was fitted to {expected}"
            )
        factor, summand = self._full
        ceilings = [camera_ceiling(field[..., channel]) for channel in range(expected[2])]
        corrected = np.empty(expected, np.uint16)
        for row in range(0, expected[0], _ROWS):
            rows = slice(row, row + _ROWS)
            pixels = field[rows] * factor[rows]
            pixels += summand[rows]
            np.clip(pixels, 0.5, 65535.5, out=pixels)  # the cast truncates
            corrected[rows] = pixels
            np.copyto(corrected[rows], field[rows], where=field[rows] >= ceilings)
        return corrected

    @functools.cached_property
    def _full(self) -> tuple[np.ndarray, np.ndarray]:
        """Factor and summand of each pixel, [H, W, C] float32, with 0.5 for rounding."""
        zoom = (self.shape[0] / self.gain.shape[0], self.shape[1] / self.gain.shape[1], 1)
        gain = ndimage.zoom(self.gain, zoom, order=1, mode="nearest", grid_mode=True)
        factor = np.float32(1) / gain
        return factor, self.offset * (1 - factor) + np.float32(0.5)

    def digest(self) -> str:
        """Hex digest of everything that decides the result of `apply`."""
        return files.digest(
            repr((self.shape, self.channels, self.gain.shape)),
            self.gain.astype("<f4").tobytes(),
            self.offset.astype("<f4").tobytes(),
        )

    def save(self, path: Path) -> None:
        """Writes an .npz file atomically; OSError if it cannot be written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(path) as part, part.open("wb") as file:
            np.savez(
                file,
                gain=self.gain,
                offset=self.offset,
                shape=np.array(self.shape, np.int64),
                channels=np.array(self.channels, np.str_),
                fields=np.array(self.fields, np.int64),
                digest=np.array(self.digest()),
            )

    @classmethod
    def load(cls, path: Path) -> "Illumination":
        """Reads a file that `save` wrote.

        Raises:
          BadData: the file is missing, damaged, or another kind of file.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > _MOST_BYTES:
                raise ValueError(f"it unpacks to {size:,} bytes, more than {_MOST_BYTES:,}")
            with np.load(path, allow_pickle=False) as arrays:
                height, width = arrays["shape"].tolist()
                light = cls(
                    gain=arrays["gain"],
                    offset=arrays["offset"],
                    shape=(height, width),
                    channels=tuple(arrays["channels"].tolist()),
                    fields=int(arrays["fields"]),
                )
                if light.digest() != str(arrays["digest"]):
                    raise ValueError("its digest does not match its content")
        except Exception as error:
            # For a damaged file, the readers raise errors of many types.
            raise BadData(f"{path}: not a readable illumination ({error}); {_REDO}") from error
        return light


def estimate_light(
    blocks: Sequence[np.ndarray],
    shape: tuple[int, int],
    channels: Sequence[str],
    method: str = "regression",
) -> Illumination:
    """Estimates the illumination from fields; their order does not change the result.

    Args:
      blocks: `block_means` [h, w, C] of at least one field.
      shape: (H, W) of the fields.
      channels: names.
      method: one of `METHODS`.
    """
    # Sorted, so that sums over fields are identical for any order of the fields.
    by_content: list[np.ndarray] = sorted(blocks, key=lambda block: block.tobytes())
    ordered = np.stack(by_content)
    if method == "median":
        estimate, offset = median_light, np.zeros(len(channels))
    else:
        darkest = np.percentile(ordered, _DARKEST, axis=(1, 2))
        estimate, offset = relative_light, np.percentile(darkest, _DARK_FIELDS, axis=0)
    gains = [estimate(ordered[..., channel]) for channel in range(len(channels))]
    return Illumination(
        gain=np.stack(gains, axis=-1).astype(np.float32),
        offset=offset.astype(np.float32),
        shape=shape,
        channels=tuple(channels),
        fields=len(blocks),
    )


def fit_plate(
    fields: Sequence[Field],
    channels: Sequence[str],
    method: str = "regression",
) -> Illumination:
    """Estimates the illumination of a plate from its fields.

    Args:
      fields: of one plate. If there are more than `MOST_FIELDS`, evenly spaced ones are read.
      channels: names, in the order of the source.
      method: one of `METHODS`.

    Returns:
      The illumination. Fields that cannot be read, and those of another shape than most, are
      left out; extraction reports them.

    Raises:
      BadData: no field can be read.
    """
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for field in fields[:: -(-len(fields) // MOST_FIELDS) or 1]:
        try:
            pixels = field.read()
        except BadData:
            continue
        height, width, _ = pixels.shape
        found.setdefault((height, width), []).append(block_means(pixels))
    if not found:
        plate = fields[0].plate if fields else ""
        raise BadData(f"plate {plate!r}: none of its {len(fields)} fields can be read")
    shape, blocks = max(found.items(), key=lambda item: len(item[1]))
    return estimate_light(blocks, shape, channels, method)


# Side of a block in pixels: smaller than a nucleus, so that a cell can fill a block, and large
# enough to average out the camera's noise ...
_BLOCK = 16
# ... or larger, to limit the number of blocks along a side: 256 fields of three channels then take
# at most 20 MB.
_MOST_BLOCKS = 80
# The light is a polynomial of this total degree. An off-centre lamp with dark corners needs four;
# steeper changes are dirt, which does not belong to a plate.
_DEGREE = 4
# Percentiles of a field's blocks for its background and its bright parts. Nuclei cover a twentieth
# of a sparse field.
_FLOOR, _BRIGHT = 5, 98
# A block above this share of the bright ones lies within a cell, not at a cell's blurred border.
_CELL = 0.5
# A field is empty or saturated if its bright parts rise less or more than these multiples of the
# plate's usual rise (the upper quartile over fields).
_LEAST_OF_USUAL, _MOST_OF_USUAL, _USUAL = 0.3, 5.0, 75
# A channel is not corrected if its cells rise above the background by less than this share of it,
# since the slope of the background could be mistaken for cells.
_LEAST_RISE = 0.2
# A block brighter than the field's cells by this factor (natural logarithm) is dust or a clump. A
# field's weight is its number of cell blocks, limited to the median over fields: in an overgrown
# field every block is a cell.
_MOST_LOGARITHM = 1.0
# Factor on the variance between fields in the shrinkage; on simulated plates, even and uneven, of
# 12 to 200 fields, 3 gave the smallest error.
_CAUTION = 3.0
# Which blocks are cells depends on the light, so the estimate is repeated; 4 rounds converge.
_ROUNDS = 4
# Of the median over fields: sigma of the Gaussian as a share of the field's sides. It is several
# cells wide, and light changes over half a field.
_MEDIAN_SIGMA = 0.1
# Lower limit of the light relative to its mean: no pixel is amplified more than 3 times.
LEAST_GAIN = 1 / 3
# Limit of the logarithm, since a polynomial is unbounded where there are too few cells.
_MOST_LIGHT = -np.log(LEAST_GAIN)


def block_means(field: np.ndarray) -> np.ndarray:
    """Means over square blocks of 16 pixels, larger ones for large fields.

    Args:
      field: [H, W, C] of any unsigned type.

    Returns:
      [h, w, C] float32, h and w at most 80.
    """
    side = max(_BLOCK, *(-(-length // _MOST_BLOCKS) for length in field.shape[:2]))
    edges = [
        np.linspace(0, length, max(1, round(length / side)) + 1).astype(int)
        for length in field.shape[:2]
    ]
    sums = np.add.reduceat(field, edges[0][:-1], axis=0, dtype=np.uint32)
    sums = np.add.reduceat(sums, edges[1][:-1], axis=1, dtype=np.float64)
    area = np.outer(np.diff(edges[0]), np.diff(edges[1]))
    return (sums / area[..., None]).astype(np.float32)


def relative_light(blocks: np.ndarray) -> np.ndarray:
    """Estimates the relative illumination of one channel.

    The more the fields differ, the closer the estimate is to uniform illumination; without any
    cells it is uniform. With fewer than 20 fields it is no better than no correction.

    Args:
      blocks: [N, h, w] float32, the block means of N fields.

    Returns:
      [h, w] float64, the illumination of each block relative to the mean, at least 1/3.
    """
    height, width = blocks.shape[1:]
    rise = _rise(blocks.reshape(len(blocks), -1).astype(np.float64))
    terms, degrees = _polynomials(height, width)
    # In one field, light and cells cannot be distinguished.
    if len(rise) < 2 or not len(degrees):
        return np.ones((height, width))
    logarithm = np.zeros(height * width)
    for _ in range(_ROUNDS):
        normal, right = _normal_equations(rise / _light(logarithm), terms)
        inverse = np.linalg.pinv(normal.sum(axis=0), hermitian=True)
        logarithm += terms @ (inverse @ right.sum(axis=0))
    coefficients = terms.T @ logarithm / len(logarithm)
    # The deviations of single fields from the estimate give its variance.
    apart = inverse @ (right - normal @ (inverse @ right.sum(axis=0))).T
    variance = (apart**2).sum(axis=1) * len(rise) / (len(rise) - 1)
    for degree in np.unique(degrees):
        # James-Stein shrinkage of the coefficients of each degree.
        same = degrees == degree
        power = max((coefficients[same] ** 2).sum(), np.finfo(float).tiny)
        coefficients[same] *= max(0.0, 1 - _CAUTION * variance[same].sum() / power)
    gain = _light(terms @ coefficients).reshape(height, width)
    return np.asarray(np.maximum(gain / gain.mean(), LEAST_GAIN))


def median_light(blocks: np.ndarray) -> np.ndarray:
    """Computes a channel's median over fields, smoothed by a Gaussian of a tenth of the field.

    Args:
      blocks: [N, h, w] float32, the block means of N fields.

    Returns:
      [h, w] float64, relative to the mean, at least 1/3.
    """
    median = np.median(blocks, axis=0).astype(np.float64)
    sigma = [_MEDIAN_SIGMA * length for length in median.shape]
    gain = ndimage.gaussian_filter(median, sigma, mode="nearest")
    if not gain.mean() > 0:
        return np.ones_like(gain)
    return np.asarray(np.maximum(gain / gain.mean(), LEAST_GAIN))


def _light(logarithm: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(np.clip(logarithm, -_MOST_LIGHT, _MOST_LIGHT)))


def _rise(blocks: np.ndarray) -> np.ndarray:
    """Subtracts each field's background from blocks [N, P]; keeps fields with cells, [K, P]."""
    floor = np.percentile(blocks, _FLOOR, axis=1)
    rise = blocks - floor[:, None]
    bright = np.percentile(rise, _BRIGHT, axis=1)
    usual = np.percentile(bright, _USUAL)
    if usual <= _LEAST_RISE * np.median(floor):
        return rise[:0]
    ordinary = (bright >= _LEAST_OF_USUAL * usual) & (bright <= _MOST_OF_USUAL * usual)
    return np.asarray(rise[ordinary])


def _polynomials(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes orthogonal polynomials [P, T] of mean 0 and mean square 1, and their degrees [T]."""
    degree = min(_DEGREE, height - 1, width - 1)
    y, x = (np.linspace(-1, 1, length) for length in (height, width))
    powers = [(total - i, i) for total in range(degree + 1) for i in range(total + 1)]
    columns = [np.multiply.outer(y**i, x**j).ravel() for i, j in powers]
    terms, _ = np.linalg.qr(np.stack(columns, axis=1))
    degrees = np.array([i + j for i, j in powers])
    return terms[:, 1:] * np.sqrt(height * width), degrees[1:]


def _normal_equations(rise: np.ndarray, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of the logarithms of each field's cells: [K, T, T] and [K, T].

    A field's intercept is removed by subtracting its mean.
    """
    levels = _CELL * np.percentile(rise, _BRIGHT, axis=1)
    cells = []
    for field, level in zip(rise, levels, strict=True):
        bright = np.flatnonzero(field > level)
        logarithm = np.log(field[bright])
        logarithm -= np.median(logarithm)
        usual = logarithm < _MOST_LOGARITHM
        cells.append((bright[usual], logarithm[usual]))
    most = np.median([len(places) for places, _ in cells])
    normal, right = [], []
    for places, logarithm in cells:
        weight = min(1.0, most / len(places))
        centred = terms[places] - terms[places].mean(axis=0)
        normal.append(weight * centred.T @ centred)
        right.append(weight * centred.T @ logarithm)
    return np.stack(normal), np.stack(right)
