"""The illumination of each plate: fitted once, stored next to the datasets for later builds."""

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
# Lengths in a file's name: of the digest of the plate's files, and of the plate's name.
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
    """Fits the illumination of every plate that has no file for these pixels and channels yet.

    A plate with too few readable fields is not corrected, which is printed.

    Args:
      fields: of plates.
      channels: their names.
      method: one of `illumination.METHODS`.
      data_dir: files are stored in its folder `illumination`.
      run: `map`, in many processes.
      show: whether to show progress.

    Returns:
      File of each plate's illumination.
    """
    plates: dict[str, list[Field]] = {}
    for field in fields:
        plates.setdefault(field.plate, []).append(field)
    settings = f"{'-'.join(channels)}-{method}{FIT_VERSION}.npz"
    paths = {}
    for plate, members in plates.items():
        content = files.digest(*(describe(field, [field.fingerprint()]) for field in members))
        # Quoted and cut, since a plate's name may be no valid file name.
        name = f"{quote(plate, safe='')[:_NAME]}-{content[:_DIGITS]}-{settings}"
        paths[plate] = data_dir / _FOLDER / name
    missing = [(path, plates[plate]) for plate, path in paths.items() if not path.exists()]
    if missing:
        fit = functools.partial(_fit, channels=tuple(channels), method=method)
        with Progress(len(missing), show, unit="plate", task="illumination") as progress:
            for problem in run(fit, missing):
                if problem:
                    print(problem, flush=True)
                progress.step()
    return {plate: path for plate, path in paths.items() if path.exists()}


def _fit(job: tuple[Path, Sequence[Field]], *, channels: Sequence[str], method: str) -> str:
    """Fits and saves one plate, given as (file, fields), unless the file exists.

    Returns:
      Message why the plate is not corrected, or ''.
    """
    path, fields = job
    if path.exists():
        return ""
    try:
        light = fit_plate(fields, channels, method)
        if light.fields < FEWEST_FIELDS:
            raise BadData(
                f"{light.fields} fields are too few to estimate it, at least {FEWEST_FIELDS} are "
                "needed"
            )
    except BadData as error:
        return f"the illumination of plate {fields[0].plate} is not corrected: {error}"
    light.save(path)
    return ""


def read_gains(names: Mapping[str, str], data_dir: Path) -> dict[str, np.ndarray]:
    """Reads the existing illumination files that a manifest names.

    Args:
      names: of files, by plate.
      data_dir: of the datasets.

    Returns:
      By plate [h, w, C] float32, relative to its mean.
    """
    paths = {plate: data_dir / _FOLDER / Path(name).name for plate, name in names.items()}
    return {plate: Illumination.load(path).gain for plate, path in paths.items() if path.is_file()}
