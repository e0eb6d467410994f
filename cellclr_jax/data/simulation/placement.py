"""Where the cells of a field lie: colonies with gaps between them, neighbours at a distance."""

import numpy as np

COLONY_CELLS = 14.0  # mean number of cells in a colony of MCF-7
COLONY_SPREAD = 1.55  # spread of a colony, in spacings
RELAXATIONS = 18  # steps of repulsion: few neighbours remain closer than half the spacing


def place_cells(
    rng: np.random.Generator, spacing: np.ndarray, height: int, width: int, margin: float
) -> np.ndarray:
    """Places cells in colonies and pushes apart those that lie too close.

    Args:
      rng: draws the colonies.
      spacing: [N] distance in pixels that each cell keeps from its neighbours.
      height, width: of the field in pixels.
      margin: how far outside the field cells may lie, in pixels, so that some reach in over its
        border.

    Returns:
      [N, 2] float64, x and y.
    """
    count = len(spacing)
    low, high = np.array([-margin, -margin]), np.array([width + margin, height + margin])
    colonies = rng.uniform(low, high, (max(1, round(count / COLONY_CELLS)), 2))
    weights = rng.dirichlet(np.full(len(colonies), 2.0))
    home = rng.choice(len(colonies), count, p=weights)
    # The area of a colony grows with its cells, hence its spread with their root.
    members = np.bincount(home, minlength=len(colonies))[home]
    spread = COLONY_SPREAD * spacing * np.sqrt(members / COLONY_CELLS)
    at = colonies[home] + rng.standard_normal((count, 2)) * spread[:, None]
    at = low + np.abs(np.mod(at - low, 2 * (high - low)) - (high - low))  # reflect at the borders
    keep = 0.5 * (spacing[:, None] + spacing[None, :])
    for _ in range(RELAXATIONS):
        at = at + _push(at, keep)
    return np.clip(at, low, high)


def _push(at: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """One step [N, 2] away from the neighbours nearer than `keep` [N, N]."""
    away = at[:, None, :] - at[None, :, :]
    distance = np.sqrt((away**2).sum(axis=2)) + 1e-3
    overlap = np.maximum(0, keep - distance)
    np.fill_diagonal(overlap, 0)
    return 0.3 * (away * (overlap / distance)[:, :, None]).sum(axis=1)
