"""Batch normalisation with torchvision's momentum and epsilon, and its own backward passes.

The running variance is that of the minibatch, biased as Flax's; PyTorch's is larger by n / (n - 1).

What is kept for the backward pass is what comes in, in the computation's dtype, and a few numbers
a channel.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

# What torchvision's layers use: PyTorch's momentum 0.1 is Flax's 0.9.
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5

# (normalised, mean, variance), and what their backward pass needs.
_Result = tuple[jax.Array, jax.Array, jax.Array]


class BatchNorm(nn.Module):
    """Batch normalisation over the whole (global) minibatch and all axes but the last.

    Parameters, statistics and results are those of Flax's own.

    Attributes:
      train: uses the minibatch's statistics and updates the running ones; else the running ones.
      dtype: of the computation; parameters and statistics stay float32.
      zero_scale: starts the scale at 0, so that a residual block starts as the identity.
    """

    train: bool
    dtype: jnp.dtype
    zero_scale: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, kernel: jax.Array | None = None) -> jax.Array:
        """Normalises x, or x · kernel without ever holding that product.

        Args:
          x: [..., I] float.
          kernel: [I, C] float32, or None for only the normalisation, where C is I.

        Returns:
          [..., C] in `dtype`. The gradient does not flow through the running statistics.
        """
        shape = (x.shape[-1] if kernel is None else kernel.shape[-1],)
        start = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
        scale = self.param("scale", start, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        x = x.astype(self.dtype)
        if not self.train:
            x = x if kernel is None else jnp.matmul(x, kernel.astype(self.dtype))
            return _affine(x, mean.value, variance.value, scale, bias)
        if kernel is None:
            y, x_mean, x_variance = _normalize(x, scale, bias)
        else:
            y, x_mean, x_variance = _normalize_product(x, kernel.astype(self.dtype), scale, bias)
        if not self.is_initializing():
            keep = BATCH_NORM_MOMENTUM
            mean.value = keep * mean.value + (1 - keep) * x_mean
            variance.value = keep * variance.value + (1 - keep) * x_variance
        return y


def _affine(
    x: jax.Array, mean: jax.Array, variance: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    factor = _inverse_deviation(variance) * scale
    return ((_wide(x) - _along(mean, x)) * _along(factor, x) + _along(bias, x)).astype(x.dtype)


def _inverse_deviation(variance: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _along(values: jax.Array, x: jax.Array) -> jax.Array:
    """Values of channels, to be combined with x [..., C]."""
    return values.reshape((1,) * (x.ndim - 1) + values.shape)


def _pixels(x: jax.Array) -> tuple[tuple[int, ...], int]:
    """All axes but the last, and how many values of a channel they hold."""
    return tuple(range(x.ndim - 1)), x.size // x.shape[-1]


@jax.custom_vjp
def _normalize(x: jax.Array, scale: jax.Array, bias: jax.Array) -> _Result:
    """x [..., C] normalised by its own statistics over all axes but the last."""
    return _forward(x, scale, bias)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[_Result, tuple[jax.Array, ...]]:
    axes, _ = _pixels(x)
    wide = _wide(x)
    mean = jnp.mean(wide, axis=axes)
    variance = jnp.maximum(0.0, jnp.mean(wide * wide, axis=axes) - mean * mean)
    return (_affine(x, mean, variance, scale, bias), mean, variance), (x, mean, variance, scale)


def _backward(kept: tuple[jax.Array, ...], cotangents: _Result) -> tuple[jax.Array, ...]:
    x, mean, variance, scale = kept
    axes, count = _pixels(x)
    g, inverse = _wide(cotangents[0]), _inverse_deviation(variance)
    unit = (_wide(x) - _along(mean, x)) * _along(inverse, x)
    d_bias, d_scale = jnp.sum(g, axis=axes), jnp.sum(g * unit, axis=axes)
    inner = g - (_along(d_bias, x) + unit * _along(d_scale, x)) / count
    return (inner * _along(inverse * scale, x)).astype(x.dtype), d_scale, d_bias


_normalize.defvjp(_forward, _backward)


@jax.custom_vjp
def _normalize_product(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array
) -> _Result:
    """x [..., I] · kernel [I, C], normalised; the product is neither kept nor read again.

    The mean of the product is kernelᵀ · mean of x, and its variance the diagonal of kernelᵀ ·
    covariance of x · kernel. So both are known before the product is made, which is then normalised
    as it comes; and backwards, sums over pixels of gradient × product are sums of kernel ×
    (xᵀ · gradient). Where C is several times I that spares most of what is moved. All of it is of
    x - mean, rounded to the computation's dtype: a mean far above the deviation would cost the
    digits of the covariance, and of the product.
    """
    return _product_forward(x, kernel, scale, bias)[0]


def _product_forward(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[_Result, tuple[jax.Array, ...]]:
    axes, count = _pixels(x)
    center = jnp.mean(_wide(x), axis=axes)
    x = (_wide(x) - _along(center, x)).astype(x.dtype)
    wide = _wide(kernel)
    spread = _exactly(_over_pixels(x, x) / count, wide)
    variance = jnp.maximum(0.0, jnp.sum(wide * spread, axis=0))
    y = _affine(jnp.matmul(x, kernel), jnp.zeros_like(variance), variance, scale, bias)
    return (y, _exactly(center, wide), variance), (x, kernel, scale, spread, variance)


def _product_backward(kept: tuple[jax.Array, ...], cotangents: _Result) -> tuple[jax.Array, ...]:
    x, kernel, scale, spread, variance = kept
    g, wide = cotangents[0], _wide(kernel)
    axes, count = _pixels(x)
    inverse = _inverse_deviation(variance)
    d_bias, crossed = jnp.sum(_wide(g), axis=axes), _over_pixels(x, g)
    d_scale = inverse * jnp.sum(wide * crossed, axis=0)
    # The product's gradient is factor · (g - d_bias / count) - slope · x · kernel.
    factor = inverse * scale
    slope = factor * inverse * d_scale / count
    d_kernel = crossed * _along(factor, wide) - count * spread * _along(slope, wide)
    from_g = jnp.matmul(g, (wide * _along(factor, wide)).T.astype(x.dtype))
    from_x = jnp.matmul(x, _exactly(wide * _along(slope, wide), wide.T).astype(x.dtype))
    offset = _exactly(factor * d_bias / count, wide.T)
    dx = _wide(from_g) - _wide(from_x) - _along(offset, x)
    return dx.astype(x.dtype), d_kernel.astype(kernel.dtype), d_scale, d_bias


_normalize_product.defvjp(_product_forward, _product_backward)


def _over_pixels(a: jax.Array, b: jax.Array) -> jax.Array:
    """aᵀ · b, summed over all axes but the last; [..., A] and [..., B] to [A, B] float32."""
    axes, _ = _pixels(a)
    return jax.lax.dot_general(a, b, ((axes, axes), ((), ())), preferred_element_type=jnp.float32)


def _exactly(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
