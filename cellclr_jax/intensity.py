"""Statistics of crops' intensities: the baseline that every learned feature has to beat."""

import jax
import jax.numpy as jnp

_PERCENTILES = (1, 25, 50, 75, 99)
# What is computed of each channel, in this order.
STATISTICS = ("Mean", "Deviation", *(f"Percentile{percent}" for percent in _PERCENTILES))


def intensity_statistics(images: jax.Array) -> jax.Array:
    """Mean, standard deviation and percentiles (1, 25, 50, 75, 99) of each channel of each crop.

    Args:
      images: [B, H, W, C] uint8 or uint16 raw intensities.

    Returns:
      [B, 7 · C] float32, in the units of the images; statistic by statistic, channels within.
    """
    x = jnp.moveaxis(images, -1, 1).reshape(images.shape[0], images.shape[-1], -1)
    percentiles = [_percentile(x.astype(jnp.int32), p) for p in _PERCENTILES]
    x = x.astype(jnp.float32)
    return jnp.concatenate([jnp.mean(x, axis=2), jnp.std(x, axis=2), *percentiles], axis=1)


def _percentile(x: jax.Array, percent: float) -> jax.Array:
    """The smallest value that so many percent do not exceed: [B, C, P] int32 → [B, C] float32.

    By bisection of the 16 bits, which takes a tenth of the time of sorting on CPUs.
    """

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) // 2
        below = jnp.sum(x <= middle[:, :, None], axis=2)
        enough = below >= percent / 100 * x.shape[2]
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    shape = x.shape[:2]
    bounds = (jnp.zeros(shape, jnp.int32), jnp.full(shape, 2**16 - 1, jnp.int32))
    return jax.lax.fori_loop(0, 16, halve, bounds)[1].astype(jnp.float32)
