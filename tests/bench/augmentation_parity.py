"""Compares views of the device with those of the published host chain by quantiles.

python tests/bench/augmentation_parity.py [--draws=5000] [--crops=FOLDER]

Prints a Markdown table: for each statistic the 5 %, 50 % and 95 % quantiles of both and the
Kolmogorov–Smirnov distance, which exceeds 1.63 · √(2 / draws) by chance in 1 % of cases. Statistics
are measured on views of probe images, such as ramps. Needs albumentations, which is not a
dependency of the project. FOLDER holds crops [H, W, 3] of raw intensities in .npy files, prepared
as the published ones were; without it random textures take their place.
"""

import argparse
import colorsys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import host_chain as host
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from cellclr_jax import augment
from cellclr_jax.augment.geometry import affine_map

SIDE = 96
# Views mapped at once on the device.
PART = 250
# A probe's measure: a number of a view.
Measure = Callable[[np.ndarray], float]


def ramps() -> np.ndarray:
    """Each pixel holds its own (x, y), and 0."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    return np.stack([x, y, 0 * x], axis=-1)


def uniform(*color: float) -> np.ndarray:
    """A picture of one colour."""
    return np.broadcast_to(np.float32(color), (8, 8, 3)).copy()


def halves() -> np.ndarray:
    """Grey 0.4 above grey 0.6."""
    picture = uniform(0.4, 0.4, 0.4)
    picture[4:] = 0.6
    return picture


def point() -> np.ndarray:
    """A single bright pixel."""
    picture = np.zeros((31, 31, 3), np.float32)
    picture[15, 15] = 1
    return picture


def slope(view: np.ndarray, axis: int) -> float:
    """Source pixels a pixel about the centre of a view of `ramps`, along x or y."""
    near, far = (40, 56)
    step = (
        view[48, far, 0] - view[48, near, 0] if axis == 0 else view[far, 48, 1] - view[near, 48, 1]
    )
    return float(step) / (far - near)


def magnification(view: np.ndarray) -> float:
    """Area of the source, in pixels, that a pixel at the centre of a view of `ramps` covers."""
    across, down = view[48, 49, :2] - view[48, 48, :2], view[49, 48, :2] - view[48, 48, :2]
    return float(abs(across[0] * down[1] - across[1] * down[0]))


def width(view: np.ndarray) -> float:
    """Standard deviation of the Gaussian, from the two brightest pixels of a view of `point`."""
    share = float(view[15, 16, 0]) / float(view[15, 15, 0])
    return float(np.sqrt(-0.5 / np.log(share))) if share > 0 else float("nan")


def brightest(view: np.ndarray) -> float:
    """The peak of a view of `point`."""
    return float(view[15, 15, 0])


def hue(view: np.ndarray) -> float:
    """Shift of the hue of a view of a green picture."""
    return colorsys.rgb_to_hsv(*(float(c) for c in view[0, 0]))[0] - 1 / 3


def ours(name: str, probe: np.ndarray, draws: int, **settings: Any) -> np.ndarray:
    """Views of a probe by an operation of CellCLR."""
    operation = augment.OPERATIONS[name]
    view = jax.jit(jax.vmap(lambda key: operation(jnp.asarray(probe), key, **settings)))
    keys = jax.random.split(jax.random.key(0), draws)
    return np.concatenate([view(keys[i : i + PART]) for i in range(0, draws, PART)])


def theirs(operation: host.Operation, probe: np.ndarray, draws: int) -> list[np.ndarray]:
    """Views of a probe by an operation of the host."""
    rng = np.random.default_rng(1)
    return [operation(rng, probe) for _ in range(draws)]


def row(name: str, host_values: np.ndarray, our_values: np.ndarray) -> str:
    """A line of the table."""
    cells = [name]
    for values in (host_values, our_values):
        finite = values[np.isfinite(values)]
        cells += [f"{q:.4g}" for q in np.quantile(finite, [0.05, 0.5, 0.95])]
    distance = scipy.stats.ks_2samp(host_values, our_values, nan_policy="omit").statistic
    return f"| {' | '.join(cells)} | {distance:.3f} |"


def changed_row(name: str, host_views: Any, our_views: Any, probe: np.ndarray) -> str:
    """A line with the shares of views that differ from their probe."""
    shares = [np.mean([np.any(v != probe) for v in views]) for views in (host_views, our_views)]
    return rate_row(name, *shares)


def rate_row(name: str, host_share: float, our_share: float) -> str:
    """A line with two shares and their difference, without quantiles."""
    difference = abs(host_share - our_share)
    return f"| {name} | | {host_share:.3f} | | | {our_share:.3f} | | {difference:.3f} |"


def measured(name: str, host_views: Any, our_views: Any, measure: Measure) -> str:
    """A line for one measure of both."""
    both = (np.array([measure(view) for view in views]) for views in (host_views, our_views))
    return row(name, *both)


def of_places(draws: int) -> list[str]:
    """Lines for operations that move pixels."""
    there, here = (theirs(host.crop(), ramps(), draws), ours("random_resized_crop", ramps(), draws))
    lines = [
        measured("crop area", there, here, lambda v: slope(v, 0) * slope(v, 1)),
        measured("crop aspect", there, here, lambda v: slope(v, 0) / slope(v, 1)),
    ]
    there, here = theirs(host.flip(), ramps(), draws), ours("flip_horizontal", ramps(), draws)
    lines.append(changed_row("flip rate", there, here, ramps()))
    there = theirs(host.rotate_quarter(), ramps(), draws)
    here = ours("rotate_quarter", ramps(), draws, probability=0.375)
    lines.append(changed_row("quarter-turn rate", there, here, ramps()))
    there = theirs(host.center_crop, ramps(), draws)
    here = ours("center_crop", ramps(), draws, fraction=(0.08, 1.0))
    lines.append(measured("centre crop's side", there, here, lambda v: slope(v, 0)))
    return lines


def of_elastic(draws: int) -> list[str]:
    """Lines for the elastic transform."""
    settings = host.ON_DEVICE["elastic"]
    there, here = (
        theirs(host.elastic(), ramps(), draws),
        ours("elastic", ramps(), draws, **settings),
    )
    lines = [changed_row("elastic rate", there, here, ramps())]
    there = theirs(host.elastic(1.0), ramps(), draws)
    always = settings | {"probability": 1.0}
    here = ours("elastic", ramps(), draws, **always)
    lines.append(measured("elastic: source area a pixel", there, here, magnification))
    rng = np.random.default_rng(2)
    moves = np.array([np.subtract(*host.moved_points(rng, SIDE, 50.0)[::-1]) for _ in range(draws)])
    points = host.moved_points(rng, SIDE, 0.0)[0].astype(np.float64)
    keys = jax.random.split(jax.random.key(1), draws)
    maps = np.asarray(jax.vmap(lambda k: affine_map(k, (SIDE, SIDE), 50.0))(keys), np.float64)
    moved = np.linalg.solve(maps[:, None, :, :2], (points - maps[:, None, :, 2])[..., None])[..., 0]
    for i in range(3):
        for j in range(2):
            name = f"point {i + 1} moves along {'xy'[j]}, pixels"
            lines.append(row(name, moves[:, i, j], (moved - points)[:, i, j]))
    inner = np.s_[8:-8, 8:-8, 0]
    few, still = min(draws, 1000), always | {"affine": 0.0}
    there = np.array([host.field(rng, SIDE)[inner[:2]] for _ in range(few)])
    here = ours("elastic", ramps() - 48, few, **still) - ramps() + 48
    here = here[(slice(None), *inner)]
    lines.append(row("field's mean, pixels", there.mean((1, 2)), here.mean((1, 2))))
    lines.append(
        row("field's deviation within a view, pixels", there.std((1, 2)), here.std((1, 2)))
    )
    return lines


def of_values(draws: int) -> list[str]:
    """Lines for operations that change values."""
    color = uniform(0.6, 0.5, 0.3)
    there, here = theirs(host.jitter(), color, draws), ours("color_jitter", color, draws)
    lines = [changed_row("jitter rate", there, here, color)]
    probes: dict[str, tuple[np.ndarray, Measure]] = {
        "brightness": (uniform(0.5, 0.5, 0.5), lambda v: float(v[0, 0, 0]) / 0.5),
        "contrast": (halves(), lambda v: float(v[7, 0, 0] - v[0, 0, 0]) / 0.2),
        "saturation": (uniform(0.6, 0.5, 0.4), lambda v: float(v[0, 0, 0] - v[0, 0, 2]) / 0.2),
        "hue": (uniform(0.4, 0.8, 0.4), hue),
    }
    for name, (probe, measure) in probes.items():
        off = {other: 0.0 for other in probes if other != name}
        there = theirs(host.jitter(1.0, **off), probe, draws)
        here = ours("color_jitter", probe, draws, probability=1.0, **off)
        lines.append(measured(name, there, here, measure))
    there, here = theirs(host.blur(), point(), draws), ours("gaussian_blur", point(), draws)
    blurred = [[v for v in views if v[15, 16, 0] > 0] for views in (there, here)]
    lines.append(rate_row("blur rate", *(len(views) / draws for views in blurred)))
    lines.append(measured("blur's sigma, pixels", *blurred, width))
    lines.append(measured("blur's peak", there, here, brightest))
    there = theirs(host.gray(), color, draws)
    here = ours("grayscale", color, draws, weights=(0.299, 0.587, 0.114))
    lines.append(changed_row("grey rate", there, here, color))
    return lines


def prepared(crop: np.ndarray) -> np.ndarray:
    """Each channel z-scored, one joint range over all, 8 bit, [96, 96, 3]."""
    crop = cv2.resize(crop.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    crop = (crop - crop.mean((0, 1))) / crop.std((0, 1))
    return np.uint8(255 * (crop - crop.min()) / np.ptp(crop))


def crops_of(folder: str, draws: int) -> np.ndarray:
    """Crops [draws, 96, 96, 3] uint8, each taken about equally often."""
    if folder:
        raw = (np.load(path) for path in sorted(Path(folder).glob("*.npy"))[:1000])
    else:
        noise = np.random.default_rng(0).uniform(size=(200, SIDE, SIDE, 3))
        raw = (cv2.GaussianBlur(image, (0, 0), 3) for image in noise)
    found = np.stack([prepared(crop) for crop in raw])
    return found[np.arange(draws) % len(found)]


def of_chain(draws: int, folder: str) -> list[str]:
    """Lines for final views of crops."""
    crops = crops_of(folder, draws)
    rng, whole = np.random.default_rng(3), host.chain()
    there = np.stack([whole(rng, crop) for crop in crops]).astype(np.float32) / 255
    settings = {n: augment.OPERATIONS[n].__kwdefaults__ | s for n, s in host.ON_DEVICE.items()}
    view = jax.jit(jax.vmap(lambda image, key: augment.augment(image, key, settings)))
    keys = jax.random.split(jax.random.key(4), draws)
    parts = [np.s_[i : i + PART] for i in range(0, draws, PART)]
    images = np.float32(crops) / 255
    here = np.concatenate([view(jnp.asarray(images[part]), keys[part]) for part in parts])

    def steepness(view: np.ndarray) -> np.ndarray:
        return np.hypot(view[:-1, 1:] - view[:-1, :-1], view[1:, :-1] - view[:-1, :-1])

    measures: dict[str, Measure] = {
        "whole chain: mean of pixels": lambda v: float(v.mean()),
        "whole chain: deviation of pixels": lambda v: float(v.std()),
        "whole chain: mean gradient": lambda v: float(steepness(v).mean()),
        "whole chain: deviation of gradients": lambda v: float(steepness(v).std()),
    }
    return [measured(name, there, here, measure) for name, measure in measures.items()]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=5000)
    parser.add_argument("--crops", default="")
    settings = parser.parse_args()
    print("| statistic | host 5 % | 50 % | 95 % | device 5 % | 50 % | 95 % | distance |")
    print("|---|---|---|---|---|---|---|---|")
    for lines in (of_places, of_elastic, of_values):
        print("\n".join(lines(settings.draws)), flush=True)
    print("\n".join(of_chain(settings.draws, settings.crops)))


if __name__ == "__main__":
    main()
