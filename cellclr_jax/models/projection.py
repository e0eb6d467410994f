"""The head between embeddings (h) and projections (z), used in training alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cellclr_jax.models.batch_norm import batch_norm


class ProjectionHead(nn.Module):
    """A multi-layer perceptron; depth 0 hands the embeddings on.

    Attributes:
      depth: linear layers, ReLU between them.
      hidden: width of the inner layers; None takes the embedding's width, as the paper does.
      width: of the projections.
      norm: `none` (as the paper) or `batch`, after each inner layer.
      dtype: of the computation; parameters and the result stay float32.
    """

    depth: int = 2
    hidden: int | None = None
    width: int = 128
    norm: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, embeddings: jax.Array, *, train: bool) -> jax.Array:
        """Projects embeddings [B, D] to [B, width] float32; not normalised to unit length."""
        if self.norm not in ("none", "batch"):
            raise ValueError(f"norm of the head must be 'none' or 'batch', got {self.norm!r}")
        if self.width < 1:
            raise ValueError(f"width of the head is {self.width}: at least 1 was expected")
        x = embeddings.astype(self.dtype)
        for i in range(1, self.depth + 1):
            last = i == self.depth
            width = self.width if last else self.hidden or embeddings.shape[-1]
            bias = last or self.norm == "none"
            x = nn.Dense(width, use_bias=bias, dtype=self.dtype, name=f"l{i}")(x)
            if not last:
                if self.norm == "batch":
                    x = batch_norm(train=train, dtype=self.dtype, name=f"bn{i}")(x)
                x = nn.relu(x)
        return x.astype(jnp.float32)
