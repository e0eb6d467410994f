"""The light of each plate: fitted once, kept next to the datasets for later builds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from cellclr_jax import files
from cellclr_jax.console import Progress
from cellclr_jax.data.building.pieces import describe
from cellclr_jax.data.illumination import FEWEST_FIELDS, FIT_VERSION, Illumination, fit_plate
from cellclr_jax.data.sources.source import Field
from cellclr_jax.errors import BadData

_FOLDER = "illumination"
# Of the digest of a plate's files and of the plate's name, in the name of its light.
_DIGITS, _NAME = 16, 60

MapInOrder = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class PlateLight:
    """A plate's fields and the file of its light."""

    plate: str
    fields: tuple[Field, ...]
    channels: tuple[str, ...]
    method: str
    path: Path


def light_files(
    fields: Sequence[Field], channels: Sequence[str], method: str, data_dir: Path
) -> dict[str, Path]:
    """The file of each plate's light, which may not exist: other pixels or channels, other file.

    Args:
      fields: of raw plates.
      channels: their names.
      method: of the fit.
      data_dir: the lights lie in its folder `illumination`.
    """
    stamps: dict[str, list[str]] = {}
    for field in fields:
        stamps.setdefault(field.plate, []).append(describe(field, [field.fingerprint()]))
    how = f"{'-'.join(channels)}-{method}{FIT_VERSION}"
    return {
        # A name for any file system, whatever the plate is called.
        plate: data_dir
        / _FOLDER
        / f"{quote(plate, safe='')[:_NAME]}-{files.digest(*lines)[:_DIGITS]}-{how}.npz"
        for plate, lines in stamps.items()
    }


def fit_light(
    fields: Sequence[Field],
    channels: Sequence[str],
    method: str,
    paths: Mapping[str, Path],
    run: MapInOrder,
    show: bool,
) -> None:
    """Fits the light of every plate, unless its file exists.

    A plate with too few readable fields gets none, which is reported.

    Args:
      fields: of raw plates.
      channels: their names.
      method: one of `illumination.METHODS`.
      paths: `light_files` of it.
      run: `map`, in many processes.
      show: whether progress is shown.
    """
    members: dict[str, list[Field]] = {}
    for field in fields:
        members.setdefault(field.plate, []).append(field)
    missing = [
        PlateLight(plate, tuple(group), tuple(channels), method, paths[plate])
        for plate, group in members.items()
        if not paths[plate].exists()
    ]
    if missing:
        with Progress(len(missing), show, unit="plate", task="illumination") as progress:
            for few in run(fit_one, missing):
                if few:
                    print(few, flush=True)
                progress.step()


def fit_one(plate: PlateLight) -> str:
    """Fits and saves the light of one plate, unless it is there.

    Returns:
      Why it gets none, or ''.
    """
    if plate.path.exists():
        return ""
    try:
        light = fit_plate(plate.fields, plate.channels, plate.method)
    except BadData as error:
        return f"the light of {plate.plate} is not corrected: {error}"
    if light.fields < FEWEST_FIELDS:
        return (
            f"the light of {plate.plate} is not corrected: {light.fields} fields tell too little "
            f"about it, at least {FEWEST_FIELDS} were expected"
        )
    light.save(plate.path)
    return ""


def read_gains(names: Mapping[str, str], data_dir: Path) -> dict[str, np.ndarray]:
    """The lights that a manifest names, as far as they are there.

    Args:
      names: of files, by plate.
      data_dir: of the datasets.

    Returns:
      By plate [h, w, C] float32, relative to its mean.
    """
    found = {}
    for plate, name in names.items():
        path = data_dir / _FOLDER / Path(name).name
        if path.is_file():
            found[plate] = Illumination.load(path).gain
    return found
