"""What all HTML pages share: look, escaping, Plotly settings."""

import html
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

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


if TYPE_CHECKING:
    from markupsafe import Markup

# Letters that could end the element in which JSON stands, begin another one, or end a line of it.
_ESCAPED = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}
_LONGEST_LABEL = 42


def script_json(value: object) -> "Markup":
    """JSON that may stand in a <script type="application/json"> of a page.

    Args:
      value: mappings, lists, arrays, texts, numbers; a number that is not finite becomes null.

    Returns:
      Text without '<', '>', '&' and line separators, which Jinja takes as it is.
    """
    from markupsafe import Markup

    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_ESCAPED))


def label(text: object) -> str:
    """A name in a figure: Plotly takes a part of HTML, so it is escaped; a long one is cut."""
    words = str(text)
    return safe(words if len(words) <= _LONGEST_LABEL else f"{words[: _LONGEST_LABEL - 1]}…")


def _plain(value: object) -> object:
    """The value in Python's own types, null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


_MOST_ROWS = 500


def flatten(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """(name, value) of every setting; those of a nested object are named 'outer, inner'.

    Args:
      values: JSON values.
      prefix: of the names.
    """
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{name}, ")
        else:
            rows.append((name, _words(value)))
    return rows[:_MOST_ROWS]


def _words(value: object) -> str:
    """A setting in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "not set"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, Mapping):
        return "none"
    return str(value)
