"""The files of a simulated release: where they lie, what they are called, what they hold."""

import csv
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from cellclr_jax.data.simulation.painter import PaintedField
from cellclr_jax.data.simulation.plate_layout import (
    SimulatorSettings,
    Well,
    field_streams,
    treatments,
)
from cellclr_jax.data.simulation.shapes import STATES
from cellclr_jax.data.tables.release_names import CONTROL

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
        # One thread: each core has a process of its own.
        tifffile.imwrite(path, layer, compression=compression, compressionargs=args, maxworkers=1)


def write_truth(path: Path, field: PaintedField) -> None:
    """Writes a field's truth; complete or not there, since it tells that the field is finished."""
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


def unfinished(out_dir: Path) -> Iterator[Path]:
    """Truths that a process which was killed has left half written."""
    return out_dir.glob(f"{TRUTH_DIR}/*/*{_PARTIAL}")


def sites(settings: SimulatorSettings) -> range:
    """The numbers of a well's fields."""
    return range(1, settings.sites + 1)


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
            for site in sites(settings):
                number += 1
                row: list[object] = [plates.index(well.plate), number]
                for name in file_names(settings, well, site):
                    row += [name, f"Week{well.week}/{well.plate}"]
                row += [well.plate, well.well, well.replicate]
                row += [well.treatment.compound, f"{well.treatment.concentration:g}"]
                writer.writerow(row)
