"""Measures nuclear segmentation on hand-drawn and simulated fields: accuracy, speed, robustness.

    python tests/bench/nuclei.py [--shared=DIR] [--robust]

Compares `segment_nuclei` with its default settings and a textbook method, Otsu's threshold with a
distance watershed. On hand-drawn fields it prints F1 of objects at an intersection over union of
0.5 and of 0.7 with every drawn region counted ("all"). Without true regions below 100 pixels, the
smallest of the segmentation, it prints F1 again, with precision and recall of centres, splits and
merges (see `tests/support/nuclei_scores.py`; nuclei at the border count). It prints the same
measures for simulated untreated fields of three densities and three blurs, whose truth is known,
and the time for one field of 1024x1280 on one core.

`--robust` also varies every constant by a quarter.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from scipy import ndimage
from skimage import measure
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.segmentation import watershed

from cellclr_jax.data import segmentation
from cellclr_jax.data.segmentation import segment_nuclei
from cellclr_jax.simulation.camera import Optics, expose
from cellclr_jax.simulation.painter import paint_field
from cellclr_jax.simulation.phenotypes import UNTREATED
from cellclr_jax.simulation.population import Population
from cellclr_jax.simulation.textures import texture_bank

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))

from support.nuclei_scores import SMALLEST, Score, compare, hand_drawn_fields  # noqa: E402

Field = tuple[str, np.ndarray, np.ndarray]  # name, image [H, W], true labels [H, W]
Method = Callable[[np.ndarray], np.ndarray]

DENSITIES = (0.5, 1.0, 2.0)  # relative to the simulator's default, about 100 cells a field
BLURS = (0.8, 2.0, 3.5)  # standard deviation in pixels: in focus, typical, badly out of focus
SHAPE = (1024, 1280)
REPEATS = 7
SPACING = 8  # smallest distance in pixels between peaks of the textbook method
# All constants of the segmentation; `notch` and `sigma` are arguments.
CONSTANTS: dict[str, float] = {
    "sigma": 1.0,
    "notch": 1.4,
    "_BACKGROUND_PERCENTILE": segmentation._BACKGROUND_PERCENTILE,
    "_NOISE_UNITS": segmentation._NOISE_UNITS,
    "_LARGEST_HOLE": segmentation._LARGEST_HOLE,
    "_WINDOW": segmentation._WINDOW,
    "_STEP": segmentation._STEP,
    "_LINE": segmentation._LINE,
    "_LINE_NOISE_UNITS": segmentation._LINE_NOISE_UNITS,
    "_DEPTH_SIGMA": segmentation._DEPTH_SIGMA,
    "_BRIGHTNESS_SIGMA": segmentation._BRIGHTNESS_SIGMA,
    "_BRIGHTNESS_WEIGHT": segmentation._BRIGHTNESS_WEIGHT,
    "_OUTLINE": segmentation._OUTLINE,
}


def textbook(image: np.ndarray) -> np.ndarray:
    """Segments by Otsu's threshold and a watershed of distances, with the same smallest area."""
    smooth = gaussian(image.astype(np.float32), 1, preserve_range=True)
    mask = ndimage.binary_fill_holes(smooth > threshold_otsu(smooth))
    depth = ndimage.distance_transform_edt(mask)
    peaks = peak_local_max(gaussian(depth, 2), min_distance=SPACING, labels=mask.astype(int))
    seeds = np.zeros(image.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-depth, seeds, mask=mask)
    labels[np.bincount(labels.ravel())[labels] < SMALLEST] = 0
    return labels


METHODS: dict[str, Method] = {"segment_nuclei": segment_nuclei, "textbook": textbook}


def simulated_field(density: float, blur: float, seed: int = 1) -> Field:
    """Simulates an untreated field [1024, 1280] with its true labels."""
    cells = Population(UNTREATED, UNTREATED, 0.0, density=density)
    rng = np.random.default_rng(seed)
    field = paint_field(rng, cells, texture_bank(0), height=SHAPE[0], width=SHAPE[1])
    image = expose(rng, field.image, Optics(focus=(blur, blur, blur)))[0]
    # Connected regions, as in the hand-drawn fields: an anaphase's two plates are two.
    truth = measure.label(field.labels, connectivity=1)
    return f"density {density}, blur {blur}", image, truth


def scored(fields: Iterable[Field], method: Method) -> dict[str, tuple[Score, Score]]:
    """Scores each field and their total, with all regions and without small ones."""
    table = {}
    for name, image, truth in fields:
        labels = method(image)
        table[name] = compare(truth, labels), compare(truth, labels, SMALLEST)
    every, large = zip(*table.values(), strict=True)
    table["total"] = sum(every, Score()), sum(large, Score())
    return table


