"""Compares views of the device with those of the published host chain by quantiles.

python tests/bench/augmentation_parity.py [--draws=5000] [--crops=FOLDER]

Prints a Markdown table: for each statistic the 5 %, 50 % and 95 % quantiles of both and the
Kolmogorov–Smirnov distance, which exceeds 1.63 · √(2 / draws) by chance in 1 % of cases. Statistics
are measured on views of probe images, such as ramps. Needs albumentations, which is not a
dependency of the project. FOLDER holds crops [H, W, 3] of raw intensities in .npy files, prepared
as the published ones were; without it random textures are used.
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
# Computes a number from a view.
Measure = Callable[[np.ndarray], float]


def ramps() -> np.ndarray:
    """Makes an image in which each pixel is its own (x, y), and 0."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    return np.stack([x, y, 0 * x], axis=-1)


def uniform(*color: float) -> np.ndarray:
    """Makes an image of one colour."""
    return np.broadcast_to(np.float32(color), (8, 8, 3)).copy()


def halves() -> np.ndarray:
    """Makes an image with grey 0.4 above grey 0.6."""
    image = uniform(0.4, 0.4, 0.4)
    image[4:] = 0.6
    return image


def point() -> np.ndarray:
    """Makes an image with a single bright pixel."""
    image = np.zeros((31, 31, 3), np.float32)
    image[15, 15] = 1
    return image


def slope(view: np.ndarray, axis: int) -> float:
    """Measures source pixels per pixel near the centre of a view of `ramps`, along x or y."""
    near, far = (40, 56)
    step = (
        view[48, far, 0] - view[48, near, 0] if axis == 0 else view[far, 48, 1] - view[near, 48, 1]
    )
    return float(step) / (far - near)


def magnification(view: np.ndarray) -> float:
    """Measures the source area, in pixels, of the central pixel of a view of `ramps`."""
    across, down = view[48, 49, :2] - view[48, 48, :2], view[49, 48, :2] - view[48, 48, :2]
    return float(abs(across[0] * down[1] - across[1] * down[0]))


def width(view: np.ndarray) -> float:
    """Measures the Gaussian's standard deviation from two pixels of a view of `point`."""
    share = float(view[15, 16, 0]) / float(view[15, 15, 0])
    return float(np.sqrt(-0.5 / np.log(share))) if share > 0 else float("nan")


def brightest(view: np.ndarray) -> float:
    """Returns the peak of a view of `point`."""
    return float(view[15, 15, 0])


def hue(view: np.ndarray) -> float:
    """Measures the shift of hue in a view of a green image."""
    return colorsys.rgb_to_hsv(*(float(c) for c in view[0, 0]))[0] - 1 / 3


def device_views_of(name: str, probe: np.ndarray, draws: int, **settings: Any) -> np.ndarray:
    """Computes views of a probe by an operation of CellCLR."""
    operation = augment.OPERATIONS[name]
    view = jax.jit(jax.vmap(lambda key: operation(jnp.asarray(probe), key, **settings)))
    keys = jax.random.split(jax.random.key(0), draws)
    return np.concatenate([view(keys[i : i + PART]) for i in range(0, draws, PART)])


def host_views_of(operation: host.Operation, probe: np.ndarray, draws: int) -> list[np.ndarray]:
    """Computes views of a probe by an operation of the host chain."""
    rng = np.random.default_rng(1)
    return [operation(rng, probe) for _ in range(draws)]


def row(name: str, host_values: np.ndarray, device_values: np.ndarray) -> str:
    """Formats a line of the table."""
    cells = [name]
    for values in (host_values, device_values):
        finite = values[np.isfinite(values)]
        cells += [f"{q:.4g}" for q in np.quantile(finite, [0.05, 0.5, 0.95])]
    distance = scipy.stats.ks_2samp(host_values, device_values, nan_policy="omit").statistic
    return f"| {' | '.join(cells)} | {distance:.3f} |"


