"""The light of each plate: fitted once, kept next to the datasets for later builds."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
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


def fit_lights(
    fields: Sequence[Field],
    channels: Sequence[str],
    method: str,
    data_dir: Path,
    *,
    run: MapInOrder,
    show: bool,
) -> dict[str, Path]:
    """Fits the light of every plate, unless its file exists: other pixels or channels, other file.

    A plate with too few readable fields gets none, which is reported.

    Args:
      fields: of raw plates.
      channels: their names.
      method: one of `illumination.METHODS`.
      data_dir: the lights lie in its folder `illumination`.
      run: `map`, in many processes.
      show: whether progress is shown.

    Returns:
      The file of each plate's light.
    """
    plates: dict[str, list[Field]] = {}
    for field in fields:
        plates.setdefault(field.plate, []).append(field)
    how = f"{'-'.join(channels)}-{method}{FIT_VERSION}.npz"
    paths = {}
    for plate, members in plates.items():
        content = files.digest(*(describe(field, [field.fingerprint()]) for field in members))
        # A name for any file system, whatever the plate is called.
        name = f"{quote(plate, safe='')[:_NAME]}-{content[:_DIGITS]}-{how}"
        paths[plate] = data_dir / _FOLDER / name
    missing = [(path, plates[plate]) for plate, path in paths.items() if not path.exists()]
    if missing:
        fit = functools.partial(_fit, channels=tuple(channels), method=method)
        with Progress(len(missing), show, unit="plate", task="illumination") as progress:
            for few in run(fit, missing):
                if few:
                    print(few, flush=True)
                progress.step()
    return {plate: path for plate, path in paths.items() if path.exists()}


def _fit(job: tuple[Path, Sequence[Field]], *, channels: Sequence[str], method: str) -> str:
    """Fits and saves the light of one plate, (file, fields), unless the file is there.

    Returns:
      Why it gets none, or ''.
    """
    path, fields = job
    if path.exists():
        return ""
    try:
        light = fit_plate(fields, channels, method)
    except BadData as error:
        return f"the light of {fields[0].plate} is not corrected: {error}"
    if light.fields < FEWEST_FIELDS:
        return (
            f"the light of {fields[0].plate} is not corrected: {light.fields} fields tell too "
            f"little about it, at least {FEWEST_FIELDS} were expected"
        )
    light.save(path)
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
