"""Gives the image of one cell the size at which all are stored."""

import numpy as np

from cellclr_jax.cli import BadData

FITS = ("resize", "pad", "exact")


def fit(image: np.ndarray, size: int, how: str) -> np.ndarray:
    """Gives an image of any size S x S pixels, each channel alone.

    'resize' scales the image until its longer side has S pixels. Both sides are scaled alike, as
    a cell's shape is a measurement, and what then lacks on the shorter one is padded. Shrinking
    gives each pixel the mean of the area that it covers, which leaves the image's mean as it was
    and needs no blur before it; growing is bilinear between the pixels' centres.

    'pad' leaves the scale as it is, as a cell's size is a measurement as well: a smaller image
    comes into the middle, of a larger one the middle is kept.

    Padding repeats the border: an image of one cell ends in its background, which is not zero in
    a microscope's image, and a black frame would be the sharpest edge of all.

    Args:
      image: [H, W, C] unsigned integers of at most 16 bits.
      size: side S in pixels, at least 1.
      how: one of `FITS`; 'exact' takes S x S pixels alone.

    Returns:
      [S, S, C] of the image's type, rounded to the nearest (a half up); the same array where it
      has that size already.

    Raises:
      BadData: with 'exact', an image of another size.
      ValueError: an unknown way.

    >>> fit(np.array([[[1], [2]], [[3], [4]]], np.uint8), 1, "resize").item()
    3
    """
    if how not in FITS:
        raise ValueError(f"unknown way {how!r} to fit an image: one of {', '.join(FITS)}")
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    if how == "exact":
        raise BadData(f"{height}x{width} pixels, {size}x{size} were expected")
    return _centered(_scaled(image, size) if how == "resize" else image, size)


def _scaled(image: np.ndarray, size: int) -> np.ndarray:
    """The image with a longer side of `size` pixels.

    Whole numbers from end to end: every machine rounds a half alike.
    """
    sums: np.ndarray = image.astype(np.int64)
    parts = 1
    for axis, target in enumerate(_scaled_sides(image.shape[0], image.shape[1], size)):
        source = image.shape[axis]
        if target != source:
            along = _area_sums if target < source else _line_sums
            sums, whole = along(np.moveaxis(sums, axis, 0), target)
            sums = np.moveaxis(sums, 0, axis)
            parts *= whole
    return ((sums + parts // 2) // parts).astype(image.dtype)


def _scaled_sides(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width, at least 1, of which the longer is `size`, rounded to the nearest."""
    longer = max(height, width)
    return (
        max(1, (2 * height * size + longer) // (2 * longer)),
        max(1, (2 * width * size + longer) // (2 * longer)),
    )


def _area_sums(values: np.ndarray, target: int) -> tuple[np.ndarray, int]:
    """Shrinks the first axis; [target, ...] of sums in which a whole value counts `parts`.

    Each of N old pixels is cut into `target` parts, and a new pixel is N parts in a row: from
    within an old pixel to within a later one.
    """
    source = len(values)
    pixel, part = np.divmod(np.arange(target + 1) * source, target)
    # What a new pixel leaves of the old one in which it begins, and takes of that where it ends.
    ends = values[np.minimum(pixel, source - 1)] * _column(part, values)
    whole = np.add.reduceat(values, pixel[:-1], axis=0) * target
    return whole - ends[:-1] + ends[1:], source


def _line_sums(values: np.ndarray, target: int) -> tuple[np.ndarray, int]:
    """Stretches the first axis; [target, ...] of sums in which a whole value counts `parts`.

    Pixel i of the result lies at (i + 1/2) N / target - 1/2 of the N old ones, here in parts of
    2 target; beyond the first and the last centre nothing changes.
    """
    source, parts = len(values), 2 * target
    place = (2 * np.arange(target) + 1) * source - target
    pixel, part = np.divmod(np.clip(place, 0, parts * (source - 1)), parts)
    after = values[np.minimum(pixel + 1, source - 1)]
    part = _column(part, values)
    return values[pixel] * (parts - part) + after * part, parts


def _column(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weights [N] as [N, 1, ...], for values [N, ...]."""
    return weights.reshape(-1, *(1,) * (values.ndim - 1))


def _centered(image: np.ndarray, size: int) -> np.ndarray:
    """[S, S, C]: the image's middle, its border repeated where it is smaller.

    The middle is pixel [H // 2, W // 2], as in the crops of a field.
    """
    rows, columns = (
        np.clip(np.arange(size) - size // 2 + side // 2, 0, side - 1) for side in image.shape[:2]
    )
    return image[rows[:, None], columns]
