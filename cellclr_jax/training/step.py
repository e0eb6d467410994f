"""The state of a training run and the step that advances it: one global, pure program."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from cellclr_jax.augment import two_views, view_keys
from cellclr_jax.models import ContrastiveModel
from cellclr_jax.objectives import nt_xent
from cellclr_jax.training import gradient_cache
from cellclr_jax.training.optimizers import Schedule

Metrics = dict[str, jax.Array]
# {"params": …, "batch_stats": …}, what Flax applies a model with.
Variables = dict[str, Any]
Minibatch = Mapping[str, jax.Array]
Normalize = Callable[[Minibatch], jax.Array]


class TrainState(flax.struct.PyTreeNode):
    """What a checkpoint holds.

    Attributes:
      step: int32 scalar, optimiser steps taken.
      params: the model's parameters, float32.
      batch_stats: running statistics of batch normalisation, float32; empty without it.
      opt_state: the optimiser's state.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @property
    def variables(self) -> Variables:
        """What Flax applies the model with."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_variables(
    model: ContrastiveModel, key: jax.Array, image_shape: tuple[int, int, int]
) -> Variables:
    """Draws the initial parameters and statistics from a stream of the root key.

    Args:
      model: encoder and head.
      key: the run's root key.
      image_shape: (H, W, C) of a normalised view.
    """
    variables = model.init(stream(key, "init"), jnp.zeros((2, *image_shape)), train=False)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def init_state(
    model: ContrastiveModel,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    image_shape: tuple[int, int, int],
) -> TrainState:
    """The state at step 0: see `init_variables`, and the optimiser's own state."""
    variables = init_variables(model, key, image_shape)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
    )


def stream(key: jax.Array, name: str, step: jax.Array | int | None = None) -> jax.Array:
    """A named stream of random keys: folds in the name, then the step.

    A checkpoint thus needs a seed and a step alone, and adding a stream moves no other.
    """
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return key if step is None else jax.random.fold_in(key, step)


@dataclass(frozen=True)
class Objective:
    """What training minimises and validation reports: NT-Xent of two views of each cell.

    Attributes:
      model: encoder and head.
      normalize: minibatch to images [B, H, W, C] float32, each cell for itself.
      augmentations: config of `two_views`.
      temperature: of NT-Xent.
      standardize: views to what the encoder takes.
      block_size: columns that the loss compares at a time; None takes what suits the hardware.
      micro_batch_size: cells whose views and activations are held at a time; None takes all.
      mesh: whose devices share the rows of a minibatch; None for one device.
    """

    model: ContrastiveModel
    normalize: Normalize
    augmentations: Mapping[str, Mapping[str, Any]]
    temperature: float
    standardize: Callable[[jax.Array], jax.Array] = lambda views: views
    block_size: int | None = None
    micro_batch_size: int | None = None
    mesh: Mesh | None = None

    def value_and_grad(
        self, variables: Variables, minibatch: Minibatch, key: jax.Array
    ) -> tuple[Metrics, Any, Any]:
        """Metrics with the loss, its gradient by the parameters, and new running statistics.

        Batch normalisation uses the statistics of each micro-batch, those of all devices together;
        the running ones move once, by the mean over micro-batches.
        """

        def encode(params: Any, cells: Any) -> tuple[jax.Array, Any]:
            return self._project({**variables, "params": params}, cells, train=True)

        cells, pieces = self._cells(minibatch, key)
        (value, metrics), gradient, (moments, batch_stats) = gradient_cache.value_and_grad(
            encode, self._contrast, variables["params"], cells, pieces=pieces
        )
        metrics |= {"loss": value, "embedding_spread": _spread(*moments)}
        return metrics, gradient, jax.tree.map(partial(jnp.mean, axis=0), batch_stats)

    def evaluate(self, variables: Variables, minibatch: Minibatch, key: jax.Array) -> Metrics:
        """Metrics with the loss under running statistics, the same for any micro-batch size."""
        cells, pieces = self._cells(minibatch, key)
        project = partial(self._project, variables, train=False)
        pairs, (moments, _) = gradient_cache.encode_in_pieces(project, cells, pieces=pieces)
        value, metrics = self._contrast(pairs)
        return metrics | {"loss": value, "embedding_spread": _spread(*moments)}

    def _cells(self, minibatch: Minibatch, key: jax.Array) -> tuple[Any, int]:
        """Each cell with the keys of its views, and into how many micro-batches they are divided.

        As few as keep to the micro-batch's size and give each device as many cells.
        """
        rows = len(next(iter(minibatch.values())))
        cells = minibatch, view_keys(key, rows)
        if self.micro_batch_size is None:
            return cells, 1
        devices = self.mesh.size if self.mesh else 1
        least = -(-rows // self.micro_batch_size)
        return cells, next(n for n in range(least, rows + 1) if rows % (n * devices) == 0)

    def _project(self, variables: Variables, cells: Any, *, train: bool) -> tuple[jax.Array, Any]:
        """Projections [b, 2, P]; moments of the embeddings and running statistics."""
        minibatch, keys = cells
        views = two_views(keys, self.normalize(minibatch), self.augmentations)
        views = self.standardize(views)
        (h, z), updated = self.model.apply(
            variables,
            views.reshape(-1, *views.shape[2:]),
            train=train,
            mutable=["batch_stats"] if train else [],
        )
        moments = jnp.mean(h, axis=0), jnp.var(h, axis=0)
        return z.reshape(-1, 2, z.shape[-1]), (moments, updated.get("batch_stats", {}))

    def _contrast(self, pairs: jax.Array) -> tuple[jax.Array, Metrics]:
        return nt_xent.contrast(
            pairs[:, 0],
            pairs[:, 1],
            self.temperature,
            block_size=self.block_size,
            mesh=self.mesh,
        )


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, schedule: Schedule
) -> Callable[[TrainState, Minibatch, jax.Array], tuple[TrainState, Metrics]]:
    """Builds the training step; jit it over a mesh with the minibatch sharded by rows.

    Args:
      objective: what is minimised.
      optimizer: of the parameters.
      schedule: the learning rate by step, reported.

    Returns:
      A function (state, minibatch, key) → (new state, metrics): float32 scalars `loss`,
      `contrastive_accuracy`, `alignment`, `uniformity`, `embedding_spread` (mean deviation of an
      embedding's features over cells; 0 is collapse), `gradient_norm`, `parameter_norm`,
      `update_norm` (of the step that the optimiser took), `lr`.
    """

    def step(state: TrainState, minibatch: Minibatch, key: jax.Array) -> tuple[TrainState, Metrics]:
        views_key = stream(key, "augment", state.step)
        metrics, gradient, batch_stats = objective.value_and_grad(
            state.variables, minibatch, views_key
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "gradient_norm": optax.tree.norm(gradient),
            "parameter_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
            "lr": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return step


def make_validation_step(
    objective: Objective,
) -> Callable[[TrainState, Minibatch, jax.Array], Metrics]:
    """Builds the validation step: the training loss with running statistics and no update.

    The same key gives the same views at every epoch, so that losses of epochs can be compared.
    """

    def step(state: TrainState, minibatch: Minibatch, key: jax.Array) -> Metrics:
        return objective.evaluate(state.variables, minibatch, key)

    return step


def _spread(means: jax.Array, variances: jax.Array) -> jax.Array:
    """Mean deviation of a feature over all rows, from its moments [pieces, D] in equal pieces."""
    return jnp.mean(jnp.sqrt(jnp.mean(variances, axis=0) + jnp.var(means, axis=0)))
