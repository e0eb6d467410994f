"""VICReg equals its definition in NumPy, value and gradient, on any number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cellclr_jax import devices
from cellclr_jax.objectives import Outputs
from cellclr_jax.objectives.vicreg import VICReg


def naive(x, y, goal):
    """The three terms by loops over features, float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    cells, width = x.shape
    invariance = np.mean([(x[i, j] - y[i, j]) ** 2 for i in range(cells) for j in range(width)])
    variance = covariance = 0.0
    for z in (x, y):
        centered = z - z.mean(axis=0)
        for i in range(width):
            deviation = np.sqrt(centered[:, i] @ centered[:, i] / (cells - 1) + 1e-4)
            variance += 0.5 * max(0.0, 1.0 - deviation) / width
            for j in range(width):
                if i != j:
                    covariance += (centered[:, i] @ centered[:, j] / (cells - 1)) ** 2 / width
    weights = goal.invariance_weight, goal.variance_weight, goal.covariance_weight
    terms = invariance, variance, covariance
    return sum(w * term for w, term in zip(weights, terms, strict=True)), terms


@functools.partial(jax.jit, static_argnums=(0, 2))
def loss(goal, pair, mesh=None):
    outputs = Outputs(student=pair, teacher=None, labels={}, state=None, key=jax.random.key(0))
    return goal.loss(outputs, mesh)


def pairs(cells, width, seed=0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width)) / np.sqrt(width)
    return (0.7 * rng.normal(size=(2, cells, width)) @ mixing).astype(np.float32)


@pytest.mark.parametrize(("cells", "width"), [(16, 5), (6, 11), (2, 3)])
def test_value_and_terms_equal_the_definition(cells, width):
    goal = VICReg(invariance_weight=3.0, variance_weight=2.0, covariance_weight=0.5)
    pair = pairs(cells, width)
    value, (_, metrics) = loss(goal, pair)
    wanted, terms = naive(*pair, goal)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    found = [metrics[name] for name in ("invariance", "variance", "covariance")]
    np.testing.assert_allclose(found, terms, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("cells", "width"), [(12, 4), (4, 12)])
def test_the_gradient_equals_finite_differences(cells, width):
    goal, pair = VICReg(), pairs(cells, width, seed=1).astype(np.float64)
    found = jax.grad(lambda p: loss(goal, p)[0])(jnp.asarray(pair, jnp.float32))
    for place in ((0, 0, 0), (1, 2, 3), (0, 3, 1)):
        step = np.zeros_like(pair)
        step[place] = 1e-6
        slope = (naive(*(pair + step), goal)[0] - naive(*(pair - step), goal)[0]) / 2e-6
        np.testing.assert_allclose(found[place], slope, rtol=2e-3, atol=1e-4)


def test_devices_that_share_the_rows_find_the_same():
    goal, pair = VICReg(width=8), pairs(32, 8)
    mesh = devices.make_mesh(8)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, *mesh.axis_names))
    function = jax.value_and_grad(lambda p: loss(goal, p, mesh)[0])
    value, gradient = jax.jit(function)(jax.device_put(pair, rows))
    on_one_device, wanted = jax.value_and_grad(lambda p: loss(goal, p)[0])(pair)
    np.testing.assert_allclose(value, on_one_device, rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-7)


def test_equal_cells_are_a_collapse_and_different_ones_are_not():
    goal = VICReg()
    for pair, collapsed in ((np.ones((2, 8, 4), np.float32), True), (pairs(64, 4), False)):
        metrics = {name: float(v) for name, v in loss(goal, pair)[1][1].items()}
        assert bool(goal.sign_of_collapse(metrics, 8)) == collapsed


@pytest.mark.parametrize("settings", [{"width": 0}, {"variance_weight": -1.0}])
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        VICReg(**settings)
