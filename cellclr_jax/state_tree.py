"""What differs between two trees of arrays, by the names of their leaves."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax

# A message that names every parameter of another network would hide what it says.
_NAMED = 3
# What a reader knows by name comes before what follows from it.
_FIRST = ("params", "batch_stats")

Shapes = Mapping[str, tuple[int, ...]]


def shapes(tree: Any, parts: Iterable[str] | None = None) -> Shapes:
    """Shapes of a tree's leaves by their path, such as `params/encoder/Dense_0/kernel`.

    Args:
      tree: of arrays or of what describes them.
      parts: takes only leaves under these paths, such as `params/encoder`; None takes all.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
    if parts is None:
        return named
    under = tuple(f"{part}/" for part in parts)
    return {name: shape for name, shape in named.items() if name.startswith(under)}


def differences(there: Shapes, here: Shapes) -> str:
    """What differs in one line, the first few of each kind; '' where nothing does.

    Args:
      there: of a checkpoint.
      here: of what it is to be read into.
    """
    common = there.keys() & here.keys()
    kinds = {
        "it lacks": [name for name in here if name not in common],
        "it has beside": [name for name in there if name not in common],
        "other shapes:": [
            f"{name} {there[name]}, here {here[name]}"
            for name in common
            if there[name] != here[name]
        ],
    }
    return "; ".join(f"{kind} {_listed(names)}" for kind, names in kinds.items() if names)


def _listed(names: list[str]) -> str:
    rank = {part: place for place, part in enumerate(_FIRST)}
    names = sorted(names, key=lambda name: (rank.get(name.split("/")[0], len(rank)), name))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
