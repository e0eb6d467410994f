"""The registry of sources of images.

To add a source, write a module with a function `Request -> Source` (see `source.py`) and add one
entry to `SOURCES`. The entry lists the flags of the build that the source uses and declares its
additional flags; command, messages and manifest follow from it. This module imports nothing heavy,
so that `--help` is quick.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cellclr_jax.errors import BadUse

if TYPE_CHECKING:
    from cellclr_jax.data.sources.source import Request, Source

BBBC021 = "bbbc021"
"""Name of the dataset of BBBC021's plates and of plates in its layout."""
PLATES = "plates"
"""The dataset of plates of any lab."""
SINGLE_CELLS = "single_cells"
"""Name of the dataset of single-cell images of any origin."""


@dataclass(frozen=True)
class Option:
    """A flag that only one source has: arguments of absl's DEFINE_<kind>.

    Attributes:
      kind: string, integer, list, …
      limits: further arguments, such as lower_bound.
      decides: whether its value decides the content of the dataset.
    """

    kind: str
    name: str
    default: Any
    help: str
    limits: Mapping[str, Any] = field(default_factory=dict)
    decides: bool = False


@dataclass(frozen=True)
class SourceEntry:
    """An entry of the registry.

    Attributes:
      function: '<module>:<function>', a function `Request -> Source`; imported when used.
      help: its content, for `--help` and for "Build it from …".
      dataset: name of the TFDS dataset.
      arguments: flags after --source in messages that show how to build.
      flags: optional flags of the build that it uses; all others are refused.
      options: flags that only this source has; `Request.options` has their values.
      whole_fields: its images are fields of view; otherwise single cells.
      settings: '<module>:<function>', a function `Request -> settings` for the manifest. If set,
        the settings decide the content: a finished dataset needs no input.
      default_input: folder in --data_dir that is used without --input.
    """

    function: str
    help: str
    dataset: str = SINGLE_CELLS
    arguments: str = "--input=DIR"
    flags: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    whole_fields: bool = False
    settings: str = ""
    default_input: str = ""


_HERE = __name__
_TABLES = ("image_csv", "moa_csv", "exact_names")
_CUT = ("crop_size", "border", "min_area", "illumination", "masks", "cell_radius")
_DOWNLOAD = ("download", "url", "downloads")

