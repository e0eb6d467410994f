"""Finds the nuclei of one DNA image: threshold, distance-transform watershed, size rules.

Seeds and basins are found at half the resolution, which costs a quarter of the time; outlines are
drawn at full resolution, where each nucleus is cut at half its own brightness.
"""

import numpy as np
from scipy import ndimage

# The background is read from the image in tiles of this many half-resolution pixels, ...
_TILE = 8
# ... as a low percentile (nuclei cover less than three quarters of a neighbourhood) ...
_BACKGROUND_PERCENTILE = 25
# ... of this many tiles across (176 pixels of the image, several nuclei wide).
_NEIGHBOURHOOD = 11
# ... smoothed by a Gaussian of this many tiles: a third of the neighbourhood, so that the steps at
# which the percentile changes are gone and the light's own slope stays.
_BACKGROUND_SIGMA = 4.0
# A foreground must rise this many noise units above the median: fields without cells stay empty.
_NOISE_UNITS = 8.0
# The noise unit: this percentile lies one standard deviation below the median of normal noise, on
# the side where there are no nuclei.
_NOISE_PERCENTILE = 16
# A foreground must rise above this share of the largest value: an image without noise (constant,
# synthetic) has float32's rounding, 1e-7 of it, and what the filters make of that.
_ROUNDING = 1e-5
# Brightest share of pixels left out of the threshold's histogram, so that one speck of dust
# cannot pull the threshold over every nucleus.
_CLIPPED_PERCENTILE = 99.7
# Seeds are peaks of depth plus brightness. Brightness is smoothed by a Gaussian of this many
# half-resolution pixels: chromatin's texture goes, a nucleus of 10 pixels' radius stays.
_BRIGHTNESS_SIGMA = 2.0
# Depth is smoothed by less: enough to join the plateaus of a distance in whole pixels.
_DEPTH_SIGMA = 1.0
# A nucleus of usual brightness is this percentile of the foreground: the bright ones' inside, yet
# not the few mitotic or dead cells at the very top ...
_USUAL_PERCENTILE = 90
# ... and counts as much as this many pixels of depth, about half a small nucleus's radius.
_BRIGHTNESS_WEIGHT = 5.0
# An outline lies where a nucleus falls to this share of its own mean brightness.
_OUTLINE = 0.5


