"""Whose pixel is it: the territory of each cell around its nucleus, window by window.

There is no image of the cells' outlines in every screen, so a cell is taken to reach to half way to
its neighbours' nuclei, and no further than a given distance from its own.
"""

from collections.abc import Sequence

import numpy as np

from cellclr_jax.data.crops import extract_crops, fits

# What a mask says of a pixel.
ELSEWHERE, TERRITORY, NUCLEUS = 0, 1, 2


def crop_masks(
    labels: np.ndarray,
    numbers: Sequence[int] | np.ndarray,
    centers: np.ndarray,
    *,
    size: int = 96,
    border: str = "drop",
    radius: float,
) -> np.ndarray:
    """Cuts the masks that belong to `crops.extract_crops`'s windows.

    Args:
      labels: [H, W] int32 nuclei of the field, 0 is background. All of them compete for pixels,
        those without a window as well.
      numbers: [N] the labels of the cells whose windows are cut.
      centers: [N, 2] (row, column) of the windows in pixels, inside the field.
      size: side S of the window in pixels.
      border: 'drop', 'pad' or 'shift', as for the images. With 'drop' masks are left out where
        crops are. With 'pad' the pixels outside the field are nobody's: what the image shows there
        is its mirror.
      radius: how far from its nucleus a cell may reach, in pixels; 0 leaves only the nucleus.

    Returns:
      [N, S, S] uint8 (with 'drop' [K, S, S]): 2 in the cell's own nucleus, 1 in the rest of its
      territory (within `radius` of its nucleus and nearer to it than to any other), 0 elsewhere.

    Raises:
      ValueError: as for `extract_crops`.
    """
    cells, points = np.asarray(numbers, np.int64), np.asarray(centers, np.float64).reshape(-1, 2)
    if border == "drop":
        cells = cells[fits(points, labels.shape, size)]
    owners = np.stack([labels, _territories(labels, radius)], axis=-1)
    if border == "pad":
        # Zeros as far as any window reaches: then all of them fit.
        owners = np.pad(owners, ((size, size), (size, size), (0, 0)))
        points, border = points + size, "drop"
    windows = extract_crops(owners, points, size=size, border=border)
    own = windows == cells[:, None, None, None]
    return np.asarray(own.sum(axis=-1, dtype=np.uint8))


def zero_elsewhere(crops: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Blackens what is not the cell's.

    Args:
      crops: [N, S, S, C] of any type.
      masks: [N, S, S] of `crop_masks`.

    Returns:
      [N, S, S, C] of the crops' type, 0 where the mask is 0.
    """
    return np.where(masks[..., None] != ELSEWHERE, crops, crops.dtype.type(0))


def _territories(labels: np.ndarray, radius: float) -> np.ndarray:
    """[H, W] the label of the nearest nucleus, 0 where none is within `radius` pixels."""
    from skimage.segmentation import expand_labels

    return np.asarray(expand_labels(labels, distance=radius))
