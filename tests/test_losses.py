"""NT-Xent and its companions against float64 NumPy, and what must not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cellclr_jax import losses


def naive_nt_xent(z1, z2, temperature):
    """Equation 1 of arXiv 2002.05709, one row at a time, in float64."""
    z = np.concatenate([z1, z2]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    size, total = len(z1), 0.0
    for i in range(2 * size):
        logits = z @ z[i] / temperature
        others = np.delete(logits, i)
        top = others.max()
        total += top + np.log(np.exp(others - top).sum()) - logits[(i + size) % (2 * size)]
    return total / (2 * size)


def naive_gradient(z1, z2, temperature):
    """Closed form of the gradient in float64: softmax minus positive, through the normalisation."""
    z = np.concatenate([z1, z2]).astype(np.float64)
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    u = z / norm
    n = len(z)
    logits = u @ u.T / temperature
    np.fill_diagonal(logits, -np.inf)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(n), (np.arange(n) + n // 2) % n] -= 1
    du = (p + p.T) @ u / temperature / n
    dz = (du - u * (du * u).sum(1, keepdims=True)) / norm
    return dz[: n // 2], dz[n // 2 :]


def pair(rows, width, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    z1 = rng.normal(size=(rows, width))
    return z1.astype(dtype), (z1 + rng.normal(size=(rows, width))).astype(dtype)


@pytest.mark.parametrize("block_size", [None, 5, 16])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize(("rows", "width"), [(2, 3), (33, 16)])
def test_nt_xent_and_its_gradient_equal_float64_numpy(rows, width, temperature, block_size):
    z1, z2 = pair(rows, width)
    value, gradient = jax.value_and_grad(
        lambda a, b: losses.nt_xent(a, b, temperature, block_size=block_size), argnums=(0, 1)
    )(z1, z2)
    np.testing.assert_allclose(value, naive_nt_xent(z1, z2, temperature), rtol=1e-5, atol=1e-6)
    for got, want in zip(gradient, naive_gradient(z1, z2, temperature), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5 * np.abs(want).max())


def test_nt_xent_agrees_with_optax():
    z1, z2 = pair(24, 8)
    labels = np.tile(np.arange(24), 2)
    want = optax.losses.ntxent(jnp.concatenate([z1, z2]), labels, 0.2)
    assert float(losses.nt_xent(z1, z2, 0.2)) == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_half_precision_input_is_computed_in_float32(dtype, temperature):
    z1, z2 = (jnp.asarray(z, dtype) for z in pair(16, 8))
    value = losses.nt_xent(z1, z2, temperature)
    want = naive_nt_xent(np.asarray(z1, np.float32), np.asarray(z2, np.float32), temperature)
    assert value.dtype == jnp.float32
    assert float(value) == pytest.approx(want, rel=1e-5)


def test_collapsed_rows_cost_the_log_of_their_number():
    z = np.ones((9, 4), np.float32)
    assert float(losses.nt_xent(z, z, 0.1)) == pytest.approx(np.log(17), rel=1e-6)


def test_zero_rows_have_finite_loss_and_gradient():
    z = jnp.zeros((4, 3))
    value, gradient = jax.value_and_grad(lambda a: losses.nt_xent(a, z, 0.1))(z)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_loss_does_not_depend_on_the_order_of_rows_or_views():
    z1, z2 = pair(12, 6)
    order = np.random.default_rng(1).permutation(12)
    want = float(losses.nt_xent(z1, z2, 0.1))
    assert float(losses.nt_xent(z1[order], z2[order], 0.1)) == pytest.approx(want, rel=1e-5)
    assert float(losses.nt_xent(z2, z1, 0.1)) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("block_size", [None, 8])
def test_rows_sharded_over_devices_meet_all_other_rows(block_size):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    z1, z2 = pair(32, 8)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    sharded = jax.device_put((z1, z2), rows)
    value = jax.jit(lambda a, b: losses.nt_xent(a, b, 0.1, block_size=block_size))(*sharded)
    assert float(value) == pytest.approx(naive_nt_xent(z1, z2, 0.1), rel=1e-5)


def test_contrastive_accuracy_equals_a_loop():
    z1, z2 = pair(40, 3)
    z = np.concatenate([z1, z2])
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    hits = 0
    for i in range(80):
        similarity = z @ z[i]
        similarity[i] = -np.inf
        hits += similarity.argmax() == (i + 40) % 80
    assert 0 < hits < 80
    assert float(losses.contrastive_accuracy(z1, z2)) == pytest.approx(hits / 80)


def test_alignment_and_uniformity_equal_loops():
    z1, z2 = pair(10, 4)
    u1, u2 = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z1, z2))
    want = np.mean([np.sum((a - b) ** 2) for a, b in zip(u1, u2, strict=True)])
    assert float(losses.alignment(z1, z2)) == pytest.approx(want, rel=1e-5)
    potentials = [
        np.exp(-2 * np.sum((u1[i] - u1[j]) ** 2)) for i in range(10) for j in range(10) if i != j
    ]
    assert float(losses.uniformity(z1)) == pytest.approx(np.log(np.mean(potentials)), rel=1e-4)
    assert float(losses.uniformity(np.ones((5, 4), np.float32))) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((2, 3)), np.ones((3, 3)), 0.1), "one shape"),
        ((np.ones((2, 3)), np.ones((2, 3)), 0.0), "temperature"),
        ((np.ones((2, 3)), np.ones((2, 3)), -1), "temperature"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        losses.nt_xent(*arguments)
