"""Parses the text of a compiled program: its collectives, and bytes moved to and from memory.

XLA's own count includes bytes that an operation reads from the chip's fast memory. Programs for
TPUs prefetch arrays into that memory; the text marks such arrays by `S(…)`.
"""

import math
import re
from collections.abc import Iterator

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_ITEM_BYTES = {"pred": 1, "8": 1, "16": 2, "32": 4, "64": 8}
_WORD = 4
_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:,|$)")
# Instructions that move no bytes.
_FREE = ("parameter", "get-tuple-element", "tuple", "constant", "bitcast", "iota", "after-all")
# Copies between the two memories ahead of use; types are (source, destination, …).
_PREFETCHES = ("copy-start", "slice-start")


def collectives(text: str) -> dict[str, dict[str, float]]:
    """Counts a program's collectives by kind, and the bytes of their results on a chip."""
    found: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        match = re.search(rf" = (.*?) ({'|'.join(_COLLECTIVES)})(-start)?\(", line)
        if not match:
            continue
        sizes = [size for size, _ in _arrays(match[1])]
        if match[3] and match[2] != "all-reduce":  # operands, results, scheduler's words
            sizes = [size for size in sizes if size > _WORD]
            sizes = sizes[len(sizes) // 2 :]
        kind = found.setdefault(match[2], {"count": 0, "bytes": 0})
        kind["count"] += 1
        kind["bytes"] += sum(sizes)
    return found


def memory_bytes(text: str) -> float:
    """Counts the bytes that a program moves to and from a chip's main memory.

    Operands and results count as a whole, even if an operation needs a part of them; arrays in fast
    memory do not count. The body of a loop counts as often as it runs, or once if the text does not
    contain the number.
    """
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return _moved(entry, computations)


def _moved(name: str, computations: dict[str, list[str]]) -> float:
    types: dict[str, str] = {}
    total = 0.0
    for line in computations[name]:
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        result, types[match[1]], kind = match[1], match[2], match[3]
        if kind in _FREE or kind.endswith("-done"):
            continue
        if kind == "while":
            body = re.search(r"body=%?([\w.\-]+)", line)
            times = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            if body:
                total += (int(times[1]) if times else 1) * _moved(body[1], computations)
        elif kind in _PREFETCHES:
            (_, from_fast), (size, to_fast) = list(_arrays(types[result]))[:2]
            total += size * ((not from_fast) + (not to_fast))
        else:
            operands = re.findall(r"%([\w.\-]+)", match[4])
            touched = [types[result], *(types.get(operand, "") for operand in operands)]
            total += sum(size for t in touched for size, fast in _arrays(t) if not fast)
    return total


def _arrays(type_: str) -> Iterator[tuple[int, bool]]:
    """Yields (bytes, whether in fast memory) of each array in an instruction's type."""
    for dtype, sides, layout in _ARRAY.findall(type_):
        size = next(size for name, size in _ITEM_BYTES.items() if dtype.endswith(name))
        yield size * math.prod(int(side) for side in sides.split(",") if side), "S(" in layout
