"""The state of a training run and the step that advances it: one global, pure program."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cellclr_jax import losses
from cellclr_jax.augment import two_views
from cellclr_jax.models.contrastive import ContrastiveModel
from cellclr_jax.optim import Schedule

Metrics = dict[str, jax.Array]
# {"params": …, "batch_stats": …}, what Flax applies a model with.
Variables = dict[str, Any]
Normalize = Callable[[Mapping[str, jax.Array]], jax.Array]


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


def make_train_step(
    model: ContrastiveModel,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    normalize: Normalize,
    *,
    augmentations: Mapping[str, Mapping[str, Any]],
    temperature: float,
) -> Callable[[TrainState, Mapping[str, jax.Array], jax.Array], tuple[TrainState, Metrics]]:
    """Builds the training step; jit it over a mesh with the minibatch sharded by rows.

    Args:
      model: encoder and head.
      optimizer: of the parameters.
      schedule: the learning rate by step, reported.
      normalize: minibatch to images [B, H, W, C] float32.
      augmentations: config of `two_views`.
      temperature: of NT-Xent.

    Returns:
      A function (state, minibatch, key) → (new state, metrics): float32 scalars `loss`,
      `contrastive_accuracy`, `alignment`, `uniformity`, `embedding_spread` (mean deviation of an
      embedding's features over cells; 0 is collapse), `gradient_norm`, `parameter_norm`, `lr`.
    """

    def step(
        state: TrainState, minibatch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        images = normalize(minibatch)
        views = two_views(stream(key, "augment", state.step), images, augmentations)

        def loss(params: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            flat = views.reshape(-1, *views.shape[2:])
            (h, z), updated = model.apply(variables, flat, train=True, mutable=["batch_stats"])
            value = losses.nt_xent(*_pair(z), temperature)
            return value, (updated.get("batch_stats", {}), _metrics(h, z))

        (value, (batch_stats, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.params
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "loss": value,
            "gradient_norm": optax.tree.norm(gradient),
            "parameter_norm": optax.tree.norm(params),
            "lr": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return step


def make_validation_step(
    model: ContrastiveModel,
    normalize: Normalize,
    *,
    augmentations: Mapping[str, Mapping[str, Any]],
    temperature: float,
) -> Callable[[TrainState, Mapping[str, jax.Array], jax.Array], Metrics]:
    """Builds the validation step: the training loss with running statistics and no update.

    The same key gives the same views at every epoch, so that losses of epochs can be compared.
    """

    def step(state: TrainState, minibatch: Mapping[str, jax.Array], key: jax.Array) -> Metrics:
        views = two_views(key, normalize(minibatch), augmentations)
        flat = views.reshape(-1, *views.shape[2:])
        (h, z), _ = model.apply(state.variables, flat, train=False, mutable=[])
        return _metrics(h, z) | {"loss": losses.nt_xent(*_pair(z), temperature)}

    return step


def _pair(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows [2B, D] of interleaved views to first and second views [B, D]."""
    pairs = rows.reshape(-1, 2, rows.shape[-1])
    return pairs[:, 0], pairs[:, 1]


def _metrics(h: jax.Array, z: jax.Array) -> Metrics:
    z1, z2 = _pair(jax.lax.stop_gradient(z))
    return {
        "contrastive_accuracy": losses.contrastive_accuracy(z1, z2),
        "alignment": losses.alignment(z1, z2),
        "uniformity": losses.uniformity(z1),
        "embedding_spread": jnp.mean(jnp.std(jax.lax.stop_gradient(h), axis=0)),
    }
