"""Batch normalisation with torchvision's momentum and epsilon, and custom backward passes.

The running variance is the biased variance of the minibatch, as in Flax; PyTorch's is larger by the
factor n / (n - 1).

The backward pass needs only the input, in the computation's dtype, and a few numbers a channel.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

# Those of torchvision's layers: PyTorch's momentum 0.1 is Flax's 0.9.
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5

# (normalised, mean, variance), and the residuals of their backward pass.
_Result = tuple[jax.Array, jax.Array, jax.Array]


class BatchNorm(nn.Module):
    """Batch normalisation over the global minibatch and all axes but the last.

    Parameters, statistics and results are those of `flax.linen.BatchNorm`.

    Attributes:
      train: uses the minibatch's statistics and updates the running ones; else the running ones.
      dtype: of the computation; parameters and statistics stay float32.
      zero_scale: initialises the scale with 0, so that a residual block starts as the identity.
    """

    train: bool
    dtype: jnp.dtype
    zero_scale: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, kernel: jax.Array | None = None) -> jax.Array:
        """Normalises x, or x · kernel without storing that product.

        Args:
          x: [..., I] float.
          kernel: [I, C] float32; None normalises x, and C is I.

        Returns:
          [..., C] in `dtype`. The running statistics have no gradient.
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
            momentum = BATCH_NORM_MOMENTUM
            mean.value = momentum * mean.value + (1 - momentum) * x_mean
            variance.value = momentum * variance.value + (1 - momentum) * x_variance
        return y


def _affine(
    x: jax.Array, mean: jax.Array, variance: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    factor = _inverse_deviation(variance) * scale
    y = (_float32(x) - _channels(mean, x)) * _channels(factor, x) + _channels(bias, x)
    return y.astype(x.dtype)


def _inverse_deviation(variance: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)


def _float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _channels(values: jax.Array, x: jax.Array) -> jax.Array:
    """Reshapes values [C] for broadcasting with x [..., C]."""
    return values.reshape((1,) * (x.ndim - 1) + values.shape)


def _axes_and_count(x: jax.Array) -> tuple[tuple[int, ...], int]:
    """All axes but the last, and the number of values of a channel."""
    return tuple(range(x.ndim - 1)), x.size // x.shape[-1]


@jax.custom_vjp
def _normalize(x: jax.Array, scale: jax.Array, bias: jax.Array) -> _Result:
    """Normalises x [..., C] by its statistics over all axes but the last."""
    return _forward(x, scale, bias)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[_Result, tuple[jax.Array, ...]]:
    axes, _ = _axes_and_count(x)
    wide = _float32(x)
    mean = jnp.mean(wide, axis=axes)
    variance = jnp.maximum(0.0, jnp.mean(wide * wide, axis=axes) - mean * mean)
    return (_affine(x, mean, variance, scale, bias), mean, variance), (x, mean, variance, scale)


def _backward(residuals: tuple[jax.Array, ...], cotangents: _Result) -> tuple[jax.Array, ...]:
    x, mean, variance, scale = residuals
    axes, count = _axes_and_count(x)
    g, inverse = _float32(cotangents[0]), _inverse_deviation(variance)
    unit = (_float32(x) - _channels(mean, x)) * _channels(inverse, x)
    d_bias, d_scale = jnp.sum(g, axis=axes), jnp.sum(g * unit, axis=axes)
    inner = g - (_channels(d_bias, x) + unit * _channels(d_scale, x)) / count
    return (inner * _channels(inverse * scale, x)).astype(x.dtype), d_scale, d_bias


_normalize.defvjp(_forward, _backward)


@jax.custom_vjp
def _normalize_product(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array
) -> _Result:
    """Normalises x [..., I] · kernel [I, C] without storing the product or reading it again.

    The mean of the product is kernelᵀ · mean of x, its variance the diagonal of kernelᵀ ·
    covariance of x · kernel. Both are known before the product is computed, which is normalised at
    once. In the backward pass, sums over pixels of gradient × product are sums of kernel ×
    (xᵀ · gradient). If C is several times I, this avoids most of the memory traffic. The product is
    that of x - mean, rounded to the computation's dtype: with a mean far above the deviation, the
    covariance and the product would lose digits.
    """
    return _product_forward(x, kernel, scale, bias)[0]


def _product_forward(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[_Result, tuple[jax.Array, ...]]:
    axes, count = _axes_and_count(x)
    center = jnp.mean(_float32(x), axis=axes)
    x = (_float32(x) - _channels(center, x)).astype(x.dtype)
    wide = _float32(kernel)
    spread = _exact_product(_sum_of_products(x, x) / count, wide)
    variance = jnp.maximum(0.0, jnp.sum(wide * spread, axis=0))
    y = _affine(jnp.matmul(x, kernel), jnp.zeros_like(variance), variance, scale, bias)
    return (y, _exact_product(center, wide), variance), (x, kernel, scale, spread, variance)


def _product_backward(
    residuals: tuple[jax.Array, ...], cotangents: _Result
) -> tuple[jax.Array, ...]:
    x, kernel, scale, spread, variance = residuals
    g, wide = cotangents[0], _float32(kernel)
    axes, count = _axes_and_count(x)
    inverse = _inverse_deviation(variance)
    d_bias, crossed = jnp.sum(_float32(g), axis=axes), _sum_of_products(x, g)
    d_scale = inverse * jnp.sum(wide * crossed, axis=0)
    # The product's gradient is factor · (g - d_bias / count) - slope · x · kernel.
    factor = inverse * scale
    slope = factor * inverse * d_scale / count
    d_kernel = crossed * _channels(factor, wide) - count * spread * _channels(slope, wide)
    from_g = jnp.matmul(g, (wide * _channels(factor, wide)).T.astype(x.dtype))
    from_x = jnp.matmul(x, _exact_product(wide * _channels(slope, wide), wide.T).astype(x.dtype))
    offset = _exact_product(factor * d_bias / count, wide.T)
    dx = _float32(from_g) - _float32(from_x) - _channels(offset, x)
    return dx.astype(x.dtype), d_kernel.astype(kernel.dtype), d_scale, d_bias


_normalize_product.defvjp(_product_forward, _product_backward)


def _sum_of_products(a: jax.Array, b: jax.Array) -> jax.Array:
    """aᵀ · b summed over all axes but the last; [..., A] and [..., B] to [A, B] float32."""
    axes, _ = _axes_and_count(a)
    return jax.lax.dot_general(a, b, ((axes, axes), ((), ())), preferred_element_type=jnp.float32)


def _exact_product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
