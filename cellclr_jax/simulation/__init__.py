"""Simulated plates in BBBC021's own layout, with the truth about every nucleus.

    summary = simulate_release(Path("release"), SimulatorSettings(seed=0))

writes, under `release/`,

    BBBC021_v1_image.csv, BBBC021_v1_moa.csv             metadata with BBBC021's columns
    Week1/Week1_90001/B02_s1_w1<GUID>.tif                16-bit fields: w1 DNA, w2 tubulin, w4 actin
    ground_truth/Week1_90001/B02_s1.npz                  labels, centres and cell states of a field
    simulation.json                                      the settings; written when all is there

so that everything that reads the real screen reads this one too. The pictures are drawn, compounds
are named `sim-...`, and no score on them says anything about a drug.
"""

import functools
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellclr_jax import files
from cellclr_jax.console import Progress
from cellclr_jax.data.building.workers import map_in_order, usable_cores
from cellclr_jax.data.tables.bbbc021 import IMAGE_CSV, MOA_CSV
from cellclr_jax.errors import BadUse
from cellclr_jax.simulation import release
from cellclr_jax.simulation.camera import expose
from cellclr_jax.simulation.painter import paint_field
from cellclr_jax.simulation.plate_layout import (
    SimulatorSettings,
    Well,
    field_streams,
    plate_wells,
    treatments,
)
from cellclr_jax.simulation.release import (
    plate_dir,
    truth_path,
    write_field,
    write_image_csv,
    write_moa_csv,
    write_truth,
)
from cellclr_jax.simulation.textures import texture_bank

__all__ = ["ReleaseSummary", "SimulatorSettings", "simulate_release"]


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
    overwrite: bool = False,
) -> ReleaseSummary:
    """Writes a simulated release, or returns at once where the same one is there already.

    An interrupted run is carried on by the next one with the same settings. The files are the same
    bytes whatever the number of workers.

    Args:
      out_dir: folder of the release; made where it is missing.
      settings: what to simulate.
      workers: processes that paint; None takes one for each core this process may use.
      progress: shows a bar with the time left, or lines where the console is a file.
      overwrite: replaces a release of other settings, finished or not; other files stay.

    Raises:
      BadUse: `out_dir` holds a release of other settings, or files that are no simulated release,
        or another process writes into it.
      BadData: a worker process was killed.
    """
    began = time.monotonic()
    if workers is not None and workers < 1:
        raise BadUse(f"simulator: workers is {workers}, expected 1 or more")
    out_dir = Path(out_dir)
    wells = plate_wells(settings)
    cells = release.cells_if_finished(out_dir, settings)
    reused = cells is not None
    if cells is None:
        release.check_folder(out_dir, settings, overwrite)
        with files.locked(out_dir, release.LOCK, "simulating into it"):
            release.start(out_dir, settings, overwrite)
            cells = _write_release(out_dir, settings, wells, workers or usable_cores(), progress)
            release.finish(out_dir, settings, cells)
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


def _write_release(
    out_dir: Path, settings: SimulatorSettings, wells: list[Well], workers: int, progress: bool
) -> int:
    """Paints every field, in parallel, and writes the tables; returns the number of cells."""
    for well in wells:
        plate_dir(out_dir, well).mkdir(parents=True, exist_ok=True)
        truth_path(out_dir, well, 1).parent.mkdir(parents=True, exist_ok=True)
    jobs = [(well, site) for well in wells for site in range(1, settings.sites + 1)]
    work = functools.partial(_paint_job, out_dir, settings)
    cells = 0
    with Progress(len(jobs), progress, task="simulated") as shown:
        for found in map_in_order(work, jobs, workers):
            cells += found
            shown.step(cells=found)
    write_moa_csv(out_dir / MOA_CSV, settings)
    write_image_csv(out_dir / IMAGE_CSV, settings, wells)
    return cells


def _paint_job(out_dir: Path, settings: SimulatorSettings, job: tuple[Well, int]) -> int:
    """Paints and writes one field, unless an interrupted run has written it; returns its cells."""
    well, site = job
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
