"""Segments the nuclei of one DNA image: threshold, edges, watershed, necks, outlines, size rules.

Nuclei are separated at half the resolution, which takes a quarter of the time: a watershed on the
distance to the next edge gives parts, and parts without a neck between them are joined. Outlines
are drawn at full resolution, where each nucleus is cut at half its brightness.
"""

import numpy as np
from scipy import ndimage

# The background is measured in tiles of this many half-resolution pixels, ...
_TILE = 8
# ... as a low percentile (nuclei cover less than three quarters of a neighbourhood) ...
_BACKGROUND_PERCENTILE = 25
# ... of this many tiles across (176 pixels of the image, several nuclei wide).
_NEIGHBOURHOOD = 11
# ... smoothed by a Gaussian of this many tiles: a third of the neighbourhood, which removes the
# steps of the percentile and keeps the slope of the illumination.
_BACKGROUND_SIGMA = 4.0
# A foreground must rise this many noise units above the median: fields without cells stay empty.
_NOISE_UNITS = 8.0
# The noise unit: this percentile lies one standard deviation below the median of normal noise, on
# the side where there are no nuclei.
_NOISE_PERCENTILE = 16
# A foreground must rise above this share of the largest value: in an image without noise (constant,
# synthetic) the filters amplify float32's rounding errors of 1e-7.
_ROUNDING = 1e-5
# The threshold's histogram is clipped at this percentile, so that one speck of dust cannot raise
# the threshold above every nucleus.
_CLIPPED_PERCENTILE = 99.7
# A hole of at most this many pixels belongs to the surrounding nucleus: a nucleolus, the middle of
# a mitotic ring. A larger hole is a gap between neighbours.
_LARGEST_HOLE = 200
# Brightness is smoothed by a Gaussian of this many half-resolution pixels, which removes the grains
# of chromatin and keeps a nucleus of 10 pixels' radius.
_BRIGHTNESS_SIGMA = 1.5
# Edges of touching nuclei are detected in windows of this many half-resolution pixels: wider than
# the dark line between two nuclei, narrower than a nucleus.
_WINDOW = 5
# A pixel darker than the window's maximum by this share is an edge, between a bright and a dim
# nucleus.
_STEP = 0.3
# A line darker by this share than its window after a closing, which removes dark lines, is an edge
# between two touching nuclei; lines within a nucleus are less dark. ...
_LINE = 0.17
# ... It must also be darker by this many noise units, since noise makes dark lines everywhere.
_LINE_NOISE_UNITS = 3.0
# Seeds are peaks of depth plus brightness. Depth, the distance to the next edge in pixels, is
# smoothed by a Gaussian of this many half-resolution pixels, which joins the small peaks that the
# pixel grid causes.
_DEPTH_SIGMA = 1.0
# The usual brightness of a nucleus is this percentile of the foreground: the inside of bright
# nuclei, but below the few mitotic or dead cells ...
_USUAL_PERCENTILE = 90
# ... and counts as much as this many pixels of depth, about half a small nucleus's radius.
_BRIGHTNESS_WEIGHT = 6.0
# An outline lies at half of a nucleus's brightness, which is this share of its mean: the mean
# includes the blurred edge and is a tenth lower.
_OUTLINE = 0.55


def segment_nuclei(
    image: np.ndarray,
    *,
    sigma: float = 1.0,
    notch: float = 1.4,
    min_area: int = 100,
) -> np.ndarray:
    """Labels the nuclei of a DNA image.

    Args:
      image: [H, W] any unsigned or float type, any range; DNA is bright. Scaling it does not change
        the result.
      sigma: Gaussian smoothing before the threshold, in pixels.
      notch: two touching parts are two nuclei if the neck between them is this much thinner, on
        each side, than the thinner part, in pixels; a difference in brightness counts as well. A
        lower value splits more.
      min_area: smaller objects are debris, in pixels.

    Returns:
      labels [H, W] int32: 0 is background, nuclei are 1..N in the order of their first pixel. Each
      is one connected region.

    Raises:
      ValueError: the image is not two-dimensional, or holds NaN or infinity.
    """
    smooth = _checked(image)
    smooth = ndimage.gaussian_filter(smooth, sigma, truncate=3.0)
    coarse = _halve(smooth)
    background = _background(coarse)
    lifted = coarse - background
    noise = _noise(lifted)
    mask = _foreground(lifted, noise)
    if not mask.any():
        return np.zeros(image.shape, np.int32)
    bright = ndimage.gaussian_filter(lifted, _BRIGHTNESS_SIGMA)
    level = _core_level(lifted, bright, noise) + background
    depth = _depth(smooth, np.where(mask, level, np.float32(np.inf)))
    basins = _basins(depth, bright, mask, notch)
    outlined = _outline(smooth, basins, lifted, background)
    return _by_size(outlined, min_area)


