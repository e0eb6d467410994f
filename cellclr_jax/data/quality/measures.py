"""Measures of a field's image by channel: brightness, saturation, sharpness.

They are taken of the image as the camera gave it, before any correction. Nothing here knows what
is on the image: fields of any assay compare with their neighbours on the plate.
"""

from collections.abc import Iterator, Sequence

import numpy as np

MEASURES = ("mean", "p50", "p99", "saturated", "focus")

# A camera's ceiling shows as a pile of pixels at the image's largest value: at least so many, ...
_FEWEST_PILED = 10
# ... and this many times the usual number at each of the values just below it, ...
_PILE = 5.0
# ... of which so many are looked at. Without a ceiling the counts thin out towards the largest
# value, which a handful of pixels have.
_VALUES_BELOW = 8
# Sharpness is read in tiles of about this many pixels, several cells wide: the one bright fibre
# that lies above the cells decides in its own tile only.
_TILE = 128
# Coarse detail is that of blocks of this many pixels, the size of a nucleus's features; fine detail
# that of blocks of half the side (single pixels hold more noise than detail).
_BLOCK = 8
# A tile has something to focus on when its coarse detail is this many standard errors above zero.
_SURE = 6.0
# The standard error of the median of n values is that of one, times this, by the root of n.
_MEDIAN_ERROR = 1.25
# Fine detail counts when it is this many standard errors above zero, ...
_FOUND = 3.0
# ... and whether there is any can be told while so much of it, as energy relative to the coarse,
# would be found: a sixth of what a sharp field has.
_TELLABLE = 0.3
# Images are gone through in portions of so many pixels: a folder of crops may hold any number.
_PORTION = 1 << 21


def columns_of(channels: Sequence[str]) -> list[str]:
    """The names of all measures of the channels, `<measure>_<channel>`, in a table's order."""
    return [f"{measure}_{channel}" for measure in MEASURES for channel in channels]


def measure_images(images: np.ndarray, channels: Sequence[str]) -> dict[str, float]:
    """Measures a field of view, or given crops as if they were one field.

    Args:
      images: [K, H, W, C] uint8 or uint16, as the camera gave them; a field is one image.
      channels: C names.

    Returns:
      For each channel `mean_`, `p50_`, `p99_` (intensities), `saturated_` (share of the pixels at
      the camera's ceiling, see `camera_ceiling`) and `focus_` (see `focus_score`).

    Raises:
      ValueError: the images have another shape or type, or there is no pixel.
    """
    if images.ndim != 4 or images.shape[-1] != len(channels) or not images.size:
        raise ValueError(f"pixels of {len(channels)} channels expected, got shape {images.shape}")
    if images.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"uint8 or uint16 expected, got {images.dtype}")
    measured = [_measure(np.ascontiguousarray(plane)) for plane in np.moveaxis(images, -1, 0)]
    return {
        f"{measure}_{channel}": values[measure]
        for measure in MEASURES
        for channel, values in zip(channels, measured, strict=True)
    }


def camera_ceiling(image: np.ndarray) -> int:
    """The value at which an image is saturated.

    It is the type's largest value, or the image's own where pixels pile up on it: files of 16 bits
    hold the 12 or 14 of a camera, shifted or not, and some cameras end elsewhere.

    Args:
      image: any shape, uint8 or uint16, at least one pixel.
    """
    return _ceiling(_histogram(image[None]))


def focus_score(images: np.ndarray) -> float:
    """Fine detail in relation to coarse detail: falls with blur, steeply.

    The four pixels of each 2x2 block make two images of half the resolution, one of each diagonal:
    the same scene with noise of their own. With a and b their means over blocks of 4 pixels a
    side, A and B over blocks of 8, and L the Laplacian, the score is

        sqrt(mean(LLa * LLb) / mean(LA * LB)).

    Noise is independent between pixels and has an expectation of zero in both products, so that a
    blurred image does not pass for sharp because it is noisy, as it does by the variance of the
    Laplacian or the slope of the power spectrum. Gain and offset cancel, L takes away light that
    changes across the field, and the number of cells multiplies both means.

    Args:
      images: [K, H, W] uint8 or uint16, fields or crops. The ratio is taken in tiles of them, and
        its weighted median is the image's: bright dust decides in its tile alone.

    Returns:
      About 1 to 4 for a sharp image, 0 where all fine detail is noise. NaN where that cannot be
      told (no structure, or much noise) or the images have less than 24 pixels a side.
    """
    if min(images.shape[1:]) < 3 * _BLOCK:
        return np.nan
    energies = [_energies(_tiles(portion)) for portion in _portions(images)]
    fine, fine_error, coarse, coarse_error = np.concatenate(energies, axis=1)
    sure = coarse > _SURE * coarse_error
    if not sure.any():
        return np.nan
    # By amplitude, up to the usual one: where there is little to see, there is little to focus on.
    weights = np.sqrt(np.minimum(coarse[sure], np.median(coarse[sure])))
    detail = _weighted_median(fine[sure] / coarse[sure], weights)
    error = _weighted_median(fine_error[sure] / coarse[sure], weights)
    error *= _MEDIAN_ERROR / np.sqrt(len(weights))
    if _FOUND * error > max(detail, _TELLABLE):
        return np.nan
    return float(np.sqrt(detail)) if detail > _FOUND * error else 0.0