def print_scores(title: str, fields: list[Field]) -> None:
    """Prints one table per method."""
    for name, method in METHODS.items():
        print(f"\n{title}, {name}")
        print(
            f"{'':24s}|{'all':^21s}|{f'from {SMALLEST} pixels on':^61s}\n"
            f"{'':24s}|{'F1 0.5':>7s}{'F1 0.7':>7s}{'true':>6s} |{'F1 0.5':>7s}{'F1 0.7':>7s}"
            f"{'true':>6s}{'found':>6s}{'precision':>10s}{'recall':>7s}{'splits':>7s}{'merges':>7s}"
        )
        for row, (every, large) in scored(fields, method).items():
            print(f"{row[:23]:24s}|{_cells(every)}{every.true:6d} |{_cells(large)}{_rest(large)}")


def _cells(score: Score) -> str:
    return f"{score.f1_half:7.3f}{score.f1_most:7.3f}"


def _rest(score: Score) -> str:
    return (
        f"{score.true:6d}{score.found:6d}{score.precision:10.3f}{score.recall:7.3f}"
        f"{score.splits:7d}{score.merges:7d}"
    )


def print_times(fields: list[Field]) -> None:
    """Prints the processor time for one field, the best of several."""
    print(f"\nseconds of one core for {SHAPE[0]}x{SHAPE[1]}, best of {REPEATS}")
    for name, image, _ in fields:
        row = f"{name[:23]:24s}"
        for kind, method in METHODS.items():
            seconds = []
            for _ in range(REPEATS):
                began = time.process_time()
                method(image)
                seconds.append(time.process_time() - began)
            row += f"  {kind} {min(seconds):.3f}"
        print(row)


def mosaic(fields: list[Field]) -> Field:
    """Joins four real fields to one of 1024x1280, much denser than a field of a screen."""
    images = [image for _, image, truth in fields if truth.any()][:4]
    whole = np.concatenate([np.concatenate(images[:2], 1), np.concatenate(images[2:], 1)], 0)
    return "real fields, four", whole[: SHAPE[0], : SHAPE[1]], np.zeros(0)


def altered(changes: dict[str, float]) -> Method:
    """Returns `segment_nuclei` with changed constants."""
    settings: dict[str, Any] = {k: v for k, v in changes.items() if not k.startswith("_")}
    constants = {k: v for k, v in changes.items() if k.startswith("_")}

    def method(image: np.ndarray) -> np.ndarray:
        with mock.patch.dict(vars(segmentation), constants):
            return segment_nuclei(image, **settings)

    return method


def print_variations(real: list[Field], simulated: list[Field]) -> None:
    """Prints the totals with each constant varied by a quarter."""
    print(f"\nconstants varied by a quarter\n{'':30s}|{'real, all':^15s}", end="")
    print(f"|{f'real, from {SMALLEST}':^24s}|{f'simulated, from {SMALLEST}':^24s}")
    for name, value in {"": 0.0, **CONSTANTS}.items():
        for share in (0.75, 1.25) if name else (1.0,):
            other = value * share
            if name == "_WINDOW":  # an odd number of pixels
                other = value - 2 if share < 1 else value + 2
            method = altered({name: other} if name else {})
            every, large = scored(real, method)["total"]
            ours = scored(simulated, method)["total"][1]
            row = f"{name} {other:.4g}" if name else "default"
            recalls = f"{large.recall:7.3f}", f"{ours.recall:7.3f}"
            print(f"{row:30s}|{_cells(every)} |{_cells(large)}{recalls[0]}   ", end="")
            print(f"|{_cells(ours)}{recalls[1]}", flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = os.environ.get("CELLCLR_SHARED", ROOT.parent / "shared")
    parser.add_argument("--shared", type=Path, default=shared, help="where data/nuclei lies")
    parser.add_argument("--robust", action="store_true", help="vary the constants")
    args = parser.parse_args()
    real = hand_drawn_fields(args.shared / "data" / "nuclei")
    simulated = [simulated_field(*pair) for pair in itertools.product(DENSITIES, BLURS)]
    if real:
        print_scores("real fields", real)
    else:
        print(f"no real fields at {args.shared}/data/nuclei: set CELLCLR_SHARED or --shared")
    print_scores("simulated fields", simulated)
    print_times([simulated[4], simulated[7], *([mosaic(real)] if real else [])])
    if args.robust and real:
        print_variations(real, simulated)


if __name__ == "__main__":
    main()
