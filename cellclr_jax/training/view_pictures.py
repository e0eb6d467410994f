"""Draws some cells and their random views, to check the augmentations."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cellclr_jax import devices
from cellclr_jax.augment import view_keys
from cellclr_jax.devices import stream
from cellclr_jax.encoder.preprocessing import normalized
from cellclr_jax.pages import CHANNEL_COLOURS
from cellclr_jax.pages.crop_strips import resize, stretch
from cellclr_jax.training.setup import Experiment
from cellclr_jax.training.step import views_of

# Rows of the picture; a cell has one row for every three channels.
_ROWS = 8
# Views of a cell in addition to those of the first step.
_FURTHER = 4
# Side of a tile in pixels; smaller views are enlarged by an integer factor, larger ones reduced.
_SMALLEST, _LARGEST = 96, 160
# The colours of the quality page, for the channels of a row.
_COLOURS = np.array([list(bytes.fromhex(c[1:])) for c in CHANNEL_COLOURS], np.float32) / 255
# Pixels between tiles, between groups of tiles and cells, and height of the titles.
_GAP, _GROUP_GAP, _TITLE = 2, 10, 20
_INK = (220, 220, 220)


def view_grid(
    experiment: Experiment, mesh: Mesh, minibatch: Mapping[str, jax.Array], key: jax.Array
) -> np.ndarray:
    """Draws some cells of the first minibatch: the crop, its views at step 1, further views.

    Every process of a run calls it, with the minibatch of the step and the root key.

    Returns:
      [H, W, 3] uint8: one row per cell (and three channels), scaled to the range of the cell;
      channels in colour, a single one in grey.
    """
    size = len(minibatch["image"])
    rows_of_cell = -(-minibatch["image"].shape[-1] // len(_COLOURS))
    count = min(max(_ROWS // rows_of_cell, 1), size)
    learner = experiment.learner()
    group = learner.objective.views[0]
    # Without the standardisation of channels, the last step of the preprocessing.
    plain = dataclasses.replace(learner.preprocessing, mean=(), deviation=())
    learner = dataclasses.replace(learner, preprocessing=plain)

    def draw(minibatch: Mapping[str, jax.Array], key: jax.Array) -> tuple[jax.Array, jax.Array]:
        some = {name: values[:count] for name, values in minibatch.items()}
        at_step = view_keys(stream(key, "augment", 0), size, group.count)[:count]
        further = view_keys(stream(key, "pictures"), count, _FURTHER)
        keys = jnp.concatenate([at_step, further], axis=1)
        return normalized(some, plain), views_of(learner, some, keys, group)

    everywhere, rows = devices.replicated(mesh), devices.by_rows(mesh)
    jitted = jax.jit(draw, in_shardings=(rows, everywhere), out_shardings=everywhere)
    crops, views = jax.device_get(jitted(minibatch, key))
    return _picture(crops, views, group.count)


def _picture(crops: np.ndarray, views: np.ndarray, at_step: int) -> np.ndarray:
    """Arranges crops [k, h, w, C] and their views [k, n, H, W, C] in a picture with titles."""
    size = views.shape[2]
    side = min(size * max(1, -(-_SMALLEST // size)), _LARGEST)
    cells = []
    for crop, views_of_cell in zip(crops, views, strict=True):
        # An integer factor keeps pixels visible.
        resized = [
            resize(images, side, "NEAREST" if side % images.shape[1] == 0 else "BICUBIC")
            for images in (crop[None], views_of_cell)
        ]
        # NaN of a diverging run must not prevent its picture.
        tiles = stretch(np.nan_to_num(np.concatenate(resized)))
        cells.append(np.pad(_cell(tiles, at_step), ((0, _GROUP_GAP), (0, 0), (0, 0))))
    lefts = (0, side + _GROUP_GAP, (1 + at_step) * side + 2 * _GROUP_GAP + (at_step - 1) * _GAP)
    titles = dict(zip(lefts, ("crop", "views at step 1", "further views"), strict=True))
    return _write(np.pad(np.concatenate(cells), ((_TITLE, 0), (0, 0), (0, 0))), titles)


def _cell(tiles: np.ndarray, at_step: int) -> np.ndarray:
    """Places crop, views of the step and further views [n, s, s, C] in a row per 3 channels."""
    gaps = [_GROUP_GAP if place in (0, at_step) else _GAP for place in range(len(tiles))]
    rows = []
    for start in range(0, tiles.shape[-1], len(_COLOURS)):
        coloured = [_colour(tile[..., start : start + len(_COLOURS)]) for tile in tiles]
        padded = [
            np.pad(tile, ((0, _GAP), (0, gap), (0, 0)))
            for tile, gap in zip(coloured, gaps, strict=True)
        ]
        rows.append(np.concatenate(padded, axis=1))
    return np.concatenate(rows)


def _colour(tile: np.ndarray) -> np.ndarray:
    """Blends up to three channels [s, s, c] in [0, 1] to colours [s, s, 3] uint8 (screen blend)."""
    colours = _COLOURS if tile.shape[-1] > 1 else np.ones((1, 3), np.float32)
    lit = colours[: tile.shape[-1]] * tile[..., None]
    return np.rint(255 * (1 - np.prod(1 - lit, axis=2))).astype(np.uint8)


def _write(picture: np.ndarray, titles: Mapping[int, str]) -> np.ndarray:
    """Writes titles at the top, at the given horizontal pixel positions."""
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    for left, title in titles.items():
        pen.text((left + 2, 3), title, fill=_INK, font=ImageFont.load_default(13))
    return np.asarray(canvas)
