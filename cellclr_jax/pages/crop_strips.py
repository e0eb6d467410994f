"""Crops as small tinted pictures."""

import base64
import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellclr_jax.pages import CHANNEL_COLOURS, number

# Crops in a row; fewer where there are many rows.
_MOST_CROPS, _FEWEST_CROPS = 8, 2
_ALL_CROPS = 900
# Beyond so many rows the concentrations of a compound go into one, and then rows are left out.
_MOST_ROWS = 200
# Larger crops are made smaller, to this side in pixels.
_SIDE = 96
# Grey values span these percentiles of all crops that are shown, for each channel; a power below
# one lifts what is dim, such as a cell's rim beside its nucleus.
_SPAN = (0.5, 99.8)
_GAMMA = 0.75
# Pixels of the black line between crops.
_LINE = 2
# WebP qualities, until all pictures together fit into this many bytes.
_QUALITIES = (85, 70, 55, 40)
_BUDGET = 2_000_000
_SEED = 0
# What a row is: the first of these that cells have, and that does not give too many rows.
_GROUPINGS = (("compound", "concentration"), ("compound",), ("label",), ("moa",))
# Cells of which nothing is known: so many rows, in the order of the table.
_PARTS = 6

ReadImages = Callable[[Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Row:
    """Crops of one treatment or label.

    Attributes:
      title, subtitle: such as 'taxol 0.3 µM', 'Microtubule stabilizers'.
      cells: how many there are.
      crops: how many are shown.
      picture: [C * side, crops * side] grey, as a WebP data URI.
    """

    title: str
    subtitle: str
    cells: int
    crops: int
    picture: str


@dataclass(frozen=True)
class Montage:
    """All rows of crops.

    Attributes:
      rows: in the page's order.
      side: of a crop in its picture, in pixels.
      columns: a row is one value of these; none where cells have no such column.
      left_out: rows.
    """

    rows: list[Row]
    side: int
    columns: tuple[str, ...]
    left_out: int


def make_montage(cells: pd.DataFrame, read: ReadImages) -> Montage:
    """Draws crops by chance, the same ones every time.

    Args:
      cells: the table of cells, at least one.
      read: images [k, S, S, C] uint8 or uint16 of rows of the table.
    """
    columns, groups = _groups(cells)
    left_out = max(0, len(groups) - _MOST_ROWS)
    groups = groups[:_MOST_ROWS]
    most = int(np.clip(_ALL_CROPS // len(groups), _FEWEST_CROPS, _MOST_CROPS))
    titles = [_words(cells, members, columns) for members in groups]
    chosen = [_choose(members, most, title) for members, title in zip(groups, titles, strict=True)]
    images = [_shrink(read(rows.tolist())) for rows in chosen]
    pictures = _encode(_stretch(images))
    rows = [
        Row(*title, len(members), len(shown), picture)
        for title, members, shown, picture in zip(titles, groups, chosen, pictures, strict=True)
    ]
    return Montage(rows, images[0].shape[1], columns, left_out)


def _groups(cells: pd.DataFrame) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """The columns that tell rows apart, and the cells of each row; mechanisms lie together."""
    tried = [columns for columns in _GROUPINGS if set(columns) <= set(cells)]
    if not tried:
        return (), np.array_split(np.arange(len(cells)), min(_PARTS, len(cells)))
    for columns in tried:
        by = list(dict.fromkeys([*({"moa"} & set(cells)), *columns]))
        codes = cells.groupby(by, dropna=False).ngroup().to_numpy()
        if codes.max() < _MOST_ROWS:
            break
    groups = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    # Without a mechanism, or a label: last.
    return columns, sorted(groups, key=lambda members: not cells[by[0]].iloc[members[0]])


def _words(cells: pd.DataFrame, members: np.ndarray, columns: Sequence[str]) -> tuple[str, str]:
    """Title and subtitle of a row."""
    if not columns:
        first, last = members[0] + 1, members[-1] + 1
        return f"cell {first:,}" if first == last else f"cells {first:,} to {last:,}", ""
    cell = cells.iloc[members[0]]
    name = str(cell[columns[0]]) or f"no {columns[0]}"
    dose = cell["concentration"] if "concentration" in columns else 0
    title = f"{name} {number(dose)} µM" if dose and dose == dose else name
    moa = str(cell.get("moa", ""))
    return title, "" if moa == name else moa


def _choose(members: np.ndarray, most: int, name: tuple[str, str]) -> np.ndarray:
    """Cells by chance; a row's do not depend on the other rows."""
    rng = np.random.default_rng([_SEED, zlib.crc32(repr(name).encode())])
    return np.sort(rng.choice(members, min(most, len(members)), replace=False))


def _shrink(images: np.ndarray) -> np.ndarray:
    """[k, S, S, C] -> [k, s, s, C] float32, s at most the largest side."""
    from PIL import Image

    images = images.astype(np.float32)
    if images.shape[1] <= _SIDE:
        return images
    planes = [
        np.asarray(Image.fromarray(plane).resize((_SIDE, _SIDE), Image.Resampling.BOX))
        for plane in np.moveaxis(images, -1, 1).reshape(-1, *images.shape[1:3])
    ]
    shape = (len(images), images.shape[-1], _SIDE, _SIDE)
    return np.moveaxis(np.stack(planes).reshape(shape), 1, -1)


def _stretch(rows: list[np.ndarray]) -> list[np.ndarray]:
    """Grey pictures [C * s, k * s] uint8, all with the same range in a channel."""
    # A quarter of the pixels tells the range as well.
    sample = np.concatenate([images[:, ::2, ::2] for images in rows])
    low, high = np.percentile(sample, _SPAN, axis=(0, 1, 2)).astype(np.float32)
    pictures = []
    for images in rows:
        bright = np.clip((images - low) / np.maximum(high - low, 1), 0, 1) ** _GAMMA
        grey = np.rint(255 * bright).astype(np.uint8)
        grey[1:, :, :_LINE] = 0
        k, side, _, channels = grey.shape
        pictures.append(grey.transpose(3, 1, 0, 2).reshape(channels * side, k * side))
    return pictures


def _encode(pictures: list[np.ndarray]) -> list[str]:
    """WebP data URIs of the best quality that fits into the budget, or of the lowest."""
    for quality in _QUALITIES:
        encoded = [_webp(picture, quality) for picture in pictures]
        if sum(map(len, encoded)) <= _BUDGET:
            break
    return [f"data:image/webp;base64,{base64.b64encode(e).decode()}" for e in encoded]


def _webp(picture: np.ndarray, quality: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


CROP = 96
"""Pixels of the page that a crop's side takes at most, unless it is larger itself."""
# Of `CHANNEL_COLOURS`; a channel that is alone is white.
_COLOUR_NAMES = ("blue", "amber", "violet")


def shown_side(side: int) -> int:
    """The side of a crop on the page: small crops are enlarged by a whole number."""
    return side * max(1, CROP // side)


def composite(channels: Sequence[str]) -> str:
    """What is shown in colour."""
    return ", ".join(f"{c} {name}" for c, name in zip(channels, _COLOUR_NAMES, strict=False))


def channel_style(channels: int, side: int) -> str:
    """A rule for each channel of a row of crops: its part of the picture, its colour."""
    rules = [f".strip i {{ background-size: auto, auto {channels * side}px; }}"]
    for c in range(channels):
        colour = "#fff" if channels == 1 or c >= len(CHANNEL_COLOURS) else CHANNEL_COLOURS[c]
        place = f"background-position: 0 0, 0 {-c * side}px"
        rules += [
            f".c{c} {{ background-image: {_tint(colour)}; {place}; }}",
            f'.rows[data-show="{c}"] .c{c} {{ background-image: {_tint("#fff")}; }}',
            f'.rows:not([data-show="{c}"]):not([data-show=""]) .c{c} {{ display: none; }}',
        ]
        if c >= len(CHANNEL_COLOURS):
            rules.append(f'.rows[data-show=""] .c{c} {{ display: none; }}')
    return "\n".join(rules)


def _tint(colour: str) -> str:
    """The row's grey picture in a colour."""
    return f"linear-gradient({colour}, {colour}), var(--p)"
