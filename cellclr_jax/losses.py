"""NT-Xent, the contrastive loss of SimCLR, and what tells how a representation fares under it.

All functions are pure and global: under `jax.jit` over a mesh the rows may be sharded over devices,
and every row still meets all other rows of the minibatch. Computation is in float32 whatever the
input's dtype.
"""

import jax
import jax.numpy as jnp

# On TPU the default matrix product rounds its inputs to bfloat16, which costs three digits of a
# logit at a low temperature.
_EXACT = jax.lax.Precision.HIGHEST


def normalize_rows(x: jax.Array) -> jax.Array:
    """Scales each row to unit length.

    Args:
      x: [B, D] of any float dtype.

    Returns:
      [B, D] float32; a zero row stays zero, with a zero gradient.
    """
    x = x.astype(jnp.float32)
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jnp.where(squared > 0, jax.lax.rsqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


def nt_xent(
    z1: jax.Array, z2: jax.Array, temperature: float, *, block_size: int | None = None
) -> jax.Array:
    """Normalised temperature-scaled cross entropy (Chen et al. 2020, arXiv 2002.05709, eq. 1).

    Each of the 2B rows has one positive, its other view, and 2B - 2 negatives; a row is never
    compared with itself.

    Args:
      z1: [B, D] projections of the first views, any float dtype.
      z2: [B, D] projections of the second views; row i of both is a positive pair.
      temperature: > 0, divides the cosine similarities.
      block_size: compares rows with this many columns at a time, so that memory grows with B ×
        block_size and not with B²; None takes all columns at once.

    Returns:
      The mean over the 2B rows, a float32 scalar.

    Raises:
      ValueError: where the shapes differ, or temperature or block_size is not positive.

    Example:
      >>> float(nt_xent(jnp.eye(2), jnp.eye(2), 0.5))  # log(1 + 2 / e²)
      0.23954...
    """
    _check_pair(z1, z2)
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    z1, z2 = normalize_rows(z1), normalize_rows(z2)
    positives = jnp.sum(z1 * z2, axis=-1) / temperature
    keys = jnp.concatenate([z1, z2])
    first = _log_sum_exp(z1, keys, 0, temperature, block_size)
    second = _log_sum_exp(z2, keys, z1.shape[0], temperature, block_size)
    return jnp.mean(0.5 * (first + second) - positives)


def contrastive_accuracy(z1: jax.Array, z2: jax.Array) -> jax.Array:
    """Share of rows whose most similar other row is their other view.

    Args:
      z1: [B, D] projections of the first views.
      z2: [B, D] projections of the second views.

    Returns:
      float32 scalar in [0, 1]; a tie with a negative counts as wrong.
    """
    _check_pair(z1, z2)
    z1, z2 = normalize_rows(z1), normalize_rows(z2)
    positives = jnp.sum(z1 * z2, axis=-1)
    keys = jnp.concatenate([z1, z2])
    rows = jnp.arange(z1.shape[0])[:, None]
    columns = jnp.arange(keys.shape[0])[None, :]
    negative = columns % z1.shape[0] != rows

    def hits(queries: jax.Array) -> jax.Array:
        similarity = _similarity(queries, keys)
        return positives > jnp.max(jnp.where(negative, similarity, -jnp.inf), axis=1)

    return jnp.mean(0.5 * (hits(z1).astype(jnp.float32) + hits(z2).astype(jnp.float32)))


def alignment(z1: jax.Array, z2: jax.Array) -> jax.Array:
    """Mean squared distance of positive pairs on the unit sphere (arXiv 2005.10242).

    Args:
      z1: [B, D] projections of the first views.
      z2: [B, D] projections of the second views.

    Returns:
      float32 scalar in [0, 4]; 0 where both views agree.
    """
    _check_pair(z1, z2)
    difference = normalize_rows(z1) - normalize_rows(z2)
    return jnp.mean(jnp.sum(difference * difference, axis=-1))


def uniformity(z: jax.Array) -> jax.Array:
    """Logarithm of the mean Gaussian potential of all pairs of distinct rows (Wang & Isola 2020).

    Args:
      z: [B, D] projections of one view, B ≥ 2.

    Returns:
      float32 scalar in [-8, 0]: 0 where all rows are one point (collapse), -4 and below where they
      spread.
    """
    z = normalize_rows(z)
    squared = jnp.maximum(2.0 - 2.0 * _similarity(z, z), 0.0)
    distinct = ~jnp.eye(z.shape[0], dtype=bool)
    pairs = z.shape[0] * (z.shape[0] - 1)
    return jnp.log(jnp.sum(jnp.where(distinct, jnp.exp(-2.0 * squared), 0.0)) / pairs)


def _check_pair(z1: jax.Array, z2: jax.Array) -> None:
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f"expected two arrays of one shape [B, D], got {z1.shape} and {z2.shape}")


def _similarity(queries: jax.Array, keys: jax.Array) -> jax.Array:
    return jnp.matmul(queries, keys.T, precision=_EXACT, preferred_element_type=jnp.float32)


def _log_sum_exp(
    queries: jax.Array, keys: jax.Array, offset: int, temperature: float, block_size: int | None
) -> jax.Array:
    """log Σ exp(similarity / temperature) over all keys but the own one, `offset` + row; [B]."""
    own = offset + jnp.arange(queries.shape[0])[:, None]

    def logits(block: jax.Array, start: jax.Array | int) -> jax.Array:
        columns = start + jnp.arange(block.shape[0])[None, :]
        allowed = (columns != own) & (columns < keys.shape[0])
        return jnp.where(allowed, _similarity(queries, block) / temperature, -jnp.inf)

    if block_size is None or block_size >= keys.shape[0]:
        return jax.nn.logsumexp(logits(keys, 0), axis=1)
    blocks = -(-keys.shape[0] // block_size)
    padded = jnp.pad(keys, ((0, blocks * block_size - keys.shape[0]), (0, 0)))

    # The backward pass computes a block's logits again instead of keeping all of them.
    @jax.checkpoint
    def step(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        block = jax.lax.dynamic_slice_in_dim(padded, start, block_size)
        return jnp.logaddexp(total, jax.nn.logsumexp(logits(block, start), axis=1)), None

    # A finite start: -inf would make logaddexp's derivative undefined for a block that holds only
    # the query.
    lowest = jnp.full(queries.shape[0], jnp.finfo(jnp.float32).min / 2)
    total, _ = jax.lax.scan(step, lowest, jnp.arange(blocks) * block_size)
    return total