def _checked(image: np.ndarray) -> np.ndarray:
    """Converts an image to [H, W] float32; ValueError for an invalid one."""
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
    """Estimates the smooth background [H, W]: illumination and medium, without nuclei."""
    height, width = image.shape
    pad = (-height % _TILE, -width % _TILE)
    full = np.pad(image, ((0, pad[0]), (0, pad[1])), mode="edge")
    rows, columns = full.shape[0] // _TILE, full.shape[1] // _TILE
    tiles = full.reshape(rows, _TILE, columns, _TILE).mean(axis=(1, 3))
    low = ndimage.percentile_filter(tiles, _BACKGROUND_PERCENTILE, _NEIGHBOURHOOD, mode="nearest")
    low = ndimage.gaussian_filter(low, _BACKGROUND_SIGMA, mode="nearest")
    grown = ndimage.zoom(low, _TILE, order=1, mode="nearest", grid_mode=True)
    return np.asarray(grown[:height, :width], np.float32)


def _noise(lifted: np.ndarray) -> float:
    """Estimates the noise unit: one standard deviation of the background."""
    low, median = np.percentile(lifted, [_NOISE_PERCENTILE, 50])
    return float(median - low)


def _foreground(lifted: np.ndarray, noise: float) -> np.ndarray:
    """Bool mask of what is brighter than the background, small holes filled."""
    from skimage.filters import threshold_otsu

    median, high = np.percentile(lifted, [50, _CLIPPED_PERCENTILE])
    # The square root balances dim and bright nuclei; Otsu on plain intensities loses dim ones.
    clipped = np.sqrt(np.clip(lifted, 0, max(high, 0)))
    # If only a speck is left, any rise above the noise is a candidate, and the size rule decides.
    otsu = threshold_otsu(clipped) ** 2 if clipped.min() < clipped.max() else median
    threshold = max(otsu, median + _NOISE_UNITS * noise)
    threshold = max(threshold, _ROUNDING * float(np.abs(lifted).max()))
    mask = lifted > threshold
    within = np.zeros(mask.shape, np.int32)
    within[1:-1, 1:-1] = 1  # a gap at the border of the image is no hole
    return ndimage.binary_opening(mask | _holes(mask, within, _LARGEST_HOLE // 4))


def _core_level(lifted: np.ndarray, bright: np.ndarray, noise: float) -> np.ndarray:
    """Brightness of a nucleus's core pixels, away from steps and dark lines, at least."""
    brightest = ndimage.maximum_filter(bright, _WINDOW)
    closed = ndimage.minimum_filter(ndimage.maximum_filter(lifted, _WINDOW), _WINDOW)
    line = np.maximum(_LINE * closed, np.float32(_LINE_NOISE_UNITS * noise))
    return np.maximum((1 - _STEP) * brightest, closed - line)


def _depth(smooth: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Distance in pixels to the next pixel not above `level`, at half the resolution."""
    core = smooth > _double(level, smooth.shape)
    within = _double(np.isfinite(level).astype(np.int32), smooth.shape)
    core |= _holes(core, within, _LARGEST_HOLE)  # a nucleolus is no edge
    # A line of one pixel still separates two nuclei.
    return 2 * ndimage.distance_transform_edt(_halve(core.astype(np.float32)) == 1)


def _basins(depth: np.ndarray, bright: np.ndarray, mask: np.ndarray, notch: float) -> np.ndarray:
    """Labels of `mask`, one per nucleus: basins of a watershed, joined unless a neck parts them."""
    from skimage.segmentation import watershed

    # Roundness separates touching nuclei; brightness keeps a bright one from joining a dim one.
    root = np.sqrt(np.maximum(bright, 0))
    scale = np.percentile(root[mask], _USUAL_PERCENTILE) or 1.0
    height = ndimage.gaussian_filter(depth, _DEPTH_SIGMA) + _BRIGHTNESS_WEIGHT * root / scale
    height = np.where(mask, height, -np.inf).astype(np.float32)
    peaks = (ndimage.maximum_filter(height, 3) == height) & mask
    seeds, _ = ndimage.label(peaks, np.ones((3, 3)))
    basins = watershed(-height, seeds, mask=mask)
    return _joined(basins, height, notch)


def _joined(basins: np.ndarray, height: np.ndarray, notch: float) -> np.ndarray:
    """Joins a basin to its neighbour if its peak rises less than `notch` above the pass.

    Passes are processed from the highest down, so that a basin is compared by its highest peak
    when it meets a higher one; the remaining peaks have a prominence of at least `notch`.
    """
    first, second, passes = _passes(basins, height)
    peak = np.zeros(basins.max() + 1, np.float32)
    np.maximum.at(peak, basins.ravel(), height.ravel())
    parent = list(range(len(peak)))

    def root(basin: int) -> int:
        """Finds the representative of the joined basins (union-find)."""
        while parent[basin] != basin:
            parent[basin] = parent[parent[basin]]
            basin = parent[basin]
        return basin

    for edge in np.argsort(-passes, kind="stable"):
        low, high = sorted((root(first[edge]), root(second[edge])), key=lambda k: peak[k])
        if low != high and peak[low] - passes[edge] < notch:
            parent[low] = high
    return np.array([root(basin) for basin in parent], np.int32)[basins]


def _passes(basins: np.ndarray, height: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of touching basins, and the greatest height of the pass between them."""
    count = int(basins.max()) + 1
    pairs, heights = [], []
    for first, second in (
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
        ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
    ):
        one, other = basins[first], basins[second]
        rim = np.nonzero((one != other) & (one > 0) & (other > 0))
        low, high = np.minimum(one[rim], other[rim]), np.maximum(one[rim], other[rim])
        pairs.append(low.astype(np.int64) * count + high)
        heights.append(np.minimum(height[first][rim], height[second][rim]))
    found, place = np.unique(np.concatenate(pairs), return_inverse=True)
    passes = np.full(len(found), -np.inf, np.float32)
    np.maximum.at(passes, place, np.concatenate(heights))
    return found // count, found % count, passes


def _outline(
    smooth: np.ndarray, basins: np.ndarray, lifted: np.ndarray, background: np.ndarray
) -> np.ndarray:
    """Labels at full resolution: each basin, grown by one coarse pixel, cut at its level."""
    count = int(basins.max())
    area = np.bincount(basins.ravel(), minlength=count + 1)
    total = np.bincount(basins.ravel(), weights=lifted.ravel(), minlength=count + 1)
    level = (_OUTLINE * total / np.maximum(area, 1)).astype(np.float32)
    wider = np.where(basins > 0, basins, ndimage.maximum_filter(basins, 3))
    least = np.where(wider > 0, level[wider] + background, np.float32(np.inf))
    owner = _double(wider, smooth.shape)
    inside = smooth > _double(least, smooth.shape)
    return np.where(inside | _holes(inside, owner, _LARGEST_HOLE), owner, 0)


def _holes(inside: np.ndarray, owner: np.ndarray, largest: int) -> np.ndarray:
    """Bool mask of gaps in `inside` of up to `largest` pixels, each within one object.

    Args:
      inside: [H, W] bool.
      owner: [H, W] int32, the object to which a pixel would belong; 0 is none.
      largest: in pixels.
    """
    gaps, count = ndimage.label(~inside)
    is_hole = np.bincount(gaps.ravel(), minlength=count + 1) <= largest
    is_hole[0] = False
    is_hole[gaps[owner == 0]] = False
    pixels = np.flatnonzero(is_hole[gaps])
    gap, neighbour = gaps.ravel()[pixels], owner.ravel()[pixels]
    owner_of = np.zeros(count + 1, owner.dtype)
    owner_of[gap] = neighbour
    is_hole[gap[neighbour != owner_of[gap]]] = False  # it borders several objects
    return is_hole[gaps]


def _by_size(labels: np.ndarray, min_area: int) -> np.ndarray:
    """Keeps the largest region of each object, drops regions by area, and numbers the rest 1..N."""
    from skimage.measure import label

    regions = label(labels, background=0, connectivity=1)  # numbered by their first pixels
    area = np.bincount(regions.ravel())
    owner = np.zeros(len(area), labels.dtype)
    owner[regions] = labels
    by_area = np.argsort(area, kind="stable")
    largest = np.zeros(owner.max() + 1, np.intp)
    largest[owner[by_area]] = by_area  # the last one written is the largest
    keep = (largest[owner] == np.arange(len(area))) & (area >= min_area)
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0).astype(np.int32)[regions]
