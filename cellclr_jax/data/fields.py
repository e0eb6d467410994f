"""Fields of view as the rest of `data/` hands them on: what they show, where their files are."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellclr_jax.data.image_files import ImageFile


@dataclass(frozen=True)
class Field:
    """One field of view: what it shows and its files.

    `files` are its channels, one file each, or, where `numbers` is not empty, its crops.
    """

    plate: str
    well: str
    site: int
    batch: str
    compound: str
    concentration: float
    replicate: int
    moa: str
    files: tuple[ImageFile, ...]
    numbers: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """'<plate>/<well>/s<site>', the beginning of its cells' ids."""
        return f"{self.plate}/{self.well}/s{self.site}"

    @property
    def absent(self) -> str:
        """The reason not to read it: the file that is not there; '' where all are."""
        missing = [file.name for file in self.files if not file.path]
        return f"no file {', '.join(missing)}" if missing else ""


@dataclass(frozen=True)
class Source:
    """The fields of a build in their order, and what is told about them in the manifest.

    `crop_size` is None where nuclei have yet to be found, `problems` are (what, reason) pairs of
    files that belong to no field, `absent_plates` are plates of the table without a single file.
    """

    fields: list[Field]
    channels: tuple[str, ...]
    crop_size: int | None
    image_csv: str
    moa_csv: str
    problems: list[tuple[str, str]] = field(default_factory=list)
    absent_plates: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Request:
    """What is asked of a source: the values of the flags.

    `simulation` are the simulator's settings by name, `annotated` keeps wells with an MoA and
    controls alone, `plates` restricts to these (empty: all), `overwrite` replaces a simulated
    release of other settings.
    """

    inputs: tuple[Path, ...]
    channels: tuple[str, ...] = ()
    image_csv: Path | None = None
    moa_csv: Path | None = None
    annotated: bool = True
    plates: tuple[str, ...] = ()
    simulation: dict[str, Any] = field(default_factory=dict)
    workers: int = 1
    overwrite: bool = False
