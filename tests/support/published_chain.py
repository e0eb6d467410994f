"""Draws from the published host chain (albumentations of 2021), one at a time in plain NumPy.

Functions of a generator return the random parameters of a view; `side` is the image's, in pixels.
"""

import colorsys

import numpy as np
from scipy.ndimage import gaussian_filter

LUMA = np.array([0.299, 0.587, 0.114])
NAMES = ("brightness", "contrast", "saturation", "hue")


def crop(rng, side, width=None, areas=(0.08, 1.0), aspects=(3 / 4, 4 / 3)):
    """Draws a box (top, left, height, width) in whole pixels: the first of ten tries that fits.

    If none fits, it is the largest central box of an allowed aspect ratio, as in torchvision.
    """
    rows, columns = side, width or side
    for _ in range(10):
        area = rng.uniform(*areas) * rows * columns
        aspect = np.exp(rng.uniform(*np.log(aspects)))
        width, height = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < width <= columns and 0 < height <= rows:
            top, left = rng.integers(0, rows - height + 1), rng.integers(0, columns - width + 1)
            return top, left, height, width
    if columns / rows < aspects[0]:
        height, width = round(columns / aspects[0]), columns
    elif columns / rows > aspects[1]:
        height, width = rows, round(rows * aspects[1])
    else:
        height, width = rows, columns
    return (rows - height) // 2, (columns - width) // 2, height, width


def points(side):
    """Returns the three points (x, y) that the elastic transform's affine map moves."""
    center, half = side // 2, side // 3
    return np.array(
        [
            [center + half, center + half],
            [center + half, center - half],
            [center - half, center - half],
        ],
        np.float64,
    )


def moved_points(rng, side, reach=50.0):
    """Draws the positions to which `points` are moved."""
    return points(side) + rng.uniform(-reach, reach, (3, 2))


def map_between(sources, targets):
    """Computes the affine map [2, 3] that takes three points (x, y) to three others."""
    return np.linalg.solve(np.column_stack([sources, np.ones(3)]), targets).T


def warp(image, matrix):
    """Interpolates bilinearly, pixel by pixel, at matrix @ (x, y, 1), with mirrored borders."""
    height, width = image.shape[:2]
    out = np.zeros(image.shape)

    def mirrored(index, side):
        while not 0 <= index < side:
            index = -index if index < 0 else 2 * (side - 1) - index
        return index

    for y, x in np.ndindex(height, width):
        column, row = matrix @ (x, y, 1.0)
        left, top = int(np.floor(column)), int(np.floor(row))
        for i in (0, 1):
            for j in (0, 1):
                weight = (1 - abs(row - top - i)) * (1 - abs(column - left - j))
                pixel = image[mirrored(top + i, height), mirrored(left + j, width)]
                out[y, x] += weight * pixel
    return out


def field(rng, side):
    """Draws displacements [side, side] along one axis, in pixels: alpha 1, sigma 50."""
    return gaussian_filter(rng.uniform(-1, 1, (side, side)), 50)


def jitter(rng, strength=0.2):
    """Draws (factors and hue shift by name, the four names in random order)."""
    factors = {name: rng.uniform(1 - strength, 1 + strength) for name in NAMES[:3]}
    return factors | {"hue": rng.uniform(-0.2, 0.2)}, list(rng.permutation(NAMES))


def naive_hue(image, shift):
    """Shifts hues with colorsys, pixel by pixel."""
    out = np.zeros(image.shape)
    for i, j in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(float(c) for c in image[i, j]))
        out[i, j] = colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value)
    return out


def naive_jitter(image, names, factors):
    """Applies the named operations in turn, in float64, and clips after each."""
    for name in names:
        factor = factors[name]
        if name == "hue":
            image = naive_hue(image, factor)
        elif name == "brightness":
            image = image * factor
        else:
            luma = (image @ LUMA)[:, :, None]
            blend = luma.mean() if name == "contrast" else luma
            image = factor * image + (1 - factor) * blend
        image = np.clip(image, 0, 1)
    return image


def quarter_turns(rng):
    """Draws the quarter turns of RandomRotate90: for half of the images 0 to 3, else 0."""
    return int(rng.integers(0, 4)) if rng.random() < 0.5 else 0
