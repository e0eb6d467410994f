"""Paints fields of cells for tests, without the camera's blur and noise."""

import numpy as np

from cellclr_jax.simulation.painter import PaintedField, paint_field
from cellclr_jax.simulation.phenotypes import MOA_PHENOTYPES, UNTREATED
from cellclr_jax.simulation.population import Population
from cellclr_jax.simulation.textures import texture_bank


def field_of(cells: str | Population | None, seed: int = 0, size: int = 640) -> PaintedField:
    """Paints a square field of a population, or of cells with a mechanism's full phenotype.

    Args:
      cells: a population, a mechanism, or None for untreated cells.
      seed: of the cells.
      size: side in pixels.
    """
    if not isinstance(cells, Population):
        kind = UNTREATED if cells is None else MOA_PHENOTYPES[cells]
        cells = Population(UNTREATED, kind, 0.0 if cells is None else 1.0)
    rng = np.random.default_rng(seed)
    return paint_field(rng, cells, texture_bank(0), height=size, width=size)
