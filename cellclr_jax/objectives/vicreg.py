"""VICReg (Bardes et al. 2022, arXiv 2105.04906): invariance, variance and covariance of views."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cellclr_jax.models import ProjectionHead
from cellclr_jax.objectives.objective import Metric, Metrics, Objective, Outputs

# Added to variances before the square root, as in the paper.
_EPSILON = 1e-4
# On TPU the default matrix product rounds its inputs to bfloat16.
_EXACT = jax.lax.Precision.HIGHEST
# Mean hinge of the features' standard deviations: above this, nearly all of them are 0.
_COLLAPSED = 0.95


@dataclass(frozen=True)
class VICReg(Objective):
    """Makes the projections of two views equal and their features varied and uncorrelated.

    Needs no negatives, hence no large minibatches.

    Attributes:
      invariance_weight: of the mean squared difference of the two views.
      variance_weight: of the hinge that keeps each feature's standard deviation at 1 or above.
      covariance_weight: of the squared covariances of different features.
      width: of each of the expander's three layers.
    """

    invariance_weight: float = 25.0
    variance_weight: float = 25.0
    covariance_weight: float = 1.0
    width: int = 8192

    title: ClassVar[str] = "VICReg"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("invariance", "mean squared difference of a cell's two projections", better="lower"),
        Metric(
            "variance",
            "mean of max(0, 1 - standard deviation) over features; 1: projections are identical",
            better="lower",
        ),
        Metric(
            "covariance",
            "sum of squared covariances of different features, per feature",
            better="lower",
        ),
    )

    def __post_init__(self) -> None:
        """Checks the settings."""
        for name in ("invariance_weight", "variance_weight", "covariance_weight"):
            if not 0 <= (weight := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} is {weight}: a finite number of at least 0 was expected")
        if self.width < 1:
            raise ValueError(f"width is {self.width}: at least 1 was expected")

    def head(self, settings: Mapping[str, Any], dtype: Any) -> nn.Module:
        """Builds the expander: three layers with batch norm and ReLU between them, no last bias."""
        return ProjectionHead(
            depth=3, hidden=self.width, width=self.width, norm="batch", bias=False, dtype=dtype
        )

    def loss(self, outputs: Outputs, mesh: Mesh | None) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Computes the weighted sum of the three terms, with statistics over all devices."""
        x, y = outputs.student
        metrics = {
            "invariance": jnp.mean(jnp.square(x - y)),
            "variance": 0.5 * (_variance_hinge(x) + _variance_hinge(y)),
            "covariance": _covariance(x) + _covariance(y),
        }
        weights = (self.invariance_weight, self.variance_weight, self.covariance_weight)
        value = sum(w * term for w, term in zip(weights, metrics.values(), strict=True))
        return jnp.asarray(value), (None, jax.lax.stop_gradient(metrics))

    def sign_of_collapse(self, metrics: Mapping[str, float], minibatch_size: int) -> str:
        """Detects features that hardly differ between cells."""
        if metrics.get("variance", 0.0) <= _COLLAPSED:
            return ""
        return f"the projections hardly differ between cells (variance {metrics['variance']:.3f})"


def _variance_hinge(x: jax.Array) -> jax.Array:
    """Mean of max(0, 1 - standard deviation) over the features of [B, D]."""
    deviation = jnp.sqrt(jnp.var(x, axis=0, ddof=1) + _EPSILON)
    return jnp.mean(jax.nn.relu(1.0 - deviation))


def _covariance(x: jax.Array) -> jax.Array:
    """Sum of squared covariances of different features of [B, D], divided by D."""
    cells, width = x.shape
    centered = x - jnp.mean(x, axis=0, keepdims=True)
    if cells < width:
        # XᵀX and XXᵀ have the same Frobenius norm, and XXᵀ is the smaller matrix here.
        gram = jnp.matmul(centered, centered.T, precision=_EXACT)
        diagonal = jnp.sum(jnp.square(centered), axis=0)
        total = jnp.sum(jnp.square(gram)) - jnp.sum(jnp.square(diagonal))
    else:
        products = jnp.matmul(centered.T, centered, precision=_EXACT)
        total = jnp.sum(jnp.square(jnp.where(jnp.eye(width, dtype=bool), 0.0, products)))
    return total / (cells - 1) ** 2 / width
