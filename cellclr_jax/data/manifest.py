"""What a dataset was built from and what came of it: `manifest.json`, and a summary to read."""

import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

MANIFEST = "manifest.json"
CELLS = "cells.parquet"
# Raised when the meaning of a key changes.
_FORMAT = 1
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
    settings: dict[str, Any],
    origin: dict[str, Any],
    image: dict[str, Any],
    cells: pd.DataFrame,
    fields: int,
    empty_fields: int,
    skipped: Sequence[tuple[str, str]],
    fingerprint: str,
) -> dict[str, Any]:
    """Collects what is told about a dataset, as a JSON object that equal input makes equal.

    Args:
      settings: everything that decides the content (see `differences`).
      origin: where it came from: paths, tables, absent plates, contents.
      image: 'shape' [S, S, C], 'dtype' and 'channels' of a record's image.
      cells: one row a record.
      fields: how many were read, the skipped included.
      empty_fields: how many of them held no cell.
      skipped: (what, reason) of the others.
      fingerprint: hex digest of all records in their order.
    """
    return {
        "format": _FORMAT,
        "settings": settings,
        "origin": origin,
        "image": image,
        "counts": {
            "cells": len(cells),
            "fields": fields,
            "fields_without_cells": empty_fields,
            "fields_skipped": len(skipped),
            "plates": int(cells["plate"].nunique()),
            "wells": cells.groupby(["plate", "well"]).ngroups,
            "treatments": cells.groupby(["compound", "concentration"]).ngroups,
        },
        "skipped": [{"field": what, "reason": reason} for what, reason in skipped],
        "fingerprint": fingerprint,
        "versions": {"python": platform.python_version(), **_versions()},
    }


def write_manifest(directory: Path, manifest: dict[str, Any], cells: pd.DataFrame) -> None:
    """Writes `manifest.json` and `cells.parquet` into a folder."""
    cells.to_parquet(directory / CELLS, index=False)
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
    lines = [
        f"{counts['cells']:,} cells of {counts['treatments']} treatments in "
        f"{counts['wells']} wells on {counts['plates']} plates",
        f"{counts['fields']:,} fields: {counts['fields_without_cells']} without cells, "
        f"{counts['fields_skipped']} skipped",
    ]
    absent = manifest["origin"].get("absent_plates", [])
    if absent:
        lines.append(describe_absent(absent))
    lines += ["cells per treatment (µM: cells):", *_treatment_lines(cells)]
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
        moas = ", ".join(moa for moa in sorted(set(group["moa"])) if moa and moa != compound)
        doses = "  ".join(f"{dose:g}: {count:,}" for dose, count in numbers.items())
        lines.append(f"  {compound:<{width}}  {doses}{f'  ({moas})' if moas else ''}")
    return lines


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
