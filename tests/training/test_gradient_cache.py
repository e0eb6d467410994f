"""Gradient caching gives the gradient of the minibatch, in the memory of a micro-batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cellclr_jax.training.gradient_cache import encode_in_pieces, value_and_grad

ROWS, WIDTH = 24, 16

# Faster than operation by operation.
cached = jax.jit(value_and_grad, static_argnums=(0, 1), static_argnames="pieces")


def problem(dtype=np.float32):
    """Parameters of a two-layer network, and rows with weights."""
    random = np.random.default_rng(0)
    params = {
        "first": random.normal(size=(8, WIDTH)).astype(dtype),
        "second": random.normal(size=(WIDTH, 4)).astype(dtype),
    }
    rows = {
        "x": random.normal(size=(ROWS, 8)).astype(dtype),
        "weight": random.integers(1, 3, ROWS),
    }
    return jax.tree.map(jnp.asarray, (params, rows))


def encode(params, rows):
    hidden = jnp.tanh(rows["x"] @ params["first"])
    codes = hidden @ params["second"] * rows["weight"][:, None]
    return {"code": codes, "norm": jnp.sum(codes * codes, axis=1)}, jnp.mean(hidden, axis=0)


def encode_with_statistics(params, rows):
    """As batch normalisation: the code of a row depends on the other rows."""
    hidden = rows["x"] @ params["first"]
    mean, deviation = jnp.mean(hidden, axis=0), jnp.std(hidden, axis=0)
    normalized = (hidden - mean[None]) / deviation[None]
    return {"code": jnp.tanh(normalized) @ params["second"], "norm": rows["weight"] * 1.0}, mean


def loss(codes):
    """Compares every row with every other row, as a contrastive loss."""
    similarity = codes["code"] @ codes["code"].T
    value = jnp.mean(jax.nn.logsumexp(similarity, axis=1)) + jnp.mean(jnp.sqrt(codes["norm"]))
    return value, {"largest": jnp.max(similarity)}


@functools.partial(jax.jit, static_argnums=(0, 3))
def naive(encode, params, rows, pieces):
    """The same by one differentiation through all micro-batches."""

    def whole(params):
        parts = [
            encode(params, jax.tree.map(lambda x, i=i: x[i::pieces], rows)) for i in range(pieces)
        ]
        codes = jax.tree.map(lambda *codes: jnp.concatenate(codes), *(part[0] for part in parts))
        return loss(codes)[0]

    return jax.value_and_grad(whole)(params)


def relative_error(found, expected):
    """Norm of the difference of two trees, divided by the norm of the second."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    squared = sum(float(np.sum((np.asarray(a, float) - np.asarray(b)) ** 2)) for a, b in pairs)
    return (squared / sum(float(np.sum(np.asarray(b, float) ** 2)) for _, b in pairs)) ** 0.5


@pytest.mark.parametrize("pieces", [1, 4])
def test_the_gradient_is_that_of_the_whole_minibatch(pieces):
    params, rows = problem()
    (value, metrics), gradient, _ = cached(encode, loss, params, rows, pieces=pieces)
    expected_value, expected = naive(encode, params, rows, 1)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    assert relative_error(gradient, expected) < 1e-6
    assert metrics["largest"] == pytest.approx(float(loss(encode(params, rows)[0])[1]["largest"]))


@pytest.mark.parametrize(("encode", "pieces"), [(encode, 8), (encode_with_statistics, 3)])
def test_in_float64_it_equals_one_differentiation(encode, pieces):
    with jax.enable_x64():
        params, rows = problem(np.float64)
        (value, _), gradient, _ = cached(encode, loss, params, rows, pieces=pieces)
        expected_value, expected = naive(encode, params, rows, pieces)
        np.testing.assert_allclose(value, expected_value, rtol=1e-14)
        assert relative_error(gradient, expected) < 1e-13


def test_statistics_are_those_of_each_micro_batch():
    params, rows = problem()
    _, gradient, seen = cached(encode_with_statistics, loss, params, rows, pieces=4)
    means = [jnp.mean(rows["x"][i::4] @ params["first"], axis=0) for i in range(4)]
    np.testing.assert_allclose(seen, means, rtol=1e-4, atol=1e-6)
    whole = naive(encode_with_statistics, params, rows, 1)[1]
    assert relative_error(gradient, whole) > 0.01


def test_codes_have_the_order_of_the_rows():
    _, rows = problem()
    codes, seen = encode_in_pieces(lambda r: (r["x"] + 1, r["weight"]), rows, pieces=3)
    np.testing.assert_array_equal(codes, rows["x"] + 1)
    np.testing.assert_array_equal(seen, [rows["weight"][i::3] for i in range(3)])


def test_many_small_gradients_add_up_in_float32():
    # In bfloat16 the sum would stop growing at 256.
    params = jnp.ones((), jnp.bfloat16)
    rows = jnp.ones(1024, jnp.bfloat16)
    total = lambda codes: (jnp.sum(codes.astype(jnp.float32)), None)  # noqa: E731
    _, gradient, _ = value_and_grad(lambda w, x: (w * x, None), total, params, rows, pieces=1024)
    assert gradient.dtype == jnp.float32
    assert gradient == 1024


def test_activations_of_one_micro_batch_are_in_memory_at_a_time():
    params = {"first": jnp.zeros((8, 4096)), "second": jnp.zeros((4096, 4))}
    temporaries = {}
    for count, pieces in ((64, 1), (1024, 1), (1024, 16)):
        rows = {"x": jnp.zeros((count, 8)), "weight": jnp.ones(count, int)}
        step = jax.jit(lambda p, r, n=pieces: value_and_grad(encode, loss, p, r, pieces=n))
        memory = step.lower(params, rows).compile().memory_analysis()
        temporaries[count, pieces] = memory.temp_size_in_bytes
    similarities = 4 * 1024 * 1024  # the matrix of this loss
    assert temporaries[1024, 1] > 8 * temporaries[64, 1]
    assert temporaries[1024, 16] < 1.3 * temporaries[64, 1] + 3 * similarities


def test_rows_that_cannot_be_divided_are_refused():
    params, rows = problem()
    with pytest.raises(ValueError, match="24 rows cannot be divided into 5 equal pieces"):
        value_and_grad(encode, loss, params, rows, pieces=5)
