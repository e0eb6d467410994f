"""Compares simulated DMSO cells with real ones, draws both, and measures fields a second.

    python tests/bench/simulator_calibration.py --out=DIR [--nuisance=1.0] [--fields=60]

Writes `calibration.png` (real crops above, simulated below, both with the same contrast) and prints
a table. The real crops are found through CELLCLR_SHARED (or `../shared`); without them the table
holds only the simulated column.
"""

import argparse
import csv
import os
import tempfile
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label, regionprops

from cellclr_jax.simulation import simulate_release
from cellclr_jax.simulation.camera import expose
from cellclr_jax.simulation.painter import PaintedField, paint_field
from cellclr_jax.simulation.plate_layout import (
    SimulatorSettings,
    Well,
    field_streams,
    plate_wells,
)
from cellclr_jax.simulation.textures import texture_bank

ROOT = Path(__file__).parents[2]
SIZE = 68  # of the real crops
CHANNELS = ("DNA", "tubulin", "actin")
REAL_ORDER = [0, 2, 1]  # the real crops hold DNA, actin, tubulin
PERCENTILES = (1, 50, 99, 99.9)
SMALLEST = 60  # pixels; smaller objects are specks


def real_dmso_crops() -> np.ndarray | None:
    """Reads real DMSO crops [N, 68, 68, 3] uint16 (DNA, tubulin, actin); None without a folder."""
    folder = Path(os.environ.get("CELLCLR_SHARED", ROOT.parent / "shared")) / "data" / "bbbc021"
    if not (folder / "crops").is_dir():
        return None
    with (folder / "BBBC021_v1_image.csv").open(newline="") as file:
        compound = {
            Path(row["Image_FileName_DAPI"]).stem: row["Image_Metadata_Compound"]
            for row in csv.DictReader(file)
        }
    paths = sorted((folder / "crops").glob("*.npy"))
    dmso = [path for path in paths if compound[path.stem.rsplit("_", 1)[0]] == "DMSO"]
    return np.stack([np.load(path) for path in dmso])[..., REAL_ORDER]


def painted(settings: SimulatorSettings, well: Well) -> tuple[PaintedField, np.ndarray]:
    """Paints a field of a well; returns the truth and the camera's image [H, W, 3] uint16."""
    cells, camera, _ = field_streams(settings, well, 1)
    bank = texture_bank(settings.seed)
    field = paint_field(cells, well.population, bank, height=settings.height, width=settings.width)
    return field, expose(camera, field.image, well.optics).transpose(1, 2, 0)


def crops_of(field: PaintedField, image: np.ndarray, size: int) -> np.ndarray:
    """Extracts crops [N, size, size, 3] around nuclei that are far enough from the border."""
    half, (height, width) = size // 2, image.shape[:2]
    found = [
        image[y - half : y + half, x - half : x + half]
        for x, y in np.rint(field.centres).astype(int)
        if half <= x <= width - half and half <= y <= height - half
    ]
    return np.stack(found) if found else np.zeros((0, size, size, 3), np.uint16)


def simulated_dmso_crops(settings: SimulatorSettings) -> np.ndarray:
    """Simulates crops [N, 68, 68, 3] uint16 of every second DMSO well."""
    wells = [well for well in plate_wells(settings) if well.treatment.moa == "DMSO"][::2]
    return np.concatenate([crops_of(*painted(settings, well), SIZE) for well in wells])


def measure(crops: np.ndarray) -> dict[str, float]:
    """Measures intensities of each channel, and nuclei by Otsu's threshold in the DNA channel."""
    values = {}
    for channel, name in enumerate(CHANNELS):
        for percentile in PERCENTILES:
            values[f"{name} p{percentile}"] = float(np.percentile(crops[..., channel], percentile))
    areas, eccentricities, objects, covered = [], [], [], []
    for crop in crops[:: max(1, len(crops) // 500), ..., 0]:
        smooth = gaussian(crop.astype(np.float32), 1, preserve_range=True)
        labels = label(smooth > threshold_otsu(smooth))
        regions = [region for region in regionprops(labels) if region.area > SMALLEST]
        objects.append(len(regions))
        covered.append((labels > 0).mean())
        middle = [r for r in regions if r.label == labels[SIZE // 2, SIZE // 2]]
        areas += [region.area for region in middle]
        eccentricities += [region.eccentricity for region in middle]
    values |= {f"nuclear area p{p}": float(np.percentile(areas, p)) for p in (5, 50, 95)}
    values["nuclear eccentricity"] = float(np.median(eccentricities))
    values["objects a crop"] = float(np.mean(objects))
    values["share of crop covered"] = float(np.mean(covered))
    return values


def show_crops(real: np.ndarray | None, simulated: np.ndarray, path: Path) -> None:
    """Writes two rows of colour crops of each kind, and their channels in gray."""
    scale = simulated if real is None else real
    low, high = np.percentile(scale, 1, axis=(0, 1, 2)), np.percentile(scale, 99.7, axis=(0, 1, 2))
    blocks = []
    for crops in (real, simulated):
        if crops is None:
            continue
        chosen = crops[np.random.default_rng(0).permutation(len(crops))[:32]]
        shown = np.clip((chosen - low) / (high - low), 0, 1) ** 0.7
        blocks += [np.concatenate(list(shown[k : k + 16][..., [0, 2, 1]]), 1) for k in (0, 16)]
        for channel in range(3):
            gray = np.repeat(shown[:16, ..., channel : channel + 1], 3, axis=3)
            blocks.append(np.concatenate(list(gray), 1))
    plt.imsave(path, np.concatenate(blocks, 0))


def fields_a_second(count: int) -> float:
    """Measures the rate of writing about `count` fields with all cores, with workers' start."""
    settings = SimulatorSettings(weeks=2, plates_per_week=1, sites=max(1, round(count / 60)))
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        simulate_release(Path(folder) / "release", settings, progress=False)
        return len(plate_wells(settings)) * settings.sites / (time.monotonic() - began)


def main() -> None:
    """Prints the table and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nuisance", type=float, default=1.0)
    parser.add_argument("--fields", type=int, default=60, help="fields to time; 0 leaves it out")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    settings = SimulatorSettings(nuisance=args.nuisance)
    real, simulated = real_dmso_crops(), simulated_dmso_crops(settings)
    theirs, ours = None if real is None else measure(real), measure(simulated)
    print(f"{'':24s} {'real':>9s} {'simulated':>9s}")
    for name, value in ours.items():
        print(f"{name:24s} {theirs[name] if theirs else float('nan'):9.2f} {value:9.2f}")
    show_crops(real, simulated, args.out / "calibration.png")
    if args.fields:
        began = time.monotonic()
        print(f"{fields_a_second(args.fields):.1f} fields/s ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
