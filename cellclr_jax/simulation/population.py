"""The cells of a simulated field: positions, outlines and nuclei.

An outline is a table of radius over angle. Each cell is drawn in a small window around its centre.
Distance and angle of every pixel of a window come from one grid, so that an outline takes one table
lookup per pixel.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cellclr_jax.simulation.phenotypes import Phenotype

ANGLES = 512  # bins of the outline tables: 1 px apart at a radius of 80 px
WINDOW_HALF = 128  # the largest window that a cell may fill
GRID_HALF = 176  # larger, for nuclear pieces away from a cell's centre

_Y, _X = np.mgrid[-GRID_HALF : GRID_HALF + 1, -GRID_HALF : GRID_HALF + 1].astype(np.float32)
DISTANCE = np.hypot(_X, _Y)  # [353, 353] float32, pixels
ANGLE_BIN = np.floor(np.arctan2(_Y, _X) * (ANGLES / (2 * np.pi))).astype(np.intp) % ANGLES
THETA = (np.arange(ANGLES, dtype=np.float32) + 0.5) * np.float32(2 * np.pi / ANGLES)

MAX_RADIUS = 110.0  # of a cell body with its protrusions: the fibre stamps end here

INTERPHASE, MITOTIC, APOPTOTIC, ROUNDED = range(4)
STATES = ("interphase", "mitotic", "apoptotic", "rounded")
ROUND_RADIUS = {MITOTIC: 23.0, APOPTOTIC: 14.0, ROUNDED: 21.0}  # pixels
ROUND_NUCLEUS = 0.62  # area of a rounded cell's nucleus seen from above, relative to a flat one
UNTREATED_AREA = 1000.0  # square pixels; a nucleus of this area has brightness 1
DILUTION = 0.45  # exponent: 1 would conserve DNA if larger nuclei were not thicker as well
MOST_FRAGMENTS = 6
# Pieces of a broken nucleus lie around its centre at this share of its radius, increased by this
# share for each further piece, so that they touch but do not merge.
FRAGMENT_REACH, FRAGMENT_CROWDING = 0.62, 0.13
# Parameter of a Dirichlet distribution: the largest of four pieces has two fifths of the area.
FRAGMENT_EVENNESS = 2.2
SMALLEST_FRAGMENT = 40.0  # square pixels, a micronucleus
# Condensed chromosomes, edge-on in metaphase: a bar of a third of the nucleus's area, about 3 times
# as bright, since it contains all the DNA.
PLATE_AREA, PLATE_ASPECT, CONDENSED = 330.0, 2.7, 2.9
ELONGATED = 1.6  # aspect above which a cell has its protrusions at its two ends

Table = np.ndarray


class Box(NamedTuple):
    """A window of an image: rows [top, bottom), columns [left, right)."""

    top: int
    bottom: int
    left: int
    right: int

    def slices(self) -> tuple[slice, slice]:
        """Index of the window in an image."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def around(self, x: int, y: int) -> tuple[slice, slice]:
        """Index of the window in `DISTANCE` and `ANGLE_BIN`, with their centre at (x, y)."""
        rows = slice(self.top - y + GRID_HALF, self.bottom - y + GRID_HALF)
        return rows, slice(self.left - x + GRID_HALF, self.right - x + GRID_HALF)


def window(x: int, y: int, half: float, height: int, width: int) -> Box:
    """Computes the window of `half` pixels around (x, y), clipped to the image; it may be empty."""
    reach = min(int(np.ceil(half)), WINDOW_HALF)
    top, left = max(0, y - reach), max(0, x - reach)
    bottom, right = min(height, y + reach + 1), min(width, x + reach + 1)
    return Box(top, max(top, bottom), left, max(left, right))


@dataclass(frozen=True)
class Piece:
    """One connected piece of DNA: its outline around (dx, dy) from the cell's centre, in pixels.

    `inner` is the outline of a hole (a ring of DNA), or None.
    """

    dx: int
    dy: int
    outline: Table
    brightness: float
    inner: Table | None = None


