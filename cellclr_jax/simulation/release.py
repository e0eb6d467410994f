"""Writes simulated releases: image files, tables and record; resumes an interrupted simulation."""

import functools
import os
import re
import shutil
import uuid
from dataclasses import asdict
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

VERSION = 1  # increase it when the same settings give other pixels
RECORD = "simulation.json"
LOCK = ".simulating"
CHANNEL_FILES = {"DAPI": "w1", "Tubulin": "w2", "Actin": "w4"}  # in painted order
TRUTH_DIR = "ground_truth"
ZLIB_LEVEL = 1  # the fastest; higher levels do not compress camera noise better
_PARTIAL = ".partial.npz"
# Files of a release without a record: a lock, partly written records.
_OWN = re.compile(rf"{re.escape(LOCK)}|\.simulation\..*")
# The files of a release except its record.
_CONTENT = re.compile(rf"Week\d+|{TRUTH_DIR}|{IMAGE_CSV}|{MOA_CSV}")


def simulate_release(
    out_dir: Path,
    settings: SimulatorSettings,
    *,
    workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> int:
    """Writes a simulated release, unless the same one exists.

    Resumes an interrupted simulation of the same settings. The files do not depend on the number
    of workers.

    Args:
      out_dir: folder of the release; created if missing.
      settings: what to simulate.
      workers: processes; None: one for each core that this process may use.
      progress: whether to show progress.
      overwrite: replaces a release of other settings, finished or not; other files stay.

    Returns:
      The number of cells.

    Raises:
      BadUse: `out_dir` has a release of other settings, or files of no simulated release, or
        another process writes into it.
      BadData: a worker process was killed.
    """
    out_dir = Path(out_dir)
    wells = plate_wells(settings)
    record = _usable_record(out_dir, settings, overwrite)
    if isinstance(record.get("cells"), int) and not _differences(record, settings):
        return int(record["cells"])
    with files.locked(out_dir, LOCK, "simulating into it"):
        _start(out_dir, settings, overwrite)
        cells = _write_release(out_dir, settings, wells, workers or usable_cores(), progress)
        files.write_json(out_dir / RECORD, {**_identity(settings), "cells": cells})
    return cells


def _write_release(
    out_dir: Path, settings: SimulatorSettings, wells: list[Well], workers: int, progress: bool
) -> int:
    """Paints all fields in parallel and writes the tables; returns the number of cells."""
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
    """Paints and writes one field, unless it exists; returns its number of cells."""
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
      settings, well, site: of the field.
      digits: [3, H, W] uint16; DNA, tubulin, actin.
    """
    compression = None if settings.compression == "none" else settings.compression
    args = {"level": ZLIB_LEVEL} if settings.compression == "zlib" else None
    for name, layer in zip(file_names(settings, well, site), digits, strict=True):
        path = plate_dir(out_dir, well) / name
        # One thread, since there is one process per core.
        tifffile.imwrite(path, layer, compression=compression, compressionargs=args, maxworkers=1)


def write_truth(path: Path, field: PaintedField) -> None:
    """Writes a field's ground truth atomically; the file marks the field as finished."""
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
    """Returns the folder of a plate's images."""
    return out_dir / f"Week{well.week}" / well.plate


def truth_path(out_dir: Path, well: Well, site: int) -> Path:
    """Returns the path of the file with the ground truth of one field."""
    return out_dir / TRUTH_DIR / well.plate / f"{well.well}_s{site}.npz"


def file_names(settings: SimulatorSettings, well: Well, site: int) -> list[str]:
    """Returns the names of a field's three files, with GUIDs drawn from the seed."""
    rng = field_streams(settings, well, site)[2]
    names = []
    for channel in CHANNEL_FILES.values():
        guid = str(uuid.UUID(bytes=rng.bytes(16), version=4)).upper()
        names.append(f"{well.well}_s{site}_{channel}{guid}.tif")
    return names


def write_moa_csv(path: Path, settings: SimulatorSettings) -> None:
    """Writes the mechanism of each treatment in the format of BBBC021's file."""
    rows = [(t.compound, t.concentration, t.moa) for t in treatments(settings)]
    rows.append((CONTROL, 0.0, CONTROL))
    lines = ['"compound",concentration,"moa"']
    lines += [f'"{compound}",{value:.6f},"{moa}"' for compound, value, moa in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_image_csv(path: Path, settings: SimulatorSettings, wells: list[Well]) -> None:
    """Writes one row per field with BBBC021's columns."""
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
      BadUse: the folder has other files, or a release of other settings and `overwrite` is false.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise BadUse(f"{out_dir} is a file: a folder is needed for a simulated release")
    if not (out_dir / RECORD).is_file():
        if out_dir.exists() and not all(_OWN.fullmatch(path.name) for path in out_dir.iterdir()):
            raise BadUse(f"{out_dir} has files that are no simulated release: use an empty folder")
        return {}
    record = files.read_json(out_dir / RECORD, "record of a simulation")
    differ = _differences(record, settings)
    if differ and not overwrite:
        raise BadUse(
            f"{out_dir} has a simulated release of other settings: {'; '.join(differ)}. Use "
            "another folder, or overwrite it (build: --overwrite)"
        )
    return record


def _start(out_dir: Path, settings: SimulatorSettings, overwrite: bool) -> None:
    """Prepares a locked folder: removes a release of other settings, records an unfinished one.

    Raises:
      BadUse: as `_usable_record`, since another process may have written before this one locked.
    """
    record = _usable_record(out_dir, settings, overwrite)
    if record and _differences(record, settings):
        # Marks it as unfinished, in case this process is killed here.
        record.pop("cells", None)
        files.write_json(out_dir / RECORD, record)
        # Ground truth is removed first, since it marks a field as finished.
        for path in sorted(out_dir.iterdir(), key=lambda path: path.name != TRUTH_DIR):
            if _CONTENT.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in [*out_dir.glob(".simulation.*"), *out_dir.glob(f"{TRUTH_DIR}/*/*{_PARTIAL}")]:
        path.unlink()
    files.write_json(out_dir / RECORD, _identity(settings))


def _identity(settings: SimulatorSettings) -> dict[str, object]:
    """Returns the settings and version that determine the files of a release."""
    return {"simulator_version": VERSION, "settings": asdict(settings)}


def _differences(record: dict[str, Any], settings: SimulatorSettings) -> list[str]:
    """Lists how the release of a record differs, such as 'settings.seed: was 0, now 1'."""
    return files.differences(record, _identity(settings), ignored=("cells",))
