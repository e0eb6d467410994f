"""What a source holds, as a short digest: is a dataset built from the input that is named now?"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from cellclr_jax.data.counting import plural
from cellclr_jax.data.fields import Field, Source
from cellclr_jax.data.images.plate_files import ImageFile

_DIGEST_BYTES = 16
# Plates that a difference names; a screen may have hundreds.
_PLATES_NAMED = 5

Contents = Mapping[str, Mapping[str, Any]]


def describe_contents(source: Source) -> dict[str, dict[str, Any]]:
    """Digests each plate: its fields' metadata, the names and sizes of their files; no pixel.

    Returns:
      By plate ('' where there is none): 'files', their number, and 'digest'. Equal for the same
      files elsewhere, or in zips.
    """
    held: dict[str, list[str]] = defaultdict(list)
    files: dict[str, int] = defaultdict(int)
    for field in source.fields:
        there = [f"{file.name} {_size(file)}" for file in field.files if file.path]
        held[field.plate].append(describe_field(field, there))
        files[field.plate] += len(there)
    return {
        plate: {"files": files[plate], "digest": digest("\n".join(sorted(lines)))}
        for plate, lines in sorted(held.items())
    }


def describe_field(field: Field, files: Sequence[str]) -> str:
    """One line that differs where a field's cells do.

    Args:
      field: of a source.
      files: what stands for its files.
    """
    return json.dumps([field.name, dict(field.metadata), field.cells, field.centers, *files])


def contents_differences(built: Contents, held: Contents) -> list[str]:
    """Names what an input holds that differs from what a dataset was built from.

    Args:
      built: `describe_contents` of the dataset's source; {} where it was not recorded.
      held: `describe_contents` of the input.

    Returns:
      Such as "2 plates more: Week1_22123, Week1_22141"; empty where they agree.
    """
    if not built:
        return ["what it was built from is not in its manifest"]
    other = [name for name in held if name in built and held[name] != built[name]]
    changed = [
        f"plate {name or 'without a name'} has other files or metadata "
        f"({plural(held[name]['files'], 'file')}, were {built[name]['files']})"
        for name in other[:_PLATES_NAMED]
    ]
    if len(other) > _PLATES_NAMED:
        changed.append(f"so have {plural(len(other) - _PLATES_NAMED, 'other plate')}")
    return [
        *_plates("more", added_plates(built, held)),
        *_plates("fewer", added_plates(held, built)),
        *changed,
    ]


def added_plates(built: Contents, held: Contents) -> list[str]:
    """Plates that an input holds beyond those that a dataset was built from."""
    return [name for name in held if name not in built]


def is_extension(built: Contents, held: Contents) -> bool:
    """Whether an input holds every plate that a dataset was built from unchanged, and further."""
    unchanged = all(held.get(name) == content for name, content in built.items())
    return bool(built) and unchanged and len(held) > len(built)


def digest(text: str) -> str:
    """A short hex digest of a text."""
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def stamp_field(field: Field) -> str:
    """A line that differs where a field's pixels or metadata do, as far as that is told unread."""
    return describe_field(field, [_stamp(file) for file in field.files])


def _stamp(file: ImageFile) -> str:
    """What changes when the pixels of a file do: its checksum in a zip, else its time and size."""
    if file.member:
        return f"{file.name} {file.member_bytes} {file.member_crc:08x}"
    try:
        status = os.stat(file.path)
    except OSError:
        return f"{file.name} absent"
    return f"{file.name} {status.st_size} {status.st_mtime_ns}"


def _plates(how: str, names: Sequence[str]) -> list[str]:
    """Such as ["2 plates more: a, b"]; [] for none."""
    if not names:
        return []
    more = ", …" if len(names) > _PLATES_NAMED else ""
    return [f"{plural(len(names), 'plate')} {how}: {', '.join(names[:_PLATES_NAMED])}{more}"]


def _size(file: ImageFile) -> int:
    """The bytes of a file; -1 where it has gone (it is skipped when it is read)."""
    if file.member:
        return file.member_bytes
    try:
        return os.stat(file.path).st_size
    except OSError:
        return -1
