"""Masks by path, schedules and scaling rules of optimisers."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cellclr_jax.training import optimizers

PARAMS = {
    "conv1": {"kernel": np.full((3, 2), 2.0), "bias": np.full(2, 3.0)},
    "bn1": {"scale": np.ones(2), "bias": np.zeros(2)},
}


def gradients(step):
    rng = np.random.default_rng(step)
    return {
        layer: {n: rng.normal(size=v.shape).astype(np.float32) for n, v in leaves.items()}
        for layer, leaves in PARAMS.items()
    }


def walk(optimizer, steps=5):
    params = {
        layer: {name: jnp.asarray(leaf, jnp.float32) for name, leaf in leaves.items()}
        for layer, leaves in PARAMS.items()
    }
    state = optimizer.init(params)
    for step in range(steps):
        updates, state = optimizer.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_masks_take_kernels_alone():
    masked = optimizers.is_kernel(PARAMS)
    assert masked == {
        "conv1": {"kernel": True, "bias": False},
        "bn1": {"scale": False, "bias": False},
    }


@pytest.mark.parametrize("name", ["lars", "adam", "adamw", "sgd"])
def test_weight_decay_leaves_biases_and_norms_alone(name):
    with_decay = walk(optimizers.make_optimizer(name, lambda _: 0.1, weight_decay=0.5))
    without = walk(optimizers.make_optimizer(name, lambda _: 0.1))
    assert not np.allclose(with_decay["conv1"]["kernel"], without["conv1"]["kernel"])
    np.testing.assert_array_equal(with_decay["conv1"]["bias"], without["conv1"]["bias"])
    np.testing.assert_array_equal(with_decay["bn1"]["scale"], without["bn1"]["scale"])


def test_cosine_rises_then_falls_to_its_end():
    schedule = optimizers.make_schedule(
        "cosine", peak=2.0, total_steps=100, warmup_steps=10, final=0.1
    )
    assert float(schedule(0)) == 0
    assert float(schedule(5)) == pytest.approx(1)
    assert float(schedule(10)) == pytest.approx(2)
    assert float(schedule(55)) == pytest.approx(2 * (0.1 + 0.9 / 2))
    assert float(schedule(100)) == pytest.approx(0.2)


def test_constant_stays_after_the_warm_up():
    schedule = optimizers.make_schedule("constant", peak=2.0, total_steps=100, warmup_steps=4)
    assert [float(schedule(s)) for s in (0, 2, 4, 99)] == [0, 1, 2, 2]


def test_learning_rate_rules():
    assert optimizers.scaled_learning_rate(0.3, 4096, "linear") == pytest.approx(4.8)
    assert optimizers.scaled_learning_rate(0.075, 4096, "sqrt") == pytest.approx(4.8)
    assert optimizers.scaled_learning_rate(0.3, 4096, "constant") == 0.3


@pytest.mark.parametrize(
    "call",
    [
        lambda: optimizers.make_optimizer("lion", lambda _: 0.1),
        lambda: optimizers.make_schedule("steps", peak=1.0, total_steps=10),
        lambda: optimizers.make_schedule("cosine", peak=1.0, total_steps=10, warmup_steps=10),
        lambda: optimizers.scaled_learning_rate(0.1, 2, "cubic"),
    ],
)
def test_unknown_names_are_refused(call):
    with pytest.raises(ValueError, match=r"unknown|warm-up"):
        call()
