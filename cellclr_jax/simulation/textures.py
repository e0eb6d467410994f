"""Banks of noise and fibre textures, drawn once per process and sampled for every cell.

Drawing fibres for each cell would take most of the time. Textures from a bank of a few dozen, with
random offsets and mirrored, show no visible repetition within a field.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from cellclr_jax.simulation.population import WINDOW_HALF

NOISE_SIZE = 512
STAMP_HALF = WINDOW_HALF  # fibres fill the largest cell
STAMP_SIZE = 2 * STAMP_HALF + 1
ORIENTATIONS = 12  # steps of 15 degrees, not visible in fibres
STAMPS = 14
# A network of microtubules: streams of fibres that begin within STREAM_WIDTH pixels of each other.
STREAMS, STREAM_FIBRES, STREAM_WIDTH = 13, 12, 9.0
ASTER_PEAK = 3.0  # brightness in the middle of an aster, where its fibres meet
WOBBLE_SIGMA = 9.0  # correlation length of a fibre's turns, in pixels
NUCLEUS_RADIUS = 17.0  # microtubules bend around a nucleus of this radius

Array = np.ndarray


@dataclass(frozen=True)
class TextureBank:
    """Textures as float32: noise [512, 512] of mean 0 and variance 1, stamps [N, 257, 257] >= 0.

    Attributes:
      fine: grains of about 2 px.
      coarse: patches of about 5 px.
      broad: clouds of about 16 px.
      network: microtubules of untreated cells, around a central nucleus.
      bundles: thick bundles that bend around the nucleus.
      aster: straight fibres from the centre outwards.
      stress: parallel fibres; the stamp `k` runs at angle `pi * k / ORIENTATIONS`.
    """

    fine: Array
    coarse: Array
    broad: Array
    network: Array
    bundles: Array
    aster: Array
    stress: Array


@lru_cache(maxsize=2)
def texture_bank(seed: int) -> TextureBank:
    """Draws a bank from `seed`; calls in one process share the object."""
    rng = np.random.default_rng([seed, 0x7E])
    return TextureBank(
        fine=_noise(rng, 1.1),
        coarse=_noise(rng, 2.6),
        broad=_noise(rng, 8.0),
        network=np.stack([_network(rng) for _ in range(STAMPS)]),
        bundles=np.stack([_bundles(rng) for _ in range(STAMPS)]),
        aster=np.stack([_aster(rng) for _ in range(STAMPS // 2)]),
        stress=np.stack([_stress(rng, np.pi * k / ORIENTATIONS) for k in range(ORIENTATIONS)]),
    )


def _noise(rng: np.random.Generator, sigma: float) -> Array:
    """Periodic band-pass noise with structures of about `2 * sigma` pixels."""
    white = rng.standard_normal((NOISE_SIZE, NOISE_SIZE)).astype(np.float32)
    narrow = ndimage.gaussian_filter(white, sigma, mode="wrap")
    band = narrow - ndimage.gaussian_filter(white, 2.5 * sigma, mode="wrap")
    return band / band.std()


def _draw_fibres(
    rng: np.random.Generator,
    start: Array,
    heading: Array,
    bend: Array,
    *,
    steps: Array,
    width: float,
    wobble: float,
) -> Array:
    """Draws smooth random curves.

    Args:
      rng: for the random turns of the curves.
      start: [F, 2] x and y of their first points, from the stamp's centre.
      heading: [F] first direction in radians.
      bend: [F] mean turn in radians a pixel.
      steps: [F] length in pixels.
      width: standard deviation of the profile in pixels.
      wobble: standard deviation of the turn about its mean, in radians a pixel.

    Returns:
      [257, 257] float32, the average near the centre 1.
    """
    length = int(steps.max())
    turns = ndimage.gaussian_filter1d(
        rng.standard_normal((len(start), length)), WOBBLE_SIGMA, axis=1
    )
    turns *= wobble * np.sqrt(
        2 * np.sqrt(np.pi) * WOBBLE_SIGMA
    )  # restores the variance that the filter removed
    angle = heading[:, None] + np.cumsum(bend[:, None] + turns, axis=1)
    x = start[:, :1] + np.cumsum(np.cos(angle), axis=1) + STAMP_HALF
    y = start[:, 1:] + np.cumsum(np.sin(angle), axis=1) + STAMP_HALF
    lit = np.arange(length) < steps[:, None]
    lit &= (x >= 0) & (x < STAMP_SIZE - 1) & (y >= 0) & (y < STAMP_SIZE - 1)
    at = np.rint(y[lit]).astype(np.intp) * STAMP_SIZE + np.rint(x[lit]).astype(np.intp)
    canvas = np.bincount(at, minlength=STAMP_SIZE**2).reshape(STAMP_SIZE, STAMP_SIZE)
    canvas = ndimage.gaussian_filter(canvas.astype(np.float32), width)
    centre = canvas[STAMP_HALF - 40 : STAMP_HALF + 41, STAMP_HALF - 40 : STAMP_HALF + 41]
    return canvas / (centre.mean() + 1e-6)


def _around(rng: np.random.Generator, count: int, low: float, high: float) -> tuple[Array, Array]:
    """Random points [count, 2] at `low` to `high` pixels from the centre; their angles [count]."""
    at = rng.uniform(0, 2 * np.pi, count)
    radius = rng.uniform(low, high, count)
    return np.stack([radius * np.cos(at), radius * np.sin(at)], axis=1), at


def _network(rng: np.random.Generator) -> Array:
    """Thin curved fibres in loose streams that start at the nucleus's rim and bend around it."""
    low, high = 0.3 * NUCLEUS_RADIUS, 2.2 * NUCLEUS_RADIUS
    origin, at = _around(rng, STREAMS, low, high)
    heading = at + rng.choice([-1.0, 1.0], STREAMS) * rng.uniform(0.5, 2.0, STREAMS)
    bend = rng.normal(0, 0.016, STREAMS)
    stream = np.repeat(np.arange(STREAMS), STREAM_FIBRES)
    count = len(stream)
    start = origin[stream] + rng.normal(0, STREAM_WIDTH, (count, 2))
    heading = heading[stream] + rng.normal(0, 0.35, count)
    bend = bend[stream] + rng.normal(0, 0.005, count)
    steps = rng.uniform(35, 120, count)
    return _draw_fibres(rng, start, heading, bend, steps=steps, width=0.85, wobble=0.015)


