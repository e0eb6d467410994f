"""Rows of crops on a page: grey pictures with the channels below each other, coloured by styles."""

from collections.abc import Sequence

from cellclr_jax.data.quality.look import CHANNEL_COLOURS

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
