"""The interface of an objective: its views, head, teacher, state, loss and metrics."""

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
      title: its meaning in one line.
      better: whether a lower or a higher value is better; None if neither.
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
      count: number of views of each cell.
      scale: side of the views as a fraction of `config.image_size`.
      operations: settings that replace those of `config.views`, by operation and setting.
    """

    count: int = 2
    scale: float = 1.0
    operations: Mapping[str, Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Teacher:
    """An exponential moving average of encoder and head, which produces targets.

    Attributes:
      momentum: at the first step.
      final_momentum: at the last step, reached along a cosine.
      groups: number of groups of views that the teacher sees, from the first on.
    """

    momentum: float = 0.996
    final_momentum: float = 1.0
    groups: int = 1

    def momentum_at(self, step: jax.Array, total_steps: int) -> jax.Array:
        """Returns the momentum of the update after a step, float32."""
        progress = jnp.clip(step / max(total_steps, 1), 0.0, 1.0)
        cosine = 0.5 * (1.0 + jnp.cos(math.pi * progress))
        return self.final_momentum - (self.final_momentum - self.momentum) * cosine


class Outputs(NamedTuple):
    """Inputs of the loss of a minibatch.

    Attributes:
      student: the head's outputs, a tree of arrays [V, B, ...]; V counts the views of all groups,
        in order.
      teacher: the teacher's outputs for the views that it sees, without gradient; None without a
        teacher.
      labels: [B] int32 by column, for the columns in `Objective.labels`.
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
    """Base class of objectives: a frozen dataclass, the fields of which are its settings.

    A subclass implements `loss` and overrides the class attributes and methods that it needs. Its
    `__post_init__` raises ValueError for invalid settings.

    Attributes:
      metrics: the numbers that `loss` reports in addition to the loss.
      title: name of the loss.
      views: groups of views of each cell.
      labels: columns of the dataset that `loss` needs.
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
        """Returns all metrics of a training step, the loss first."""
        return (
            Metric("loss", f"{self.title}, mean over minibatches", "lower", "loss {:.4f}"),
            *self.metrics,
            Metric(
                "embedding_spread", "mean standard deviation of an embedding's features over cells"
            ),
        )

    def head(self, settings: Mapping[str, Any], dtype: Any) -> nn.Module:
        """Builds the module that maps embeddings [B, D] to the outputs that `loss` takes.

        Args:
          settings: `config.model.head`.
          dtype: of the computation.
        """
        return ProjectionHead(dtype=dtype, **settings)

    def init_state(self, key: jax.Array, labels: Mapping[str, int]) -> Any:
        """Returns the initial state, a tree of arrays that only `loss` updates; None for none.

        Args:
          key: random key of a separate stream.
          labels: number of distinct values by column.
        """
        return None

    @abc.abstractmethod
    def loss(self, outputs: Outputs, mesh: Mesh | None) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Computes the loss of a global minibatch; a pure function.

        Args:
          outputs: of student and teacher.
          mesh: the devices that share the rows; None for one device.

        Returns:
          (float32 scalar, (new state, float32 scalars by metric name)).
        """

    def sign_of_collapse(self, metrics: Mapping[str, float], minibatch_size: int) -> str:
        """Describes signs of a collapse in a row of training metrics; '' if there are none.

        Several such rows in succession cause a warning.
        """
        return ""
