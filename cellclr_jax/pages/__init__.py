"""Shared parts of all HTML pages: colours, escaping, Plotly defaults, the base template."""

import html
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#B8A900", "#000000")
"""Okabe and Ito's palette, distinct under every common colour blindness; black comes last."""
SYMBOLS = (  # noqa: SIM905
    "circle square triangle-up diamond triangle-down cross x star triangle-left pentagon "
    "triangle-right hexagon"
).split()
"""Plotly's markers: twelve, as BBBC021 has twelve MoAs, so that no two share one."""
CHANNEL_COLOURS = ("#5b8cff", "#ffb000", "#f0409f")
"""Of overlaid channels: blue, amber and red-violet differ under every colour blindness, and more
than three colours at once cannot be separated."""
SCALE = "Viridis"
"""Monotonic in lightness: readable under every colour blindness, and when printed in grey."""
INK, PALE_INK, GRID, PALE_GRID = "#1f2430", "#5b6472", "#dfe3e8", "#eef0f2"
GREY = "#7a8290"
"""Of chance levels, treatments without a score, and fields that were excluded."""
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_FONT_SIZE = 12
_LONGEST_LABEL = 42
# Rows of a table of settings.
_MOST_SETTINGS = 500


def base_layout(height: float, *, title: str = "", **settings: Any) -> dict[str, Any]:
    """Returns a Plotly layout with a white background, pale grids and no zero lines.

    Args:
      height: in pixels.
      title: of the figure; '' for none.
      settings: of the layout; those of `xaxis` and `yaxis` are merged into the defaults.
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
    """Shortens a name and escapes it for Plotly, which interprets some HTML."""
    name = str(text)
    return html.escape(name if len(name) <= most else f"{name[: most - 1]}…", quote=False)


def colour_and_symbol(index: int) -> tuple[str, int]:
    """Returns a colour and the index of a symbol; the first 96 combinations are distinct."""
    # 8 colours and 12 symbols repeat together after 24; shifting the symbols then makes 96.
    return COLOURS[index % len(COLOURS)], (index + index // 24) % len(SYMBOLS)


def number(value: float) -> str:
    """Formats a concentration or measure with at most four significant digits."""
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def percent(share: float | None) -> str:
    """Formats a share in [0, 1] as a percentage; a dash for None."""
    return "–" if share is None else f"{100 * share:.1f} %"


def script_json(value: object) -> "Markup":
    """Encodes JSON for a <script type="application/json"> element.

    Args:
      value: dicts, lists, arrays, strings, numbers; NaN and infinities become null.

    Returns:
      ASCII text without '<' and '>', marked as safe for Jinja.
    """
    from markupsafe import Markup
    from plotly.io.json import to_json_plotly

    return Markup(to_json_plotly(value, engine="json"))


def flatten(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Lists (name, value) of all settings; nested names are joined as 'outer, inner'.

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
    """Formats the value of a setting."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "not set"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if isinstance(value, Mapping) else str(value)


def render(template: str, *, style: str = "", script: str = "", **values: Any) -> str:
    """Renders a page as one self-contained HTML file, which requests nothing.

    Args:
      template: path, relative to the package, of a template that extends `pages/base.html.jinja`.
      style: CSS in addition to `pages/page.css`.
      script: path of a script that runs after `pages/page.js`, relative to the package; '' for
        none.
      values: of the template's variables; `title`, `name` and `heading` are required. Text is
        escaped.
    """
    from jinja2 import Environment, FunctionLoader
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_read)
    )
    environment.globals["script_json"] = script_json
    code = _read("pages/page.js") + (_read(script) if script else "")
    return environment.get_template(template).render(
        style=Markup(_read("pages/page.css") + style),
        script=Markup(f'"use strict";\n{{\n{code}}}\n'),
        plotly=Markup(get_plotlyjs()),
        **values,
    )


def _read(name: str) -> str:
    return resources.files("cellclr_jax").joinpath(name).read_text(encoding="utf-8")