def changed_row(name: str, host_views: Any, device_views: Any, probe: np.ndarray) -> str:
    """Formats a line with the shares of views that differ from their probe."""
    shares = [np.mean([np.any(v != probe) for v in views]) for views in (host_views, device_views)]
    return rate_row(name, *shares)


def rate_row(name: str, host_share: float, device_share: float) -> str:
    """Formats a line with two shares and their difference, without quantiles."""
    difference = abs(host_share - device_share)
    return f"| {name} | | {host_share:.3f} | | | {device_share:.3f} | | {difference:.3f} |"


def measured(name: str, host_views: Any, device_views: Any, measure: Measure) -> str:
    """Formats a line for a measure of the views of both."""
    both = (np.array([measure(view) for view in views]) for views in (host_views, device_views))
    return row(name, *both)


def compare_geometry(draws: int) -> list[str]:
    """Compares operations that move pixels."""
    from_host, from_device = (
        host_views_of(host.crop(), ramps(), draws),
        device_views_of("random_resized_crop", ramps(), draws),
    )
    lines = [
        measured("crop area", from_host, from_device, lambda v: slope(v, 0) * slope(v, 1)),
        measured("crop aspect", from_host, from_device, lambda v: slope(v, 0) / slope(v, 1)),
    ]
    from_host, from_device = (
        host_views_of(host.flip(), ramps(), draws),
        device_views_of("flip_horizontal", ramps(), draws),
    )
    lines.append(changed_row("flip rate", from_host, from_device, ramps()))
    from_host = host_views_of(host.rotate_quarter(), ramps(), draws)
    from_device = device_views_of("rotate_quarter", ramps(), draws, probability=0.375)
    lines.append(changed_row("quarter-turn rate", from_host, from_device, ramps()))
    from_host = host_views_of(host.center_crop, ramps(), draws)
    from_device = device_views_of("center_crop", ramps(), draws, fraction=(0.08, 1.0))
    lines.append(measured("centre crop's side", from_host, from_device, lambda v: slope(v, 0)))
    return lines


def compare_elastic(draws: int) -> list[str]:
    """Compares the elastic transform."""
    settings = host.ON_DEVICE["elastic"]
    from_host, from_device = (
        host_views_of(host.elastic(), ramps(), draws),
        device_views_of("elastic", ramps(), draws, **settings),
    )
    lines = [changed_row("elastic rate", from_host, from_device, ramps())]
    from_host = host_views_of(host.elastic(1.0), ramps(), draws)
    always = settings | {"probability": 1.0}
    from_device = device_views_of("elastic", ramps(), draws, **always)
    lines.append(measured("elastic: source area a pixel", from_host, from_device, magnification))
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
    from_host = np.array([host.field(rng, SIDE)[inner[:2]] for _ in range(few)])
    from_device = device_views_of("elastic", ramps() - 48, few, **still) - ramps() + 48
    from_device = from_device[(slice(None), *inner)]
    lines.append(row("field's mean, pixels", from_host.mean((1, 2)), from_device.mean((1, 2))))
    lines.append(
        row(
            "field's deviation within a view, pixels",
            from_host.std((1, 2)),
            from_device.std((1, 2)),
        )
    )
    return lines


