"""Views have the distributions of the published host chain, measured on probe images."""

import colorsys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from support.published_chain import (
    NAMES,
    field,
    jitter,
    map_between,
    moved_points,
    naive_jitter,
    points,
    quarter_turns,
)
from support.published_chain import warp as naive_warp

from cellclr_jax import augment
from cellclr_jax.augment import geometry, resampling

COUNT = 2000
SIDE = 96


def views(operation, image, count=COUNT, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.jit(jax.vmap(partial(operation, jnp.asarray(image))))(keys))


def hosts(draw, *arguments, count=COUNT, seed=1):
    rng = np.random.default_rng(seed)
    return np.array([draw(rng, *arguments) for _ in range(count)])


def ramps(side):
    """[side, side, 2]: each pixel holds its own (x, y)."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    return np.stack([x, y], axis=-1)


def assert_same_distribution(ours, theirs):
    assert scipy.stats.ks_2samp(ours, theirs).pvalue > 1e-3


def assert_rate(happened, probability):
    spread = np.sqrt(probability * (1 - probability) / len(happened))
    assert np.mean(happened) == pytest.approx(probability, abs=4 * spread)


def test_half_are_flipped_and_three_of_eight_turned():
    out = views(augment.flip_horizontal, ramps(4))
    assert_rate(out[:, 0, 0, 0] > 0, 0.5)
    out = views(partial(augment.rotate_quarter, probability=0.375), ramps(4))
    corner = out[:, 0, 0, 0] + 2 * out[:, 0, 0, 1]  # 0, 3, 6, 9: which corner came there
    theirs = np.bincount(hosts(quarter_turns), minlength=4) / COUNT
    for turns, value in enumerate((0, 3, 9, 6)):
        assert_rate(corner == value, (0.625, 0.125, 0.125, 0.125)[turns])
        assert np.mean(corner == value) == pytest.approx(theirs[turns], abs=0.05)


@pytest.mark.parametrize("reach", [10.0, 50.0])
def test_an_affine_map_moves_its_points_as_the_hosts(reach):
    keys = jax.random.split(jax.random.key(0), COUNT)
    matrices = np.asarray(
        jax.jit(jax.vmap(lambda k: geometry.affine_map(k, (SIDE, SIDE, 3), reach)))(keys)
    ).astype(np.float64)
    forward = np.linalg.inv(matrices[:, :, :2])
    ours = np.einsum("nij,npj->npi", forward, points(SIDE)[None] - matrices[:, None, :, 2])
    assert np.abs(ours - points(SIDE)).max() <= reach + 0.1
    theirs = hosts(moved_points, SIDE, reach)
    for point in range(3):
        for axis in range(2):
            assert_same_distribution(ours[:, point, axis], theirs[:, point, axis])
    moves = (ours - points(SIDE)).reshape(COUNT, 6)
    assert np.abs(np.corrcoef(moves.T) - np.eye(6)).max() < 0.1
    theirs_inverse = [map_between(target, points(SIDE)) for target in theirs]
    assert_same_distribution(matrices[:, 0, 0], [matrix[0, 0] for matrix in theirs_inverse])


@pytest.mark.parametrize("shape", [(12, 12), (9, 14)])
def test_a_warp_equals_a_loop_over_pixels(shape):
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(*shape, 2)).astype(np.float32)
    for scale in (1.0, 6.0):
        matrix = scale * rng.normal(size=(2, 3)).astype(np.float32) * np.float32([1, 1, 20])
        got = resampling.warp_affine(image, jnp.asarray(matrix))
        np.testing.assert_allclose(got, naive_warp(image, matrix.astype(np.float64)), atol=3e-4)


def test_products_equal_gathers():
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(9, 14, 3)).astype(np.float32)
    rows, columns = rng.uniform(0, 8, size=(20, 30)), rng.uniform(0, 13, size=(20, 30))
    rows[0], columns[:, 0], rows[1], columns[:, 1] = 0, 0, 8, 13
    places = rows.astype(np.float32), columns.astype(np.float32)
    want = resampling.pixels_by_gathers(jnp.asarray(image), *places)
    got = resampling.pixels_by_products(image, *places)
    np.testing.assert_allclose(got, want, atol=1e-6)
    whole = [place.astype(np.float32) for place in np.mgrid[0:9, 0:14]]
    np.testing.assert_array_equal(resampling.pixels_by_products(image, *whole), image)


@pytest.mark.parametrize(("platform", "gathers"), [("tpu", False), ("cuda", True), ("cpu", True)])
def test_a_warp_gathers_pixels_except_on_tpus(platform, gathers):
    traced = jax.jit(resampling.warp_affine).trace(jnp.zeros((8, 9, 3)), jnp.eye(2, 3))
    assert ("gather" in traced.lower(lowering_platforms=(platform,)).as_text()) == gathers


@pytest.mark.parametrize("place", [(0, 0), (3, 20), (23, 23)])
def test_the_identity_leaves_an_image_as_it_is(place):
    image = np.random.default_rng(0).uniform(size=(24, 24, 3)).astype(np.float32)
    out = resampling.warp_affine(image, jnp.eye(2, 3))
    np.testing.assert_array_equal(out[place], image[place])


def test_maps_of_points_on_a_line_stay_finite_and_in_range():
    image = np.random.default_rng(0).uniform(0.2, 0.8, size=(16, 16, 1)).astype(np.float32)
    steep = jnp.array([[3e7, -2e7, 5e6], [1e-9, 4e8, -1e9]])
    flat = jnp.zeros((2, 3))
    for matrix in (steep, flat):
        out = np.asarray(resampling.warp_affine(image, matrix))
        assert image.min() <= out.min() <= out.max() <= image.max()
    out = views(partial(augment.elastic, affine=500.0, probability=1.0), image, 300)
    assert np.isfinite(out).all()
    assert image.min() - 1e-5 <= out.min() <= out.max() <= image.max() + 1e-5


def test_moved_points_on_one_line_map_all_pixels_to_the_first(monkeypatch):
    """(12, 12), (12, 2) and (2, 2) move to (2, 2), (7, 7) and (3, 3)."""
    moves = jnp.array([[-10.0, -10.0], [-5.0, 5.0], [1.0, 1.0]])
    monkeypatch.setattr(jax.random, "uniform", lambda *_, **__: moves)
    np.testing.assert_array_equal(geometry.affine_map(jax.random.key(0), (15, 15, 1), 20.0), 0)


def test_affine_and_field_share_one_draw_of_probability_and_no_other():
    image = np.random.default_rng(0).uniform(size=(24, 24, 1)).astype(np.float32)
    fields = views(augment.elastic, image, 400)
    maps = views(partial(augment.elastic, affine=8.0, displacement=0.0), image, 400)
    both = views(partial(augment.elastic, affine=8.0), image, 400)

    def changed(out):
        return (out != image).any(axis=(1, 2, 3))

    np.testing.assert_array_equal(changed(fields), changed(maps))
    np.testing.assert_array_equal(changed(fields), changed(both))
    assert_rate(changed(maps), 0.5)
    plain = views(partial(augment.elastic, affine=0.0), image, 400)
    np.testing.assert_array_equal(plain, fields)


def test_a_negative_affine_is_refused():
    with pytest.raises(ValueError, match=r"affine -1\.0"):
        augment.elastic(jnp.ones((8, 8, 1)), jax.random.key(0), affine=-1.0)


def test_the_field_moves_pixels_as_little_as_the_hosts():
    """Thousandths of a pixel, mostly the same for the whole image: see the published recipe."""
    small = partial(augment.elastic, displacement=0.0064, smoothness=75.0, probability=1.0)
    moved = (views(small, ramps(SIDE) - 48, 400) - (ramps(SIDE) - 48))[:, 8:-8, 8:-8, 0]
    theirs = hosts(field, SIDE, count=200)[:, 8:-8, 8:-8]
    assert moved.std() == pytest.approx(theirs.std(), rel=0.15)
    ours_within, theirs_within = (np.sqrt(f.var(axis=(1, 2)).mean()) for f in (moved, theirs))
    assert ours_within == pytest.approx(theirs_within, rel=0.25)


def flat(*color):
    return np.broadcast_to(np.float32(color), (4, 4, 3))


def only(name, strength=0.2):
    off = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)
    return partial(augment.color_jitter, probability=1.0, **off | {name: strength})


def halves():
    image = flat(0.4, 0.4, 0.4).copy()
    image[2:] = 0.6
    return image


def hue(view):
    return colorsys.rgb_to_hsv(*map(float, view[0, 0]))[0] - 1 / 3


PROBES = {
    "brightness": (flat(0.5, 0.5, 0.5), lambda view: view[0, 0, 0] / 0.5),
    "contrast": (halves(), lambda view: (view[3, 0, 0] - view[0, 0, 0]) / 0.2),
    "saturation": (flat(0.6, 0.5, 0.4), lambda view: (view[0, 0, 0] - view[0, 0, 2]) / 0.2),
    "hue": (flat(0.4, 0.8, 0.4), hue),
}
_MORE = [pytest.param(name, marks=pytest.mark.slow) for name in ("contrast", "saturation")]


@pytest.mark.parametrize("name", ["brightness", "hue", *_MORE])
def test_jitter_draws_the_hosts_factors_and_shifts(name):
    rng = np.random.default_rng(2)
    theirs = [jitter(rng)[0][name] for _ in range(COUNT)]
    probe, measure = PROBES[name]
    assert_same_distribution([measure(view) for view in views(only(name), probe)], theirs)


def test_four_of_five_are_jittered_and_a_fifth_are_grey():
    image = flat(0.6, 0.5, 0.3)
    assert_rate((views(augment.color_jitter, image) != image).any(axis=(1, 2, 3)), 0.8)
    gray = views(partial(augment.grayscale, weights=(0.299, 0.587, 0.114)), image)
    assert_rate(np.ptp(gray, axis=3).max(axis=(1, 2)) < 1e-6, 0.2)


def test_jitter_has_the_hosts_random_order():
    """Clipping makes the orders differ; a fixed order would be detected."""
    pair = np.float32([[[0.9, 0.6, 0.3], [0.3, 0.5, 0.95]]])
    settings = {"brightness": 0.9, "contrast": 0.9, "saturation": 0.9, "probability": 1.0}
    ours = views(partial(augment.color_jitter, **settings), pair).reshape(COUNT, 6)

    def outcomes(order=None):
        rng = np.random.default_rng(3)
        drawn = [jitter(rng, 0.9) for _ in range(COUNT)]
        out = [naive_jitter(pair, order or names, factors) for factors, names in drawn]
        return np.reshape(out, (COUNT, 6))

    theirs, fixed = outcomes(), outcomes(NAMES)
    for value in range(6):
        assert_same_distribution(ours[:, value], theirs[:, value])
    apart = [scipy.stats.ks_2samp(ours[:, v], fixed[:, v]).pvalue for v in range(6)]
    assert min(apart) < 1e-6


def test_blur_has_the_hosts_rate_and_widths():
    point = np.zeros((17, 17, 1), np.float32)
    point[8, 8] = 1
    out = views(augment.gaussian_blur, point)[..., 0]
    share = out[:, 8, 9] / out[:, 8, 8]
    wide = share > 0
    sigma = np.sqrt(-0.5 / np.log(share[wide]))
    theirs = np.random.default_rng(4).uniform(0.1, 2.0, COUNT)
    assert_rate(wide, 0.5)
    assert_same_distribution(sigma, theirs)


def test_center_crops_have_the_hosts_sides():
    out = views(partial(augment.center_crop, fraction=(0.08, 1.0), size=64), ramps(32))
    kept = out[:, 32, 63, 0] - out[:, 32, 0, 0] + 1
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-4)
    np.testing.assert_allclose(out[:, 32, 0, 0], (32 - np.round(kept)) // 2, atol=1e-4)
    theirs = np.round(32 * np.random.default_rng(5).uniform(0.08, 1.0, COUNT))
    assert_same_distribution(np.round(kept), theirs)
