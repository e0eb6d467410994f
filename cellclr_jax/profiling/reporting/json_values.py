"""Reads metrics as they come from JSON: what is absent or undefined is told from what is there."""

import math
from collections.abc import Mapping


def mapping(value: object) -> Mapping[str, object]:
    """The value where it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def real(values: object, name: str) -> float | None:
    """A finite number of a JSON object; None where it has none of this name."""
    value = mapping(values).get(name)
    usable = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if usable and math.isfinite(value) else None  # type: ignore[arg-type]


def pair(value: object) -> tuple[float, float] | None:
    """Two numbers, such as the ends of an interval; None for anything else."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = value
    if not all(isinstance(end, (int, float)) for end in (low, high)):
        return None
    return float(low), float(high)


def is_undefined(values: object) -> bool:
    """Whether a score or measure was not computed: it says why, or is not there at all."""
    found = mapping(values)
    return not found or "undefined" in found
