"""Real crops of every treatment and of the controls as small pictures, all on one brightness scale.

A picture has the channels below each other, in grey: the page lays them over each other in colour,
or shows one of them, from the same picture.
"""

import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cellclr_jax.data.columns import is_control, round_concentrations

if TYPE_CHECKING:
    from cellclr_jax.data.minibatches import Cells

# Crops of a treatment and their side in pixels, the best first; the page takes the first that fits.
_SIZES = ((8, 96), (6, 96), (6, 80), (5, 64), (4, 56), (3, 48), (2, 40))
_QUALITIES = (85, 70, 55, 40)
# Of 0 to 6; more takes many times as long for pictures that are a little smaller.
_EFFORT = 2
# Of this many treatments it is tried how large their pictures become.
_TRIED = 24
# Pictures stand in the page in base64: four letters for three bytes.
_GROWTH = 4 / 3
# Room for pictures that turn out larger than those that were tried.
_SLACK = 1.1
# Controls that tell the scale of brightness: percentiles of each channel. A power below one lifts
# what is dim, such as a cell's rim beside its nucleus.
_SCALE_CELLS = 96
_SPAN = (0.5, 99.8)
_GAMMA = 0.75
# Pixels of the black line between crops.
_LINE = 2

# In the place of a concentration: no treatment has it.
_OF_CONTROLS = -1.0

Key = tuple[str, float]
"""Compound and concentration of a treatment; 0 where none is told."""


@dataclass(frozen=True)
class Strip:
    """Crops of one treatment beside each other.

    Attributes:
      picture: a WebP file, grey, [C * side, crops * side].
      crops: how many.
      places: plate, well of each crop; '' where they are not known.
    """

    picture: bytes = field(repr=False)
    crops: int
    places: list[str]


@dataclass(frozen=True)
class Pictures:
    """What `treatment_pictures` found.

    Attributes:
      tiles: of each treatment.
      controls: of the controls; None where there are none.
      control: their compound.
      channels: names, from the top of a picture down.
      side: of a crop in pixels.
      scale: how grey values follow from intensities, in words.
    """

    tiles: Mapping[Key, Strip]
    controls: Strip | None
    control: str
    channels: list[str]
    side: int
    scale: str


def treatment_pictures(
    cells: "Cells", control: str, *, budget_bytes: int = 12_000_000, seed: int = 0
) -> Pictures:
    """Draws some crops of each treatment by chance, the same ones every time.

    Wells and plates that are not shown yet come first. Many treatments have fewer and smaller
    crops, so that all pictures together fit into the budget; where even the smallest do not, the
    last treatments have none.

    Args:
      cells: the dataset; without compounds there are no pictures.
      control: the controls' compound, in any case.
      budget_bytes: of all pictures as they stand in a page, in base64.
      seed: of the draw; a treatment's crops do not depend on the other treatments.

    Raises:
      BadData: an image cannot be read.
    """
    treated, controls = _members(cells.table, control)
    places = _places_of(cells.table)
    scale_rows = _choose(places, controls, _SCALE_CELLS, (control, 0.0), seed)
    told = "control crops" if len(controls) else "crops of all treatments"
    if not len(controls) and treated:
        everyone = np.sort(np.concatenate(list(treated.values())))
        scale_rows = _choose(places, everyone, _SCALE_CELLS, ("", 0.0), seed)
    scale = (
        f"From black to full colour: the {_SPAN[0]} to {_SPAN[1]} percentiles of "
        f"{len(scale_rows)} {told}, channel by channel, the same for every picture."
    )
    if not len(scale_rows):
        return Pictures({}, None, control, cells.channels, _SIZES[0][1], scale)
    draw = _Artist(cells, places, seed, *_brightness(cells, scale_rows))
    # The controls, which every treatment is seen beside, come before all others.
    groups = ({(control, _OF_CONTROLS): controls} if len(controls) else {}) | treated
    crops, side, quality = _affordable(draw, groups, budget_bytes)
    tiles: dict[Key, Strip] = {}
    used = 0.0
    for key, rows in groups.items():
        strip = draw.strip(key, rows, crops, side, quality)
        used += _GROWTH * len(strip.picture)
        if used > budget_bytes:
            break
        tiles[key] = strip
    shown = tiles.pop((control, _OF_CONTROLS), None)
    return Pictures(tiles, shown, control, cells.channels, draw.side(side), scale)


@dataclass(frozen=True)
class _Artist:
    """Makes pictures of a dataset's cells: `low` and `high` are black and full colour, [C]."""

    cells: "Cells"
    places: "_Places"
    seed: int
    low: np.ndarray
    high: np.ndarray

    def side(self, most: int) -> int:
        """Of a crop: small crops are not enlarged."""
        return min(most, *self.cells.image_shape[:2])

    def strip(self, key: Key, members: np.ndarray, crops: int, side: int, quality: int) -> Strip:
        """The picture of one treatment."""
        rows = _choose(self.places, members, crops, key, self.seed)
        images = _shrink(self.cells.images.read(rows), self.side(side))
        bright = np.clip((images - self.low) / np.maximum(self.high - self.low, 1), 0, 1)
        grey = np.rint(255 * bright**_GAMMA).astype(np.uint8)
        grey[1:, :, :_LINE] = 0
        count, height, width, channels = grey.shape
        picture = grey.transpose(3, 1, 0, 2).reshape(channels * height, count * width)
        return Strip(_webp(picture, quality), count, self.places.names[rows].tolist())


