"""The cells of a simulated field and their places."""

from dataclasses import dataclass

import numpy as np

from cellclr_jax.simulation.phenotypes import Phenotype
from cellclr_jax.simulation.shapes import (
    INTERPHASE,
    Box,
    Piece,
    Table,
    body_outline,
    nucleus_pieces,
)

CELLS_PER_PIXEL = 100 / (1024 * 1280)  # of an untreated field; BBBC021 has about 117 a field
MARGIN = 30.0  # pixels outside the field in which cells still lie
NOWHERE = Box(0, 0, 0, 0)  # until territories are found
SPACING_SPREAD = 0.15  # of the distance that cells keep, natural logarithm
METAPHASE_SHARE = 0.65  # of the regular mitoses; anaphase, the rest, is over sooner
OUT_OF_FOCUS_SHARE = 0.06
OUT_OF_FOCUS_SIGMA = (2.2, 4.0)  # blur in pixels of a cell that lies off the focal plane


@dataclass(frozen=True)
class Population:
    """The cells of a well.

    Attributes:
      untreated: the phenotype of cells that do not respond.
      treated: the phenotype of those that do.
      responding: share of cells that respond, in [0, 1].
      density: factor on the number of cells that has nothing to do with the treatment.
      flow: angle in radians along which the well's cells tend to lie.
      alignment: how strictly they do, the concentration of a von Mises distribution; 0 not at all.
    """

    untreated: Phenotype
    treated: Phenotype
    responding: float
    density: float = 1.0
    flow: float = 0.0
    alignment: float = 0.0


@dataclass
class Cell:
    """One cell as drawn by chance, before it is painted."""

    x: int
    y: int
    kind: Phenotype
    state: int
    responds: bool
    angle: float
    mitosis: str
    body: Table
    pieces: list[Piece]
    blur: float  # 0 where the cell is in focus
    box: Box = NOWHERE
    depth: np.ndarray | None = None  # [h, w] pixels inside the territory's border, negative outside
    joined: np.ndarray | None = None  # [h, w] bool, the nearest border is one with another cell


def draw_cells(
    rng: np.random.Generator, population: Population, height: int, width: int
) -> list[Cell]:
    """Draws a field's cells; the rounded ones come last, since they lie on top."""
    mean = population.responding * population.treated.density + 1 - population.responding
    area = (height + 2 * MARGIN) * (width + 2 * MARGIN)
    count = max(1, rng.poisson(CELLS_PER_PIXEL * area * mean * population.density))
    responds = rng.random(count) < population.responding
    spacing = np.where(responds, population.treated.spacing, population.untreated.spacing)
    spacing = spacing * rng.lognormal(0, SPACING_SPREAD, count)
    places = np.rint(place_cells(rng, spacing, height, width, MARGIN)).astype(int)
    cells = []
    for (x, y), responding in zip(places, responds, strict=True):
        kind = population.treated if responding else population.untreated
        angle = _angle(rng, population)
        cells.append(_draw_cell(rng, int(x), int(y), kind, bool(responding), angle))
    return sorted(cells, key=lambda cell: cell.state != INTERPHASE)


def _angle(rng: np.random.Generator, population: Population) -> float:
    """The direction of one cell's long axis in radians; an axis has no head, hence the half."""
    if population.alignment == 0:
        return float(rng.uniform(0, 2 * np.pi))
    return population.flow + 0.5 * float(rng.vonmises(0, population.alignment))


def _draw_cell(
    rng: np.random.Generator, x: int, y: int, kind: Phenotype, responds: bool, angle: float
) -> Cell:
    """Draws one cell's state, outline and nucleus."""
    shares = np.array([kind.mitotic, kind.apoptotic, kind.rounded])
    state = int(np.searchsorted(np.cumsum(shares), rng.random())) + 1
    state = state if state <= len(shares) else INTERPHASE
    choice = rng.random()
    if choice < kind.monoaster:
        mitosis = "ring"
    elif choice < kind.monoaster + kind.scattered:
        mitosis = "arrested"
    else:
        mitosis = "plate" if rng.random() < METAPHASE_SHARE else "two_plates"
    blurred = rng.random() < OUT_OF_FOCUS_SHARE
    blur = float(rng.uniform(*OUT_OF_FOCUS_SIGMA)) if blurred else 0.0
    body = body_outline(rng, kind, angle, state)
    pieces = nucleus_pieces(rng, kind, angle, state, mitosis)
    return Cell(x, y, kind, state, responds, angle, mitosis, body, pieces, blur)


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
