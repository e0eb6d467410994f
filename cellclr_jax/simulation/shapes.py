"""Outlines of cells and nuclei as radius over angle, and the pieces a nucleus consists of.

Everything is drawn on small windows about a cell's centre. Distance and angle of every pixel of
such a window are looked up in one grid, so that an outline costs one table lookup a pixel.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cellclr_jax.simulation.phenotypes import Phenotype

ANGLES = 512  # bins of the outline tables: 1 px apart at a radius of 80 px
WINDOW_HALF = 128  # the largest window that a cell may fill
GRID_HALF = 176  # with room for nuclear pieces off a cell's centre

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
DILUTION = 0.45  # exponent: 1 would conserve DNA in a flat nucleus, but larger ones are thicker too
MOST_FRAGMENTS = 6
# Pieces of a broken nucleus lie about its middle at this share of its radius, and further out by
# this share for each piece more, so that they touch but do not merge.
FRAGMENT_REACH, FRAGMENT_CROWDING = 0.62, 0.13
FRAGMENT_EVENNESS = (
    2.2  # of a Dirichlet distribution: the largest of four holds two fifths of the area
)
SMALLEST_FRAGMENT = 40.0  # square pixels, a micronucleus
# Condensed chromosomes, seen edge on in metaphase: a bar of a third of the nucleus's area, about as
# much brighter, since it holds all the DNA.
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
        """To index an image with."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def around(self, x: int, y: int) -> tuple[slice, slice]:
        """To index `DISTANCE` and `ANGLE_BIN` with, the grid's centre being at (x, y)."""
        rows = slice(self.top - y + GRID_HALF, self.bottom - y + GRID_HALF)
        return rows, slice(self.left - x + GRID_HALF, self.right - x + GRID_HALF)


def window(x: int, y: int, half: float, height: int, width: int) -> Box:
    """The window of `half` pixels about (x, y), cut at the image's borders; it may be empty."""
    reach = min(int(np.ceil(half)), WINDOW_HALF)
    top, left = max(0, y - reach), max(0, x - reach)
    bottom, right = min(height, y + reach + 1), min(width, x + reach + 1)
    return Box(top, max(top, bottom), left, max(left, right))


@dataclass(frozen=True)
class Piece:
    """One connected piece of DNA: its outline about (dx, dy) from the cell's centre, in pixels.

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
    """A random factor over angle [512] about 1, of harmonics `low` to `high`."""
    order = np.arange(low, high + 1)[:, None]
    size = amplitude * rng.standard_normal((len(order), 1)) * (low / order) ** 0.7
    waves = size * np.cos(order * THETA + rng.uniform(0, 2 * np.pi, (len(order), 1)))
    return np.clip(1 + waves.sum(axis=0), 0.45, 1.7).astype(np.float32)


def body_outline(rng: np.random.Generator, kind: Phenotype, angle: float, state: int) -> Table:
    """Radius over angle [512] of a cell's body; cells out of interphase are small discs."""
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
    """The pieces of one cell's DNA; `mitosis`, a key of `_MITOSES`, counts in mitotic cells."""
    if state == MITOTIC:
        return _MITOSES[mitosis](rng, angle)
    if state == APOPTOTIC:
        return _scatter(rng, int(rng.integers(2, 5)), 7.0, area=55.0, brightness=3.3)
    area = kind.nucleus_area * rng.lognormal(0, 0.22)
    if state == ROUNDED:
        area *= ROUND_NUCLEUS
    # A larger nucleus holds the same DNA and is paler.
    brightness = (UNTREATED_AREA / area) ** DILUTION * rng.lognormal(0, 0.18)
    extra = min(MOST_FRAGMENTS, int(rng.poisson(kind.fragments))) if kind.fragments > 0 else 0
    if extra:
        return _broken(rng, kind, area, extra, brightness)
    aspect = max(1.0, 1 + (kind.nucleus_aspect - 1) * rng.lognormal(0, 0.35))
    return [Piece(0, 0, _nuclear_outline(rng, kind, area, aspect, angle), brightness)]


def _nuclear_outline(
    rng: np.random.Generator, kind: Phenotype, area: float, aspect: float, angle: float
) -> Table:
    """An ellipse with the phenotype's irregularity and lobes."""
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
    """A nucleus in `extra` + 1 pieces of unequal size that lie close together."""
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
    """A monoaster's rosette: a ring of DNA about the single pole."""
    outer = ellipse(np.pi * rng.uniform(12.5, 15.0) ** 2, 1.1, angle) * ripple(rng, 0.05, 2, 9)
    inner = outer - rng.uniform(5.5, 7.5) * ripple(rng, 0.10, 2, 7)
    return [Piece(0, 0, outer, 1.55, np.maximum(inner, 1.0))]


def _arrested(rng: np.random.Generator, angle: float) -> list[Piece]:
    """Arrest without a spindle: condensed chromosomes in an irregular heap."""
    return _scatter(rng, int(rng.integers(5, 9)), 8.5, area=80.0, brightness=1.7)


_MITOSES = {"plate": _plate, "two_plates": _two_plates, "ring": _ring, "arrested": _arrested}
