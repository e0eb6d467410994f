"""The manifest of a dataset: digests of its source, counts, versions, and the printed summary."""

import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import pandas as pd

from cellclr_jax import files
from cellclr_jax.console import listed, plural
from cellclr_jax.data.building.extraction import CUTTING_VERSION
from cellclr_jax.data.building.pieces import describe
from cellclr_jax.data.columns import is_control
from cellclr_jax.data.dataset import MANIFEST
from cellclr_jax.data.illumination import FIT_VERSION
from cellclr_jax.data.sources import entry
from cellclr_jax.data.sources.source import Source

# Number of plates to name in a difference; a screen may have hundreds.
_PLATES_NAMED = 5

Contents = Mapping[str, Mapping[str, Any]]


def describe_contents(source: Source) -> dict[str, dict[str, Any]]:
    """Digests each plate: metadata of its fields, names and sizes of their files; no pixels.

    Returns:
      By plate ('' if unknown): 'files', their number, and 'digest'. The same for a copy of the
      files in another folder or in zips.
    """
    lines: dict[str, list[str]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for field in source.fields:
        contents = field.contents()
        lines[field.plate].append(describe(field, contents))
        counts[field.plate] += len(contents)
    return {
        plate: {"files": counts[plate], "digest": files.digest(*sorted(texts))}
        for plate, texts in sorted(lines.items())
    }


def contents_differences(built: Contents, current: Contents) -> list[str]:
    """Lists the differences between an input and the input that a dataset was built from.

    Args:
      built: `describe_contents` of the dataset's source; {} if it was not recorded.
      current: `describe_contents` of the input.

    Returns:
      Phrases such as "2 plates more: Week1_22123, Week1_22141"; empty if they agree.
    """
    if not built:
        return ["its manifest does not record its input"]
    found = {
        "more": added_plates(built, current),
        "fewer": added_plates(current, built),
        "with other files or metadata": [
            name or "without a name"
            for name, content in current.items()
            if built.get(name, content) != content
        ],
    }
    return [
        f"{plural(len(names), 'plate')} {how}: {listed(names, _PLATES_NAMED)}"
        for how, names in found.items()
        if names
    ]


def added_plates(built: Contents, current: Contents) -> list[str]:
    """Plates of an input that a dataset was not built from."""
    return [name for name in current if name not in built]


def is_extension(built: Contents, current: Contents) -> bool:
    """Whether an input has all plates of a dataset, unchanged, and further plates."""
    unchanged = all(current.get(name) == content for name, content in built.items())
    return bool(built) and unchanged and len(current) > len(built)


# Increase it when the meaning of a key changes.
FORMAT = 3
# Versions of the algorithms; a dataset can be extended only with the same versions.
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
# Number of skipped fields to list in the summary.
_PROBLEMS_SHOWN = 20


def describe_images(
    fields: pd.DataFrame, channels: Sequence[str], dtype: str, planes: str
) -> dict[str, Any]:
    """Describes the images of a dataset: channels, type, original sizes, blank and repeated crops.

    Args:
      fields: the table of fields.
      channels, dtype: of an image.
      planes: the axes and planes of the files, in words.
    """
    sides = ("height", "width")
    return {
        "dtype": dtype,
        "channels": list(channels),
        "planes": planes,
        "sizes": {
            side: [int(fields[f"{side}_min"].min()), int(fields[f"{side}_max"].max())]
            for side in sides
        },
        "blank": {name: int(fields[f"blank_{name}"].sum()) for name in channels},
        "repeated": int(fields["repeated"].sum()),
    }


def summarize(manifest: dict[str, Any], cells: pd.DataFrame) -> str:
    """Formats the summary of a build: counts, cells per treatment, skipped fields."""
    counts = manifest["counts"]
    # Images of single cells are built in groups of equal metadata.
    has_fields = entry(manifest["settings"]["source"]).whole_fields
    fields, of_images = ("field", "") if has_fields else ("group", " of images")
    kinds = [plural(count, kind) for kind, count in count_kinds(cells).items()]
    lines = [
        f"{plural(counts['cells'], 'cell')}{': ' if kinds else ''}{', '.join(kinds)}",
        f"{plural(counts['fields'], fields)}{of_images}: {counts['fields_without_cells']} without "
        f"cells, {counts['fields_skipped']} skipped",
        *_image_lines(manifest["image"], counts["cells"]),
        f"left out: {'; '.join(manifest['origin']['left_out']) or 'no file'}",
    ]
    absent = manifest["origin"].get("absent_plates", [])
    if absent:
        lines.append(describe_absent(absent))
    if "treatments" in counts:
        lines += ["cells per treatment (µM: cells):", *_treatment_lines(cells)]
    elif "labels" in counts:
        lines += ["cells per label:", *_label_lines(cells)]
    return "\n".join([*lines, *describe_skipped(manifest)])


def _image_lines(image: Mapping[str, Any], cells: int) -> list[str]:
    """Channels, type, sizes and planes; numbers of blank and of repeated crops."""
    least, most = (f"{h}x{w}" for h, w in zip(*image["sizes"].values(), strict=True))
    lines = [
        f"{plural(len(image['channels']), 'channel')}: {', '.join(image['channels'])}; "
        f"{image['dtype']}, {least}{f' to {most}' if most != least else ''} pixels; "
        f"planes: {image['planes']}"
    ]
    blank = [f"{count:,} in {name}" for name, count in image["blank"].items() if count]
    if blank:
        lines.append(f"note: of {plural(cells, 'crop')}, blank (one value): {', '.join(blank)}")
    if image["repeated"]:
        lines.append(
            f"note: {plural(image['repeated'], 'crop')} with the same pixels as another crop of "
            "the field or group"
        )
    return lines


def describe_absent(plates: Sequence[str]) -> str:
    """Formats a note on the plates of the image table without a file in the input."""
    return (
        f"{len(plates)} of the image table's plates have no file in the input and are left out: "
        f"{', '.join(plates)}"
    )


def describe_skipped(manifest: dict[str, Any]) -> list[str]:
    """One line for each of the first skipped fields."""
    skipped = manifest["skipped"]
    lines = [f"skipped {one['field']}: {one['reason']}" for one in skipped[:_PROBLEMS_SHOWN]]
    if len(skipped) > _PROBLEMS_SHOWN:
        lines.append(f"… and {len(skipped) - _PROBLEMS_SHOWN} more: see {MANIFEST}")
    return lines


def _treatment_lines(cells: pd.DataFrame) -> list[str]:
    """One line per compound: 'concentration: cells' for each concentration, and its MoA."""
    cells = cells.assign(compound=cells["compound"].replace("", _NAMELESS))
    width = max(map(len, cells["compound"]))
    lines = []
    for compound, group in cells.groupby("compound"):
        numbers = group.groupby("concentration", dropna=False).size()
        known = set(group["moa"]) if "moa" in group else set()
        moas = ", ".join(moa for moa in sorted(known) if moa and moa != compound)
        doses = "  ".join(
            f"{'unknown' if dose != dose else f'{dose:g}'}: {count:,}"
            for dose, count in numbers.items()
        )
        lines.append(f"  {compound:<{width}}  {doses}{f'  ({moas})' if moas else ''}")
    return lines


def _label_lines(cells: pd.DataFrame) -> list[str]:
    """One line per label."""
    numbers = cells["label"].replace("", _NAMELESS).value_counts().sort_index()
    width = max(map(len, numbers.index.astype(str)))
    return [f"  {label:<{width}}  {count:,}" for label, count in numbers.items()]


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide the content."""
    versions = {"python": platform.python_version()}
    for package in ("cellclr_jax", *_PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


# Shown for an unknown compound or label.
_NAMELESS = "(unknown)"
# Columns that identify each kind of thing that is counted.
_COUNTED = {
    "plate": ["plate"],
    "well": ["plate", "well"],
    "treatment": ["compound", "concentration"],
    "label": ["label"],
}


def count_kinds(cells: pd.DataFrame) -> dict[str, int]:
    """Counts the plates, wells, treatments and labels of a table of cells.

    Args:
      cells: one row per cell.

    Returns:
      Numbers by 'plate', 'well', 'treatment' and 'label', as far as the table has their columns.
      Controls are not counted as a treatment, and empty names not at all.
    """
    found = {}
    for kind, names in _COUNTED.items():
        if set(names) <= set(cells):
            counted = cells[(cells[names] != "").all(axis=1)]
            if kind == "treatment":
                counted = counted[~is_control(counted["compound"])]
            found[kind] = int(counted.groupby(names, dropna=False).ngroups)
    return found
