"""What a dataset was built from and what came of it: `manifest.json`, and a summary to read."""

import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from cellclr_jax.data.counting import count_kinds, plural
from cellclr_jax.data.extraction import CUTTING_VERSION
from cellclr_jax.data.illumination import FIT_VERSION

MANIFEST = "manifest.json"
CELLS = "cells.parquet"
FIELDS = "fields.parquet"
# Raised when the meaning of a key changes.
FORMAT = 2
# What decides cells and light beside the settings: a dataset of another version is not added to.
MADE_BY = {"cutting": CUTTING_VERSION, "light": FIT_VERSION}
_PACKAGES = (
    "array_record",
    "imagecodecs",
    "numpy",
    "scikit-image",
    "scipy",
    "tensorflow-datasets",
    "tifffile",
)
# A treatment's line of the summary lists its concentrations; a long list of problems is cut.
_PROBLEMS_SHOWN = 20


def make_manifest(
    *,
    settings: dict[str, Any],
    origin: dict[str, Any],
    image: dict[str, Any],
    columns: list[str],
    cells: pd.DataFrame,
    fields: pd.DataFrame,
    skipped: Sequence[tuple[str, str]],
    fingerprint: str,
    pieces: Sequence[tuple[str, int, int]],
) -> dict[str, Any]:
    """Collects what is told about a dataset, as a JSON object that equal input makes equal.

    Args:
      settings: everything that decides the content (see `differences`).
      origin: where it came from: paths, tables, absent plates, contents.
      image: 'shape' [S, S, C], 'dtype' and 'channels' of a record's image.
      columns: of the metadata.
      cells: one row a record.
      fields: one row a field.
      skipped: (what, reason) of fields and files that could not be used.
      fingerprint: hex digest of all records in their order.
      pieces: (plate, cells, fields) of each piece in its order; one with cells has a shard.
    """
    counts = {
        "cells": len(cells),
        "fields": len(fields),
        "fields_without_cells": int(((fields["cells"] == 0) & (fields["problem"] == "")).sum()),
        "fields_skipped": len(skipped),
    }
    counts |= {f"{what}s": count for what, count in count_kinds(cells[columns]).items()}
    return {
        "format": FORMAT,
        "made_by": dict(MADE_BY),
        "settings": settings,
        "origin": origin,
        "image": image,
        "columns": columns,
        "counts": counts,
        "skipped": [{"field": what, "reason": reason} for what, reason in skipped],
        "fingerprint": fingerprint,
        "pieces": [list(piece) for piece in pieces],
        "versions": {"python": platform.python_version(), **_versions()},
    }


def write_manifest(
    directory: Path, manifest: dict[str, Any], cells: pd.DataFrame, fields: pd.DataFrame
) -> None:
    """Writes `manifest.json`, `cells.parquet` and `fields.parquet` into a folder."""
    cells.to_parquet(directory / CELLS, index=False)
    fields.to_parquet(directory / FIELDS, index=False)
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")


def differences(built: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Names the settings in which a finished dataset differs from a wanted one.

    Args:
      built: the settings of a manifest.
      wanted: settings as they would be written.

    Returns:
      Such as "crop_size is 96, not 64" or "simulation.seed is 0, not 1"; empty where they agree.
    """
    there, here = _flat(built), _flat(json.loads(json.dumps(wanted)))
    return [
        f"{key} is {_short(there.get(key))}, not {_short(here.get(key))}"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def summarize(manifest: dict[str, Any], cells: pd.DataFrame) -> str:
    """The summary shown at the end of a build: counts, cells per treatment, skipped fields."""
    counts = manifest["counts"]
    # Images of single cells are built in groups of equal metadata.
    fields = "field" if "border" in manifest["settings"] else "group"
    of_images = "" if fields == "field" else " of images"
    known = [plural(count, what) for what, count in count_kinds(cells).items()]
    lines = [
        f"{plural(counts['cells'], 'cell')}{': ' if known else ''}{', '.join(known)}",
        f"{plural(counts['fields'], fields)}{of_images}: {counts['fields_without_cells']} without "
        f"cells, {counts['fields_skipped']} skipped",
    ]
    absent = manifest["origin"].get("absent_plates", [])
    if absent:
        lines.append(describe_absent(absent))
    if "treatments" in counts:
        lines += ["cells per treatment (µM: cells):", *_treatment_lines(cells)]
    elif "labels" in counts:
        lines += ["cells per label:", *_label_lines(cells)]
    return "\n".join([*lines, *describe_skipped(manifest)])


def describe_absent(plates: Sequence[str]) -> str:
    """Says which plates of the image table have not a single file in the input."""
    return (
        f"{len(plates)} of the image table's plates have no file in the input and are left out: "
        f"{', '.join(plates)}"
    )


def describe_skipped(manifest: dict[str, Any]) -> list[str]:
    """One line for each skipped field, up to a bearable number."""
    skipped = manifest["skipped"]
    lines = [f"skipped {one['field']}: {one['reason']}" for one in skipped[:_PROBLEMS_SHOWN]]
    if len(skipped) > _PROBLEMS_SHOWN:
        lines.append(f"… and {len(skipped) - _PROBLEMS_SHOWN} more: see {MANIFEST}")
    return lines


def _treatment_lines(cells: pd.DataFrame) -> list[str]:
    """One line a compound: its MoA, then 'concentration: cells' for each concentration."""
    width = max(map(len, cells["compound"]))
    lines = []
    for compound, group in cells.groupby("compound"):
        numbers = group.groupby("concentration").size()
        known = set(group["moa"]) if "moa" in group else set()
        moas = ", ".join(moa for moa in sorted(known) if moa and moa != compound)
        doses = "  ".join(f"{dose:g}: {count:,}" for dose, count in numbers.items())
        lines.append(f"  {compound:<{width}}  {doses}{f'  ({moas})' if moas else ''}")
    return lines


def _label_lines(cells: pd.DataFrame) -> list[str]:
    """One line a label."""
    numbers = cells.groupby("label").size()
    width = max(map(len, numbers.index.astype(str)))
    return [f"  {label:<{width}}  {count:,}" for label, count in numbers.items()]


def _versions() -> dict[str, str]:
    """Installed versions of what decides the content."""
    versions = {}
    for package in ("cellclr_jax", *_PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _short(value: Any) -> str:
    """A setting in a message."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
