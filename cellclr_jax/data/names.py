"""Decides which names in tables are equal, and which words mean that a value is missing.

All tables that are read (profiles, image, MoA and label tables, centres of nuclei) use these rules.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cellclr_jax.console import listed

if TYPE_CHECKING:  # `columns` needs `fold` before pandas is imported
    import numpy as np

# Category of soft hyphens, zero-width spaces and byte order marks.
_INVISIBLE = "Cf"
# Category of hyphens and dashes; the minus sign has another one.
_DASHES = "Pd"
_MINUS = "\N{MINUS SIGN}"
# Words are compared after `fold`, without these characters around them: '<NA>', '#N/A', 'n.a.'.
_AROUND = "#<>()[]. "
_MISSING = frozenset(
    ("", "na", "n/a", "n.a", "nan", "-nan", "nat", "null", "none", "nil", "-", "--", "---", "?")
)
_MISSING |= {"unknown", "missing", "not available", "not applicable", "not known"}
# A well of up to 1536: 'B03', 'b3', 'B-03', 'AF48', and 'r02c03'.
_LETTERS = re.compile(r"([a-z]|a[a-f])[ _:-]?0*(\d{1,2})")
_NUMBERS = re.compile(r"r(?:ow)?[ _]?0*(\d{1,2})[ _:-]?c(?:ol(?:umn)?)?[ _]?0*(\d{1,2})")
_ROWS, _COLUMNS = 32, 48


def fold(text: str) -> str:
    """Reduces a name to a form in which all of its spellings are equal.

    Unicode's compatibility form (NFKC: composed letters, ordinary spaces), without invisible
    characters, every dash a hyphen, runs of whitespace one space, lower case.

    Example:
      fold(" PP\N{NON-BREAKING HYPHEN}2 ") == fold("pp-2") == "pp-2"
    """
    if text.isascii():
        return " ".join(text.split()).lower()
    letters = []
    for letter in unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()):
        kind = unicodedata.category(letter)
        if kind == _DASHES or letter == _MINUS:
            letters.append("-")
        elif kind != _INVISIBLE:
            letters.append(letter)
    return " ".join("".join(letters).split())


def is_missing(text: str) -> bool:
    """Whether a text is empty or a word for 'no value': NA, n/a, NaN, None, null, -, unknown …"""
    return fold(text).strip(_AROUND) in _MISSING


def well_position(name: str) -> tuple[int, int] | None:
    """Row and column, from 0, of a well such as 'A01', 'a1', 'B-03', 'AF48' or 'r01c01'.

    Returns:
      None for any other text; plates have up to 1536 wells.
    """
    text = fold(name)
    if match := _NUMBERS.fullmatch(text):
        row, column = int(match[1]), int(match[2])
    elif match := _LETTERS.fullmatch(text):
        letters = match[1]
        row = ord(letters[-1]) - ord("a") + 1 + 26 * (len(letters) - 1)
        column = int(match[2])
    else:
        return None
    return (row - 1, column - 1) if 1 <= row <= _ROWS and 1 <= column <= _COLUMNS else None


def well_key(name: str) -> str:
    """Returns the same text for every notation of a well; `fold` of any other name."""
    position = well_position(name)
    return f"row {position[0]} column {position[1]}" if position else fold(name)


class Names:
    """Gives each name one spelling in all tables that are read together.

    Tables can then be grouped and joined by equality. The commonest spelling in the first table
    with the name is used, of equally common ones the first.

    Args:
      exact: only strips names; only the empty one means 'missing'.
      known: names that never mean 'missing', such as the controls' compound.

    Attributes:
      notes: messages on merged spellings and missing values.
    """

    def __init__(self, *, exact: bool = False, known: Iterable[str] = ()) -> None:
        self.notes: list[str] = []
        self._exact = exact
        self._known = {fold(name) for name in known}
        self._spelling: dict[tuple[str, str], str] = {}

    def merge(self, column: str, values: Iterable[Any]) -> "np.ndarray":
        """Replaces the names of a column by their spelling; inspects each distinct value once.

        Args:
          column: a key of `columns.COLUMNS`; each column has its own spellings.
          values: [N] of any type.

        Returns:
          [N] object, each a str; '' for a missing value.
        """
        import numpy as np
        import pandas as pd

        codes, distinct = pd.factorize(pd.Series(values).astype(object))
        texts = [str(value).strip() for value in distinct]
        counts: Counter[str] = Counter()
        for text, count in zip(texts, np.bincount(codes[codes >= 0]).tolist(), strict=True):
            counts[text] += count
        spelling = {text: text for text in counts}
        if not self._exact:
            spelling = {text: self._spell(column, text) for text, _ in counts.most_common()}
            self._note(column, counts, spelling, len(codes))
        return np.array([*(spelling[text] for text in texts), ""], object)[codes]

    def note_missing(self, column: str, missing: "np.ndarray") -> None:
        """Adds a note with the number of missing values of a column, [N] bool, if any."""
        if count := int(missing.sum()):
            self.notes.append(f"{column}: missing in {count:,} of {len(missing):,} rows")

    def _spell(self, column: str, text: str) -> str:
        """Returns the first spelling of a name; '' for a word that means 'missing'."""
        if is_missing(text) and fold(text) not in self._known:
            return ""
        key = well_key(text) if column == "well" else fold(text)
        return self._spelling.setdefault((column, key), text)

    def _note(
        self, column: str, counts: Counter[str], spelling: dict[str, str], total: int
    ) -> None:
        """Adds notes on words that mean 'missing' and on merged spellings."""
        words = [text for text, used in spelling.items() if text and not used]
        # In ASCII: two spellings may look the same.
        merged = [
            f"{text!a} = {used!a}" for text, used in spelling.items() if used and used != text
        ]
        notes = []
        if words:
            count = sum(counts[word] for word in words)
            names = listed([repr(word) for word in words])
            notes.append(f"{column}: {count:,} of {total:,} values mean 'missing': {names}")
        if merged:
            notes.append(f"{column}: spellings merged: {listed(merged)}")
        added = (f"{note} (--exact_names keeps the names as they are)" for note in notes)
        self.notes += [note for note in added if note not in self.notes]
