"""Measures views a second of the paper's chain on the device and on the host.

python tests/bench/augmentation_speed.py [--side=96] [--images=256] [--chain=default|published]

The host's chain augments one image at a time, as a data loader with one process: by SciPy and
scikit-image or, for the published chain, by albumentations and OpenCV (only side 96).
"""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import scipy.ndimage
import skimage.transform

from cellclr_jax import augment, devices

# Computes one view on the host from a random generator and an image.
View = Callable[[np.random.Generator, np.ndarray], np.ndarray]

CHAIN = {
    "random_resized_crop": {"area": (0.08, 1.0)},
    "flip_horizontal": {},
    "elastic": {},
    "jitter_channels": {},
    "gaussian_blur": {"sigma": (0.1, 2.0), "kernel": 9},
}
REPEATS = 5


def on_host(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Computes one view by SciPy and scikit-image, with the operations of `CHAIN`."""
    side = image.shape[0]
    size = max(8, int(side * np.sqrt(rng.uniform(0.08, 1))))
    top, left = rng.integers(0, side - size + 1, 2)
    view = image[top : top + size, left : left + size]
    view = skimage.transform.resize(view, (side, side), order=1, anti_aliasing=True)
    if rng.random() < 0.5:
        view = view[:, ::-1]
    if rng.random() < 0.5:
        # torchvision's alpha of 50 is in units of half the side.
        fields = rng.uniform(-1, 1, (2, side, side))
        shifts = [25 * scipy.ndimage.gaussian_filter(field, 5) for field in fields]
        places = np.mgrid[:side, :side] + np.stack(shifts)
        channels = (scipy.ndimage.map_coordinates(c, places, order=1) for c in view.T)
        view = np.stack(list(channels), axis=-1)
    if rng.random() < 0.8:
        mean = view.mean((0, 1))
        view = ((view - mean) * rng.uniform(0.6, 1.4, 3) + mean) * rng.uniform(0.6, 1.4, 3)
    if rng.random() < 0.5:
        sigma = rng.uniform(0.1, 2)
        view = scipy.ndimage.gaussian_filter(view, (sigma, sigma, 0), truncate=4 / sigma)
    return view.astype(np.float32)


def device_rate(images: np.ndarray, chain: Mapping[str, Any]) -> tuple[float, float]:
    """Measures (highest views a second, seconds to compile) of the jitted chain on all devices."""
    mesh = devices.make_mesh()
    batch = devices.to_global(mesh, {"image": images})["image"]
    views = jax.jit(lambda key, x: augment.two_views(key, x, chain))
    key = jax.random.key(0)
    began = time.perf_counter()
    views(key, batch).block_until_ready()
    compiled = time.perf_counter() - began
    best = np.inf
    for repeat in range(REPEATS):
        began = time.perf_counter()
        views(jax.random.fold_in(key, repeat), batch).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * len(images) / best, compiled


def host_rate(images: np.ndarray, view: View) -> float:
    """Measures the highest rate of a host chain on one core, in views a second."""
    rng, best = np.random.default_rng(0), np.inf
    for _ in range(REPEATS):
        began = time.perf_counter()
        for image in images[:64]:
            view(rng, image)
        best = min(best, time.perf_counter() - began)
    return min(64, len(images)) / best


def main() -> None:
    """Prints both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--chain", choices=("default", "published"), default="default")
    settings = parser.parse_args()
    devices.use_all_cores(settings.images)
    shape = (settings.images, settings.side, settings.side, 3)
    images = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    if settings.chain == "published":
        # albumentations is not a dependency, so it is imported only here.
        import host_chain

        # The published crops have 8 bits.
        device, compiled = device_rate(images, host_chain.ON_DEVICE)
        host = host_rate(np.uint8(255 * images), host_chain.chain())
    else:
        device, compiled = device_rate(images, CHAIN)
        host = host_rate(images, on_host)
    where = f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"
    print(f"{settings.chain} views of {settings.side}×{settings.side}×3 pixels")
    print(f"{where}, compiled in {compiled:.1f} s")
    print(f"device chain  {device:10,.0f} views/s")
    print(f"host chain    {host:10,.0f} views/s on one core")
    print(f"ratio         {device / host:10.1f}")


if __name__ == "__main__":
    main()