def ellipse(area: float, aspect: float, angle: float) -> Table:
    """Radius over angle [512] float32 of an ellipse of `area` whose long axis lies at `angle`."""
    long = np.sqrt(area * aspect / np.pi)
    short = long / aspect
    turned = THETA - np.float32(angle)
    return (long * short / np.hypot(short * np.cos(turned), long * np.sin(turned))).astype(
        np.float32
    )


def ripple(rng: np.random.Generator, amplitude: float, low: int = 2, high: int = 6) -> Table:
    """Draws a factor near 1 for each angle, [512], with harmonics `low` to `high`."""
    order = np.arange(low, high + 1)[:, None]
    size = amplitude * rng.standard_normal((len(order), 1)) * (low / order) ** 0.7
    waves = size * np.cos(order * THETA + rng.uniform(0, 2 * np.pi, (len(order), 1)))
    return np.clip(1 + waves.sum(axis=0), 0.45, 1.7).astype(np.float32)


def body_outline(rng: np.random.Generator, kind: Phenotype, angle: float, state: int) -> Table:
    """Radius over angle [512] of a cell's body; cells outside interphase are small discs."""
    if state != INTERPHASE:
        radius = ROUND_RADIUS[state] * rng.uniform(0.9, 1.12)
        return ellipse(np.pi * radius**2, 1.06, angle) * ripple(rng, 0.02)
    radius = kind.cell_radius * rng.lognormal(0, 0.11)
    aspect = max(1.0, kind.cell_aspect * rng.lognormal(0, 0.08))
    outline = ellipse(np.pi * radius**2, aspect, angle) * ripple(rng, kind.cell_irregularity, 1, 7)
    for k in range(rng.poisson(kind.protrusions) if kind.protrusion_length > 0 else 0):
        if kind.cell_aspect > ELONGATED:
            at = angle + np.pi * (k % 2) + rng.normal(0, 0.12)
        else:
            at = rng.uniform(0, 2 * np.pi)
        off = np.abs(np.angle(np.exp(1j * (THETA - at))))
        sharp = np.maximum(0, 1 - off / rng.uniform(0.20, 0.36)) ** 1.6
        outline = outline + kind.protrusion_length * rng.uniform(0.6, 1.2) * sharp
    return np.minimum(outline, MAX_RADIUS).astype(np.float32)


def nucleus_pieces(
    rng: np.random.Generator, kind: Phenotype, angle: float, state: int, mitosis: str
) -> list[Piece]:
    """Draws the pieces of a cell's DNA; `mitosis`, a key of `_MITOSES`, is for mitotic cells."""
    if state == MITOTIC:
        return _MITOSES[mitosis](rng, angle)
    if state == APOPTOTIC:
        return _scatter(rng, int(rng.integers(2, 5)), 7.0, area=55.0, brightness=3.3)
    area = kind.nucleus_area * rng.lognormal(0, 0.22)
    if state == ROUNDED:
        area *= ROUND_NUCLEUS
    # A larger nucleus has the same DNA and is dimmer.
    brightness = (UNTREATED_AREA / area) ** DILUTION * rng.lognormal(0, 0.18)
    extra = min(MOST_FRAGMENTS, int(rng.poisson(kind.fragments))) if kind.fragments > 0 else 0
    if extra:
        return _broken(rng, kind, area, extra, brightness)
    aspect = max(1.0, 1 + (kind.nucleus_aspect - 1) * rng.lognormal(0, 0.35))
    return [Piece(0, 0, _nuclear_outline(rng, kind, area, aspect, angle), brightness)]


