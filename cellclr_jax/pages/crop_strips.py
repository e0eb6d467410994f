"""Strips of example crops for each group of cells, as small WebP images.

An image has the channels below each other, in grey: the page overlays them in colour or shows one
of them, from the same image.
"""

import base64
import io
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from cellclr_jax.data.columns import is_control, round_concentrations
from cellclr_jax.pages import CHANNEL_COLOURS

if TYPE_CHECKING:
    from cellclr_jax.data.minibatches import Cells

# Percentiles of a channel that become black and full colour. A gamma below one brightens dim
# structures, such as the rim of a cell.
_PERCENTILES = (0.5, 99.8)
_GAMMA = 0.75
# Width in pixels of the black line between crops.
_LINE = 2
SIDE = 96
"""The largest side of a crop in an image in pixels; larger crops are downsampled to it."""
# WebP qualities, the best first, and the effort of the encoder, 0 to 6: more takes many times as
# long for images that are slightly smaller.
_QUALITIES = (85, 70, 55, 40)
_EFFORT = 2
# The size of all images is estimated from this many groups.
_SAMPLED_GROUPS = 24
# Base64 takes four characters for three bytes.
_BASE64_GROWTH = 4 / 3
# Allowance for images that are larger than the sampled ones.
_SLACK = 1.1
# Cells that decide the range of brightness of all images.
_SCALE_CELLS = 96
# Of treatments: number of crops and their side in pixels, the best first.
_TREATMENT_SIZES = ((8, SIDE), (6, SIDE), (6, 80), (5, 64), (4, 56), (3, 48), (2, 40))
_COLOUR_NAMES = ("blue", "amber", "violet")
UNKNOWN_DOSE = -1.0
"""Stands for an unknown concentration in keys; 0 µM is a known one."""
_OF_CONTROLS = -2.0  # in place of the controls' concentration

ReadImages = Callable[[np.ndarray], np.ndarray]
"""Reads images [k, S, S, C] uint8 or uint16 of k rows of a table of cells."""
Key = TypeVar("Key", bound=Hashable)
Treatment = tuple[str, float]
"""Compound and concentration in µM; `UNKNOWN_DOSE` if unknown."""


@dataclass(frozen=True)
class Strip:
    """Crops of one group, side by side.

    Attributes:
      image: a WebP file, grey, [C * side, crops * side].
      crops: number of crops.
      wells: plate and well of each crop; '' if unknown.
    """

    image: bytes = field(repr=False)
    crops: int
    wells: list[str]

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return data_uri(self.image, "webp")


@dataclass(frozen=True)
class Pictures:
    """Crops of treatments and controls.

    Attributes:
      strips: by treatment.
      controls: of the controls; None if there are none.
      control: the compound of the controls.
      channels: names, from top to bottom of an image.
      side: of a crop in pixels.
      scale: text that explains the range of brightness.
    """

    strips: Mapping[Treatment, Strip]
    controls: Strip | None
    control: str
    channels: list[str]
    side: int
    scale: str


def treatment_pictures(
    cells: "Cells", control: str, *, budget_bytes: int = 12_000_000, seed: int = 0
) -> Pictures:
    """Draws random crops of each treatment, reproducibly.

    With many treatments there are fewer and smaller crops of each, so that all images fit into the
    budget; if the smallest do not fit either, the last treatments have none.

    Args:
      cells: the dataset; without compounds there are no images.
      control: the compound of the controls, in any case.
      budget_bytes: of all images in base64.
      seed: of the draw; a treatment's crops do not depend on the other treatments.

    Raises:
      BadData: an image cannot be read.
    """
    treated, controls = _treatments_of(cells.table, control)
    # The controls come first: every treatment is compared with them.
    groups = ({(control, _OF_CONTROLS): controls} if len(controls) else {}) | treated
    scale = (control, controls) if len(controls) else ("", np.concatenate([*groups.values(), []]))
    strips, side = draw_strips(
        cells.images.read,
        cells.table,
        groups,
        sizes=_TREATMENT_SIZES,
        budget_bytes=budget_bytes,
        scale=scale,
        seed=seed,
    )
    source = "control crops" if len(controls) else "crops of all treatments"
    text = (
        f"Brightness: the {_PERCENTILES[0]}th to {_PERCENTILES[1]}th percentile of "
        f"{min(_SCALE_CELLS, len(scale[1]))} {source}, for each channel; the same in all images."
    )
    of_controls = strips.pop((control, _OF_CONTROLS), None)
    return Pictures(strips, of_controls, control, cells.channels, side, text)


