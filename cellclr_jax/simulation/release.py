"""Files and state of a simulated release."""

import csv
import os
import re
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path

import numpy as np
import tifffile

from cellclr_jax import files
from cellclr_jax.data.columns import CONTROL
from cellclr_jax.data.tables.bbbc021 import IMAGE_CSV, MOA_CSV
from cellclr_jax.errors import BadUse
from cellclr_jax.simulation.painter import PaintedField
from cellclr_jax.simulation.plate_layout import SimulatorSettings, Well, field_streams, treatments
from cellclr_jax.simulation.shapes import STATES

CHANNEL_FILES = {"DAPI": "w1", "Tubulin": "w2", "Actin": "w4"}  # in the order they are painted
TRUTH_DIR = "ground_truth"
ZLIB_LEVEL = 1  # the fastest; camera noise packs no better at a higher level
_PARTIAL = ".partial.npz"


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
    channels = list(CHANNEL_FILES)
    header = ["TableNumber", "ImageNumber"]
    for channel in channels:
        header += [f"Image_FileName_{channel}", f"Image_PathName_{channel}"]
    header += ["Image_Metadata_Plate_DAPI", "Image_Metadata_Well_DAPI", "Replicate"]
    header += ["Image_Metadata_Compound", "Image_Metadata_Concentration"]
    plates = list(dict.fromkeys(well.plate for well in wells))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        number = 0
        for well in wells:
            for site in range(1, settings.sites + 1):
                number += 1
                row: list[object] = [plates.index(well.plate), number]
                for name in file_names(settings, well, site):
                    row += [name, f"Week{well.week}/{well.plate}"]
                row += [well.plate, well.well, well.replicate]
                row += [well.treatment.compound, f"{well.treatment.concentration:g}"]
                writer.writerow(row)


VERSION = 1  # of what is drawn: the same settings give the same pixels within one version
FINISHED, STARTED = "simulation.json", "simulation.started.json"
LOCK = ".simulating"

# What a release may leave before it is marked: a lock, records that are half written.
_OWN = re.compile(rf"{re.escape(LOCK)}|\.simulation\..*")
# All that a release consists of except its records.
_CONTENT = re.compile(rf"Week\d+|{TRUTH_DIR}|{IMAGE_CSV}|{MOA_CSV}")


def cells_if_finished(out_dir: Path, settings: SimulatorSettings) -> int | None:
    """The number of cells of the finished release of `settings` in `out_dir`; None if none is."""
    record = _record(out_dir / FINISHED)
    cells = None if record is None or _differences(record, settings) else record.get("cells")
    return cells if isinstance(cells, int) else None


def check_folder(out_dir: Path, settings: SimulatorSettings, overwrite: bool) -> None:
    """Raises BadUse unless a release of `settings` may be written into `out_dir`.

    That is: it does not exist, is empty, or holds a release, of the same settings or to be
    overwritten.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise BadUse(f"{out_dir} is a file: a simulated release needs a folder")
    held = _records(out_dir)
    foreign = [] if held or not out_dir.exists() else out_dir.iterdir()
    if not all(_OWN.fullmatch(path.name) for path in foreign):
        raise BadUse(f"{out_dir} holds files that are no simulated release: choose an empty folder")
    differ = dict.fromkeys(line for record in held for line in _differences(record, settings))
    if differ and not overwrite:
        raise BadUse(
            f"{out_dir} holds a simulated release of other settings: {'; '.join(differ)}. Choose "
            "another folder, or overwrite it (build: --overwrite)"
        )


def start(out_dir: Path, settings: SimulatorSettings, overwrite: bool) -> None:
    """Marks `out_dir`, which the caller has locked, as an unfinished release; removes another one.

    Raises:
      BadUse: as `check_folder`, since another process may have written before the lock was held.
    """
    check_folder(out_dir, settings, overwrite)
    if any(_differences(record, settings) for record in _records(out_dir)):
        _remove_content(out_dir)
    half_written = f"{TRUTH_DIR}/*/*{_PARTIAL}"
    for path in [*out_dir.glob(".simulation.*"), *out_dir.glob(half_written)]:
        path.unlink()
    files.write_json(out_dir / STARTED, _identity(settings))


def _remove_content(out_dir: Path) -> None:
    """Removes a release but its mark, without which the next run would not recognise it."""
    if (out_dir / FINISHED).exists():
        (out_dir / FINISHED).replace(out_dir / STARTED)
    # Truths go first: a field with a truth counts as written.
    for path in sorted(out_dir.iterdir(), key=lambda path: path.name != TRUTH_DIR):
        if _CONTENT.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def finish(out_dir: Path, settings: SimulatorSettings, cells: int) -> None:
    """Marks the release in `out_dir` as finished, with its number of cells."""
    files.write_json(out_dir / FINISHED, {**_identity(settings), "cells": cells})
    (out_dir / STARTED).unlink(missing_ok=True)


def _identity(settings: SimulatorSettings) -> dict[str, object]:
    """What decides the files of a release."""
    return {"simulator_version": VERSION, "settings": asdict(settings)}


def _differences(record: dict[str, object], settings: SimulatorSettings) -> list[str]:
    """How the release of a record differs, such as 'settings.seed: 0 there, 1 here'."""
    return files.differences(record, _identity(settings), ignored=("cells",))


def _records(out_dir: Path) -> list[dict[str, object]]:
    """The records of a folder, of a finished release and of an unfinished one."""
    found = (_record(out_dir / name) for name in (FINISHED, STARTED))
    return [record for record in found if record is not None]


def _record(path: Path) -> dict[str, object] | None:
    """The record of a release; None if there is no such file."""
    return files.read_json(path, "record of a simulation") if path.is_file() else None