def _nuclear_outline(
    rng: np.random.Generator, kind: Phenotype, area: float, aspect: float, angle: float
) -> Table:
    """Draws an ellipse with the phenotype's irregularity and lobes."""
    outline = ellipse(area, aspect, angle) * ripple(rng, kind.nucleus_irregularity)
    if kind.lobe_depth > 0.01:
        order = int(rng.integers(2, 5))
        lobes = np.abs(np.cos(0.5 * order * THETA + rng.uniform(0, np.pi)))
        # Rectified waves have sharp clefts between round lobes, as budding nuclei have.
        outline = outline * (1 + 2 * kind.lobe_depth * rng.uniform(0.7, 1.2) * (lobes - 0.64))
    return np.maximum(outline, 3.0).astype(np.float32)


def _broken(
    rng: np.random.Generator, kind: Phenotype, area: float, extra: int, brightness: float
) -> list[Piece]:
    """Draws a nucleus in `extra` + 1 pieces of unequal size, close together."""
    shares = rng.dirichlet(np.full(extra + 1, FRAGMENT_EVENNESS))
    reach = FRAGMENT_REACH * np.sqrt(area / np.pi) * (1 + FRAGMENT_CROWDING * extra)
    turn = rng.uniform(0, 2 * np.pi)
    pieces = []
    for k, share in enumerate(np.sort(shares)[::-1]):
        at = turn + 2 * np.pi * k / (extra + 1) + rng.normal(0, 0.25)
        away = reach * rng.uniform(0.8, 1.25)
        outline = ellipse(max(SMALLEST_FRAGMENT, area * share), 1.15, rng.uniform(0, np.pi))
        outline = outline * ripple(rng, max(0.03, kind.nucleus_irregularity))
        pieces.append(
            Piece(round(away * np.cos(at)), round(away * np.sin(at)), outline, brightness)
        )
    return pieces


def _scatter(
    rng: np.random.Generator, count: int, reach: float, *, area: float, brightness: float
) -> list[Piece]:
    """Small bright pieces within `reach` pixels: loose chromosomes, or an apoptotic cell."""
    pieces = []
    for _ in range(count):
        dx, dy = rng.normal(0, 0.7 * reach, 2)
        outline = ellipse(area * rng.lognormal(0, 0.3), 1.4, rng.uniform(0, np.pi))
        pieces.append(Piece(round(dx), round(dy), outline * ripple(rng, 0.08), brightness))
    return pieces


def _plate(rng: np.random.Generator, angle: float) -> list[Piece]:
    """Metaphase: a bar of DNA across the spindle's axis."""
    bar = ellipse(PLATE_AREA, PLATE_ASPECT, angle + np.pi / 2) * ripple(rng, 0.04)
    return [Piece(0, 0, bar, CONDENSED)]


def _two_plates(rng: np.random.Generator, angle: float) -> list[Piece]:
    """Anaphase: two bars that part along the spindle's axis."""
    away = rng.uniform(7, 12)
    bar = ellipse(190.0, 2.6, angle + np.pi / 2)
    dx, dy = round(away * np.cos(angle)), round(away * np.sin(angle))
    return [Piece(dx, dy, bar, CONDENSED), Piece(-dx, -dy, bar, CONDENSED)]


def _ring(rng: np.random.Generator, angle: float) -> list[Piece]:
    """Draws a monoaster's rosette: a ring of DNA around the single pole."""
    outer = ellipse(np.pi * rng.uniform(12.5, 15.0) ** 2, 1.1, angle) * ripple(rng, 0.05, 2, 9)
    inner = outer - rng.uniform(5.5, 7.5) * ripple(rng, 0.10, 2, 7)
    return [Piece(0, 0, outer, 1.55, np.maximum(inner, 1.0))]


def _arrested(rng: np.random.Generator, angle: float) -> list[Piece]:
    """Arrest without a spindle: condensed chromosomes in an irregular heap."""
    return _scatter(rng, int(rng.integers(5, 9)), 8.5, area=80.0, brightness=1.7)


_MITOSES = {"plate": _plate, "two_plates": _two_plates, "ring": _ring, "arrested": _arrested}


