"""Paints one field of cells: DNA, tubulin and actin, with the truth about every nucleus.

A field is painted in two passes over its cells. The first finds each cell's territory: a pixel
belongs to the cell whose outline it lies deepest in, so that neighbours press flat against each
other. The second paints each cell on its own window, from noise and fibre textures that are drawn
once a process.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cellclr_jax.simulation.population import Cell, Population, draw_cells
from cellclr_jax.simulation.shapes import ANGLE_BIN, DISTANCE, GRID_HALF, INTERPHASE, window
from cellclr_jax.simulation.structures import CELL_EDGE, NUCLEUS_EDGE, paint_structures
from cellclr_jax.simulation.textures import TextureBank

TOUCHING = 1.08  # radii; neighbours whose outlines come as near as this share a junction


@dataclass(frozen=True)
class PaintedField:
    """One field before the camera.

    Attributes:
      image: [3, H, W] float32, camera counts above the background; DNA, tubulin, actin.
      labels: [H, W] uint16, k + 1 on the nucleus of row k of the arrays below, 0 elsewhere.
      centres: [N, 2] float32, x and y of a pixel at or next to the nucleus's centre.
      state: [N] uint8, an index into `shapes.STATES`.
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
      rng: the field's own generator; nothing else decides what is drawn.
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
        if cell.state == INTERPHASE:  # the others lie on top and take no one's place
            here = cell.box.slices()
            second[here] = np.minimum(second[here], np.maximum(best[here], rho))
            best[here] = np.minimum(best[here], rho)
    for cell, rho in zip(cells, relative, strict=True):
        here = cell.box.slices()
        border: np.ndarray | np.float32 = np.float32(1.0)
        if cell.state == INTERPHASE:
            other = np.where(rho <= best[here], second[here], best[here])
            cell.joined = other < TOUCHING
            border = np.minimum(other, 1.0)
        grid = cell.box.around(cell.x, cell.y)
        cell.depth = (border - rho) * cell.body[ANGLE_BIN[grid]]


def _reach(cell: Cell) -> float:
    """Half the width in pixels of the window that holds the whole cell, its blur included."""
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
    """Adds one cell to `image` and writes its nucleus into `labels`."""
    box = cell.box
    if box.top == box.bottom or box.left == box.right or cell.depth is None:
        return
    inside = np.clip(cell.depth / CELL_EDGE + 0.5, 0, 1)
    nucleus, rim = _nucleus_depth(cell)
    covered = np.clip(nucleus / NUCLEUS_EDGE + 0.5, 0, 1)
    layers = paint_structures(rng, cell, bank, inside, nucleus, covered)
    for channel, layer in enumerate(layers):
        if cell.blur:
            layer = ndimage.gaussian_filter(layer, cell.blur, truncate=2.5)
        image[(channel, *box.slices())] += layer
    labels[box.slices()][rim > 0] = number


def _nucleus_depth(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Pixels inside the DNA's outline (negative outside), and the same with rings filled."""
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
    """Keeps the cells whose nucleus shows, renumbers them and finds their centres."""
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
