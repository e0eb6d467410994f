"""Exceptions that a binary reports in one line. Imports nothing."""


class BadUse(Exception):
    """A wrong flag, path or setting: the binary ends with exit status 2."""


class BadData(Exception):
    """Unusable input; names file, row and what was expected: exit status 1."""
