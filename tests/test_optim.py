"""LARS and Adam against their formulas, masks by path, schedules and scaling rules."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cellclr_jax import optim

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


def falling(step):
    return 0.5 / (1 + step)


def naive_lars(rate, decay, momentum, trust, steps=5):
    """The update of SimCLR's authors: trust ratio on the decayed gradient, then momentum."""
    params = {layer: {n: v.copy() for n, v in leaves.items()} for layer, leaves in PARAMS.items()}
    speed = {layer: {n: 0 * v for n, v in leaves.items()} for layer, leaves in PARAMS.items()}
    for step in range(steps):
        for layer, leaves in gradients(step).items():
            for name, gradient in leaves.items():
                value = params[layer][name]
                if name == "kernel":
                    gradient = gradient + decay * value
                    norm = np.linalg.norm(gradient)
                    gradient = gradient * trust * np.linalg.norm(value) / norm
                speed[layer][name] = momentum * speed[layer][name] + rate(step) * gradient
                params[layer][name] = value - speed[layer][name]
    return params


def test_masks_take_kernels_alone():
    masked = optim.is_kernel(PARAMS)
    assert masked == {
        "conv1": {"kernel": True, "bias": False},
        "bn1": {"scale": False, "bias": False},
    }


def test_lars_equals_its_formula_over_a_trajectory():
    optimizer = optim.make_optimizer(
        "lars", falling, weight_decay=0.1, momentum=0.9, trust_coefficient=0.02
    )
    got, want = walk(optimizer), naive_lars(falling, 0.1, 0.9, 0.02)
    for layer, leaves in want.items():
        for name, value in leaves.items():
            np.testing.assert_allclose(got[layer][name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["lars", "adam", "adamw", "sgd"])
def test_weight_decay_leaves_biases_and_norms_alone(name):
    with_decay = walk(optim.make_optimizer(name, lambda _: 0.1, weight_decay=0.5))
    without = walk(optim.make_optimizer(name, lambda _: 0.1))
    assert not np.allclose(with_decay["conv1"]["kernel"], without["conv1"]["kernel"])
    np.testing.assert_array_equal(with_decay["conv1"]["bias"], without["conv1"]["bias"])
    np.testing.assert_array_equal(with_decay["bn1"]["scale"], without["bn1"]["scale"])


def test_adam_adds_its_decay_to_the_gradient():
    got = walk(optim.make_optimizer("adam", lambda _: 0.1, weight_decay=0.3))
    value = PARAMS["conv1"]["kernel"].copy()
    first, second = 0 * value, 0 * value
    for step in range(5):
        gradient = gradients(step)["conv1"]["kernel"] + 0.3 * value
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = first / (1 - 0.9 ** (step + 1))
        value -= 0.1 * corrected / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
    np.testing.assert_allclose(got["conv1"]["kernel"], value, rtol=1e-4)


def test_cosine_rises_then_falls_to_its_end():
    schedule = optim.make_schedule("cosine", peak=2.0, total_steps=100, warmup_steps=10, final=0.1)
    assert float(schedule(0)) == 0
    assert float(schedule(5)) == pytest.approx(1)
    assert float(schedule(10)) == pytest.approx(2)
    assert float(schedule(55)) == pytest.approx(2 * (0.1 + 0.9 / 2))
    assert float(schedule(100)) == pytest.approx(0.2)


def test_constant_stays_after_the_warm_up():
    schedule = optim.make_schedule("constant", peak=2.0, total_steps=100, warmup_steps=4)
    assert [float(schedule(s)) for s in (0, 2, 4, 99)] == [0, 1, 2, 2]


def test_learning_rate_rules():
    assert optim.scaled_learning_rate(0.3, 4096, "linear") == pytest.approx(4.8)
    assert optim.scaled_learning_rate(0.075, 4096, "sqrt") == pytest.approx(4.8)
    assert optim.scaled_learning_rate(0.3, 4096, "constant") == 0.3


@pytest.mark.parametrize(
    "call",
    [
        lambda: optim.make_optimizer("lion", lambda _: 0.1),
        lambda: optim.make_schedule("steps", peak=1.0, total_steps=10),
        lambda: optim.make_schedule("cosine", peak=1.0, total_steps=10, warmup_steps=10),
        lambda: optim.scaled_learning_rate(0.1, 2, "cubic"),
    ],
)
def test_unknown_names_are_refused(call):
    with pytest.raises(ValueError, match=r"unknown|warm-up"):
        call()
