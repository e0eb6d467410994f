"""Estimates how unevenly a plate is lit, from all its fields at once.

A pixel is the camera's offset plus its light times the stain that lies there. Cells are as bright
on average wherever they lie in a field, so what the bright parts of many fields have in common as
a function of position, each compared with its own field, is the light. How many cells lie where,
how bright a field is and what its background is made of do not matter.

The usual estimate, a smoothed median over fields (CellProfiler's CorrectIlluminationCalculate;
Singh et al. 2014, doi 10.1111/jmi.12178), is here too, as `median_light`. It sees the background at
most positions, which tells about the light only as far as the background is light and no camera
offset, and takes far more fields: cells are few and lie in groups.
"""

import numpy as np
from scipy import ndimage

# Fields are looked at in blocks of this side, in pixels: smaller than a nucleus, so that a block
# can be all cell, and large enough to average the camera's noise away ...
_BLOCK = 16
# ... or larger, so that a field has no more of them along a side: 256 kept fields of three channels
# then take at most 20 MB.
_MOST_BLOCKS = 80
# The light is a polynomial of this total degree: a lamp off the middle with dark corners needs
# four; a steeper change is dirt, which is not a plate's.
_DEGREE = 4
# A field's own background and its bright parts: percentiles of its blocks. Nuclei cover a
# twentieth of a sparse field.
_FLOOR, _BRIGHT = 5, 98
# A block above this share of the bright ones is cell, and no blurred rim of one.
_CELL = 0.5
# A field whose bright parts rise less or more than these multiples of the plate's usual (its upper
# quartile) is empty, or saturated.
_LEAST_OF_USUAL, _MOST_OF_USUAL, _USUAL = 0.3, 5.0, 75
# Where cells rise above the background by less than this share of it, the slope of the background
# itself could be taken for them: such a channel is left as it is.
_LEAST_RISE = 0.2
# A block that is brighter than a field's cells by this factor (natural logarithm) is dust or a
# clump. A field counts as much as it has cells, but no more than half of the fields do: in an
# overgrown one everything is cell.
_MOST_LOGARITHM = 1.0
# What single fields disagree about counts this many times before the rest is believed: on simulated
# plates, even and uneven, of 12 to 200 fields, 3 left the least error.
_CAUTION = 3.0
# What is a cell depends on the light, hence the light is estimated again; 4 times settle it.
_ROUNDS = 4
# Of the median over fields: a Gaussian of this share of the field's sides, several cells wide, and
# a light changes over half a field.
_MEDIAN_SIGMA = 0.1
# Light is never taken for less than this share of its mean: no pixel is amplified beyond 3 times.
LEAST_GAIN = 1 / 3
# Where too few cells were seen a polynomial may rise to anything.
_MOST_LIGHT = -np.log(LEAST_GAIN)


def block_means(field: np.ndarray) -> np.ndarray:
    """Means over blocks of 16 pixels, or of larger ones where there would be too many.

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
    """Estimates the light of one channel.

    What single fields disagree about is not believed: fields without cells give a light that is
    even. From fewer than 20 fields the estimate is no better than none.

    Args:
      blocks: [N, h, w] float32, the block means of N fields.

    Returns:
      [h, w] float64, the light of each block relative to the mean, at least 1/3.
    """
    height, width = blocks.shape[1:]
    rise = _rise(blocks.reshape(len(blocks), -1).astype(np.float64))
    terms, degrees = _polynomials(height, width)
    # One field cannot tell its light from its cells.
    if len(rise) < 2 or not len(degrees):
        return np.ones((height, width))
    logarithm = np.zeros(height * width)
    for _ in range(_ROUNDS):
        normal, right = _normal_equations(rise / _light(logarithm), terms)
        inverse = np.linalg.pinv(normal.sum(axis=0), hermitian=True)
        logarithm += terms @ (inverse @ right.sum(axis=0))
    coefficients = terms.T @ logarithm / len(logarithm)
    # How far single fields are from the common answer tells how far that is from the truth.
    apart = inverse @ (right - normal @ (inverse @ right.sum(axis=0))).T
    variance = (apart**2).sum(axis=1) * len(rise) / (len(rise) - 1)
    for degree in np.unique(degrees):
        # After James and Stein: as much of each degree is kept as is more than chance.
        same = degrees == degree
        power = max((coefficients[same] ** 2).sum(), np.finfo(float).tiny)
        coefficients[same] *= max(0.0, 1 - _CAUTION * variance[same].sum() / power)
    gain = _light(terms @ coefficients).reshape(height, width)
    return np.asarray(np.maximum(gain / gain.mean(), LEAST_GAIN))


def median_light(blocks: np.ndarray) -> np.ndarray:
    """The median over fields of one channel, smoothed by a Gaussian of a tenth of the field.

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
    """[N, P] blocks -> [K, P]: by how much they rise above their field, for fields with cells."""
    floor = np.percentile(blocks, _FLOOR, axis=1)
    rise = blocks - floor[:, None]
    bright = np.percentile(rise, _BRIGHT, axis=1)
    usual = np.percentile(bright, _USUAL)
    if usual <= _LEAST_RISE * np.median(floor):
        return rise[:0]
    ordinary = (bright >= _LEAST_OF_USUAL * usual) & (bright <= _MOST_OF_USUAL * usual)
    return np.asarray(rise[ordinary])


def _polynomials(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """[P, T] orthogonal terms over a grid, with mean 0 and mean square 1, and their degrees [T]."""
    degree = min(_DEGREE, height - 1, width - 1)
    y, x = (np.linspace(-1, 1, length) for length in (height, width))
    powers = [(total - i, i) for total in range(degree + 1) for i in range(total + 1)]
    columns = [np.multiply.outer(y**i, x**j).ravel() for i, j in powers]
    terms, _ = np.linalg.qr(np.stack(columns, axis=1))
    degrees = np.array([i + j for i, j in powers])
    return terms[:, 1:] * np.sqrt(height * width), degrees[1:]


def _normal_equations(rise: np.ndarray, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of the logarithms of each field's cells: [K, T, T] and [K, T]."""
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
        here = terms[places] - terms[places].mean(axis=0)
        normal.append(weight * here.T @ here)
        right.append(weight * here.T @ logarithm)
    return np.stack(normal), np.stack(right)