def segment_nuclei(
    image: np.ndarray,
    *,
    sigma: float = 1.0,
    min_distance: int = 8,
    min_area: int = 100,
    max_area: int | None = None,
) -> np.ndarray:
    """Labels the nuclei of a DNA image.

    Args:
      image: [H, W] any unsigned or float type, any range; brighter is DNA. Scaling it changes
        nothing.
      sigma: Gaussian smoothing before the threshold, in pixels.
      min_distance: the spacing of the seeds that nuclei grow from, in pixels: of two seeds that
        are no further apart in rows and in columns the higher one counts. Seeds lie on a grid of
        every second pixel, so an odd number is taken as the even one below it, and 0 as 2.
        Nuclei's centres may be closer than their seeds.
      min_area: smaller objects are debris, in pixels.
      max_area: larger objects are clumps or dust, in pixels; None keeps them.

    Returns:
      labels [H, W] int32: 0 is background, nuclei are 1..N in the order of their first pixel.

    Raises:
      ValueError: the image is not two-dimensional, or holds NaN or infinity.
    """
    smooth = _checked(image)
    smooth = ndimage.gaussian_filter(smooth, sigma, truncate=3.0)
    coarse = _halve(smooth)
    background = _background(coarse)
    lifted = coarse - background
    mask = _foreground(lifted)
    if not mask.any():
        return np.zeros(image.shape, np.int32)
    basins = _basins(lifted, mask, max(1, min_distance // 2))
    outlined = _outline(smooth, basins, lifted, background)
    return _by_size(outlined, min_area, max_area)


def _checked(image: np.ndarray) -> np.ndarray:
    """The image as [H, W] float32, or ValueError."""
    if image.ndim != 2:
        raise ValueError(f"expected an image [H, W], got shape {image.shape}")
    values = np.asarray(image, np.float32)
    if not np.isfinite(values).all():
        raise ValueError("the image holds NaN or infinite values")
    return values


def _halve(image: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels, [H, W] -> [ceil(H/2), ceil(W/2)]."""
    even = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2)), mode="edge")
    return (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4


def _double(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Each pixel becomes 2x2 pixels, cut to `shape`."""
    return np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)[: shape[0], : shape[1]]


def _background(image: np.ndarray) -> np.ndarray:
    """A smooth background of the same shape: uneven light and medium, without the nuclei."""
    height, width = image.shape
    pad = (-height % _TILE, -width % _TILE)
    full = np.pad(image, ((0, pad[0]), (0, pad[1])), mode="edge")
    rows, columns = full.shape[0] // _TILE, full.shape[1] // _TILE
    tiles = full.reshape(rows, _TILE, columns, _TILE).mean(axis=(1, 3))
    low = ndimage.percentile_filter(tiles, _BACKGROUND_PERCENTILE, _NEIGHBOURHOOD, mode="nearest")
    low = ndimage.gaussian_filter(low, _BACKGROUND_SIGMA, mode="nearest")
    grown = ndimage.zoom(low, _TILE, order=1, mode="nearest", grid_mode=True)
    return np.asarray(grown[:height, :width], np.float32)


def _foreground(lifted: np.ndarray) -> np.ndarray:
    """Bool mask of what stands out of the background, without holes."""
    from skimage.filters import threshold_otsu

    low, median, high = np.percentile(lifted, [_NOISE_PERCENTILE, 50, _CLIPPED_PERCENTILE])
    noise = median - low
    # The square root evens out dim and bright nuclei; Otsu on plain intensities loses the dim.
    clipped = np.sqrt(np.clip(lifted, 0, max(high, 0)))
    # Where nothing but a speck is left over, any rise above the noise is a candidate, and the
    # size rule decides.
    otsu = threshold_otsu(clipped) ** 2 if clipped.min() < clipped.max() else median
    threshold = max(otsu, median + _NOISE_UNITS * noise)
    threshold = max(threshold, _ROUNDING * float(np.abs(lifted).max()))
    mask = ndimage.binary_fill_holes(lifted > threshold)
    return ndimage.binary_opening(mask)


def _basins(lifted: np.ndarray, mask: np.ndarray, radius: int) -> np.ndarray:
    """Watershed labels of `mask`; seeds are more than `radius` half-resolution pixels apart."""
    from skimage.segmentation import watershed

    depth = ndimage.distance_transform_edt(mask)
    # Roundness separates touching nuclei; brightness keeps a bright one from joining a dim one.
    bright = np.sqrt(np.maximum(ndimage.gaussian_filter(lifted, _BRIGHTNESS_SIGMA), 0))
    scale = np.percentile(bright[mask], _USUAL_PERCENTILE) or 1.0
    height = ndimage.gaussian_filter(depth, _DEPTH_SIGMA) + _BRIGHTNESS_WEIGHT * bright / scale
    height = np.asarray(height, np.float32)
    peaks = (ndimage.maximum_filter(height, 2 * radius + 1) == height) & mask
    seeds, _ = ndimage.label(peaks, np.ones((3, 3)))
    return np.asarray(watershed(-height, seeds, mask=mask), np.int32)


def _outline(
    smooth: np.ndarray, basins: np.ndarray, lifted: np.ndarray, background: np.ndarray
) -> np.ndarray:
    """Labels at full resolution: each basin, one coarse pixel wider, cut at its own level."""
    count = int(basins.max())
    area = np.bincount(basins.ravel(), minlength=count + 1)
    total = np.bincount(basins.ravel(), weights=lifted.ravel(), minlength=count + 1)
    level = (_OUTLINE * total / np.maximum(area, 1)).astype(np.float32)
    wider = np.where(basins > 0, basins, ndimage.maximum_filter(basins, 3))
    least = np.where(wider > 0, level[wider] + background, np.float32(np.inf))
    inside = smooth > _double(least, smooth.shape)
    return np.where(inside, _double(wider, smooth.shape), 0)


def _by_size(labels: np.ndarray, min_area: int, max_area: int | None) -> np.ndarray:
    """Drops objects by area and numbers the rest 1..N in the order of their first pixel."""
    flat = labels.ravel()
    area = np.bincount(flat)
    kept = area >= min_area
    if max_area is not None:
        kept &= area <= max_area
    kept[0] = False
    pixels = np.flatnonzero(kept[flat])
    found, first = np.unique(flat[pixels], return_index=True)
    numbers = np.zeros(len(area), np.int32)
    numbers[found[np.argsort(first)]] = np.arange(1, len(found) + 1, dtype=np.int32)
    return numbers[labels]
