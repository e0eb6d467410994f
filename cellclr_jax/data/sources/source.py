"""Fields of view as the rest of `data/` hands them on: what they show, where their files are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellclr_jax.data.readers.find_files import ImageFile

# How the channels of a given crop lie in its file: along an axis, or as tiles from left to right.
LAYOUTS = ("stacked", "side_by_side")


@dataclass(frozen=True)
class Field:
    """Cells that are read together and have the same metadata.

    Either one field of view, in which cells are found: `files` are its channels, one file each. Or
    cells that are given: `files` are their crops, one file each, and `cells` their ids.

    Attributes:
      name: how messages name it; with '/<number>' the ids of the cells that are found in it.
      metadata: a value for each column of its source, of the type that `COLUMNS` tells.
      files: of channels or of crops.
      cells: the ids of given crops; empty where cells have yet to be found.
      centers: (row, column) of its nuclei in pixels where they are known; None: to be found.
    """

    name: str
    metadata: Mapping[str, str | int | float]
    files: tuple[ImageFile, ...]
    cells: tuple[str, ...] = ()
    centers: tuple[tuple[float, float], ...] | None = None

    @property
    def plate(self) -> str:
        """Its plate; '' where none is known."""
        return str(self.metadata.get("plate", ""))

    @property
    def absent(self) -> str:
        """The reason not to read it: the file that is not there; '' where all are."""
        missing = [file.name for file in self.files if not file.path]
        return f"no file {', '.join(missing)}" if missing else ""


@dataclass(frozen=True)
class Source:
    """The fields of a build in their order, and what is told about them in the manifest.

    Attributes:
      fields: sorted by plate first.
      columns: of their metadata, in the order of `COLUMNS`.
      channels: stored order.
      crop_size: side of given crops; None where the build decides (and cuts or resizes).
      dtype: of a stored pixel: uint8 or uint16.
      layout: of given crops, one of `LAYOUTS`.
      tables: path of each table that was read, by what it is ('image table').
      problems: (what, reason) of files that belong to no field.
      lost: how many fields' worth of cells `problems` stand for; None: one each.
      absent_plates: plates of a table without a single file.
      notes: what a user should know before the build.
    """

    fields: list[Field]
    columns: tuple[str, ...]
    channels: tuple[str, ...]
    crop_size: int | None = None
    dtype: str = "uint16"
    layout: str = "stacked"
    tables: Mapping[str, str] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    lost: float | None = None
    absent_plates: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def lost_fields(self) -> float:
        """How many fields' worth of cells are lost with the files that belong to no field."""
        return len(self.problems) if self.lost is None else self.lost


@dataclass(frozen=True)
class Request:
    """What is asked of a source: the values of the flags.

    Attributes:
      inputs: folders or zips.
      channels: names in stored order; empty: the source's own.
      image_csv, moa_csv: tables of a release; None: looked for in and above the inputs.
      labels_csv: of --source=folder: a table with a row an image; None: subfolders are labels.
      label_columns: of `labels_csv`: what a column of `COLUMNS`, or 'file', is called in it.
      centers: nuclei from elsewhere: a CellProfiler CSV or a DeepProfiler `locations` folder.
      annotated: keeps wells with an MoA and controls alone.
      plates: these alone (empty: all).
      simulation: the simulator's settings by name.
      workers: processes.
      overwrite: replaces a simulated release of other settings.
    """

    inputs: tuple[Path, ...]
    channels: tuple[str, ...] = ()
    image_csv: Path | None = None
    moa_csv: Path | None = None
    labels_csv: Path | None = None
    label_columns: Mapping[str, str] = field(default_factory=dict)
    centers: Path | None = None
    annotated: bool = True
    plates: tuple[str, ...] = ()
    simulation: dict[str, Any] = field(default_factory=dict)
    workers: int = 1
    overwrite: bool = False
