"""Cuts one square window for each nucleus out of a field, and the mask of its cell.

Coordinates are (row, column) in pixels of the field; (0, 0) is the centre of its first pixel.

Not every screen has an image of the cells' outlines. A cell is therefore assumed to reach half way
to the neighbouring nuclei, and not further than a given distance from its own nucleus.
"""

from collections.abc import Sequence

import numpy as np


def nucleus_centers(labels: np.ndarray) -> np.ndarray:
    """Centres of mass of labelled nuclei.

    Args:
      labels: [H, W] integer; 0 is background, nuclei are 1..N.

    Returns:
      [N, 2] float32 (row, column) in pixels, nucleus n in row n - 1; NaN where a label is unused.
    """
    pixels = np.flatnonzero(labels)
    nucleus = labels.ravel()[pixels]
    count = int(labels.max(initial=0)) + 1
    rows, columns = np.divmod(pixels, max(labels.shape[1], 1))
    with np.errstate(invalid="ignore"):
        area = np.bincount(nucleus, minlength=count)
        row = np.bincount(nucleus, rows, minlength=count) / area
        column = np.bincount(nucleus, columns, minlength=count) / area
    return np.stack([row, column], axis=1)[1:].astype(np.float32)


def fits(centers: np.ndarray, shape: tuple[int, ...], size: int) -> np.ndarray:
    """Finds the windows that lie completely inside a field.

    Args:
      centers: [N, 2] (row, column) in pixels.
      shape: (H, W, ...) of the field.
      size: side S of the window in pixels.

    Returns:
      [N] bool.
    """
    corners = _corners(centers, size)
    return np.asarray(((corners >= 0) & (corners + size <= np.array(shape[:2]))).all(axis=1))


def extract_crops(
    field: np.ndarray, centers: np.ndarray, *, size: int = 96, border: str = "drop"
) -> np.ndarray:
    """Cuts the windows around `centers`, in their order.

    Args:
      field: [H, W, C] of any type.
      centers: [N, 2] (row, column) in pixels; pixel [size // 2, size // 2] of the window holds it.
      size: side S of the window in pixels.
      border: how to handle a window that extends beyond the field: 'drop' leaves it out (see
        `fits`), 'pad' mirrors the field at its border, 'shift' moves the window inside.

    Returns:
      [N, S, S, C] of the field's type; with 'drop' [K, S, S, C], where K windows fit.

    Raises:
      ValueError: with 'shift', the field is smaller than the window.
    """
    corners = _corners(centers, size)
    shape = np.array(field.shape[:2])
    if border == "drop":
        corners = corners[fits(centers, field.shape, size)]
    elif border == "pad":
        before = -corners.min(axis=0, initial=0)
        after = np.maximum(corners.max(axis=0, initial=0) + size - shape, 0)
        field = np.pad(field, (*zip(before, after, strict=True), (0, 0)), mode="reflect")
        corners = corners + before
    else:
        if shape.min() < size:
            raise ValueError(f"a field of {shape[0]}x{shape[1]} pixels holds no window of {size}")
        corners = np.clip(corners, 0, shape - size)
    crops = np.empty((len(corners), size, size, field.shape[2]), field.dtype)
    for crop, (row, column) in zip(crops, corners, strict=True):
        crop[:] = field[row : row + size, column : column + size]
    return crops


def _corners(centers: np.ndarray, size: int) -> np.ndarray:
    """Computes the first pixel (row, column) of each window, [N, 2] int64."""
    nearest = np.floor(np.asarray(centers, np.float64).reshape(-1, 2) + 0.5).astype(np.int64)
    return nearest - size // 2


def crop_masks(
    labels: np.ndarray,
    numbers: Sequence[int] | np.ndarray,
    centers: np.ndarray,
    *,
    size: int = 96,
    border: str = "drop",
    radius: float,
) -> np.ndarray:
    """Cuts the masks for the windows of `extract_crops`.

    Args:
      labels: [H, W] int32 nuclei of the field, 0 is background. Every nucleus claims pixels, also
        one without a window.
      numbers: [N] labels of the cells to cut.
      centers: [N, 2] (row, column) of the windows in pixels, inside the field.
      size, border: as for `extract_crops`. With 'pad', pixels outside the field belong to no cell:
        the image there is a mirror image.
      radius: largest distance in pixels from a nucleus to a pixel of its cell; with 0 a mask
        consists of only the nucleus.

    Returns:
      [N, S, S] uint8 (with 'drop' [K, S, S]): 2 in the cell's nucleus, 1 in the rest of the cell
      (within `radius` of its nucleus and nearer to it than to any other nucleus), 0 elsewhere.

    Raises:
      ValueError: as for `extract_crops`.
    """
    from skimage.segmentation import expand_labels

    cells, points = np.asarray(numbers, np.int64), np.asarray(centers, np.float64).reshape(-1, 2)
    if border == "drop":
        cells = cells[fits(points, labels.shape, size)]
    owners = np.stack([labels, expand_labels(labels, distance=radius)], axis=-1)
    if border == "pad":
        # With a margin of zeros on each side all windows fit.
        owners = np.pad(owners, ((size, size), (size, size), (0, 0)))
        points, border = points + size, "drop"
    windows = extract_crops(owners, points, size=size, border=border)
    belongs = windows == cells[:, None, None, None]
    return np.asarray(belongs.sum(axis=-1, dtype=np.uint8))
