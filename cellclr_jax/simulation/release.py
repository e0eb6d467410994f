"""Writes simulated releases: their files, their record, and what an interrupted one lacks."""

import functools
import os
import re
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile

from cellclr_jax import files
from cellclr_jax.console import Progress
from cellclr_jax.data.building.workers import map_in_order, usable_cores
from cellclr_jax.data.columns import CONTROL
from cellclr_jax.data.tables.bbbc021 import IMAGE_CSV, MOA_CSV
from cellclr_jax.errors import BadUse
from cellclr_jax.simulation.camera import expose
from cellclr_jax.simulation.painter import PaintedField, paint_field
from cellclr_jax.simulation.plate_layout import (
    SimulatorSettings,
    Well,
    field_streams,
    plate_wells,
    treatments,
)
from cellclr_jax.simulation.population import STATES
from cellclr_jax.simulation.textures import texture_bank

VERSION = 1  # of what is drawn: the same settings give the same pixels within one version
RECORD = "simulation.json"
LOCK = ".simulating"
CHANNEL_FILES = {"DAPI": "w1", "Tubulin": "w2", "Actin": "w4"}  # in the order they are painted
TRUTH_DIR = "ground_truth"
ZLIB_LEVEL = 1  # the fastest; camera noise packs no better at a higher level
_PARTIAL = ".partial.npz"
# What a release may contain before it has a record: a lock, records that are half written.
_OWN = re.compile(rf"{re.escape(LOCK)}|\.simulation\..*")
# Everything that a release consists of except its record.
_CONTENT = re.compile(rf"Week\d+|{TRUTH_DIR}|{IMAGE_CSV}|{MOA_CSV}")


@dataclass(frozen=True)
class ReleaseSummary:
    """The size of a release; `reused` if it existed already."""

    fields: int
    cells: int
    reused: bool


