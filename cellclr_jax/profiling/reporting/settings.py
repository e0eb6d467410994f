"""Settings and provenance as rows of text."""

from collections.abc import Mapping

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
