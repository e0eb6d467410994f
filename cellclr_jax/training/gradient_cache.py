"""The gradient of a loss over a minibatch, with the activations of one micro-batch in memory.

Gradient caching (Gao et al. 2021, arXiv 2101.06983): a contrastive loss needs the codes of all rows
at once, but not their activations. All micro-batches are encoded without keeping activations, the
loss is differentiated with respect to the codes, and each micro-batch is encoded again to propagate
the gradient of its codes to the parameters.

The result is the gradient of `loss(encode(first) ‖ encode(second) ‖ …)`. If the code of a row
depends only on this row, this is the gradient of the whole minibatch. With batch normalisation it
is that of a network that normalises each micro-batch by its own statistics, as data-parallel
training without shared statistics does.

Micro-batch i of n has the rows i, i + n, i + 2n, …: of rows divided among devices, each device has
its share of every micro-batch, and no row is sent to another device.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

# (parameters, a tree of arrays [b, ...]) → (codes, a tree of float32 arrays [b, ...]; anything)
Encode = Callable[[Any, Any], tuple[Any, Any]]
# codes of all rows → (float32 scalar, anything)
Loss = Callable[[Any], tuple[jax.Array, Any]]


def value_and_grad(
    encode: Encode, loss: Loss, params: Any, rows: Any, *, pieces: int = 1
) -> tuple[tuple[jax.Array, Any], Any, Any]:
    """Computes the loss of all rows and its gradient with respect to the parameters.

    Args:
      encode: pure function (params, micro-batch) -> (codes, auxiliary arrays).
      loss: function of the codes of all rows, in the order of `rows` -> (loss, auxiliary output).
      params: tree of float arrays.
      rows: tree of arrays [B, ...].
      pieces: number of micro-batches, a divisor of B; 1 encodes all rows at once, and once.

    Returns:
      ((loss, auxiliary output), gradient: tree like `params` in float32, auxiliary arrays of
      `encode`: [pieces, ...]).

    Raises:
      ValueError: `pieces` does not divide B.

    Example:
      >>> encode = lambda w, x: (w * x, None)
      >>> loss = lambda codes: (jnp.sum(codes) ** 2, None)  # (10 w)², of gradient 200 w
      >>> value_and_grad(encode, loss, jnp.float32(2), jnp.arange(5.0), pieces=5)[:2]
      ((Array(400., dtype=float32), None), Array(400., dtype=float32))
    """
    if pieces < 1:
        raise ValueError(f"{pieces} pieces: at least 1 was expected")
    if pieces == 1:
        return _all_at_once(encode, loss, params, rows)
    codes, seen = encode_in_pieces(partial(encode, params), rows, pieces=pieces)
    aux, slopes = jax.value_and_grad(loss, has_aux=True)(codes)

    def add_piece(total: Any, index: jax.Array) -> tuple[Any, None]:
        piece, slope = _piece((rows, slopes), index, pieces)
        _, pull_back = jax.vjp(lambda p: encode(p, piece)[0], params)
        (gradient,) = pull_back(slope)
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, gradient), None

    # The sum over micro-batches is accumulated in float32 at least.
    zeros = jax.tree.map(
        lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params
    )
    gradient, _ = jax.lax.scan(add_piece, zeros, jnp.arange(pieces))
    return aux, gradient, seen


def encode_in_pieces(
    encode: Callable[[Any], tuple[Any, Any]], rows: Any, *, pieces: int
) -> tuple[Any, Any]:
    """Encodes micro-batches one after the other.

    Args:
      encode: function of a tree of arrays [b, ...] -> (codes [b, ...], auxiliary arrays).
      rows: tree of arrays [B, ...].
      pieces: number of micro-batches, a divisor of B.

    Returns:
      (codes [B, ...] in the order of the rows, auxiliary arrays [pieces, ...]).

    Raises:
      ValueError: `pieces` does not divide B.
    """

    def encode_piece(_: None, index: jax.Array) -> tuple[None, Any]:
        return None, encode(_piece(rows, index, pieces))

    _, (codes, seen) = jax.lax.scan(encode_piece, None, jnp.arange(pieces))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), codes), seen


def _all_at_once(
    encode: Encode, loss: Loss, params: Any, rows: Any
) -> tuple[tuple[jax.Array, Any], Any, Any]:
    """`value_and_grad` without micro-batches."""

    def whole(params: Any) -> tuple[jax.Array, tuple[Any, Any]]:
        codes, seen = encode(params, rows)
        value, aux = loss(codes)
        return value, (aux, seen)

    (value, (aux, seen)), gradient = jax.value_and_grad(whole, has_aux=True)(params)
    gradient = jax.tree.map(lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), gradient)
    return (value, aux), gradient, jax.tree.map(lambda x: x[None], seen)


def _piece(rows: Any, index: jax.Array, pieces: int) -> Any:
    """Returns the rows index, index + pieces, …, as a strided slice, without reordering rows."""

    def take(x: jax.Array) -> jax.Array:
        if x.shape[0] % pieces:
            raise ValueError(f"{x.shape[0]} rows cannot be divided into {pieces} equal pieces")
        places = x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:])
        return jax.lax.dynamic_index_in_dim(places, index, axis=1, keepdims=False)

    return jax.tree.map(take, rows)