def _measure(images: np.ndarray) -> dict[str, float]:
    """All measures of one channel, [K, H, W]."""
    # One histogram answers everything but sharpness, exactly, in two milliseconds.
    counts = _histogram(images)
    below = np.cumsum(counts)
    return {
        "mean": float(counts @ np.arange(len(counts)) / images.size),
        "p50": _percentile(below, 50),
        "p99": _percentile(below, 99),
        "saturated": _saturated(counts),
        "focus": focus_score(images),
    }


def _portions(images: np.ndarray) -> Iterator[np.ndarray]:
    """[K, ...] cut along K; at least one image each."""
    number = max(1, _PORTION // images[0].size)
    for start in range(0, len(images), number):
        yield images[start : start + number]


def _histogram(images: np.ndarray) -> np.ndarray:
    """The number of pixels at each value that the type can hold."""
    values = int(np.iinfo(images.dtype).max) + 1
    counts = np.zeros(values, np.int64)
    for portion in _portions(images):
        counts += np.bincount(portion.ravel(), minlength=values)
    return counts


def _percentile(below: np.ndarray, percent: float) -> float:
    """A percentile by linear interpolation; `below[v]` is the number of pixels up to value v."""
    rank = percent / 100 * (below[-1] - 1)
    lower, upper = np.searchsorted(below, [int(rank), int(np.ceil(rank))], side="right")
    return float(lower + (rank - int(rank)) * (upper - lower))


def _saturated(counts: np.ndarray) -> float:
    """The share of pixels at the ceiling; `counts[v]` is the number of pixels of value v."""
    return float(counts[_ceiling(counts)] / counts.sum())


def _ceiling(counts: np.ndarray) -> int:
    """The value of the pile of pixels at the top; the type's largest where there is none."""
    (occupied,) = np.nonzero(counts)
    top, rest = int(occupied[-1]), occupied[:-1][-_VALUES_BELOW:]
    usual = float(counts[rest].mean()) if len(rest) else np.inf
    return top if counts[top] >= max(_FEWEST_PILED, _PILE * usual) else len(counts) - 1


def _energies(tiles: np.ndarray) -> np.ndarray:
    """Fine detail and its error, coarse detail and its error: [4, T]."""
    blocks = [_halve(diagonal) for diagonal in _diagonals(tiles)]
    fine = _common_energy(*(_laplacian(_laplacian(image)) for image in blocks))
    coarse = _common_energy(*(_laplacian(_halve(image)) for image in blocks))
    return np.stack([*fine, *coarse])


def _tiles(images: np.ndarray) -> np.ndarray:
    """[K, H, W] cut into [T, h, w]; h, w are multiples of 8, what is left over is lost."""
    rows, columns = (max(1, side // _TILE) for side in images.shape[1:])
    height = images.shape[1] // rows // _BLOCK * _BLOCK
    width = images.shape[2] // columns // _BLOCK * _BLOCK
    grid = images[:, : rows * height, : columns * width].reshape(-1, rows, height, columns, width)
    return grid.swapaxes(2, 3).reshape(-1, height, width)


def _diagonals(tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sums over each diagonal of all 2x2 blocks, [T, h / 2, w / 2] float32."""
    first = tiles[:, ::2, ::2].astype(np.float32) + tiles[:, 1::2, 1::2]
    second = tiles[:, ::2, 1::2].astype(np.float32) + tiles[:, 1::2, ::2]
    return first, second


def _halve(images: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels."""
    rows = images[:, ::2] + images[:, 1::2]
    return np.asarray((rows[..., ::2] + rows[..., 1::2]) * np.float32(0.25))


def _laplacian(images: np.ndarray) -> np.ndarray:
    """The five-point Laplacian of each image where all five points lie within it."""
    result = images[:, :-2, 1:-1] + images[:, 2:, 1:-1]
    result += images[:, 1:-1, :-2]
    result += images[:, 1:-1, 2:]
    result -= 4 * images[:, 1:-1, 1:-1]
    return np.asarray(result)


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """Half of the weight lies up to it."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


def _common_energy(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean product of each two images, and its standard error from their differences.

    Of noise alone, the mean of n products of independent values of variance v is off zero by
    v / sqrt(n); their difference has twice that variance.
    """
    common = np.mean(first * second, axis=(1, 2))
    noise = np.mean(np.square(first - second), axis=(1, 2)) / 2
    return common, noise / np.sqrt(first[0].size)
