"""Simulated plates in BBBC021's own layout, with the truth about every nucleus beside them.

    summary = simulate_release(Path("release"), SimulatorSettings(seed=0))

writes, under `release/`,

    BBBC021_v1_image.csv, BBBC021_v1_moa.csv             metadata with BBBC021's columns
    Week1/Week1_90001/B02_s1_w1<GUID>.tif                16-bit fields: w1 DNA, w2 tubulin, w4 actin
    ground_truth/Week1_90001/B02_s1.npz                  labels, centres and cell states of a field
    simulation.json                                      the settings; written when all is there

so that everything that reads the real screen reads this one too. The pictures are drawn, compounds
are named `sim-...`, and no score on them says anything about a drug.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cellclr_jax.cli import BadUse
from cellclr_jax.data.simulation.camera import expose
from cellclr_jax.data.simulation.painter import paint_field
from cellclr_jax.data.simulation.plate_layout import (
    SimulatorSettings,
    Well,
    field_streams,
    plate_wells,
    settings_dict,
    treatments,
)
from cellclr_jax.data.simulation.release_files import (
    IMAGE_CSV,
    MOA_CSV,
    plate_dir,
    sites,
    truth_path,
    write_field,
    write_image_csv,
    write_moa_csv,
    write_truth,
)
from cellclr_jax.data.simulation.textures import texture_bank

__all__ = ["ReleaseSummary", "SimulatorSettings", "simulate_release"]

VERSION = 1  # of what is drawn: the same settings give the same files within one version
FINISHED, STARTED = "simulation.json", "simulation.started.json"
SITES_A_TASK = 4  # fields a worker is handed at a time, to keep hand-over cheap and progress smooth


@dataclass(frozen=True)
class ReleaseSummary:
    """What a release holds and how long it took; `reused` where it was there already."""

    out_dir: Path
    plates: int
    wells: int
    fields: int
    treatments: int
    cells: int
    seconds: float
    reused: bool


def simulate_release(
    out_dir: Path,
    settings: SimulatorSettings,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> ReleaseSummary:
    """Writes a simulated release, or returns at once where the same one is there already.

    An interrupted run is carried on by the next one with the same settings. The files are the same
    bytes whatever the number of workers.

    Args:
      out_dir: folder of the release; made where it is missing.
      settings: what to simulate.
      workers: processes that paint; None takes one for each core this process may use.
      progress: shows a bar with the time left.

    Raises:
      BadUse: `out_dir` holds a release of other settings, or files that are no simulated release.
    """
    began = time.monotonic()
    if workers is not None and workers < 1:
        raise BadUse(f"simulator: workers is {workers}, expected 1 or more")
    out_dir = Path(out_dir)
    wells = plate_wells(settings)
    cells = _cells_if_finished(out_dir, settings)
    reused = cells is not None
    if cells is None:
        _start(out_dir, settings)
        cells = _paint_all(out_dir, settings, wells, workers, progress)
        write_moa_csv(out_dir / MOA_CSV, settings)
        write_image_csv(out_dir / IMAGE_CSV, settings, wells)
        _write_json(out_dir / FINISHED, {**_identity(settings), "cells": cells})
        (out_dir / STARTED).unlink(missing_ok=True)
    return ReleaseSummary(
        out_dir=out_dir,
        plates=len({well.plate for well in wells}),
        wells=len(wells),
        fields=len(wells) * settings.sites,
        treatments=len(treatments(settings)),
        cells=cells,
        seconds=time.monotonic() - began,
        reused=reused,
    )


def _identity(settings: SimulatorSettings) -> dict[str, object]:
    """What decides the bytes of a release."""
    return {"simulator_version": VERSION, "settings": settings_dict(settings)}


def _cells_if_finished(out_dir: Path, settings: SimulatorSettings) -> int | None:
    """The number of cells of the finished release in `out_dir`; None where there is none."""
    record = _read_json(out_dir / FINISHED)
    if record is None:
        return None
    _check_identity(out_dir, record, settings)
    cells = record.get("cells")
    return cells if isinstance(cells, int) else None


def _start(out_dir: Path, settings: SimulatorSettings) -> None:
    """Marks `out_dir` as holding an unfinished release of `settings`."""
    if out_dir.exists() and not out_dir.is_dir():
        raise BadUse(f"{out_dir} is a file: a simulated release needs a folder")
    record = _read_json(out_dir / STARTED)
    if record is not None:
        _check_identity(out_dir, record, settings)
    elif out_dir.exists() and any(out_dir.iterdir()):
        raise BadUse(f"{out_dir} holds files that are no simulated release: choose an empty folder")
    out_dir.mkdir(parents=True, exist_ok=True)
    _write_json(out_dir / STARTED, _identity(settings))


def _check_identity(out_dir: Path, record: dict, settings: SimulatorSettings) -> None:
    """Raises BadUse where the release in `out_dir` has other settings."""
    wanted = _identity(settings)
    if record.get("simulator_version") != VERSION:
        raise BadUse(
            f"{out_dir} holds a release of another simulator version: choose another folder"
        )
    there = record.get("settings", {})
    differ = [
        f"{name}={there.get(name)!r} (asked: {value!r})"
        for name, value in settings_dict(settings).items()
        if there.get(name) != value
    ]
    if differ or set(there) != set(wanted["settings"]):  # type: ignore[call-overload]
        raise BadUse(
            f"{out_dir} holds a release of other settings: {', '.join(differ)}; "
            "choose another folder"
        )


def _paint_all(
    out_dir: Path,
    settings: SimulatorSettings,
    wells: list[Well],
    workers: int | None,
    progress: bool,
) -> int:
    """Paints every field, in parallel; returns the number of cells."""
    for well in wells:
        plate_dir(out_dir, well).mkdir(parents=True, exist_ok=True)
        truth_path(out_dir, well, 1).parent.mkdir(parents=True, exist_ok=True)
    jobs = [(out_dir, settings, well, site) for well in wells for site in sites(settings)]
    count = min(workers or _usable_cores(), len(jobs))
    bar = tqdm(total=len(jobs), desc="simulated fields", unit="field", disable=not progress)
    with bar:
        cells = 0
        for found in _painted(jobs, count):
            cells += found
            bar.update()
    return cells


def _usable_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux, where a container may hold fewer than the machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _painted(jobs: list[tuple[Path, SimulatorSettings, Well, int]], count: int) -> Iterator[int]:
    """The number of cells of each field, as `count` processes finish them."""
    if count <= 1:
        yield from map(_paint_job, jobs)
        return
    # A spawned process inherits no threads or locks, whatever the caller has started before.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        yield from pool.map(_paint_job, jobs, chunksize=SITES_A_TASK)


def _paint_job(job: tuple[Path, SimulatorSettings, Well, int]) -> int:
    """Paints and writes one field, unless an interrupted run has written it; returns its cells."""
    out_dir, settings, well, site = job
    truth = truth_path(out_dir, well, site)
    if truth.exists():
        with np.load(truth) as there:
            return len(there["x"])
    cells_rng, camera_rng, _ = field_streams(settings, well, site)
    field = paint_field(
        cells_rng,
        well.population,
        texture_bank(settings.seed),
        height=settings.height,
        width=settings.width,
    )
    digits = expose(camera_rng, field.image, well.optics)
    write_field(out_dir, settings, well, site, digits)
    write_truth(truth, field)
    return len(field.centres)


def _read_json(path: Path) -> dict | None:
    """The object in a file that a simulation wrote; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadUse(f"{path} is no record of a simulation ({error}): delete its folder") from error
    return record if isinstance(record, dict) else {}


def _write_json(path: Path, record: dict[str, object]) -> None:
    """Writes a record whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