CELLS_PER_PIXEL = 100 / (1024 * 1280)  # untreated; BBBC021 has about 117 cells per field
MARGIN = 30.0  # width in pixels of the surrounding of the field that also has cells
NOWHERE = Box(0, 0, 0, 0)  # before territories are found
SPACING_SPREAD = 0.15  # of the distance between cells, natural logarithm
METAPHASE_SHARE = 0.65  # of the regular mitoses; the rest is anaphase, which is shorter
OUT_OF_FOCUS_SHARE = 0.06
OUT_OF_FOCUS_SIGMA = (2.2, 4.0)  # blur in pixels of a cell that lies off the focal plane


@dataclass(frozen=True)
class Population:
    """The cells of a well.

    Attributes:
      untreated: the phenotype of cells that do not respond.
      treated: the phenotype of those that do.
      responding: share of cells that respond, in [0, 1].
      density: factor on the number of cells, independent of the treatment.
      flow: mean direction of the well's cells, in radians.
      alignment: concentration of a von Mises distribution around it; 0: no alignment.
    """

    untreated: Phenotype
    treated: Phenotype
    responding: float
    density: float = 1.0
    flow: float = 0.0
    alignment: float = 0.0


@dataclass
class Cell:
    """One random cell before painting."""

    x: int
    y: int
    kind: Phenotype
    state: int
    responds: bool
    angle: float
    mitosis: str
    body: Table
    pieces: list[Piece]
    blur: float  # 0 if the cell is in focus
    box: Box = NOWHERE
    depth: np.ndarray | None = None  # [h, w] pixels inside the territory's border, negative outside
    joined: np.ndarray | None = None  # [h, w] bool, the nearest border is shared with another cell


def draw_cells(
    rng: np.random.Generator, population: Population, height: int, width: int
) -> list[Cell]:
    """Draws a field's cells; cells outside interphase come last, since they lie on top."""
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
    """Draws the direction of a cell's long axis in radians; 0.5, since an axis repeats after pi."""
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
RELAXATIONS = 18  # steps of repulsion, after which few neighbours are closer than half the spacing


def place_cells(
    rng: np.random.Generator, spacing: np.ndarray, height: int, width: int, margin: float
) -> np.ndarray:
    """Places cells in colonies and moves cells apart that are too close.

    Args:
      rng: draws the colonies.
      spacing: [N] distance in pixels of each cell to its neighbours.
      height, width: of the field in pixels.
      margin: largest distance of a cell outside the field, in pixels; such cells may reach into
        the field.

    Returns:
      [N, 2] float64, x and y.
    """
    count = len(spacing)
    low, high = np.array([-margin, -margin]), np.array([width + margin, height + margin])
    colonies = rng.uniform(low, high, (max(1, round(count / COLONY_CELLS)), 2))
    weights = rng.dirichlet(np.full(len(colonies), 2.0))
    home = rng.choice(len(colonies), count, p=weights)
    # Area is proportional to the number of cells, so spread to its square root.
    members = np.bincount(home, minlength=len(colonies))[home]
    spread = COLONY_SPREAD * spacing * np.sqrt(members / COLONY_CELLS)
    at = colonies[home] + rng.standard_normal((count, 2)) * spread[:, None]
    at = low + np.abs(np.mod(at - low, 2 * (high - low)) - (high - low))  # reflect at the borders
    keep = 0.5 * (spacing[:, None] + spacing[None, :])
    for _ in range(RELAXATIONS):
        at = at + _push(at, keep)
    return np.clip(at, low, high)


def _push(at: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """One step [N, 2] away from neighbours nearer than `keep` [N, N]."""
    away = at[:, None, :] - at[None, :, :]
    distance = np.sqrt((away**2).sum(axis=2)) + 1e-3
    overlap = np.maximum(0, keep - distance)
    np.fill_diagonal(overlap, 0)
    return 0.3 * (away * (overlap / distance)[:, :, None]).sum(axis=1)
