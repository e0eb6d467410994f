"""What a source holds, as a short digest: is a dataset built from the input that is named now?"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellclr_jax.data.fields import Source
from cellclr_jax.data.plate_files import ImageFile

_DIGEST_BYTES = 16
_TABLES = {"image_csv": "image table", "moa_csv": "MoA table"}
# Plates that a difference names; a screen may have hundreds.
_PLATES_NAMED = 5


def describe_contents(source: Source) -> dict[str, Any]:
    """Digests the tables, and the names and sizes of the files, but no path and no pixel.

    Returns:
      'image_csv' and 'moa_csv', hex digests of the tables ('': none); 'plates', by name, each with
      'files', their number, and 'digest'. Equal for the same files elsewhere, or in zips.
    """
    held: dict[str, list[str]] = defaultdict(list)
    for field in source.fields:
        held[field.plate] += [f"{file.name}\t{_size(file)}" for file in field.files if file.path]
    return {
        **{table: _table_digest(getattr(source, table)) for table in _TABLES},
        "plates": {
            plate: {"files": len(names), "digest": _digest("\n".join(sorted(names)).encode())}
            for plate, names in sorted(held.items())
        },
    }


def contents_differences(built: dict[str, Any], held: dict[str, Any]) -> list[str]:
    """Names what an input holds that differs from what a dataset was built from.

    Args:
      built: `describe_contents` of the dataset's source; {} where it was not recorded.
      held: `describe_contents` of the input.

    Returns:
      Such as "another image table", "2 plates more: Week1_22123, Week1_22141"; empty where they
      agree.
    """
    if not built:
        return ["what it was built from is not in its manifest"]
    there, here = built["plates"], held["plates"]
    other = [name for name in here if name in there and here[name] != there[name]]
    changed = [
        f"plate {name} has other files ({here[name]['files']}, were {there[name]['files']})"
        for name in other[:_PLATES_NAMED]
    ]
    if len(other) > _PLATES_NAMED:
        changed.append(f"so have {len(other) - _PLATES_NAMED} other plates")
    return [
        *(f"another {words}" for table, words in _TABLES.items() if built[table] != held[table]),
        *_plates("more", [name for name in here if name not in there]),
        *_plates("fewer", [name for name in there if name not in here]),
        *changed,
    ]


def _plates(how: str, names: Sequence[str]) -> list[str]:
    """Such as ["2 plates more: a, b"]; [] for none."""
    if not names:
        return []
    more = ", …" if len(names) > _PLATES_NAMED else ""
    plates = "plate" if len(names) == 1 else "plates"
    return [f"{len(names)} {plates} {how}: {', '.join(names[:_PLATES_NAMED])}{more}"]


def _size(file: ImageFile) -> int:
    """The bytes of a file; -1 where it has gone (it is skipped when it is read)."""
    if file.member:
        return file.member_bytes
    try:
        return os.stat(file.path).st_size
    except OSError:
        return -1


def _table_digest(path: str) -> str:
    """The digest of a table's file; '' where there is none."""
    return _digest(Path(path).read_bytes()) if path else ""


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()
