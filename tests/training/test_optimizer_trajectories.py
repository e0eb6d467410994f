"""LARS and Adam over trajectories equal the formulas of SimCLR and PyTorch in plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cellclr_jax.training import optimizers

STEPS = 60
SHAPES = {
    "conv1": {"kernel": (3, 3, 2, 4), "bias": (4,)},
    "bn1": {"scale": (4,), "bias": (4,)},
    "head": {"kernel": (4, 5), "bias": (5,)},
    "zero": {"kernel": (3, 2), "bias": (2,)},
    "still": {"kernel": (3, 2), "scale": (3,)},
}


def start(seed):
    """Parameters [float64 of float32 values]: one kernel is zero, another gets no gradient."""
    rng = np.random.default_rng(seed)
    params = over(lambda path, shape: rng.normal(size=shape).astype(np.float32), SHAPES)
    params["zero"]["kernel"][:] = 0
    return over(lambda _, leaf: leaf.astype(np.float64), params)


def over(function, tree):
    return {
        layer: {name: function((layer, name), leaf) for name, leaf in leaves.items()}
        for layer, leaves in tree.items()
    }


def noise(seed, step):
    """Gradients by step; those of the zero kernel are 0 at first, so that both norms are 0."""
    rng = np.random.default_rng((seed, step))

    def draw(path, shape):
        gradient = rng.normal(size=shape).astype(np.float32)
        absent = path[0] == "still" or (path[0] == "zero" and step < 3)
        return 0 * gradient if absent else gradient

    return over(draw, SHAPES)


def quadratic(seed):
    """Gradients of Σ curvature · w² / 2, which depend on the parameters w."""
    rng = np.random.default_rng(seed)
    curvature = over(lambda _, shape: rng.uniform(0.1, 3, shape), SHAPES)
    return lambda params: over(lambda p, leaf: curvature[p[0]][p[1]] * leaf, params)


def rate(step):
    """A cosine with a warm-up of 10 steps, from 0."""
    if step < 10:
        return 0.3 * step / 10
    return 0.3 * 0.5 * (1 + np.cos(np.pi * (step - 10) / (STEPS - 10)))


def ours(optimizer, params, gradients, steps=STEPS):
    """The parameters after so many steps of the optimiser, float32, jitted as in training."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    state = optimizer.init(params)

    @jax.jit
    def advance(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(steps):
        params, state = advance(params, state, gradients(step, params))
    return params


def simclr_lars(params, gradients, *, decay, trust, momentum=0.9, everywhere=False):
    """The update of the LARSOptimizer published by SimCLR's authors, in float64."""
    params = over(lambda _, leaf: leaf.copy(), params)
    speed = over(lambda _, leaf: 0 * leaf, params)
    for step in range(STEPS):
        gradient = gradients(step, params)
        for layer, leaves in gradient.items():
            for name, g in leaves.items():
                w, is_kernel = params[layer][name], name == "kernel"
                if is_kernel or everywhere:
                    g = g + decay * w
                ratio = 1.0
                if is_kernel and np.linalg.norm(w) > 0 and np.linalg.norm(g) > 0:
                    ratio = trust * np.linalg.norm(w) / np.linalg.norm(g)
                speed[layer][name] = momentum * speed[layer][name] + rate(step) * ratio * g
                params[layer][name] = w - speed[layer][name]
    return params


def torch_adam(params, gradients, *, decay, everywhere=False):
    """torch.optim.Adam: L2 in the gradient, both moments corrected, eps outside the root."""
    params = over(lambda _, leaf: leaf.copy(), params)
    first, second = (over(lambda _, leaf: 0 * leaf, params) for _ in range(2))
    for step in range(STEPS):
        gradient = gradients(step, params)
        for layer, leaves in gradient.items():
            for name, g in leaves.items():
                w = params[layer][name]
                if name == "kernel" or everywhere:
                    g = g + decay * w
                first[layer][name] = m = 0.9 * first[layer][name] + 0.1 * g
                second[layer][name] = v = 0.999 * second[layer][name] + 0.001 * g**2
                m, v = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                params[layer][name] = w - rate(step) * m / (np.sqrt(v) + 1e-8)
    return params


def assert_close(found, expected, rtol=1e-5):
    """Compares arrays relative to their largest value, or to 0.1 for arrays that vanish."""
    for layer, leaves in expected.items():
        for name, value in leaves.items():
            error = np.abs(np.asarray(found[layer][name], np.float64) - value).max()
            assert error <= rtol * max(np.abs(value).max(), 0.1), (layer, name, error)


def schedule():
    made = optimizers.make_schedule("cosine", peak=0.3, total_steps=STEPS, warmup_steps=10)
    np.testing.assert_allclose(
        [made(s) for s in range(STEPS)], [*map(rate, range(STEPS))], rtol=1e-5
    )
    return made


@pytest.mark.parametrize(("seed", "decayed"), [(0, "kernels"), (1, "all")])
def test_lars_equals_simclrs_on_given_gradients(seed, decayed):
    settings = {"weight_decay": 1e-2, "trust_coefficient": 0.02, "decayed": decayed}
    optimizer = optimizers.make_optimizer("lars", schedule(), **settings)
    found = ours(optimizer, start(seed), lambda step, _: noise(seed, step))
    everywhere = decayed == "all"
    expected = simclr_lars(
        start(seed),
        lambda step, _: noise(seed, step),
        decay=1e-2,
        trust=0.02,
        everywhere=everywhere,
    )
    assert_close(found, expected)


def test_lars_equals_simclrs_if_gradients_depend_on_parameters():
    optimizer = optimizers.make_optimizer(
        "lars", schedule(), weight_decay=1e-4, trust_coefficient=0.01, momentum=0.8
    )
    slope = quadratic(0)
    found = ours(optimizer, start(0), lambda _, params: slope(params))
    expected = simclr_lars(
        start(0), lambda _, params: slope(params), decay=1e-4, trust=0.01, momentum=0.8
    )
    assert_close(found, expected, rtol=3e-5)


@pytest.mark.parametrize(("seed", "decayed"), [(0, "kernels"), (1, "all")])
def test_adam_equals_pytorchs_formula(seed, decayed):
    optimizer = optimizers.make_optimizer("adam", schedule(), weight_decay=1e-2, decayed=decayed)
    slope = quadratic(seed)

    def gradients(step, params):
        drawn = noise(seed, step)
        return over(lambda p, leaf: leaf + drawn[p[0]][p[1]], slope(params))

    found = ours(optimizer, start(seed), gradients)
    expected = torch_adam(start(seed), gradients, decay=1e-2, everywhere=decayed == "all")
    assert_close(found, expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["lars", "adam", "adamw", "sgd"])
def test_weight_decay_applies_to_kernels_or_to_all_parameters(name):
    none, kernels, everything = (
        ours(
            optimizers.make_optimizer(name, lambda _: 0.1, weight_decay=decay, decayed=decayed),
            start(0),
            lambda step, _: noise(0, step),
            steps=3,
        )
        for decay, decayed in ((0.0, "kernels"), (0.5, "kernels"), (0.5, "all"))
    )
    np.testing.assert_array_equal(kernels["head"]["kernel"], everything["head"]["kernel"])
    assert not np.allclose(kernels["head"]["kernel"], none["head"]["kernel"])
    for layer, parameter in (("bn1", "scale"), ("bn1", "bias"), ("conv1", "bias")):
        np.testing.assert_array_equal(kernels[layer][parameter], none[layer][parameter])
        assert np.abs(kernels[layer][parameter] - everything[layer][parameter]).max() > 1e-3
    with pytest.raises(ValueError, match="biases"):
        optimizers.make_optimizer(name, lambda _: 0.1, decayed="biases")
