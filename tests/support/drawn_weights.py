"""Draws random weights, which depend only on their names, and images."""

import zlib

import numpy as np

SIDE, IMAGES = 96, 4
# Scale of a bottleneck's last normalisation, so that embeddings of 100 layers are near 1.
_LAST_SCALE = 0.25


def images(side=SIDE, channels=3):
    """Draws images [IMAGES, side, side, channels] float32 from a normal distribution."""
    shape = (IMAGES, side, side, channels)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def drawn(shapes):
    """Draws an array for each name and shape, with axes in PyTorch's order."""
    return {name: _draw(name, shape) for name, shape in shapes.items()}


def _draw(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if len(shape) > 1:  # He et al. 2015, fan in
        values = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith(("running_mean", "bias")):
        values = rng.normal(size=shape) * 0.1
    else:
        values = rng.uniform(0.5, 1.5, shape)
        values *= _LAST_SCALE if name.endswith("bn3.weight") else 1
    return values.astype(np.float32)