def _treatments_of(
    table: pd.DataFrame, control: str
) -> tuple[dict[Treatment, np.ndarray], np.ndarray]:
    """Returns the rows of the cells of each treatment, and those of the controls."""
    if "compound" not in table:
        return {}, np.empty(0, np.int64)
    compound = table["compound"].fillna("").astype(str)
    controls = is_control(compound, control)
    used = ~controls & (compound != "")
    if "moa" in table:
        used &= table["moa"].fillna("") != ""
    dose = table.get("concentration", pd.Series(UNKNOWN_DOSE, table.index)).fillna(UNKNOWN_DOSE)
    keys = pd.DataFrame({"compound": compound, "dose": round_concentrations(dose)}, table.index)
    rows = np.flatnonzero(used)
    groups: Mapping[Any, Any] = keys.iloc[rows].groupby(["compound", "dose"]).indices
    treated = {(str(key[0]), float(key[1])): rows[members] for key, members in groups.items()}
    return treated, np.flatnonzero(controls)


def draw_strips(
    read: ReadImages,
    table: pd.DataFrame,
    groups: Mapping[Key, np.ndarray],
    *,
    sizes: Sequence[tuple[int, int]],
    budget_bytes: float,
    scale: tuple[str, np.ndarray],
    seed: int = 0,
) -> tuple[dict[Key, Strip], int]:
    """Draws a strip of crops for each group of cells, all with the same range of brightness.

    Args:
      read: reads the images of rows.
      table: one row a cell; `plate` and `well` are used if known.
      groups: rows of each group; the last ones have no strip if the budget is too small.
      sizes: number of crops of a strip and their side in pixels, the best first.
      budget_bytes: of all images in base64.
      scale: a name, and the rows of the cells that decide the range of brightness.
      seed: of the draw.

    Returns:
      (strips by group, the side of their crops in pixels).
    """
    strips: dict[Key, Strip] = {}
    if not groups:
        return strips, sizes[0][1]
    names, places = _wells_of(table)
    rows = np.sort(scale[1]).astype(np.int64)
    brightness = read(choose(places, rows, _SCALE_CELLS, key=(scale[0], 0.0), seed=seed))
    low, high = _range(brightness[:, ::2, ::2])

    def draw(key: Key, crops: int, side: int, quality: int) -> Strip:
        rows = choose(places, groups[key], crops, key=key, seed=seed)
        image = _join(stretch(_shrink(read(rows), side), low, high))
        return Strip(_webp(image, quality), len(rows), names[rows].tolist())

    sampled = list(groups)[:: -(-len(groups) // _SAMPLED_GROUPS)]
    for plan in _plans(sizes):
        mean = np.mean([len(draw(key, *plan).image) for key in sampled])
        if mean * len(groups) * _BASE64_GROWTH * _SLACK <= budget_bytes:
            break
    for key in groups:
        strip = draw(key, *plan)
        budget_bytes -= _BASE64_GROWTH * len(strip.image)
        if budget_bytes < 0:
            break
        strips[key] = strip
    return strips, min(plan[1], *brightness.shape[1:3])


def _wells_of(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Names of each cell's plate and well, [N], and codes of both, [N, 2] int."""
    known = table.reindex(columns=["plate", "well"], fill_value="").fillna("").astype(str)
    names = (known["plate"] + " " + known["well"]).str.strip().to_numpy(object)
    keys = ("plate", ["plate", "well"])
    return names, np.stack([known.groupby(key).ngroup() for key in keys], axis=1)


def choose(
    places: np.ndarray, members: np.ndarray, most: int, *, key: Hashable, seed: int = 0
) -> np.ndarray:
    """Draws up to `most` cells: first one of every plate, then one of every well, then others.

    Args:
      places: [N, 2] int, the codes of each cell's plate and well.
      members: [n] int, rows of the group's cells.
      most: number of cells.
      key: of the group; its draw does not depend on other groups.
      seed: of the draw.

    Returns:
      [≤ most] int, rows sorted by plate and well.
    """
    rng = np.random.default_rng([seed, zlib.crc32(repr(key).encode())])
    rows = rng.permutation(members)
    plate, well = places[rows].T
    cell = _occurrences(well)
    first, order = cell == 0, np.zeros(len(rows), np.int64)
    order[first] = _occurrences(plate[first])
    chosen = rows[np.lexsort((order, cell))[:most]]
    return chosen[np.lexsort((chosen, *places[chosen].T[::-1]))]


def _occurrences(codes: np.ndarray) -> np.ndarray:
    """Counts how many equal codes precede each, [N]."""
    return pd.Series(codes).groupby(codes).cumcount().to_numpy()


def _plans(sizes: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yields (crops, side, quality): reduces the size first, then the quality."""
    for crops, side in sizes:
        for quality in _QUALITIES[:2]:
            yield crops, side, quality
    for quality in _QUALITIES[2:]:
        yield *sizes[-1], quality


def _range(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the intensities of black and full colour, [C] each, in images [..., C]."""
    axes = tuple(range(images.ndim - 1))
    low, high = np.percentile(images, _PERCENTILES, axis=axes).astype(np.float32)
    return low, np.where(high > low, high, low + 1)


def stretch(
    images: np.ndarray, low: np.ndarray | None = None, high: np.ndarray | None = None
) -> np.ndarray:
    """Stretches the contrast of images [..., C] to [0, 1] float32.

    Args:
      images: any type.
      low, high: [C] intensities of black and full colour; by default percentiles of the images.
    """
    if low is None or high is None:
        low, high = _range(images)
    return np.asarray(np.clip((images - low) / (high - low), 0, 1) ** _GAMMA, np.float32)


def resize(images: np.ndarray, side: int, method: str) -> np.ndarray:
    """Resizes images [k, S, S, C] to [k, side, side, C] float32 by a resampling of Pillow's."""
    from PIL import Image

    planes = np.moveaxis(images.astype(np.float32), -1, 1)
    resized = [
        np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling[method]))
        for plane in planes.reshape(-1, *planes.shape[2:])
    ]
    return np.moveaxis(np.stack(resized).reshape(*planes.shape[:2], side, side), 1, -1)


def _shrink(images: np.ndarray, side: int) -> np.ndarray:
    """Returns [k, s, s, C] float32, s at most `side`."""
    side = min(side, *images.shape[1:3])
    return images.astype(np.float32) if images.shape[1] == side else resize(images, side, "BOX")


def _join(images: np.ndarray) -> np.ndarray:
    """Joins crops [k, s, s, C] in [0, 1] to a grey image [C * s, k * s] uint8."""
    grey = np.rint(255 * images).astype(np.uint8)
    grey[1:, :, :_LINE] = 0
    count, height, width, channels = grey.shape
    return grey.transpose(3, 1, 0, 2).reshape(channels * height, count * width)


def _webp(image: np.ndarray, quality: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=quality, method=_EFFORT)
    return buffer.getvalue()


def data_uri(image: bytes, kind: str) -> str:
    """Returns an image file as a data URI; `kind` is 'webp' or 'png'."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


def shown_side(side: int) -> int:
    """Computes the side of a crop on the page in pixels: small crops are enlarged by an integer."""
    return side * max(1, SIDE // side)


def composite(channels: Sequence[str]) -> str:
    """Lists the channels that are shown in colour, with their colours."""
    return ", ".join(f"{c} {name}" for c, name in zip(channels, _COLOUR_NAMES, strict=False))


def channel_style(channels: int, side: int) -> str:
    """Returns CSS rules that select the part of a strip's image and the colour of each channel."""
    rules = [f".strip i {{ background-size: auto, auto {channels * side}px; }}"]
    for c in range(channels):
        # A single channel is white, and so is one without a colour.
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
    """Returns CSS that colours a strip's grey image."""
    return f"linear-gradient({colour}, {colour}), var(--p)"
