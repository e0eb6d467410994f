"""Paints one field of cells: DNA, tubulin and actin, with ground truth for every nucleus.

A field is painted in two passes over its cells. The first finds each cell's territory: a pixel
belongs to the cell in whose outline it lies deepest, which gives flat borders between neighbours.
The second paints each cell in a window, from noise and fibre textures drawn once per process.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cellclr_jax.simulation.population import (
    ANGLE_BIN,
    APOPTOTIC,
    DISTANCE,
    GRID_HALF,
    INTERPHASE,
    MITOTIC,
    Box,
    Cell,
    Population,
    draw_cells,
    window,
)
from cellclr_jax.simulation.textures import NOISE_SIZE, ORIENTATIONS, STAMP_HALF, TextureBank

# Brightness of an untreated structure, in camera counts above the background, from the real crops.
DNA_LEVEL, TUBULIN_LEVEL, ACTIN_LEVEL = 4150.0, 1550.0, 4000.0
NUCLEUS_EDGE, CELL_EDGE = 3.5, 6.0  # width in pixels of the fading edge of nucleus and cell
ROUND_BRIGHTER = 1.7  # a rounded cell is thicker and therefore brighter
OVER_NUCLEUS = 0.80  # share of tubulin and actin that remains above and below a nucleus
PERINUCLEAR_WIDTH = 9.0
CORTEX_WIDTH = 3.2
MESH_GRAIN = 0.6  # of the actin mesh's fine part, relative to its clouds
PERINUCLEAR_ACTIN = 0.3  # share of actin that is missing around the nucleus
# A nucleus is lens-shaped: its rim has this share of the brightness of its middle, which begins
# this many pixels inside (half the radius of an untreated nucleus).
NUCLEUS_RIM, NUCLEUS_SLOPE = 0.72, 9.0
NUCLEOLI_WITHIN = 0.55  # of the nucleus's radius; further out they would dent its outline
# Cells are thin at their edges: tubulin falls to a third at this share of the radius plus this many
# pixels; the pixels keep small cells, which are thick up to their edge, bright.
TUBULIN_FADE, TUBULIN_FADE_MORE = 0.95, 12.0
PERINUCLEAR_ACTIN_REACH = 0.55  # of the cell's radius: the thick cytoplasm around the nucleus
BALL_SLOPE = 14.0  # pixels from the edge to full thickness: two thirds of the radius
SPINDLE_POLE = 8.0  # distance in pixels of a spindle's poles from the middle

SPOT_REACH = 3.5  # radii, where a spot has fallen below 1 %

Array = np.ndarray
Spot = tuple[tuple[slice, slice], np.ndarray]
TOUCHING = 1.08  # radii; closer neighbours share a junction


@dataclass(frozen=True)
class PaintedField:
    """One field before the camera.

    Attributes:
      image: [3, H, W] float32, camera counts above the background; DNA, tubulin, actin.
      labels: [H, W] uint16, k + 1 on the nucleus of row k of the following arrays, 0 elsewhere.
      centres: [N, 2] float32, x and y of the pixel of the nucleus nearest to its centre.
      state: [N] uint8, an index into `population.STATES`.
      responds, in_focus: [N] bool.
    """

    image: np.ndarray
    labels: np.ndarray
    centres: np.ndarray
    state: np.ndarray
    responds: np.ndarray
    in_focus: np.ndarray


def paint_field(
    rng: np.random.Generator,
    population: Population,
    bank: TextureBank,
    *,
    height: int = 1024,
    width: int = 1280,
) -> PaintedField:
    """Paints the cells of one field.

    Args:
      rng: the field's generator, the only source of randomness.
      population: the well's cells.
      bank: textures from `textures.texture_bank`.
      height, width: of the field in pixels.
    """
    cells = draw_cells(rng, population, height, width)
    _find_territories(cells, height, width)
    image = np.zeros((3, height, width), np.float32)
    labels = np.zeros((height, width), np.uint16)
    for number, cell in enumerate(cells, start=1):
        _paint_cell(rng, cell, bank, image, labels, number)
    return _with_truth(image, labels, cells)


def _find_territories(cells: list[Cell], height: int, width: int) -> None:
    """Fills `box`, `depth` and `joined` of every cell."""
    best = np.full((height, width), np.inf, np.float32)
    second = np.full((height, width), np.inf, np.float32)
    relative = []
    for cell in cells:
        half = _reach(cell)
        cell.box = window(cell.x, cell.y, half, height, width)
        grid = cell.box.around(cell.x, cell.y)
        rho = DISTANCE[grid] / cell.body[ANGLE_BIN[grid]]
        relative.append(rho)
        if cell.state == INTERPHASE:  # rounded cells lie on top of the others
            where = cell.box.slices()
            second[where] = np.minimum(second[where], np.maximum(best[where], rho))
            best[where] = np.minimum(best[where], rho)
    for cell, rho in zip(cells, relative, strict=True):
        where = cell.box.slices()
        border: np.ndarray | np.float32 = np.float32(1.0)
        if cell.state == INTERPHASE:
            other = np.where(rho <= best[where], second[where], best[where])
            cell.joined = other < TOUCHING
            border = np.minimum(other, 1.0)
        grid = cell.box.around(cell.x, cell.y)
        cell.depth = (border - rho) * cell.body[ANGLE_BIN[grid]]


def _reach(cell: Cell) -> float:
    """Half the width in pixels of a window for the cell including its blur."""
    dna = max(np.hypot(p.dx, p.dy) + float(p.outline.max()) for p in cell.pieces) + NUCLEUS_EDGE
    return max(float(cell.body.max()) + CELL_EDGE, dna) + 2 * cell.blur


def _paint_cell(
    rng: np.random.Generator,
    cell: Cell,
    bank: TextureBank,
    image: np.ndarray,
    labels: np.ndarray,
    number: int,
) -> None:
    """Adds one cell to `image` and its nucleus to `labels`."""
    box = cell.box
    if box.top == box.bottom or box.left == box.right or cell.depth is None:
        return
    # Coverage of each pixel by the cell and by the DNA, in [0, 1].
    inside = np.clip(cell.depth / CELL_EDGE + 0.5, 0, 1)
    nucleus, rim = _nucleus_depth(cell)
    covered = np.clip(nucleus / NUCLEUS_EDGE + 0.5, 0, 1)
    dna = _dna(rng, cell, bank, nucleus, covered)
    if cell.state == INTERPHASE:
        tubulin = _tubulin(rng, cell, bank, inside, nucleus, covered)
        actin = _actin(rng, cell, bank, inside, covered)
    else:
        tubulin, actin = _round_cell(rng, cell, bank, inside)
    for channel, layer in enumerate((dna, tubulin, actin)):
        if cell.blur:
            layer = ndimage.gaussian_filter(layer, cell.blur, truncate=2.5)
        image[(channel, *box.slices())] += layer
    labels[box.slices()][rim > 0] = number


def _nucleus_depth(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Distance inside the DNA's outline (negative outside), and the same with rings filled."""
    shape = (cell.box.bottom - cell.box.top, cell.box.right - cell.box.left)
    depth = np.full(shape, -np.float32(GRID_HALF), np.float32)
    filled = depth.copy() if any(piece.inner is not None for piece in cell.pieces) else depth
    for piece in cell.pieces:
        grid = cell.box.around(cell.x + piece.dx, cell.y + piece.dy)
        distance, bins = DISTANCE[grid], ANGLE_BIN[grid]
        outer = piece.outline[bins] - distance
        if piece.inner is not None:
            np.maximum(filled, outer, out=filled)
            outer = np.minimum(outer, distance - piece.inner[bins])
        np.maximum(depth, outer, out=depth)
    return depth, filled


