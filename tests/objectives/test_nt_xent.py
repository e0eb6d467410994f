"""NT-Xent and its companions against float64 NumPy, and what must not change or cost them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cellclr_jax import devices as sharding
from cellclr_jax.objectives import nt_xent

TEMPERATURES = (0.01, 0.05, 0.1, 0.5, 1.0)
# Rows, width, columns of a block: one cell, a block of one column, of all, one that does not divide
# the rows, the default.
SHAPES = [(1, 4, None), (2, 3, 1), (33, 16, 1), (33, 16, 20), (33, 16, 66), (40, 256, None)]


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


def reference(z1, z2, temperature):
    """(loss, its gradients by z1, z2 and temperature) in float64, by the matrix and closed forms.

    Logits are counted from the positive's, so that a loss of 1e-20 has all its digits.
    """
    z = np.concatenate([z1, z2]).astype(np.float64)
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    inverse = np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)
    u, rows = z * inverse, np.arange(len(z))
    positive = (rows + len(z1)) % len(z)
    logits = u @ u.T / temperature
    logits -= logits[rows, positive][:, None]
    logits[rows, rows] = logits[rows, positive] = -np.inf
    top = np.maximum(logits.max(1), 0)
    terms = np.exp(logits - top[:, None])
    negatives = terms.sum(1)
    whole = negatives + np.exp(-top)
    value = np.where(top > 0, top + np.log(whole), np.log1p(negatives)).mean()
    p = terms / whole[:, None]
    by_temperature = -np.sum(p * np.where(p > 0, logits, 0)) / temperature / len(z)
    p[rows, positive] = -negatives / whole
    du = (p + p.T) @ u / temperature / len(z)
    dz = (du - u * (du * u).sum(1, keepdims=True)) * inverse
    return value, (dz[: len(z1)], dz[len(z1) :], by_temperature)


@functools.partial(jax.jit, static_argnames=("block_size", "mesh"))
def evaluate(z1, z2, temperature, block_size=None, mesh=None):
    """((loss, metrics), gradients) of `contrast`, compiled once for all temperatures."""
    contrast = functools.partial(nt_xent.contrast, block_size=block_size, mesh=mesh)
    return jax.value_and_grad(contrast, argnums=(0, 1, 2), has_aux=True)(z1, z2, temperature)


def pair(rows, width, seed=0, dtype=np.float32, noise=1.0):
    rng = np.random.default_rng(seed)
    z1 = rng.normal(size=(rows, width))
    z2 = z1 + noise * rng.normal(size=(rows, width))
    return z1.astype(dtype), z2.astype(dtype)


def distance(got, want):
    """Norm of the difference over the norm."""
    want = np.asarray(want, np.float64)
    return np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)


def test_the_reference_is_equation_1_and_its_derivative():
    z1, z2 = pair(5, 3, dtype=np.float64)
    value, gradients = reference(z1, z2, 0.3)
    assert value == pytest.approx(naive_nt_xent(z1, z2, 0.3), rel=1e-12)
    move, step = np.random.default_rng(1).normal(size=(2, 5, 3)), 1e-6
    ahead, behind = (
        naive_nt_xent(z1 + s * move[0], z2 + s * move[1], 0.3 + s) for s in (step, -step)
    )
    want = np.sum(move[0] * gradients[0]) + np.sum(move[1] * gradients[1]) + gradients[2]
    assert (ahead - behind) / (2 * step) == pytest.approx(want, rel=1e-7)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("rows", "width", "block_size"), SHAPES)
def test_value_and_gradient_equal_float64_numpy(rows, width, block_size, temperature):
    z1, z2 = pair(rows, width)
    (value, _), gradients = evaluate(z1, z2, temperature, block_size)
    want, wanted = reference(z1, z2, temperature)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    if rows == 1:
        assert not np.any(gradients[0])
        assert not np.any(gradients[1])
    else:
        assert distance(gradients[0], wanted[0]) < 1e-5
        assert distance(gradients[1], wanted[1]) < 1e-5
        np.testing.assert_allclose(gradients[2], wanted[2], rtol=1e-4)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_input_costs_the_gradients_last_rounding_alone(dtype, temperature):
    z1, z2 = pair(33, 16, dtype=dtype)
    (value, _), gradients = evaluate(z1, z2, temperature, 20)
    wide = z1.astype(np.float32), z2.astype(np.float32)
    want, wanted = reference(*wide, temperature)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, want, rtol=1e-5)
    _, unrounded = evaluate(*wide, temperature, 20)
    for got, before, expected in zip(gradients[:2], unrounded[:2], wanted[:2], strict=True):
        assert distance(before, expected) < 1e-5
        assert got.dtype == dtype
        rounding, smallest = jnp.finfo(dtype).eps, jnp.finfo(dtype).smallest_subnormal
        np.testing.assert_allclose(
            got.astype(np.float32), before, rtol=float(rounding), atol=float(smallest)
        )


def test_every_product_is_exact():
    """Accelerators round the factors of a product unless the precision is set to HIGHEST."""
    text = jax.jit(evaluate).lower(*pair(4, 3), 0.1).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) == 3
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_a_loss_that_is_almost_nothing_keeps_its_digits(noise):
    """Differences of large logits would leave none."""
    z1, z2 = pair(40, 256, noise=noise)
    (value, _), gradients = evaluate(z1, z2, 0.01)
    want, wanted = reference(z1, z2, 0.01)
    assert want < 1e-20 or noise == 3
    assert float(value) == pytest.approx(want, rel=1e-5, abs=0)
    assert np.abs(gradients[0] - wanted[0]).max() <= 1e-5 * np.abs(wanted[0]).max() + 1e-37


def test_rows_almost_alike_keep_their_differences():
    """Logits of 100 that differ by 1."""
    z1, z2 = pair(40, 256)
    z1, z2 = z1 + 5, z2 + 5
    (value, _), gradients = evaluate(z1, z2, 0.01)
    want, wanted = reference(z1, z2, 0.01)
    assert float(value) == pytest.approx(want, rel=1e-5)
    assert distance(gradients[0], wanted[0]) < 1e-5


def test_a_row_compared_with_itself_would_be_seen():
    z1, z2 = pair(33, 16)
    z = np.concatenate([z1, z2]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    logits = z @ z.T / 0.1
    wrong = np.mean(np.log(np.exp(logits).sum(1)) - np.tile(np.diagonal(logits, 33), 2))
    assert abs(wrong - naive_nt_xent(z1, z2, 0.1)) > 0.1


@pytest.mark.parametrize(("rows", "width", "block_size"), SHAPES[1:])
def test_collapsed_rows_cost_the_log_of_their_number_and_are_all_wrong(rows, width, block_size):
    z = np.tile(np.random.default_rng(0).normal(size=width), (rows, 1)).astype(np.float32)
    (value, metrics), _ = evaluate(z, z, 0.1, block_size)
    assert float(value) == pytest.approx(np.log(2 * rows - 1), rel=1e-6)
    assert float(metrics["contrastive_accuracy"]) == 0
    assert float(metrics["alignment"]) == pytest.approx(0, abs=1e-6)
    assert float(metrics["uniformity"]) == pytest.approx(0, abs=1e-5)


def test_zero_rows_have_no_gradient_and_spoil_no_others():
    z1, z2 = pair(33, 16)
    z1[3] = z2[3] = z2[5] = 0
    (value, _), gradients = evaluate(z1, z2, 0.1, 20)
    want, wanted = reference(z1, z2, 0.1)
    assert float(value) == pytest.approx(want, rel=1e-5)
    assert distance(gradients[0], wanted[0]) < 1e-5
    assert distance(gradients[1], wanted[1]) < 1e-5
    assert not np.any(gradients[1][5])
    (value, _), gradients = evaluate(0 * z1, 0 * z2, 0.1, 20)
    assert float(value) == pytest.approx(np.log(65), rel=1e-6)
    assert not np.any(gradients[0])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_neither_tiny_nor_huge_rows_lose_their_direction(scale):
    z1, z2 = pair(33, 16)
    got = evaluate(np.float32(scale) * z1, z2, 0.1, 20)[0][0]
    assert float(got) == pytest.approx(naive_nt_xent(z1, z2, 0.1), rel=1e-5)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_is_not_hidden(wrong):
    z1, z2 = pair(33, 16)
    z1[4, 2] = wrong
    assert np.isnan(evaluate(z1, z2, 0.1, 20)[0][0])


def test_loss_does_not_depend_on_the_order_of_rows_or_views():
    z1, z2 = pair(33, 16)
    order = np.random.default_rng(1).permutation(33)
    (want, metrics), _ = evaluate(z1, z2, 0.1, 20)
    (moved, same), _ = evaluate(z1[order], z2[order], 0.1, 20)
    assert float(moved) == pytest.approx(float(want), rel=1e-6)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.isclose(a, b, rtol=1e-6), metrics, same))
    (swapped, _), _ = evaluate(z2, z1, 0.1, 20)
    assert float(swapped) == pytest.approx(float(want), rel=1e-6)


@pytest.mark.parametrize(("rows", "width", "block_size"), SHAPES[1:])
def test_metrics_equal_loops(rows, width, block_size):
    z1, z2 = pair(rows, width, seed=2, noise=2.0)
    u1, u2 = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z1, z2))
    u, hits = np.concatenate([u1, u2]), 0
    for i in range(2 * rows):
        similarity = u @ u[i]
        similarity[i] = -np.inf
        hits += similarity.argmax() == (i + rows) % (2 * rows)
    distances = [np.sum((a - b) ** 2) for a, b in zip(u1, u2, strict=True)]
    potentials = [
        np.exp(-2 * np.sum((u1[i] - u1[j]) ** 2))
        for i in range(rows)
        for j in range(rows)
        if i != j
    ]
    (_, metrics), _ = evaluate(z1, z2, 0.1, block_size)
    assert float(metrics["contrastive_accuracy"]) == pytest.approx(hits / (2 * rows))
    assert float(metrics["alignment"]) == pytest.approx(np.mean(distances), rel=1e-5)
    assert float(metrics["uniformity"]) == pytest.approx(np.log(np.mean(potentials)), rel=1e-5)


def test_a_tie_with_a_negative_is_wrong():
    """Of three cells two look the same; both views of a cell agree."""
    z = np.asarray([[1, 0.3], [1, 0.3], [-1, 0.1]], np.float32)
    assert float(evaluate(z, z, 0.1)[0][1]["contrastive_accuracy"]) == pytest.approx(1 / 3)


def test_metrics_have_no_gradient():
    z1, z2 = pair(6, 3)
    gradient = jax.grad(lambda z: sum(nt_xent.contrast(z, z2, 0.1)[1].values()))(z1)
    assert not np.any(gradient)


@pytest.mark.parametrize(
    ("devices", "block_size", "divide"),
    [(4, 20, True), (8, None, True), (8, 20, False)],  # without a mesh, the compiler divides
)
def test_devices_that_share_the_rows_find_the_same(devices, block_size, divide):
    z1, z2 = pair(64, 16)
    (value, metrics), gradients = evaluate(z1, z2, 0.05, 20)
    mesh = sharding.make_mesh(devices)
    shared = jax.device_put((z1, z2), sharding.by_rows(mesh))
    (got, measured), found = evaluate(*shared, 0.05, block_size, mesh if divide else None)
    assert float(got) == pytest.approx(float(value), rel=1e-6)
    for name, want in metrics.items():
        assert float(measured[name]) == pytest.approx(float(want), rel=1e-6), name
    for ours, theirs in zip(found, gradients, strict=True):
        assert distance(ours, theirs) < 3e-6


@functools.cache
def compiled(rows, width, block_size=None, devices=1):
    """Loss, metrics and gradient of rows divided among devices."""
    mesh = sharding.make_mesh(devices)
    z = jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=sharding.by_rows(mesh))
    loss = functools.partial(nt_xent.contrast, temperature=0.1, block_size=block_size, mesh=mesh)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)).lower(z, z).compile()


def collectives(text):
    """(kind, types and shapes of its results) of each in an HLO module."""
    kinds = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute|ragged-all-to-all"
    found = re.findall(rf"= (\(.*?\)|\S+) ({kinds})(?:-start)?\(", text)
    return sorted((kind, re.findall(r"(\w+)\[([\d,]*)\]", shapes)) for shapes, kind in found)


def test_devices_exchange_the_rows_once_and_a_number_for_each_row():
    found = collectives(compiled(1024, 64, 2048, devices=8).as_text())
    gathered = [shapes for kind, shapes in found if kind == "all-gather"]
    assert gathered == [[("f32", "1024,2")], [("f32", "1024,2,64")]]
    rest = [(kind, shapes) for kind, shapes in found if kind != "all-gather"]
    assert rest
    for kind, shapes in rest:  # the loss and the metrics
        assert kind == "all-reduce"
        assert set(shapes) == {("f32", "")}


def test_each_device_computes_its_own_rows():
    """In one tile: the compiler's count takes a loop's body once."""
    one_device, eight_devices = (
        compiled(1024, 64, 2048, n).cost_analysis()["flops"] for n in (1, 8)
    )
    assert one_device > 2 * 2 * 2048**2 * 64
    assert eight_devices < 1.05 * one_device / 8


def test_memory_grows_with_the_rows_and_not_with_their_square():
    def temporaries(rows, width):
        return compiled(rows, width).memory_analysis().temp_size_in_bytes

    assert temporaries(512, 256) < 50e6
    assert temporaries(16384, 128) < 2**30
    assert temporaries(16384, 128) < 2.1 * temporaries(8192, 128)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((np.ones((2, 3)), np.ones((3, 3)), 0.1), {}, "one shape"),
        ((np.ones((0, 3)), np.ones((0, 3)), 0.1), {}, "one shape"),
        ((np.ones((2, 3)), np.ones((2, 3)), 0.0), {}, "temperature"),
        ((np.ones((2, 3)), np.ones((2, 3)), -1), {}, "temperature"),
        ((np.ones((2, 3)), np.ones((2, 3)), 0.1), {"block_size": 0}, "block_size"),
        ((np.ones((6, 3)), np.ones((6, 3)), 0.1), {"mesh": 4}, "6 rows .* 4 devices"),
    ],
)
def test_wrong_arguments_are_named(arguments, settings, message):
    if "mesh" in settings:
        settings = {"mesh": sharding.make_mesh(settings["mesh"])}
    with pytest.raises(ValueError, match=message):
        nt_xent.nt_xent(*arguments, **settings)


def test_the_pairs_of_a_large_minibatch_are_counted():
    z = jax.ShapeDtypeStruct((1 << 16, 8), jnp.float32)
    loss, metrics = jax.eval_shape(lambda a, b: nt_xent.contrast(a, b, 0.1), z, z)
    assert loss.shape == metrics["uniformity"].shape == ()


def test_it_stays_in_float32_where_others_compute_in_float64():
    z1, z2 = np.random.default_rng(0).normal(size=(2, 6, 4))
    with jax.enable_x64(True):
        value, slope = jax.value_and_grad(nt_xent.nt_xent)(jnp.asarray(z1), jnp.asarray(z2), 0.5)
    assert value.dtype == jnp.float32
    assert slope.dtype == jnp.float64
