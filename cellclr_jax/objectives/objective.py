"""What an objective declares: views, head, teacher, state, loss and metrics."""

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cellclr_jax.models import ProjectionHead

Metrics = dict[str, jax.Array]


@dataclass(frozen=True)
class Metric:
    """A number that an objective reports, and how logs and report show it.

    Attributes:
      name: its key in `metrics.jsonl`.
      title: one line on what it means.
      better: which way is better; None where neither is.
      console: its format on the console, e.g. "acc {:.1%}"; '' leaves it out.
    """

    name: str
    title: str
    better: Literal["lower", "higher"] | None = None
    console: str = ""


@dataclass(frozen=True)
class Views:
    """A group of views of one size.

    Attributes:
      count: views of each cell.
      scale: their side as a fraction of `config.image_size`.
      operations: settings that replace those of `config.views`, by operation and setting.
    """

    count: int = 2
    scale: float = 1.0
    operations: Mapping[str, Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Teacher:
    """An exponential moving average of encoder and head that produces targets.

    Attributes:
      momentum: at the first step.
      final_momentum: at the last step, reached along a cosine.
      groups: the first so many groups of views are those that it sees.
    """

    momentum: float = 0.996
    final_momentum: float = 1.0
    groups: int = 1

    def momentum_at(self, step: jax.Array, total_steps: int) -> jax.Array:
        """The momentum of the update after a step, float32."""
        share = jnp.clip(step / max(total_steps, 1), 0.0, 1.0)
        falling = 0.5 * (1.0 + jnp.cos(math.pi * share))
        return self.final_momentum - (self.final_momentum - self.momentum) * falling


class Outputs(NamedTuple):
    """What the loss of a minibatch is computed from.

    Attributes:
      student: what the head returns for each view, a tree of arrays [V, B, ...]; the views of all
        groups in order.
      teacher: the same of the teacher's views, without gradient; None without a teacher.
      labels: [B] int32 by the columns that the objective asks for.
      state: of the objective (see `Objective.init_state`).
      key: random key of the step.
    """

    student: Any
    teacher: Any
    labels: Mapping[str, jax.Array]
    state: Any
    key: jax.Array


@dataclass(frozen=True)
class Objective(abc.ABC):
    """Base of all objectives: a frozen dataclass whose fields are its settings.

    A subclass implements `loss` and declares what it needs. `__post_init__` raises ValueError for
    settings that cannot be.

    Attributes:
      metrics: what `loss` reports in addition to the loss.
      title: what the loss is, in a few words.
      views: groups of views of each cell.
      labels: columns of the cells whose values `loss` needs.
      teacher: the moving average that produces targets; None for none.
      advice: settings to try when the representation collapses.
    """

    metrics: ClassVar[tuple[Metric, ...]] = ()
    title: ClassVar[str] = "loss"
    views: ClassVar[tuple[Views, ...]] = (Views(),)
    labels: ClassVar[tuple[str, ...]] = ()
    teacher: ClassVar[Teacher | None] = None
    advice: ClassVar[str] = (
        "try a lower --config.optimizer.learning_rate or a longer --config.schedule.warmup_epochs"
    )

    def reported(self) -> tuple[Metric, ...]:
        """Everything that a step reports of the loss and the representation, the loss first."""
        return (
            Metric("loss", f"{self.title}, mean over minibatches", "lower", "loss {:.4f}"),
            *self.metrics,
            Metric(
                "embedding_spread", "mean standard deviation of an embedding's features over cells"
            ),
        )

    def head(self, settings: Mapping[str, Any], dtype: Any) -> nn.Module:
        """Builds what maps embeddings [B, D] to the outputs that `loss` takes.

        Args:
          settings: `config.model.head`.
          dtype: of the computation.
        """
        return ProjectionHead(dtype=dtype, **settings)

    def init_state(self, key: jax.Array, labels: Mapping[str, int]) -> Any:
        """Returns the state at step 0 that no gradient trains, a tree of arrays; None for none.

        Args:
          key: of its own stream.
          labels: number of distinct values by column.
        """
        return None

    @abc.abstractmethod
    def loss(self, outputs: Outputs, mesh: Mesh | None) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Computes the loss of a global minibatch; pure.

        Args:
          outputs: of student and teacher.
          mesh: whose devices share the rows; None for one device.

        Returns:
          (float32 scalar, (new state, float32 scalars by metric name)).
        """

    def sign_of_collapse(self, metrics: Mapping[str, float], minibatch_size: int) -> str:
        """Describes what in a row of training metrics looks like a collapse; '' if nothing.

        Several such rows in a row make a warning.
        """
        return ""
