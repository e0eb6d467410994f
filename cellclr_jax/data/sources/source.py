"""The interface of sources: fields of view or groups of single cells that read themselves.

A new source implements `Field` (whole fields, in which cells are found) or `CellGroup` (images of
single cells) for its format and returns a `Source`. `FieldFiles` and `CellFiles` implement them for
image files in folders and zips.
"""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cellclr_jax.data.names import Names
from cellclr_jax.data.readers import read_cell, read_planes
from cellclr_jax.data.readers.find_files import ImageFile
from cellclr_jax.data.readers.formats import WHOLE, Selection


@dataclass(frozen=True)
class ImageGroup(abc.ABC):
    """Images that are read together and share their metadata. Can be pickled.

    Attributes:
      name: identifies them in messages; cells found in a field have the ids '<name>/<number>'.
      metadata: a value for each column of the source, of the type in `columns.COLUMNS`.
      centers: (row, column) of the nuclei in pixels of the field; None: unknown.
    """

    name: str
    metadata: Mapping[str, str | int | float]
    centers: tuple[tuple[float, float], ...] | None = field(default=None, kw_only=True)

    @property
    def plate(self) -> str:
        """The plate; '' if unknown."""
        return str(self.metadata.get("plate", ""))

    @property
    def absent(self) -> str:
        """The reason, known before reading, why the images cannot be read; '' if there is none."""
        return ""

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of the image files, by which a table may refer to them."""
        return ()

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Returns a text that changes whenever the pixels may have changed; reads no pixels."""

    def contents(self) -> tuple[str, ...]:
        """Returns a text for each file, such as name and size, that is the same for a copy."""
        return (self.fingerprint(),)


class Field(ImageGroup):
    """One field of view, in which cells are found."""

    @abc.abstractmethod
    def read(self) -> np.ndarray:
        """Reads [H, W, C] of the source's dtype, the channels in the order of the source.

        Raises:
          BadData: unreadable; the field is skipped and the message recorded.
        """


@dataclass(frozen=True)
class CellGroup(ImageGroup):
    """Images of single cells.

    Attributes:
      cells: the ids of the cells.
    """

    cells: tuple[str, ...]

    @abc.abstractmethod
    def read(self, number: int) -> np.ndarray:
        """Reads the image of `cells[number]`: [H, W, C] of the source's dtype, of any size.

        Raises:
          BadData: unreadable; the cell is skipped and the message recorded.
        """

    def where(self, number: int) -> str:
        """Returns the location of a cell's image for error messages."""
        return self.cells[number]


@dataclass(frozen=True)
class _InFiles(ImageGroup):
    """Images in files, in folders or zips.

    Attributes:
      files: one for each channel, or cell.
      selection: how one image is taken from a file that holds more.
    """

    files: tuple[ImageFile, ...]
    selection: Selection = field(default=WHOLE, kw_only=True)

    @property
    def absent(self) -> str:
        """Names the missing files."""
        missing = [file.name for file in self.files if not file.path]
        return f"no file {', '.join(missing)}" if missing else ""

    @property
    def file_names(self) -> tuple[str, ...]:
        """The names of all files."""
        return tuple(file.name for file in self.files)

    def fingerprint(self) -> str:
        """Names with sizes and times, or checksums in a zip, and the selection."""
        return "\n".join([*(file.stamp() for file in self.files), repr(tuple(self.selection))])

    def contents(self) -> tuple[str, ...]:
        """Names and sizes of the existing files."""
        return tuple(f"{file.name} {file.size()}" for file in self.files if file.path)


@dataclass(frozen=True)
class FieldFiles(_InFiles, Field):
    """A field of view with one 16-bit greyscale TIFF for each channel."""

    def read(self) -> np.ndarray:
        """See `Field`."""
        return read_planes(self.files, self.selection.z)


@dataclass(frozen=True)
class CellFiles(_InFiles, CellGroup):
    """Single cells with one image file each.

    Attributes:
      channels: their number.
      dtype: of a pixel, 'uint8' or 'uint16'.
      layout: one of `readers.LAYOUTS`.
    """

    channels: int
    dtype: str = "uint16"
    layout: str = "stacked"

    def read(self, number: int) -> np.ndarray:
        """See `CellGroup`."""
        return read_cell(
            self.files[number],
            channels=self.channels,
            layout=self.layout,
            dtype=self.dtype,
            selection=self.selection,
        )

    def where(self, number: int) -> str:
        """Returns the file's name."""
        return self.files[number].where


@dataclass(frozen=True)
class Source:
    """The images of a build in their order, with facts for the manifest.

    Attributes:
      fields: all `Field`s or all `CellGroup`s, sorted by plate first.
      columns: of their metadata, in the order of `columns.COLUMNS`.
      channels: names, in stored order.
      nuclei: the channel in which nuclei are found; '': the first.
      crop_size: side of the crops; None if the build decides (and cuts or resizes).
      dtype: of a stored pixel: 'uint8' or 'uint16'.
      tables: path of each table that was read, by its kind ('image table').
      problems: (what, reason) of files that belong to no field.
      lost: `problems` in fields' worth of cells; None: one each.
      absent_plates: plates of a table without a single file.
      notes: printed before the build.
      left_out: descriptions of files that are not images of the dataset.
      planes: description of the axes and planes of the files.
    """

    fields: Sequence[Field | CellGroup]
    columns: tuple[str, ...]
    channels: tuple[str, ...]
    nuclei: str = ""
    crop_size: int | None = None
    dtype: str = "uint16"
    tables: Mapping[str, str] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    lost: float | None = None
    absent_plates: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    planes: str = "one plane"

    @property
    def lost_fields(self) -> float:
        """Fields' worth of cells in files that belong to no field."""
        return len(self.problems) if self.lost is None else self.lost


@dataclass(frozen=True)
class Request:
    """The settings of the command line for a source.

    Attributes:
      inputs: folders or zips.
      channels: names in stored order; empty: the source decides.
      image_csv, moa_csv: tables of a release; None: searched in and above the inputs.
      centers: a CellProfiler CSV or a DeepProfiler `locations` folder with centres of nuclei.
      annotated: takes only wells with an MoA, and controls.
      plates: takes only these (empty: all).
      pages, z: how one image is taken from a file that holds more (see `formats.Selection`).
      options: values of the options that the source declares, by name.
      workers: processes.
      overwrite: replaces simulated plates of other settings.
      exact_names: distinguishes spellings of names in tables (see `data.names`).
    """

    inputs: tuple[Path, ...]
    channels: tuple[str, ...] = ()
    image_csv: Path | None = None
    moa_csv: Path | None = None
    centers: Path | None = None
    annotated: bool = True
    plates: tuple[str, ...] = ()
    pages: str = ""
    z: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    overwrite: bool = False
    exact_names: bool = False

    def names(self) -> Names:
        """Makes a register for the names in the tables of this request."""
        return Names(exact=self.exact_names)
