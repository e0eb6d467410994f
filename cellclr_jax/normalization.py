"""Raw intensities to what an encoder sees, on the device: named settings, all pure."""

import jax
import jax.numpy as jnp

METHODS = ("zscore", "zscore_minmax", "percentile", "fixed")

# Below this a crop's channel counts as constant and is left at zero instead of being blown up.
_SMALLEST_DEVIATION = 1e-6


def normalize(
    images: jax.Array,
    method: str,
    *,
    low: jax.Array | None = None,
    high: jax.Array | None = None,
) -> jax.Array:
    """Normalises crops.

    Args:
      images: [B, H, W, C] of any unsigned or float dtype, raw intensities.
      method: `zscore`: each channel of each crop to mean 0, deviation 1; `zscore_minmax`: the same,
        then one joint scaling of the crop's channels to [0, 1] (the paper's); `percentile`: from
        [low, high] to [0, 1], clipped, where low and high are percentiles of the crop's plate;
        `fixed`: (x - low) / (high - low) with the same numbers for every crop, not clipped.
      low: [B, C] or [C] float32, for `percentile` and `fixed`.
      high: likewise, > low.

    Returns:
      [B, H, W, C] float32; a constant channel becomes 0 under `zscore`.

    Raises:
      ValueError: for an unknown method, or low and high missing.
    """
    x = images.astype(jnp.float32)
    if method in ("zscore", "zscore_minmax"):
        x = _zscore(x)
        return _minmax(x) if method == "zscore_minmax" else x
    if method not in METHODS:
        raise ValueError(f"unknown normalisation {method!r}: choose one of {', '.join(METHODS)}")
    if low is None or high is None:
        raise ValueError(f"normalisation {method!r} needs low and high")
    low, high = (jnp.reshape(v, (-1, 1, 1, x.shape[-1])).astype(jnp.float32) for v in (low, high))
    x = (x - low) / jnp.maximum(high - low, _SMALLEST_DEVIATION)
    return jnp.clip(x, 0.0, 1.0) if method == "percentile" else x


def _zscore(x: jax.Array) -> jax.Array:
    mean = jnp.mean(x, axis=(1, 2), keepdims=True)
    deviation = jnp.std(x, axis=(1, 2), keepdims=True)
    return (x - mean) / jnp.where(deviation > _SMALLEST_DEVIATION, deviation, jnp.inf)


def _minmax(x: jax.Array) -> jax.Array:
    low = jnp.min(x, axis=(1, 2, 3), keepdims=True)
    span = jnp.max(x, axis=(1, 2, 3), keepdims=True) - low
    return (x - low) / jnp.where(span > _SMALLEST_DEVIATION, span, jnp.inf)
