"""The light of each plate: fitted once, kept beside the datasets, found again by the next build."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cellclr_jax.data.contents import Contents
from cellclr_jax.data.fields import Field, Source
from cellclr_jax.data.illumination import FIT_VERSION, fit_plate
from cellclr_jax.data.progress import Progress

_FOLDER = "illumination"
# Of the digest of a plate's contents, in the names of its files.
_DIGITS = 12

MapInOrder = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class PlateLight:
    """A plate's fields and the file of its light."""

    plate: str
    fields: tuple[Field, ...]
    channels: tuple[str, ...]
    path: Path


def fit_light(
    source: Source, contents: Contents, data_dir: Path, run: MapInOrder, show: bool
) -> Mapping[str, Path]:
    """Fits the light of every plate of a source, unless it is there.

    Args:
      source: fields of raw plates.
      contents: `describe_contents` of it: another file is another light.
      data_dir: the lights lie in its folder `illumination`.
      run: `map`, in many processes.
      show: whether progress is shown.

    Returns:
      The file of each plate.

    Raises:
      BadData: not one field of a plate can be read.
    """
    folder = data_dir / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    members: dict[str, list[Field]] = {}
    for field in source.fields:
        members.setdefault(field.plate, []).append(field)
    plates = [
        PlateLight(plate, tuple(fields), source.channels, folder / _name(plate, contents, source))
        for plate, fields in members.items()
    ]
    missing = [plate for plate in plates if not plate.path.exists()]
    if missing:
        with Progress(len(missing), show, unit="plate", task="illumination") as progress:
            for _ in run(fit_one, missing):
                progress.step()
    return {plate.plate: plate.path for plate in plates}


def fit_one(plate: PlateLight) -> None:
    """Fits and saves the light of one plate, unless it is there."""
    if not plate.path.exists():
        fit_plate(plate.fields, plate.channels).save(plate.path)


def _name(plate: str, contents: Contents, source: Source) -> str:
    """'<plate>-<what it was fitted on>.npz', a name for any file system."""
    what = f"{contents[plate]['digest'][:_DIGITS]}-{'-'.join(source.channels)}"
    return f"{quote(plate, safe='')}-{what}-v{FIT_VERSION}.npz"
