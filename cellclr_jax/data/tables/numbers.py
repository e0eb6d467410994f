"""Numbers in tables, parsed and held within what 32 bits store."""

import math

import numpy as np

# Sites and replicates are stored as 32 bits, concentrations and centres as 32-bit floats.
_MOST_WHOLE = 2**31 - 1
_MOST_NUMBER = float(np.finfo(np.float32).max)


def amount(what: str, text: str) -> float:
    """A number of at least 0; ValueError for anything else, naming it as `what`."""
    value = _number(text)
    if not 0 <= value <= _MOST_NUMBER:
        raise ValueError(f"{what} {text!r}: a number of at least 0 was expected")
    return value


def number_or_none(what: str, text: str) -> float:
    """A number, NaN for an empty text; ValueError for anything else, naming it as `what`."""
    value = _number(text)
    if text and not abs(value) <= _MOST_NUMBER:
        raise ValueError(f"{what} {text!r}: a number was expected")
    return value


def whole(what: str, text: str) -> int:
    """A whole number of at least 0, also when written `3.0`; ValueError for anything else."""
    value = _number(text)
    if not (0 <= value <= _MOST_WHOLE and value == int(value)):
        raise ValueError(f"{what} {text!r}: a whole number from 0 to {_MOST_WHOLE} was expected")
    return int(value)


def _number(text: str) -> float:
    """A number; NaN for any other text."""
    try:
        return float(text)
    except ValueError:
        return math.nan
