"""Measures of a field's raw image by channel: intensity, saturation, focus.

They make no assumption about the content of the image and need no segmentation.
"""

from collections.abc import Iterator, Sequence

import numpy as np

MEASURES = ("mean", "p50", "p99", "saturated", "focus")

# An image is saturated at its largest value if at least this many pixels have it, ...
_FEWEST_SATURATED = 10
# ... and this many times the mean count of the values just below it, ...
_EXCESS = 5.0
# ... of which this many are used. Without saturation, counts decrease towards the largest value.
_VALUES_BELOW = 8
# Side in pixels of the tiles of the focus score, several cells wide, so that a bright fibre changes
# the score of its own tile only.
_TILE = 128
# Side in pixels of the blocks of coarse detail, the scale of structures in a nucleus; fine detail
# has blocks of half the side, as single pixels have more noise than detail.
_BLOCK = 8
# A tile has structure if its coarse detail is this many standard errors above zero.
_STRUCTURE = 6.0
# The standard error of the median of n values is that of one value times this, by the root of n.
_MEDIAN_ERROR = 1.25
# Fine detail is significant if it is this many standard errors above zero, ...
_SIGNIFICANT = 3.0
# ... and its absence is reported only if this energy, relative to the coarse detail, would be
# significant: a sixth of that of a sharp field.
_DETECTABLE = 0.3
# Pixels that are processed at once: a folder of crops may have any number of images.
_PORTION = 1 << 21


def columns_of(channels: Sequence[str]) -> list[str]:
    """Column names `<measure>_<channel>` of all measures, in the order of the table."""
    return [f"{measure}_{channel}" for measure in MEASURES for channel in channels]