SOURCES: dict[str, SourceEntry] = {
    "raw": SourceEntry(
        f"{_HERE}.bbbc021_plates:raw_fields",
        "BBBC021's plates",
        dataset=BBBC021,
        arguments="--input=PLATES (or --download)",
        flags=("config", *_CUT, *_TABLES, *_DOWNLOAD, "centers", "z"),
        whole_fields=True,
    ),
    "plates": SourceEntry(
        f"{_HERE}.plates:plate_fields",
        "plates of any lab",
        dataset=PLATES,
        arguments="--images=TABLE (or --images=PATTERN, or --input=INDEX or ZARR)",
        flags=(*_CUT, "exact_names", "z", "dry_run"),
        options=(
            Option(
                "string",
                "images",
                "",
                "A table of image files (CellProfiler's LoadData, or one row for each "
                "image), or a pattern of file names such as "
                "'{plate}/{well}_s{site}_w{channel:[0-9]}*.tif', or the name of a microscope: "
                "imagexpress, phenix, cellvoyager, cytation.",
            ),
            Option(
                "string",
                "root",
                None,
                "Folder of the images, in place of folders that a table names, e.g. --root=IMAGES.",
            ),
            Option(
                "integer",
                "level",
                0,
                "Level of resolution of an OME-Zarr plate; 0 is the full one.",
                {"lower_bound": 0},
                decides=True,
            ),
            Option("string", "time", "", "The time point to take, e.g. --time=1.", decides=True),
            Option(
                "string",
                "nuclei",
                "",
                "Channel that shows nuclei, e.g. --nuclei=DAPI.",
                decides=True,
            ),
            Option(
                "string",
                "platemap",
                None,
                "A table with one row for each well: CSV, TSV or Parquet.",
            ),
            Option(
                "list",
                "platemap_columns",
                [],
                "Names of its columns, such as compound=drug,concentration=dose_um.",
            ),
        ),
        whole_fields=True,
    ),
    "crops": SourceEntry(
        f"{_HERE}.crop_folders:crop_fields",
        "published crops of BBBC021",
        dataset=BBBC021,
        arguments="--input=CROPS",
        flags=("config", *_TABLES),
    ),
    "deepprofiler": SourceEntry(
        f"{_HERE}.deepprofiler:deepprofiler_fields",
        "single cells that DeepProfiler exported",
        arguments="--input=EXPORT",
        flags=("crop_size", "fit", "exact_names"),
    ),
    "folder": SourceEntry(
        f"{_HERE}.image_folders:folder_fields",
        "images of single cells",
        arguments="--input=IMAGES [--labels_csv=FILE]",
        flags=("crop_size", "fit", "pages", "z", "exact_names"),
        options=(
            Option(
                "string",
                "labels_csv",
                None,
                "Table with one row for each image, e.g. --labels_csv=labels.csv.",
            ),
            Option(
                "list",
                "label_columns",
                [],
                "Its column names, e.g. --label_columns=file=path,label=cell_type.",
            ),
        ),
    ),
    "simulated": SourceEntry(
        f"{_HERE}.simulated:simulated_fields",
        "simulated plates",
        dataset=BBBC021,
        arguments="",
        flags=("config", *_CUT),
        options=(
            Option(
                "integer", "seed", None, "Seed of the simulation. Default: 0.", {"lower_bound": 0}
            ),
            Option(
                "integer",
                "weeks",
                None,
                "Number of weeks (batches). Default: 3.",
                {"lower_bound": 2},
            ),
            Option(
                "integer",
                "plates_per_week",
                None,
                "Plates per week. Default: 3.",
                {"lower_bound": 1},
            ),
            Option("integer", "sites", None, "Fields per well. Default: 1.", {"lower_bound": 1}),
            Option(
                "list",
                "simulator",
                [],
                "Other settings, e.g. --simulator=height=512,width=640.",
            ),
        ),
        whole_fields=True,
        settings=f"{_HERE}.simulated:simulation_settings",
        default_input="simulated_release",
    ),
}


def entry(name: str) -> SourceEntry:
    """Returns the entry of a source; BadUse if there is no such source."""
    if name not in SOURCES:
        raise BadUse(f"unknown source {name!r}: one of {', '.join(SOURCES)}")
    return SOURCES[name]


def open_source(name: str, request: "Request") -> "Source":
    """Lists the images of a source, a key of `SOURCES`.

    Raises:
      BadUse: an unknown source, plate or channel, or a missing input.
      BadData: tables or files that do not fit together.
    """
    source: Source = _load(entry(name).function)(request)
    return source


def source_settings(name: str, request: "Request") -> dict[str, Any]:
    """Returns the settings that determine a source's content; {} if only its input does."""
    reference = entry(name).settings
    return dict(_load(reference)(request)) if reference else {}


def how_to_build(dataset: str, config: str, data_dir: object) -> str:
    """Formats a sentence with the commands that build a dataset."""
    found = {name: one for name, one in SOURCES.items() if one.dataset == dataset}
    command = f"python -m cellclr_jax.build --data_dir={data_dir}"
    ways = []
    for name, one in (found or SOURCES).items():
        chosen = f" --config={config}" if "config" in one.flags else ""
        ways.append(f"from {one.help}: {command}{chosen} --source={name} {one.arguments}".strip())
    return f"Build it {' — or '.join(ways)} — or see everything run: bash launch/demo.sh"


def _load(reference: str) -> Any:
    """Imports '<module>:<name>'; tests pass functions."""
    if callable(reference):
        return reference
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