def _bundles(rng: np.random.Generator) -> Array:
    """Draws a few thick bundles in arcs around the nucleus."""
    count = 12
    start, at = _around(rng, count, 1.0 * NUCLEUS_RADIUS, 2.3 * NUCLEUS_RADIUS)
    turn = rng.choice([-1.0, 1.0], count)
    bend = turn / rng.uniform(30, 60, count)
    heading = at + turn * rng.uniform(1.2, 1.7, count)
    steps = rng.uniform(40, 100, count)
    return _draw_fibres(rng, start, heading, bend, steps=steps, width=2.0, wobble=0.01)


def _aster(rng: np.random.Generator) -> Array:
    """Straight fibres from one pole outwards."""
    count = 46
    start, at = _around(rng, count, 0.0, 3.0)
    steps, straight = rng.uniform(14, 25, count), np.zeros(count)
    fibres = _draw_fibres(rng, start, at, straight, steps=steps, width=0.9, wobble=0.0)
    return fibres * np.float32(ASTER_PEAK) / fibres.max()


def _stress(rng: np.random.Generator, angle: float) -> Array:
    """Nearly parallel, nearly straight fibres at `angle`."""
    count = 230
    start = rng.uniform(-1.2 * STAMP_HALF, 1.2 * STAMP_HALF, (count, 2))
    heading = angle + rng.choice([0, np.pi], count) + rng.normal(0, 0.06, count)
    bend = rng.normal(0, 0.0008, count)
    steps = rng.uniform(35, 110, count)
    return _draw_fibres(rng, start, heading, bend, steps=steps, width=1.1, wobble=0.002)
