"""What all HTML pages share: look, escaping, Plotly settings, and the frame that a page fills."""

import html
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup

COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#B8A900",
    "#000000",
)
"""Okabe and Ito's palette, distinct under every common colour blindness; black comes last."""
SYMBOLS = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "triangle-down",
    "cross",
    "x",
    "star",
    "triangle-left",
    "pentagon",
    "triangle-right",
    "hexagon",
)
"""Plotly's markers. Twelve, for BBBC021's twelve MoAs: no two share one, whatever the colour."""
CHANNEL_COLOURS = ("#5b8cff", "#ffb000", "#f0409f")
"""Of channels laid over each other: blue, amber and red-violet differ under every colour blindness,
and more than three colours at once cannot be separated."""
SCALE = "Viridis"
"""Even in lightness: readable under every colour blindness, and when printed in grey."""
INK, PALE_INK, GRID, PALE_GRID = "#1f2430", "#5b6472", "#dfe3e8", "#eef0f2"
GREY = "#7a8290"
"""Of what is no result: chance levels, what was not scored, what could not be used."""
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_FONT_SIZE = 12
_LONGEST_LABEL = 42
# Rows of a table of settings; a record of more is read in its file.
_MOST_SETTINGS = 500


def base_layout(height: float, *, title: str = "", **settings: Any) -> dict[str, Any]:
    """Returns a Plotly layout: white, quiet, `height` pixels high, titled where there is a title.

    Axes have pale grids and no zero line; `settings` are merged into these defaults.
    """
    layout: dict[str, Any] = {
        "height": round(height),
        "font": {"family": _FONT, "size": _FONT_SIZE, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "showlegend": False,
        "dragmode": False,
        "hoverlabel": {"bgcolor": "white", "font": {"family": _FONT, "color": INK}},
        "xaxis": {"gridcolor": GRID, "zeroline": False} | settings.pop("xaxis", {}),
        "yaxis": {"gridcolor": GRID, "zeroline": False} | settings.pop("yaxis", {}),
    }
    layout["hoverlabel"]["align"] = "left"
    if title:
        layout["title"] = {"text": title, "font": {"size": 14}, "x": 0}
    return layout | settings


def label(text: object, most: int = _LONGEST_LABEL) -> str:
    """Escapes a name for a figure, where Plotly reads a part of HTML, and cuts a long one."""
    words = str(text)
    return html.escape(words if len(words) <= most else f"{words[: most - 1]}…", quote=False)


def look(index: int) -> tuple[str, int]:
    """Returns a colour and the index of a symbol; no two of the first 96 are alike."""
    # 8 colours and 12 symbols repeat together after 24; shifting the symbols then makes 96.
    return COLOURS[index % len(COLOURS)], (index + index // 24) % len(SYMBOLS)


def number(value: float) -> str:
    """Writes a dose or a measure in at most four digits."""
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def percent(share: float | None) -> str:
    """Writes a share in per cent; a dash for None."""
    return "–" if share is None else f"{100 * share:.1f} %"


def script_json(value: object) -> "Markup":
    """Writes JSON that may stand in a <script type="application/json"> of a page.

    Args:
      value: dicts, lists, arrays, texts, numbers; a number that is not finite becomes null.

    Returns:
      ASCII text without '<' and '>', which Jinja inserts as it is.
    """
    from markupsafe import Markup
    from plotly.io.json import to_json_plotly

    return Markup(to_json_plotly(value, engine="json"))


def flatten(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Lists (name, value) of every setting; those of a nested object are named 'outer, inner'.

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
            rows.append((name, _setting(value)))
    return rows[:_MOST_SETTINGS]


def _setting(value: object) -> str:
    """Writes the value of a setting."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "not set"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if isinstance(value, Mapping) else str(value)


def render(template: str, *, style: str = "", script: str = "", **values: Any) -> str:
    """Renders a page as one HTML file that loads nothing from anywhere.

    The frame, `pages/base.html.jinja`, shows `title`, `name` and `heading` of the values.

    Args:
      template: path of a template that extends the frame, relative to the package.
      style: CSS to add to the look that all pages have.
      script: path of a script to run after `page.js`, relative to the package; '' for none.
      values: of the template. Text is escaped.
    """
    from jinja2 import Environment, FunctionLoader
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    page = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_text)
    ).get_template(template)
    code = _text("pages/page.js") + (_text(script) if script else "")
    return page.render(
        style=Markup(_text("pages/page.css") + style),
        script=Markup(f'"use strict";\n{{\n{code}}}\n'),
        plotly=Markup(get_plotlyjs()),
        script_json=script_json,
        **values,
    )


def _text(name: str) -> str:
    """Reads a text file of the package."""
    return resources.files("cellclr_jax").joinpath(name).read_text(encoding="utf-8")
