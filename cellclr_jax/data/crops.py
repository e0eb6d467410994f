"""Cuts one square window for each nucleus out of a field.

Coordinates are (row, column) in pixels of the field, from 0 at the centre of its first pixel.
"""

import numpy as np

BORDER_RULES = ("drop", "pad", "shift")


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
    """Tells which windows lie wholly inside a field.

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
      field: [H, W, C] uint16 (any type is kept).
      centers: [N, 2] (row, column) in pixels; the window's pixel [size // 2, size // 2] holds it.
      size: side S of the window in pixels.
      border: what becomes of a window that leaves the field: 'drop' leaves it out (`fits` says
        which), 'pad' mirrors the field at its border, 'shift' moves the window inside.

    Returns:
      [N, S, S, C] of the field's type; with 'drop' [K, S, S, C], K the number that fit.

    Raises:
      ValueError: an unknown border rule, or 'shift' on a field smaller than the window.
    """
    corners = _corners(centers, size)
    if border == "drop":
        corners = corners[fits(centers, field.shape, size)]
    elif border == "pad":
        field, corners = _padded(field, corners, size)
    elif border == "shift":
        room = np.array(field.shape[:2]) - size
        if room.min() < 0:
            raise ValueError(
                f"a field of {field.shape[0]}x{field.shape[1]} pixels holds no window of {size}"
            )
        corners = np.clip(corners, 0, room)
    else:
        raise ValueError(f"unknown border rule {border!r}: one of {', '.join(BORDER_RULES)}")
    crops = np.empty((len(corners), size, size, field.shape[2]), field.dtype)
    for crop, (row, column) in zip(crops, corners, strict=True):
        crop[:] = field[row : row + size, column : column + size]
    return crops


def _corners(centers: np.ndarray, size: int) -> np.ndarray:
    """[N, 2] int64: the first pixel of each window."""
    nearest = np.floor(np.asarray(centers, np.float64).reshape(-1, 2) + 0.5).astype(np.int64)
    return nearest - size // 2


def _padded(field: np.ndarray, corners: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The field mirrored at its border as far as the windows reach, and the corners in it."""
    if not len(corners):
        return field, corners
    before = np.maximum(0, -corners.min(axis=0))
    after = np.maximum(0, corners.max(axis=0) + size - np.array(field.shape[:2]))
    wide = np.pad(field, (*zip(before, after, strict=True), (0, 0)), mode="reflect")
    return wide, corners + before
