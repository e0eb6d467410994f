"""Batch normalisation equals Flax's, with and without a product before it, in both directions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cellclr_jax.models.batch_norm import BatchNorm
from cellclr_jax.models.resnet import Bottleneck

FLAX = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)


def draw(*shape, seed=0, mean=0.0):
    return jax.random.normal(jax.random.key(seed), shape) + mean


def ours(*, train=True, dtype=jnp.float32):
    return BatchNorm(train=train, dtype=dtype)


def variables(channels):
    params = {"scale": draw(channels, seed=1, mean=1.0), "bias": draw(channels, seed=2)}
    stats = {"mean": draw(channels, seed=3), "var": draw(channels, seed=4) ** 2 + 0.5}
    return {"params": params, "batch_stats": stats}


def value_and_gradients(apply, *arguments):
    """Result, new statistics, and gradients of a random projection of the result."""

    def projected(*arguments):
        y, updated = apply(*arguments)
        return jnp.sum(y * draw(*y.shape, seed=9)), (y, updated["batch_stats"])

    places = tuple(range(len(arguments)))
    gradients, results = jax.jit(jax.grad(projected, places, has_aux=True))(*arguments)
    return flatten_dict({"results": dict(enumerate(results)), "slopes": dict(enumerate(gradients))})


def assert_equal(got, want, rtol):
    assert got.keys() == want.keys()
    for name, leaf in want.items():
        np.testing.assert_allclose(got[name], leaf, atol=rtol * np.abs(leaf).max(), err_msg=name)


@pytest.mark.parametrize(("shape", "mean"), [((6, 5, 4, 7), 0.0), ((32, 7), 30.0)])
def test_training_equals_flaxs(shape, mean):
    x, state = 2.0 * draw(*shape, mean=mean / 2), variables(7)

    def apply(module):
        return lambda x, params: module.apply(
            state | {"params": params}, x, mutable=["batch_stats"]
        )

    got = value_and_gradients(apply(ours()), x, state["params"])
    want = value_and_gradients(apply(FLAX), x, state["params"])
    assert_equal(got, want, 1e-5)


def test_running_statistics_are_used_outside_of_training():
    x, state = draw(6, 5, 4, 7), variables(7)
    flax = nn.BatchNorm(use_running_average=True, momentum=0.9, epsilon=1e-5)
    got = ours(train=False).apply(state, x)
    np.testing.assert_allclose(got, flax.apply(state, x), atol=1e-5)


@pytest.mark.parametrize("mean", [5.0])
def test_a_normalised_product_equals_product_and_normalisation(mean):
    x, state = jax.nn.relu(draw(16, 6, 5, 12, mean=mean)), variables(40)
    kernel = 0.3 * draw(12, 40, seed=5)

    def at_once(x, kernel, params):
        return ours().apply(state | {"params": params}, x, kernel, mutable=["batch_stats"])

    def in_turn(x, kernel, params):
        product = jnp.matmul(x, kernel, precision="highest")
        return FLAX.apply(state | {"params": params}, product, mutable=["batch_stats"])

    arguments = (x, kernel, state["params"])
    assert_equal(
        value_and_gradients(at_once, *arguments), value_and_gradients(in_turn, *arguments), 1e-4
    )


@pytest.mark.parametrize(("mean", "deviation"), [(50.0, 0.1)])
def test_the_variance_of_a_product_far_from_zero_is_exact_in_bfloat16(mean, deviation):
    x = (mean + deviation * draw(8, 9, 9, 16)).astype(jnp.bfloat16)
    kernel = (draw(16, 64, seed=5) / 4).astype(jnp.bfloat16).astype(jnp.float32)
    state = {"params": variables(64)["params"], "batch_stats": {"mean": 0.0, "var": 0.0}}
    y, updated = ours(dtype=jnp.bfloat16).apply(state, x, kernel, mutable=["batch_stats"])
    product = np.asarray(x, np.float64).reshape(-1, 16) @ np.asarray(kernel, np.float64)
    got = updated["batch_stats"]
    np.testing.assert_allclose(got["var"] / 0.1, product.var(0), rtol=0.02)
    np.testing.assert_allclose(got["mean"] / 0.1, product.mean(0), rtol=1e-3, atol=0.01)
    unit = (product - product.mean(0)) / np.sqrt(product.var(0) + 1e-5)
    scale, bias = (np.asarray(state["params"][name]) for name in ("scale", "bias"))
    want = unit * scale + bias
    np.testing.assert_allclose(np.asarray(y, np.float32).reshape(-1, 64), want, atol=0.1)


def test_outside_of_training_a_product_is_a_product():
    x, kernel, state = draw(4, 3, 3, 5), draw(5, 9, seed=5), variables(9)
    module = ours(train=False)
    got = module.apply(state, x, kernel)
    np.testing.assert_allclose(got, module.apply(state, x @ kernel), atol=1e-5)


def test_a_bfloat16_block_trains_as_a_float32_one_does():
    """The bfloat16 block normalises by `_normalize_product`; the difference is only rounding."""
    x = jax.nn.relu(draw(16, 8, 8, 64))
    exact = Bottleneck(width=16, stride=1, dtype=jnp.float32)
    state = exact.init(jax.random.key(0), x, train=False)
    grown = jax.tree.map(lambda leaf: leaf + 0.5, state["params"]["bn3"])
    state["params"]["bn3"] = grown  # a scale of 0 would hide the block

    def apply(dtype):
        block = Bottleneck(width=16, stride=1, dtype=dtype)
        return lambda params: block.apply(
            state | {"params": params}, x, train=True, mutable=["batch_stats"]
        )

    got = value_and_gradients(apply(jnp.bfloat16), state["params"])
    want = value_and_gradients(apply(jnp.float32), state["params"])
    assert got.keys() == want.keys()
    for name, leaf in want.items():
        difference = np.linalg.norm(np.asarray(got[name], np.float32) - leaf)
        assert difference < 0.15 * np.linalg.norm(leaf), name


def test_residuals_have_the_dtype_of_the_input():
    x, state = draw(8, 6, 6, 16).astype(jnp.bfloat16), variables(16)
    _, backward = jax.vjp(
        lambda x: ours(dtype=jnp.bfloat16).apply(state, x, mutable=["batch_stats"])[0], x
    )
    kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.size >= x.size]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16]


def test_a_constant_channel_stays_finite():
    x = jnp.full((4, 3, 3, 2), 1e3)
    y, _ = ours().apply(variables(2), x, mutable=["batch_stats"])
    np.testing.assert_allclose(
        y, np.broadcast_to(variables(2)["params"]["bias"], x.shape), atol=0.1
    )
