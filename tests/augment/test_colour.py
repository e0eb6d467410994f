"""Colour jitter against colorsys and a plain sequence of its four parts, pixel by pixel."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.published_chain import LUMA, NAMES, naive_hue, naive_jitter

from cellclr_jax import augment
from cellclr_jax.augment import intensity


def picture(side=12, seed=0):
    """Random colours, and those where two channels or all are equal or at an end."""
    pixels = np.random.default_rng(seed).uniform(size=(side, side, 3)).astype(np.float32)
    levels = itertools.product((0.0, 0.5, 1.0), repeat=3)
    pixels.reshape(-1, 3)[:27] = list(levels)
    return pixels


@pytest.mark.parametrize("shift", [-0.5, -0.2, 0.0, 0.07, 1 / 3, 0.5])
def test_hue_equals_colorsys_pixel_by_pixel(shift):
    got = np.stack(intensity.shift_hue(tuple(jnp.moveaxis(picture(), 2, 0)), shift), axis=2)
    np.testing.assert_allclose(got, naive_hue(picture(), shift), atol=1e-5)


@pytest.mark.parametrize("names", list(itertools.permutations(NAMES)), ids="-".join)
def test_every_order_equals_the_four_one_after_the_other(names):
    factors = {"brightness": 1.5, "contrast": 1.7, "saturation": 0.6, "hue": 0.17}
    order = jnp.array([NAMES.index(name) for name in names if name != "hue"])
    strengths = jnp.array([factors[name] for name in NAMES[:3]])  # as `color_jitter` has them
    run = jax.jit(intensity._in_order)
    got = run(jnp.asarray(picture()), strengths, factors["hue"], order, names.index("hue"))
    np.testing.assert_allclose(got, naive_jitter(picture(), names, factors), atol=2e-5)


def draws(image, count=64, **settings):
    keys = jax.random.split(jax.random.key(0), count)
    jitter = partial(augment.color_jitter, jnp.asarray(image), **settings)
    return np.asarray(jax.jit(jax.vmap(jitter))(keys))


def test_strength_zero_is_the_identity():
    off = dict.fromkeys(NAMES, 0.0)
    out = draws(picture(), probability=1.0, **off)
    np.testing.assert_allclose(out, np.broadcast_to(picture(), out.shape), atol=2e-6)
    bright = 3 * picture()
    out = draws(bright, probability=0.0)
    np.testing.assert_array_equal(out, np.broadcast_to(bright, out.shape))


def test_results_stay_in_range_and_grey_stays_grey():
    strong = dict.fromkeys(NAMES[:3], 3.0) | {"hue": 0.5}
    out = draws(picture(), probability=1.0, **strong)
    assert out.min() >= 0
    assert out.max() <= 1
    assert np.isfinite(out).all()
    grey = np.repeat(picture()[:, :, :1], 3, axis=2)
    out = draws(grey, probability=1.0)
    np.testing.assert_allclose(out, np.broadcast_to(out[..., :1], out.shape), atol=1e-6)
    assert out.std(axis=0).max() > 0.02


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channel_counts_are_refused(channels):
    images = jnp.ones((2, 8, 8, channels))
    with pytest.raises(ValueError, match=f"3 channels, got {channels}"):
        augment.two_views(jax.random.key(0), images, {"color_jitter": {}})


@pytest.mark.parametrize(
    "settings", [{"hue": 0.6}, {"hue": -0.1}, {"brightness": -1.0}, {"saturation": -0.2}]
)
def test_strengths_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        augment.color_jitter(jnp.ones((8, 8, 3)), jax.random.key(0), **settings)


def test_grayscale_takes_weights():
    image, key = picture(), jax.random.key(0)
    gray = augment.grayscale(image, key, probability=1.0, weights=tuple(LUMA))
    np.testing.assert_allclose(gray, np.repeat((image @ LUMA)[:, :, None], 3, 2), atol=1e-6)
    thirds = augment.grayscale(image, key, probability=1.0, weights=(1 / 3, 1 / 3, 1 / 3))
    plain = augment.grayscale(image, key, probability=1.0)
    np.testing.assert_allclose(thirds, plain, atol=1e-6)
    with pytest.raises(ValueError, match="2 weights for 3"):
        augment.grayscale(image, key, weights=(0.5, 0.5))
