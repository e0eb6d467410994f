"""What all figures of the quality page have in common: sizes, colours, letters, their JSON."""

import html
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

WIDTH = 1060.0
"""Of a figure's drawing in pixels, without the scale of colours beside it."""
SCALE = "Viridis"
"""Even in lightness: told apart under every colour blindness, and when printed in grey."""
BACKGROUND = "#eef0f2"
"""Of a plate; a well without a value has its colour."""
INK, PALE_INK = "#1f2430", "#5b6472"
MARK, SKIPPED = "#d55e00", "#7a8290"
"""A field that stands out (Okabe and Ito's vermilion), and one that could not be used."""
BARS = "#31688e"
CHANNEL_COLOURS = ("#5b8cff", "#ffb000", "#f0409f")
"""Of channels laid over each other: blue, amber and red-violet differ under every colour blindness,
and more than three colours at once are none."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
UNKNOWN = "not known for these images"
"""What is said of a measure that no field has."""
_LETTERS = 12


def base_layout(height: float, **settings: Any) -> dict[str, Any]:
    """A Plotly layout: white, quiet, of a given height in pixels."""
    return {
        "height": round(height),
        "font": {"family": FONT, "size": _LETTERS, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "showlegend": False,
        "dragmode": False,
        "hoverlabel": {"bgcolor": "white", "font": {"family": FONT, "color": INK}, "align": "left"},
        "template": "none",
        **settings,
    }


def safe(text: object) -> str:
    """Text within a figure: Plotly takes a part of HTML, and knows these entities alone."""
    return html.escape(str(text), quote=False)


def short(text: str, most: int) -> str:
    """The text, cut to so many letters."""
    return text if len(text) <= most else f"{text[: max(1, most - 1)]}…"


def number(value: float) -> str:
    """A dose or a measure as people write it."""
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def figure_json(figure: "go.Figure", extra: Mapping[str, Any] | None = None) -> str:
    """A figure as JSON that may stand in a page: it holds no '<'.

    Args:
      figure: Plotly's.
      extra: what the page's own script reads beside 'data' and 'layout'.
    """
    content = json.loads(figure.to_json()) | dict(extra or {})
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")