def measure_images(images: np.ndarray, channels: Sequence[str]) -> dict[str, float]:
    """Measures a field of view, or crops as if they were one field.

    Args:
      images: [K, H, W, C] uint8 or uint16, raw; a field is one image.
      channels: C names.

    Returns:
      For each channel `mean_`, `p50_`, `p99_` (intensities), `saturated_` (share of the pixels at
      the largest value of the camera, see `camera_ceiling`) and `focus_` (see `focus_score`).

    Raises:
      ValueError: wrong shape or type, or no pixels.
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
    """Returns the value at which an image is saturated.

    It is the largest value of the type, or of the image if unusually many pixels have it: 16-bit
    files contain 12 or 14 bits of a camera, shifted or not, and some cameras have other limits.

    Args:
      image: any shape, uint8 or uint16, at least one pixel.
    """
    return _ceiling(_histogram(image[None]))


def focus_score(images: np.ndarray) -> float:
    """Computes the ratio of fine to coarse detail, which falls steeply with blur.

    The diagonals of each 2x2 block of pixels make two images of half the resolution, of the same
    scene with independent noise. With a and b their means over blocks of 4 pixels a side, A and B
    over blocks of 8, and L the Laplacian, the score is

        sqrt(mean(LLa * LLb) / mean(LA * LB)).

    Noise is independent between pixels and has an expectation of zero in both products. By the
    variance of the Laplacian or the slope of the power spectrum, a blurred image would seem sharp
    because of its noise. Gain and offset cancel, L removes uneven illumination, and the number of
    cells multiplies both means.

    Args:
      images: [K, H, W] uint8 or uint16, fields or crops. The score is the weighted median of the
        ratio over tiles, so that bright dust has an effect on its own tile only.

    Returns:
      About 1 to 4 for a sharp image, 0 if all fine detail is noise. NaN if it cannot be measured
      (no structure, or much noise) or the images have less than 24 pixels a side.
    """
    if min(images.shape[1:]) < 3 * _BLOCK:
        return np.nan
    energies = [_energies(_tiles(portion)) for portion in _portions(images)]
    fine, fine_error, coarse, coarse_error = np.concatenate(energies, axis=1)
    structured = coarse > _STRUCTURE * coarse_error
    if not structured.any():
        return np.nan
    # By amplitude, limited to the median: tiles with little structure have a small weight.
    weights = np.sqrt(np.minimum(coarse[structured], np.median(coarse[structured])))
    detail = _weighted_median(fine[structured] / coarse[structured], weights)
    error = _weighted_median(fine_error[structured] / coarse[structured], weights)
    error *= _MEDIAN_ERROR / np.sqrt(len(weights))
    if _SIGNIFICANT * error > max(detail, _DETECTABLE):
        return np.nan
    return float(np.sqrt(detail)) if detail > _SIGNIFICANT * error else 0.0


def _measure(images: np.ndarray) -> dict[str, float]:
    """Computes all measures of one channel, [K, H, W]."""
    # Exact and fast: a histogram takes two milliseconds.
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
    """Splits [K, ...] along K into parts of at least one image."""
    number = max(1, _PORTION // images[0].size)
    for start in range(0, len(images), number):
        yield images[start : start + number]


def _histogram(images: np.ndarray) -> np.ndarray:
    """Counts the pixels at each value of the type."""
    values = int(np.iinfo(images.dtype).max) + 1
    counts = np.zeros(values, np.int64)
    for portion in _portions(images):
        counts += np.bincount(portion.ravel(), minlength=values)
    return counts


def _percentile(below: np.ndarray, percent: float) -> float:
    """Percentile with linear interpolation; `below[v]` counts the pixels up to value v."""
    rank = percent / 100 * (below[-1] - 1)
    lower, upper = np.searchsorted(below, [int(rank), int(np.ceil(rank))], side="right")
    return float(lower + (rank - int(rank)) * (upper - lower))


def _saturated(counts: np.ndarray) -> float:
    """Share of saturated pixels; `counts[v]` counts the pixels of value v."""
    return float(counts[_ceiling(counts)] / counts.sum())


def _ceiling(counts: np.ndarray) -> int:
    """See `camera_ceiling`."""
    (occupied,) = np.nonzero(counts)
    top, rest = int(occupied[-1]), occupied[:-1][-_VALUES_BELOW:]
    usual = float(counts[rest].mean()) if len(rest) else np.inf
    return top if counts[top] >= max(_FEWEST_SATURATED, _EXCESS * usual) else len(counts) - 1


def _energies(tiles: np.ndarray) -> np.ndarray:
    """Fine detail and its error, coarse detail and its error: [4, T]."""
    blocks = [_halve(diagonal) for diagonal in _diagonals(tiles)]
    fine = _common_energy(*(_laplacian(_laplacian(image)) for image in blocks))
    coarse = _common_energy(*(_laplacian(_halve(image)) for image in blocks))
    return np.stack([*fine, *coarse])


def _tiles(images: np.ndarray) -> np.ndarray:
    """Splits [K, H, W] into tiles [T, h, w]; h, w are multiples of 8, remainders are dropped."""
    rows, columns = (max(1, side // _TILE) for side in images.shape[1:])
    height = images.shape[1] // rows // _BLOCK * _BLOCK
    width = images.shape[2] // columns // _BLOCK * _BLOCK
    grid = images[:, : rows * height, : columns * width].reshape(-1, rows, height, columns, width)
    return grid.swapaxes(2, 3).reshape(-1, height, width)


def _diagonals(tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums over each diagonal of all 2x2 blocks, [T, h / 2, w / 2] float32."""
    first = tiles[:, ::2, ::2].astype(np.float32) + tiles[:, 1::2, 1::2]
    second = tiles[:, ::2, 1::2].astype(np.float32) + tiles[:, 1::2, ::2]
    return first, second


def _halve(images: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels."""
    rows = images[:, ::2] + images[:, 1::2]
    return np.asarray((rows[..., ::2] + rows[..., 1::2]) * np.float32(0.25))


def _laplacian(images: np.ndarray) -> np.ndarray:
    """Five-point Laplacian of each image, without its border."""
    result = images[:, :-2, 1:-1] + images[:, 2:, 1:-1]
    result += images[:, 1:-1, :-2]
    result += images[:, 1:-1, 2:]
    result -= 4 * images[:, 1:-1, 1:-1]
    return np.asarray(result)


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """Smallest value that reaches half of the total weight."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


def _common_energy(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean product of each two images, and its standard error from their differences.

    If the images are only noise, the mean of n products of independent values of variance v differs
    from zero by about v / sqrt(n); the difference of the images has the variance 2 v.
    """
    common = np.mean(first * second, axis=(1, 2))
    noise = np.mean(np.square(first - second), axis=(1, 2)) / 2
    return common, noise / np.sqrt(first[0].size)
