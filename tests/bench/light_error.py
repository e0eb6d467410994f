"""Measures the unevenness that remains on simulated plates after illumination correction.

  python tests/bench/light_error.py [--fields=60] [--seed=0] [--treated]

Paints fields of 1024×1024 pixels in memory, exposes them with a known vignette and tilt, fits the
illumination of 20 and of --fields fields by each method, and prints the relative RMS of the
remaining unevenness in each channel. The background is only the camera's offset, or has the same
illumination as the cells. With --treated, fields have all mechanisms, or are untreated.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.painted_cells import field_of

from cellclr_jax.data.illumination import METHODS, block_means, estimate_light
from cellclr_jax.data.tables.bbbc021 import CHANNELS
from cellclr_jax.simulation.camera import Optics, expose
from cellclr_jax.simulation.phenotypes import MOA_PHENOTYPES

SIDE = 1024
VIGNETTE, TILT = 0.4, (0.3, -0.2)
GLOW = 400.0  # counts of background, in units of the cells' own brightness
GAIN_SPREAD = 0.3  # between fields, of the logarithm


def true_light() -> np.ndarray:
    """Computes the true illumination [H, W] of `Optics`."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    return 1 + 0.5 * TILT[0] * x + 0.5 * TILT[1] * y - 0.5 * VIGNETTE * (x**2 + y**2)


def unevenness(light: np.ndarray) -> float:
    """Computes the relative RMS in percent."""
    return float(100 * light.std() / light.mean())


def main() -> None:
    """Paints, fits, prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fields", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the first field")
    parser.add_argument("--treated", action="store_true", help="fields of all mechanisms")
    options = parser.parse_args()
    counts = sorted({20, options.fields})
    known = block_means(np.round(10_000 * true_light()[..., None]).astype(np.uint16))[..., 0]
    print(f"unevenness before: {unevenness(known):.1f} %; remaining, in % of the illumination:")
    blocks: dict[float, list[np.ndarray]] = {0.0: [], GLOW: []}
    mechanisms = [None, *MOA_PHENOTYPES] if options.treated else [None]
    for seed in range(options.seed, options.seed + options.fields):
        painted = field_of(mechanisms[seed % len(mechanisms)], seed, SIDE).image
        gain = tuple(np.random.default_rng(seed).lognormal(0, GAIN_SPREAD, 3))
        optics = Optics(gain=gain, vignette=VIGNETTE, tilt=TILT)
        for glow in (0.0, GLOW):
            image = expose(np.random.default_rng(seed), painted + np.float32(glow), optics)
            blocks[glow].append(block_means(image.transpose(1, 2, 0)))
    for method, glow, count in itertools.product(METHODS, blocks, counts):
        light = estimate_light(blocks[glow][:count], (SIDE, SIDE), CHANNELS, method)
        remaining = [unevenness(known / gain) for gain in np.moveaxis(light.gain, -1, 0)]
        row = "  ".join(
            f"{name} {value:4.1f}" for name, value in zip(CHANNELS, remaining, strict=True)
        )
        background = "lit as the cells" if glow else "the camera's"
        print(f"{method:<11}{count:4} fields, background {background:<17}{row}")


if __name__ == "__main__":
    main()
