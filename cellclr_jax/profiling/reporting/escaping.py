"""What makes names from a dataset harmless: in JSON within the page, and in Plotly's texts."""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cellclr_jax.data.quality.look import safe

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