def _members(table: pd.DataFrame, control: str) -> tuple[dict[Key, np.ndarray], np.ndarray]:
    """Rows of the cells of each treatment, by treatment, and those of the controls."""
    if "compound" not in table:
        return {}, np.empty(0, np.int64)
    compound = table["compound"].fillna("").astype(str)
    controls = is_control(compound, control)
    used = ~controls & (compound != "")
    if "moa" in table:
        used &= table["moa"].fillna("") != ""
    dose = table.get("concentration", pd.Series(0.0, table.index)).fillna(0.0)
    keys = pd.DataFrame({"compound": compound, "dose": round_concentrations(dose)}, table.index)
    rows = np.flatnonzero(used)
    number = keys.iloc[rows].groupby(["compound", "dose"], sort=True).ngroup().to_numpy()
    groups = np.split(rows[np.argsort(number, kind="stable")], np.cumsum(np.bincount(number))[:-1])
    named = zip(compound, keys["dose"].astype(float), strict=True)
    names = list(named)
    treated = {names[members[0]]: members for members in groups if len(members)}
    return treated, np.flatnonzero(controls)


def _choose(places: "_Places", members: np.ndarray, most: int, key: Key, seed: int) -> np.ndarray:
    """Cells by chance: one of every plate first, then of every well, then second ones.

    Args:
      places: where all cells lie.
      members: rows to choose from.
      most: how many.
      key: of the treatment.
      seed: of the draw.

    Returns:
      Their rows, by plate and well.
    """
    rng = np.random.default_rng([seed, zlib.crc32(repr(key).encode())])
    rows = rng.permutation(members)
    well = places.wells[rows]
    second = _earlier(well)
    _, first, number = np.unique(well, return_index=True, return_inverse=True)
    drawn = np.argsort(first)
    turn = np.empty(len(first), np.int64)
    turn[drawn] = _earlier(places.plates[rows[first[drawn]]])
    chosen = rows[np.lexsort((turn[number], second))[:most]]
    return chosen[np.lexsort((places.wells[chosen], places.plates[chosen]))]


def _earlier(codes: np.ndarray) -> np.ndarray:
    """[N] how many of the same code come before each."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    place = np.empty(len(codes), np.int64)
    place[order] = np.arange(len(codes)) - np.searchsorted(ordered, ordered)
    return place


@dataclass(frozen=True)
class _Places:
    """Where cells lie: [N] codes of plates and of wells (alphabetical), [N] both in words."""

    plates: np.ndarray
    wells: np.ndarray
    names: np.ndarray


def _places_of(table: pd.DataFrame) -> _Places:
    """Where the cells of a table lie; all in one place where it does not tell."""
    columns = [
        table[name].fillna("").astype(str) if name in table else pd.Series("", table.index)
        for name in ("plate", "well")
    ]
    names = (columns[0] + " " + columns[1]).str.strip()
    wells = pd.MultiIndex.from_arrays(columns).factorize(sort=True)[0]
    return _Places(pd.factorize(columns[0], sort=True)[0], wells, names.to_numpy(object))


def _brightness(cells: "Cells", rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intensities that are black and full colour, float32 [C] each."""
    images = cells.images.read(rows)[:, ::2, ::2]
    low, high = np.percentile(images, _SPAN, axis=(0, 1, 2)).astype(np.float32)
    return low, high


def _affordable(
    draw: _Artist, groups: Mapping[Key, np.ndarray], budget_bytes: int
) -> tuple[int, int, int]:
    """Crops, their side and the quality of the pictures that fit into the budget; or the least."""
    keys = list(groups)
    tried = keys[:: -(-len(keys) // _TRIED)]
    for crops, side, quality in _plans():
        sizes = [len(draw.strip(key, groups[key], crops, side, quality).picture) for key in tried]
        if np.mean(sizes) * len(keys) * _GROWTH * _SLACK <= budget_bytes:
            break
    return crops, side, quality


def _plans() -> Iterator[tuple[int, int, int]]:
    """Crops, side, quality: smaller pictures before bad ones, the smallest as bad as must be."""
    for crops, side in _SIZES:
        for quality in _QUALITIES[:2]:
            yield crops, side, quality
    for quality in _QUALITIES[2:]:
        yield *_SIZES[-1], quality


def _shrink(images: np.ndarray, side: int) -> np.ndarray:
    """[k, S, S, C] -> [k, side, side, C] float32."""
    from PIL import Image

    images = images.astype(np.float32)
    if images.shape[1:3] == (side, side):
        return images
    planes = np.moveaxis(images, -1, 1)
    small = [
        np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling.BOX))
        for plane in planes.reshape(-1, *planes.shape[2:])
    ]
    return np.moveaxis(np.stack(small).reshape(*planes.shape[:2], side, side), 1, -1)


def _webp(picture: np.ndarray, quality: int) -> bytes:
    """A grey picture as a WebP file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=quality, method=_EFFORT)
    return buffer.getvalue()