def compare_values(draws: int) -> list[str]:
    """Compares operations that change values."""
    color = uniform(0.6, 0.5, 0.3)
    from_host, from_device = (
        host_views_of(host.jitter(), color, draws),
        device_views_of("color_jitter", color, draws),
    )
    lines = [changed_row("jitter rate", from_host, from_device, color)]
    probes: dict[str, tuple[np.ndarray, Measure]] = {
        "brightness": (uniform(0.5, 0.5, 0.5), lambda v: float(v[0, 0, 0]) / 0.5),
        "contrast": (halves(), lambda v: float(v[7, 0, 0] - v[0, 0, 0]) / 0.2),
        "saturation": (uniform(0.6, 0.5, 0.4), lambda v: float(v[0, 0, 0] - v[0, 0, 2]) / 0.2),
        "hue": (uniform(0.4, 0.8, 0.4), hue),
    }
    for name, (probe, measure) in probes.items():
        off = {other: 0.0 for other in probes if other != name}
        from_host = host_views_of(host.jitter(1.0, **off), probe, draws)
        from_device = device_views_of("color_jitter", probe, draws, probability=1.0, **off)
        lines.append(measured(name, from_host, from_device, measure))
    from_host, from_device = (
        host_views_of(host.blur(), point(), draws),
        device_views_of("gaussian_blur", point(), draws),
    )
    blurred = [[v for v in views if v[15, 16, 0] > 0] for views in (from_host, from_device)]
    lines.append(rate_row("blur rate", *(len(views) / draws for views in blurred)))
    lines.append(measured("blur's sigma, pixels", *blurred, width))
    lines.append(measured("blur's peak", from_host, from_device, brightest))
    from_host = host_views_of(host.gray(), color, draws)
    from_device = device_views_of("grayscale", color, draws, weights=(0.299, 0.587, 0.114))
    lines.append(changed_row("grey rate", from_host, from_device, color))
    return lines


def prepared(crop: np.ndarray) -> np.ndarray:
    """Z-scores each channel and scales all to one range; returns [96, 96, 3] uint8."""
    crop = cv2.resize(crop.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    crop = (crop - crop.mean((0, 1))) / crop.std((0, 1))
    return np.uint8(255 * (crop - crop.min()) / np.ptp(crop))


def probe_crops(folder: str, draws: int) -> np.ndarray:
    """Reads or draws crops; returns them, each about equally often, as [draws, 96, 96, 3] uint8."""
    if folder:
        raw = (np.load(path) for path in sorted(Path(folder).glob("*.npy"))[:1000])
    else:
        noise = np.random.default_rng(0).uniform(size=(200, SIDE, SIDE, 3))
        raw = (cv2.GaussianBlur(image, (0, 0), 3) for image in noise)
    found = np.stack([prepared(crop) for crop in raw])
    return found[np.arange(draws) % len(found)]


def compare_chain(draws: int, folder: str) -> list[str]:
    """Compares final views of crops."""
    crops = probe_crops(folder, draws)
    rng, whole = np.random.default_rng(3), host.chain()
    from_host = np.stack([whole(rng, crop) for crop in crops]).astype(np.float32) / 255
    settings = {n: augment.OPERATIONS[n].__kwdefaults__ | s for n, s in host.ON_DEVICE.items()}
    view = jax.jit(jax.vmap(lambda image, key: augment.augment(image, key, settings)))
    keys = jax.random.split(jax.random.key(4), draws)
    parts = [np.s_[i : i + PART] for i in range(0, draws, PART)]
    images = np.float32(crops) / 255
    from_device = np.concatenate([view(jnp.asarray(images[part]), keys[part]) for part in parts])

    def steepness(view: np.ndarray) -> np.ndarray:
        return np.hypot(view[:-1, 1:] - view[:-1, :-1], view[1:, :-1] - view[:-1, :-1])

    measures: dict[str, Measure] = {
        "whole chain: mean of pixels": lambda v: float(v.mean()),
        "whole chain: deviation of pixels": lambda v: float(v.std()),
        "whole chain: mean gradient": lambda v: float(steepness(v).mean()),
        "whole chain: deviation of gradients": lambda v: float(steepness(v).std()),
    }
    return [measured(name, from_host, from_device, measure) for name, measure in measures.items()]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=5000)
    parser.add_argument("--crops", default="")
    settings = parser.parse_args()
    print("| statistic | host 5 % | 50 % | 95 % | device 5 % | 50 % | 95 % | distance |")
    print("|---|---|---|---|---|---|---|---|")
    for lines in (compare_geometry, compare_elastic, compare_values):
        print("\n".join(lines(settings.draws)), flush=True)
    print("\n".join(compare_chain(settings.draws, settings.crops)))


if __name__ == "__main__":
    main()
