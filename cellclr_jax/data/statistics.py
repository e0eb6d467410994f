"""Percentiles of raw intensities by plate, which the `percentile` normalisation scales by."""

import numpy as np
import pandas as pd

from cellclr_jax.data.pipeline import Cells


def plate_percentiles(
    cells: Cells, *, low: float = 1.0, high: float = 99.9, per_plate: int = 256, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of each channel over a random sample of each plate's cells.

    Where no plates are told, all cells are of one.

    Args:
      cells: the dataset.
      low: the lower percentile, 0 to 100.
      high: the upper one.
      per_plate: cells to read of each plate.
      seed: of the sample.

    Returns:
      (low, high), each [N, C] float32: every cell has its plate's.
    """
    rng = np.random.default_rng(seed)
    names = cells.table.get("plate", pd.Series("", cells.table.index))
    plates, codes = np.unique(names.to_numpy(str), return_inverse=True)
    table = np.empty((2, len(plates), cells.image_shape[-1]), np.float32)
    for i in range(len(plates)):
        members = np.flatnonzero(codes == i)
        sample = rng.choice(members, min(per_plate, len(members)), replace=False)
        images = cells.read(np.sort(sample))["image"]
        table[:, i] = np.percentile(images, (low, high), axis=(0, 1, 2))
    return table[0][codes], table[1][codes]