def simulate_release(
    out_dir: Path,
    settings: SimulatorSettings,
    *,
    workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> ReleaseSummary:
    """Writes a simulated release, or returns at once if the same one exists.

    An interrupted run is resumed by the next one with the same settings. The files are the same
    bytes whatever the number of workers.

    Args:
      out_dir: folder of the release; created if missing.
      settings: what to simulate.
      workers: processes that paint; None takes one for each core this process may use.
      progress: shows a bar with the time left, or lines if the console is a file.
      overwrite: replaces a release of other settings, finished or not; other files stay.

    Raises:
      BadUse: `out_dir` holds a release of other settings, or files that are no simulated release,
        or another process writes into it.
      BadData: a worker process was killed.
    """
    if workers is not None and workers < 1:
        raise BadUse(f"simulator: workers is {workers}, expected 1 or more")
    out_dir = Path(out_dir)
    wells = plate_wells(settings)
    fields = len(wells) * settings.sites
    record = _usable_record(out_dir, settings, overwrite)
    if isinstance(record.get("cells"), int) and not _differences(record, settings):
        return ReleaseSummary(fields, record["cells"], reused=True)
    with files.locked(out_dir, LOCK, "simulating into it"):
        _start(out_dir, settings, overwrite)
        cells = _write_release(out_dir, settings, wells, workers or usable_cores(), progress)
        files.write_json(out_dir / RECORD, {**_identity(settings), "cells": cells})
    return ReleaseSummary(fields, cells, reused=False)


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
        with np.load(truth) as written:
            return len(written["x"])
    cells_rng, camera_rng, _ = field_streams(settings, well, site)
    size = {"height": settings.height, "width": settings.width}
    field = paint_field(cells_rng, well.population, texture_bank(settings.seed), **size)
    digits = expose(camera_rng, field.image, well.optics)
    write_field(out_dir, settings, well, site, digits)
    write_truth(truth, field)
    return len(field.centres)


def write_field(
    out_dir: Path, settings: SimulatorSettings, well: Well, site: int, digits: np.ndarray
) -> None:
    """Writes one field's three TIFF files.

    Args:
      out_dir: the release's folder.
      settings, well, site: which field it is.
      digits: [3, H, W] uint16; DNA, tubulin, actin.
    """
    compression = None if settings.compression == "none" else settings.compression
    args = {"level": ZLIB_LEVEL} if settings.compression == "zlib" else None
    for name, layer in zip(file_names(settings, well, site), digits, strict=True):
        path = plate_dir(out_dir, well) / name
        # One thread: each core has its own process.
        tifffile.imwrite(path, layer, compression=compression, compressionargs=args, maxworkers=1)


def write_truth(path: Path, field: PaintedField) -> None:
    """Writes a field's truth; whole or not at all: it marks the field as finished."""
    partial = path.with_suffix(f".{os.getpid()}{_PARTIAL}")
    np.savez_compressed(
        partial,
        labels=field.labels,
        x=field.centres[:, 0],
        y=field.centres[:, 1],
        state=np.array(STATES)[field.state],
        responds=field.responds,
        in_focus=field.in_focus,
    )
    partial.replace(path)


def plate_dir(out_dir: Path, well: Well) -> Path:
    """Where a plate's fields lie."""
    return out_dir / f"Week{well.week}" / well.plate


def truth_path(out_dir: Path, well: Well, site: int) -> Path:
    """Where the truth about one field lies."""
    return out_dir / TRUTH_DIR / well.plate / f"{well.well}_s{site}.npz"


def file_names(settings: SimulatorSettings, well: Well, site: int) -> list[str]:
    """The names of a field's three files, the GUIDs drawn from the seed."""
    rng = field_streams(settings, well, site)[2]
    names = []
    for channel in CHANNEL_FILES.values():
        guid = str(uuid.UUID(bytes=rng.bytes(16), version=4)).upper()
        names.append(f"{well.well}_s{site}_{channel}{guid}.tif")
    return names


def write_moa_csv(path: Path, settings: SimulatorSettings) -> None:
    """Writes each treatment's mechanism, quoted and with six decimals as BBBC021's own file is."""
    rows = [(t.compound, t.concentration, t.moa) for t in treatments(settings)]
    rows.append((CONTROL, 0.0, CONTROL))
    lines = ['"compound",concentration,"moa"']
    lines += [f'"{compound}",{value:.6f},"{moa}"' for compound, value, moa in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_image_csv(path: Path, settings: SimulatorSettings, wells: list[Well]) -> None:
    """Writes one row a field with BBBC021's columns."""
    plates = list(dict.fromkeys(well.plate for well in wells))
    rows: list[dict[str, object]] = []
    for well in wells:
        for site in range(1, settings.sites + 1):
            row: dict[str, object] = {
                "TableNumber": plates.index(well.plate),
                "ImageNumber": len(rows) + 1,
            }
            for channel, name in zip(CHANNEL_FILES, file_names(settings, well, site), strict=True):
                row[f"Image_FileName_{channel}"] = name
                row[f"Image_PathName_{channel}"] = f"Week{well.week}/{well.plate}"
            row["Image_Metadata_Plate_DAPI"] = well.plate
            row["Image_Metadata_Well_DAPI"] = well.well
            row["Replicate"] = well.replicate
            row["Image_Metadata_Compound"] = well.treatment.compound
            row["Image_Metadata_Concentration"] = f"{well.treatment.concentration:g}"
            rows.append(row)
    pd.DataFrame(rows).to_csv(path, index=False, lineterminator="\n")


def _usable_record(out_dir: Path, settings: SimulatorSettings, overwrite: bool) -> dict[str, Any]:
    """Reads the record of the release in a folder; {} if there is none.

    Raises:
      BadUse: the folder holds something else, or a release of other settings and `overwrite` is
        false.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise BadUse(f"{out_dir} is a file: a simulated release needs a folder")
    if not (out_dir / RECORD).is_file():
        if out_dir.exists() and not all(_OWN.fullmatch(path.name) for path in out_dir.iterdir()):
            raise BadUse(
                f"{out_dir} holds files that are no simulated release: choose an empty folder"
            )
        return {}
    record = files.read_json(out_dir / RECORD, "record of a simulation")
    differ = _differences(record, settings)
    if differ and not overwrite:
        raise BadUse(
            f"{out_dir} holds a simulated release of other settings: {'; '.join(differ)}. Choose "
            "another folder, or overwrite it (build: --overwrite)"
        )
    return record


def _start(out_dir: Path, settings: SimulatorSettings, overwrite: bool) -> None:
    """Records an unfinished release in a folder that the caller has locked; removes another one.

    Raises:
      BadUse: as `_usable_record`, since another process may have written before the lock was held.
    """
    record = _usable_record(out_dir, settings, overwrite)
    if record and _differences(record, settings):
        # Without its cells it counts as unfinished, should this process be killed here.
        record.pop("cells", None)
        files.write_json(out_dir / RECORD, record)
        # Truths go first: a field with a truth counts as written.
        for path in sorted(out_dir.iterdir(), key=lambda path: path.name != TRUTH_DIR):
            if _CONTENT.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in [*out_dir.glob(".simulation.*"), *out_dir.glob(f"{TRUTH_DIR}/*/*{_PARTIAL}")]:
        path.unlink()
    files.write_json(out_dir / RECORD, _identity(settings))


def _identity(settings: SimulatorSettings) -> dict[str, object]:
    """Returns what decides the files of a release."""
    return {"simulator_version": VERSION, "settings": asdict(settings)}


def _differences(record: dict[str, Any], settings: SimulatorSettings) -> list[str]:
    """Lists how the release of a record differs, such as 'settings.seed: was 0, now 1'."""
    return files.differences(record, _identity(settings), ignored=("cells",))