def _with_truth(image: np.ndarray, labels: np.ndarray, cells: list[Cell]) -> PaintedField:
    """Drops cells with a hidden nucleus, renumbers the others, and finds their centres."""
    rows, columns = np.nonzero(labels)
    old = labels[rows, columns]
    sizes = np.bincount(old, minlength=len(cells) + 1)
    seen = np.flatnonzero(sizes[1:]) + 1
    new = np.zeros(len(cells) + 1, np.uint16)
    new[seen] = np.arange(1, len(seen) + 1)
    labels[rows, columns] = new[old]
    x = np.bincount(old, columns, len(cells) + 1)[seen] / sizes[seen]
    y = np.bincount(old, rows, len(cells) + 1)[seen] / sizes[seen]
    centres = np.stack([x, y], axis=1).astype(np.float32)
    shown = [cells[k - 1] for k in seen]
    return PaintedField(
        image=image,
        labels=labels,
        centres=_onto_label(centres, labels),
        state=np.array([cell.state for cell in shown], np.uint8),
        responds=np.array([cell.responds for cell in shown], bool),
        in_focus=np.array([cell.blur == 0 for cell in shown], bool),
    )


def _onto_label(centres: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Moves a centre that lies off its label (a broken nucleus) to the label's nearest pixel."""
    for row, (x, y) in enumerate(np.rint(centres).astype(int)):
        if labels[y, x] != row + 1:
            ys, xs = np.nonzero(labels == row + 1)
            nearest = np.argmin((ys - y) ** 2 + (xs - x) ** 2)
            centres[row] = xs[nearest], ys[nearest]
    return centres


# The structures of a cell in its window [h, w]. Each function returns a layer of float32 camera
# counts above the background. `nucleus` is the distance inside the DNA's outline.


def _peak(distance: Array, width: float) -> Array:
    """Computes a peak of height 1 and half-width about `width`: like a Gaussian, but faster."""
    squared = np.square(distance * np.float32(1 / width))
    return 1 / (1 + squared + squared * squared)


def _noise(rng: np.random.Generator, texture: Array, shape: tuple[int, ...]) -> Array:
    """Draws a piece [h, w] of a noise texture, mirrored at random."""
    top = int(rng.integers(NOISE_SIZE - shape[0]))
    left = int(rng.integers(NOISE_SIZE - shape[1]))
    piece = texture[top : top + shape[0], left : left + shape[1]]
    flip = int(rng.integers(4))
    return piece[:: -1 if flip & 1 else 1, :: -1 if flip & 2 else 1]


def _stamp(rng: np.random.Generator, cell: Cell, stamps: Array, number: int | None = None) -> Array:
    """Crops a fibre stamp, centred on the cell, to the cell's window."""
    chosen = stamps[int(rng.integers(len(stamps))) if number is None else number]
    if number is None:
        flip = int(rng.integers(8))
        chosen = chosen[:: -1 if flip & 1 else 1, :: -1 if flip & 2 else 1]
        chosen = chosen.T if flip & 4 else chosen
    box = cell.box
    top, left = box.top - cell.y + STAMP_HALF, box.left - cell.x + STAMP_HALF
    return chosen[top : top + box.bottom - box.top, left : left + box.right - box.left]


def _orientation(angle: float) -> int:
    """Finds the index of the stress stamp whose direction is nearest to `angle`."""
    return round(angle * ORIENTATIONS / np.pi) % ORIENTATIONS


def _dna(
    rng: np.random.Generator, cell: Cell, bank: TextureBank, nucleus: Array, covered: Array
) -> Array:
    """Chromatin with its grains and nucleoli; brighter in the middle, where it is thicker."""
    kind = cell.kind
    lens = np.clip(nucleus * np.float32(1 / NUCLEUS_SLOPE), 0, 1)
    thick = NUCLEUS_RIM + (1 - NUCLEUS_RIM) * lens
    contrast = kind.chromatin_contrast if cell.state == INTERPHASE else 0.10
    coarse = np.float32(kind.chromatin_coarseness)
    grain: Array = _noise(rng, bank.coarse, covered.shape) * coarse
    grain = grain + _noise(rng, bank.fine, covered.shape) * (1 - coarse)
    layer = covered * thick * (1 + np.float32(contrast) * grain)
    brightness = cell.pieces[0].brightness
    if cell.state == INTERPHASE:
        for _ in range(rng.poisson(kind.nucleoli) if kind.nucleoli > 0 else 0):
            where, spot = _nucleolus(rng, cell)
            layer[where] *= 1 - np.float32(kind.nucleolus_depth) * spot
    return layer * np.float32(DNA_LEVEL * brightness)


def _spot(cell: Cell, dx: float, dy: float, radius: float) -> Spot:
    """Makes a round spot of height 1 at (dx, dy) from the cell's centre.

    Returns:
      Its position in the cell's window (empty if outside), and its values there.
    """
    x, y = cell.x + round(dx), cell.y + round(dy)
    box, half = cell.box, int(SPOT_REACH * radius) + 1
    top, bottom = (min(max(edge, box.top), box.bottom) for edge in (y - half, y + half + 1))
    left, right = (min(max(edge, box.left), box.right) for edge in (x - half, x + half + 1))
    where = slice(top - box.top, bottom - box.top), slice(left - box.left, right - box.left)
    if top == bottom or left == right:
        return where, np.zeros((bottom - top, right - left), np.float32)
    return where, _peak(DISTANCE[Box(top, bottom, left, right).around(x, y)], radius)


def _add_spot(layer: Array, spot: Spot, height: float) -> None:
    """Adds a spot of `height` to a layer in place."""
    layer[spot[0]] += np.float32(height) * spot[1]


def _nucleolus(rng: np.random.Generator, cell: Cell) -> Spot:
    """Draws a spot in the inner part of the nucleus."""
    piece = cell.pieces[0]
    reach = NUCLEOLI_WITHIN * float(np.median(piece.outline)) * np.sqrt(rng.random())
    at = rng.uniform(0, 2 * np.pi)
    radius = cell.kind.nucleolus_radius * rng.uniform(0.8, 1.2)
    return _spot(cell, piece.dx + reach * np.cos(at), piece.dy + reach * np.sin(at), radius)


def _tubulin(
    rng: np.random.Generator,
    cell: Cell,
    bank: TextureBank,
    inside: Array,
    nucleus: Array,
    covered: Array,
) -> Array:
    """Microtubules: a haze, the phenotype's fibres, a ring around the nucleus, an aggresome."""
    kind = cell.kind
    distance = DISTANCE[cell.box.around(cell.x, cell.y)]
    fade = _peak(distance, TUBULIN_FADE * kind.cell_radius + TUBULIN_FADE_MORE)
    layer = np.float32(kind.tubulin_diffuse) * (1 + 0.1 * _noise(rng, bank.broad, inside.shape))
    if kind.tubulin_network > 0.01:
        layer = layer + np.float32(kind.tubulin_network) * _stamp(rng, cell, bank.network)
    if kind.tubulin_bundles > 0.01:
        layer = layer + np.float32(kind.tubulin_bundles) * _stamp(rng, cell, bank.bundles)
    if kind.tubulin_parallel > 0.01:
        along = _stamp(rng, cell, bank.stress, _orientation(cell.angle))
        layer = layer + np.float32(kind.tubulin_parallel) * along
    layer = layer * fade + np.float32(kind.perinuclear) * _peak(nucleus + 3, PERINUCLEAR_WIDTH)
    if kind.aggresome > 0.01:
        away = float(np.median(cell.pieces[0].outline)) + 2
        at = rng.uniform(0, 2 * np.pi)
        radius = rng.uniform(5.5, 8.0)
        _add_spot(layer, _spot(cell, away * np.cos(at), away * np.sin(at), radius), kind.aggresome)
    layer = layer * inside * (1 - np.float32(1 - OVER_NUCLEUS) * covered)
    return layer * np.float32(TUBULIN_LEVEL * rng.lognormal(0, 0.25))


def _actin(
    rng: np.random.Generator, cell: Cell, bank: TextureBank, inside: Array, covered: Array
) -> Array:
    """Actin: a haze, the mesh below the membrane, stress fibres, the cortex, junctions, patches."""
    kind = cell.kind
    assert cell.depth is not None
    assert cell.joined is not None
    distance = DISTANCE[cell.box.around(cell.x, cell.y)]
    clouds, fine = _noise(rng, bank.broad, inside.shape), _noise(rng, bank.coarse, inside.shape)
    mesh = clouds + np.float32(MESH_GRAIN) * fine
    layer = np.float32(kind.actin_diffuse) + np.float32(kind.actin_mesh) * np.maximum(mesh + 0.4, 0)
    if kind.stress_fibres > 0.01:
        stamp = _stamp(rng, cell, bank.stress, _orientation(cell.angle))
        layer = layer + np.float32(kind.stress_fibres) * stamp
    layer = layer * (1 - np.float32(1 - OVER_NUCLEUS) * covered)
    # The cytoplasm around the nucleus is thick but has little actin; most lies further out.
    middle = _peak(distance, PERINUCLEAR_ACTIN_REACH * kind.cell_radius)
    layer = layer * (1 - np.float32(PERINUCLEAR_ACTIN) * middle)
    edge = np.where(cell.joined, np.float32(kind.junctions), np.float32(kind.cortex))
    ragged = np.maximum(1 + 0.45 * _noise(rng, bank.broad, inside.shape), 0.1)
    layer = layer + edge * ragged * _peak(cell.depth - 1.5, CORTEX_WIDTH)
    for _ in range(rng.poisson(kind.actin_patches) if kind.actin_patches > 0 else 0):
        at = rng.uniform(0, 2 * np.pi)
        reach = rng.uniform(0.35, 0.95) * float(cell.body[int(at / (2 * np.pi) * len(cell.body))])
        radius = kind.patch_radius * rng.uniform(0.7, 1.3)
        spot = _spot(cell, reach * np.cos(at), reach * np.sin(at), radius)
        _add_spot(layer, spot, rng.uniform(0.6, 1.6))
    return layer * inside * np.float32(ACTIN_LEVEL * rng.lognormal(0, 0.2))


def _round_cell(
    rng: np.random.Generator, cell: Cell, bank: TextureBank, inside: Array
) -> tuple[Array, Array]:
    """Tubulin and actin of a cell outside interphase: a bright ball with a bright rim."""
    assert cell.depth is not None
    ball = inside * np.sqrt(np.clip(cell.depth * np.float32(1 / BALL_SLOPE), 0.1, 1))
    mottled = 1 + 0.15 * _noise(rng, bank.coarse, inside.shape)
    actin = ball * mottled * np.float32(0.9) + inside * _peak(cell.depth - 2.0, CORTEX_WIDTH)
    tubulin = ball * mottled * np.float32(1.1)
    if cell.state == MITOTIC:
        tubulin = tubulin + inside * _spindle(rng, cell, bank, inside.shape)
    level = ROUND_BRIGHTER * (0.8 if cell.state == APOPTOTIC else 1.0) * rng.lognormal(0, 0.15)
    return tubulin * np.float32(TUBULIN_LEVEL * level), actin * np.float32(ACTIN_LEVEL * level)


def _spindle(
    rng: np.random.Generator, cell: Cell, bank: TextureBank, shape: tuple[int, ...]
) -> Array:
    """Paints a mitotic cell's microtubules: an aster, a spindle of two poles, or almost none."""
    if cell.mitosis == "ring":
        layer = np.float32(0.8) * _stamp(rng, cell, bank.aster)
        _add_spot(layer, _spot(cell, 0, 0, 5.0), 1.0)
        return layer
    layer = np.full(shape, 0.1, np.float32)
    if cell.mitosis != "arrested":
        dx, dy = SPINDLE_POLE * np.cos(cell.angle), SPINDLE_POLE * np.sin(cell.angle)
        _add_spot(layer, _spot(cell, dx, dy, 5.5), 1.1)
        _add_spot(layer, _spot(cell, -dx, -dy, 5.5), 1.1)
    return layer
