"""Writes releases of a few tiny fields in BBBC021's layout, with nuclei at known places."""

import csv
import zipfile
from pathlib import Path

import numpy as np
import tifffile

CHANNELS = {"DAPI": "w1", "Tubulin": "w2", "Actin": "w4"}
HEADER = [
    "TableNumber",
    "ImageNumber",
    *(f"Image_{what}Name_{name}" for name in CHANNELS for what in ("File", "Path")),
    "Image_Metadata_Plate_DAPI",
    "Image_Metadata_Well_DAPI",
    "Replicate",
    "Image_Metadata_Compound",
    "Image_Metadata_Concentration",
]
# Well, compound, concentration: two annotated treatments, the control, one without an MoA.
WELLS = (("B02", "DMSO", 0), ("C03", "taxol", 0.3), ("D04", "PP-2", 3), ("E05", "other", 1))
MOA = (("DMSO", 0, "DMSO"), ("taxol", 0.3, "Microtubule stabilizers"), ("PP-2", 3, "Epithelial"))
PREFIX = "Week1_150607_"
PLATES = ("Week1_101", "Week2_102")
HEIGHT, WIDTH = 160, 200
CENTERS = ((40, 40), (40, 110), (100, 60), (110, 140), (152, 190))


def disc_field(rng, centers=CENTERS, *, height=HEIGHT, width=WIDTH, radius=9, level=3000):
    """Draws an image [H, W] uint16 of discs of brightness `level` on a noisy background."""
    rows, columns = np.mgrid[:height, :width]
    image = rng.normal(500, 15, (height, width))
    for row, column in centers:
        image += level * ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2)
    return image.astype(np.uint16)


def file_name(well, site, channel, plate, prefix=""):
    return f"{prefix}{well}_s{site}_{channel}{plate[-3:]}ABCD.tif"


def write_release(root: Path, *, plates=PLATES, wells=WELLS, sites=1, seed=0, prefix="") -> Path:
    """Writes plates, image table and MoA table under `root`.

    Most files of the real release have a prefix such as `PREFIX`, which is not the plate's name.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for plate in plates:
        week = plate.split("_")[0]
        (root / week / plate).mkdir(parents=True)
        for well, compound, concentration in wells:
            for site in range(1, sites + 1):
                files = []
                for channel in CHANNELS.values():
                    name = file_name(well, site, channel, plate, prefix)
                    tifffile.imwrite(root / week / plate / name, disc_field(rng))
                    files += [name, f"{week}/{plate}"]
                rows.append([1, len(rows), *files, plate, well, 1, compound, concentration])
    write_csv(root / "BBBC021_v1_image.csv", HEADER, rows)
    write_csv(root / "BBBC021_v1_moa.csv", ["compound", "concentration", "moa"], MOA)
    return root


def write_csv(path: Path, header, rows) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def zip_plates(release, out, *, folder=True, plates=PLATES):
    """Zips each plate with members <plate>/<file>, and copies the tables to the same folder."""
    out.mkdir()
    for plate in plates:
        with zipfile.ZipFile(out / f"BBBC021_v1_images_{plate}.zip", "w") as archive:
            for file in sorted((release / plate.split("_")[0] / plate).iterdir()):
                archive.write(file, f"{plate}/{file.name}" if folder else file.name)
                archive.writestr(f"__MACOSX/{plate}/._{file.name}", b"note")
    for name in ("BBBC021_v1_image.csv", "BBBC021_v1_moa.csv"):
        (out / name).write_bytes((release / name).read_bytes())
    return out


def write_crops(release, folder, count=3, shape=(24, 24, 3)):
    """Writes crops <stem>_<n>.npy of two wells of the first plate."""
    folder.mkdir()
    for well in ("B02", "C03"):
        stem = file_name(well, 1, "w1", PLATES[0]).removesuffix(".tif")
        for number in range(count):
            crop = np.full(shape, number, np.uint16)
            np.save(folder / f"{stem}_{number * 5}.npy", crop)
    return folder
