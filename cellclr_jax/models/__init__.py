"""Encoders, the projection head, and the model that combines them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cellclr_jax.models.batch_norm import BatchNorm
from cellclr_jax.models.cnn import CNN
from cellclr_jax.models.resnet import BasicBlock, Bottleneck, ResNet


class ProjectionHead(nn.Module):
    """A multi-layer perceptron; depth 0 returns the embeddings.

    Attributes:
      depth: number of linear layers, with ReLU between them.
      hidden: width of the inner layers; None takes the embedding's width, as in the paper.
      width: of the projections.
      norm: `none` (as in the paper) or `batch`, after each inner layer.
      bias: whether the last layer has a bias.
      dtype: of the computation; parameters and the result stay float32.
    """

    depth: int = 2
    hidden: int | None = None
    width: int = 128
    norm: str = "none"
    bias: bool = True
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
            bias = self.bias if last else self.norm == "none"
            x = nn.Dense(width, use_bias=bias, dtype=self.dtype, name=f"l{i}")(x)
            if not last:
                if self.norm == "batch":
                    x = BatchNorm(train=train, dtype=self.dtype, name=f"bn{i}")(x)
                x = nn.relu(x)
        return x.astype(jnp.float32)


ENCODERS: Mapping[str, Callable[..., nn.Module]] = {
    "cnn": CNN,
    "resnet18": partial(ResNet, block=BasicBlock, depths=(2, 2, 2, 2)),
    "resnet50": partial(ResNet, block=Bottleneck, depths=(3, 4, 6, 3)),
    "resnet101": partial(ResNet, block=Bottleneck, depths=(3, 4, 23, 3)),
}


class ContrastiveModel(nn.Module):
    """An encoder with a projection head on top."""

    encoder: nn.Module
    head: nn.Module

    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        """Maps images [B, H, W, C] float to embeddings [B, D] and the head's output, float32."""
        embeddings = self.encoder(images, train=train)
        return embeddings, self.head(embeddings, train=train)

    def embed(self, images: jax.Array) -> jax.Array:
        """Maps images [B, H, W, C] float to embeddings [B, D] float32; uses running statistics."""
        return self.encoder(images, train=False)


def make_model(
    encoder: str,
    *,
    dtype: str = "float32",
    remat: bool = False,
    encoder_settings: Mapping[str, Any] | None = None,
    head_settings: Mapping[str, Any] | None = None,
    make_head: Callable[..., nn.Module] | None = None,
) -> ContrastiveModel:
    """Builds the model that a config names.

    Args:
      encoder: a key of `ENCODERS`.
      dtype: of the computation, `float32` or `bfloat16`; parameters are float32.
      remat: computes the encoder's blocks again in the backward pass instead of storing their
        intermediate values; the names of parameters stay the same.
      encoder_settings: other attributes of the encoder, such as the CNN's widths.
      head_settings: attributes of the head except dtype.
      make_head: (head_settings, dtype) -> head; None for a `ProjectionHead`.

    Raises:
      ValueError: an unknown encoder, dtype or setting.
    """
    if encoder not in ENCODERS:
        raise ValueError(f"unknown encoder {encoder!r}: choose one of {', '.join(ENCODERS)}")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype of the model must be 'float32' or 'bfloat16', got {dtype!r}")
    compute, head = jnp.dtype(dtype), head_settings or {}
    try:
        return ContrastiveModel(
            encoder=ENCODERS[encoder](dtype=compute, remat=remat, **(encoder_settings or {})),
            head=make_head(head, compute) if make_head else ProjectionHead(dtype=compute, **head),
        )
    except TypeError as error:
        raise ValueError(f"settings of {encoder} or its head: {error}") from None
