"""Training state and training step: a pure function over arrays that span all devices.

The step computes updated parameters from raw crops: preprocessing and views, encoder and head, loss
of the objective and its gradient, optimiser. It is a function of (state, minibatch, key); jit it
over a mesh with the minibatch sharded by rows.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from cellclr_jax.augment import make_views, view_keys
from cellclr_jax.devices import stream
from cellclr_jax.encoder.load import Variables
from cellclr_jax.encoder.preprocessing import Preprocessing, preprocess
from cellclr_jax.models import ContrastiveModel
from cellclr_jax.objectives import Objective, Outputs, Views
from cellclr_jax.training import gradient_cache
from cellclr_jax.training.optimizers import Schedule

Metrics = dict[str, jax.Array]
# "image" [B, H, W, C], and per-cell numbers: "low", "high", "label_<column>".
Minibatch = Mapping[str, jax.Array]

LABEL = "label_"
"""Prefix of the labels in a minibatch, before the name of their column."""


class TrainState(flax.struct.PyTreeNode):
    """The state that a checkpoint stores.

    Attributes:
      step: int32 scalar, number of optimiser steps done.
      params: parameters of the model, float32.
      batch_stats: running statistics of batch normalisation, float32; empty without it.
      opt_state: state of the optimiser.
      teacher: variables of the objective's teacher; None without a teacher.
      objective: state of the objective; None without one.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    teacher: Any = None
    objective: Any = None

    @property
    def variables(self) -> Variables:
        """Variables of the Flax model."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def saved(self) -> dict[str, Any]:
        """Returns the fields of a checkpoint by name: those that are not None."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class Learner:
    """The constant inputs of the step.

    Attributes:
      model: encoder and head.
      objective: objective to minimise.
      preprocessing: preprocessing of raw crops.
      augmentations: settings of the augmentations by operation.
      total_steps: number of steps of the run, for schedules of the objective.
      micro_batch_size: cells whose views and activations are in memory at a time; None for all.
      mesh: devices that share the rows of a minibatch; None for one device.
    """

    model: ContrastiveModel
    objective: Objective
    preprocessing: Preprocessing
    augmentations: Mapping[str, Mapping[str, Any]]
    total_steps: int = 1
    micro_batch_size: int | None = None
    mesh: Mesh | None = None


def init_state(
    learner: Learner,
    variables: Variables,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    labels: Mapping[str, int] | None = None,
) -> TrainState:
    """Returns the state at step 0 with these initial variables.

    `key` is the root key of the run; `labels` has the number of distinct values of each label
    column that the objective needs.
    """
    teacher = None
    if learner.objective.teacher is not None:
        # A copy: the student's buffers are donated to the first step.
        teacher = jax.tree.map(jnp.array, variables)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        teacher=teacher,
        objective=learner.objective.init_state(stream(key, "objective"), labels or {}),
    )


def make_train_step(
    learner: Learner, optimizer: optax.GradientTransformation, schedule: Schedule
) -> Callable[[TrainState, Minibatch, jax.Array], tuple[TrainState, Metrics]]:
    """Builds the training step.

    Batch normalisation uses the statistics of each micro-batch over all devices; the running
    statistics are updated once, by the mean over micro-batches.

    Returns:
      A function (state, minibatch, key) -> (new state, metrics). Metrics are float32 scalars:
      `loss`, those of the objective, `embedding_spread` (standard deviation over cells, mean over
      the features of the embeddings; 0 is collapse), `gradient_norm`, `parameter_norm`,
      `update_norm` (of the optimiser's update), `lr`.
    """

    def step(state: TrainState, minibatch: Minibatch, key: jax.Array) -> tuple[TrainState, Metrics]:
        metrics, gradient, batch_stats, objective = value_and_grad(
            learner, state, minibatch, stream(key, "augment", state.step)
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        new = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            objective=objective,
        )
        metrics |= {
            "gradient_norm": optax.tree.norm(gradient),
            "parameter_norm": optax.tree.norm(new.params),
            "update_norm": optax.tree.norm(updates),
            "lr": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return new.replace(teacher=_moved_teacher(learner, state, new)), metrics

    return step


def value_and_grad(
    learner: Learner, state: TrainState, minibatch: Minibatch, key: jax.Array
) -> tuple[Metrics, Any, Any, Any]:
    """Computes the loss of a minibatch of raw crops and its gradient.

    Returns:
      (metrics with `loss` and `embedding_spread`, gradient by the parameters, new running
      statistics, new state of the objective).
    """
    cells, pieces = _cells(learner, minibatch, key)

    def encode(params: Any, cells: Any) -> tuple[Any, Any]:
        return _project(learner, {**state.variables, "params": params}, cells, train=True)

    loss = _loss_of(learner, state, cells, pieces, key)
    (value, (objective, metrics)), gradient, (moments, batch_stats) = gradient_cache.value_and_grad(
        encode, loss, state.params, cells, pieces=pieces
    )
    metrics |= {"loss": value, "embedding_spread": _spread(*moments)}
    return metrics, gradient, jax.tree.map(partial(jnp.mean, axis=0), batch_stats), objective


def make_validation_step(
    learner: Learner,
) -> Callable[[TrainState, Minibatch, jax.Array], Metrics]:
    """Builds the validation step: the loss with running statistics, without an update.

    The result does not depend on the micro-batch size. The same key gives the same views, so that
    losses of epochs can be compared.

    Returns:
      A function (state, minibatch, key) -> metrics: those of the training step, without the
      optimiser's.
    """

    def step(state: TrainState, minibatch: Minibatch, key: jax.Array) -> Metrics:
        cells, pieces = _cells(learner, minibatch, key)
        project = partial(_project, learner, state.variables, train=False)
        codes, (moments, _) = gradient_cache.encode_in_pieces(project, cells, pieces=pieces)
        loss = _loss_of(learner, state, cells, pieces, key, train=False)
        value, (_, metrics) = loss(codes)
        return metrics | {"loss": value, "embedding_spread": _spread(*moments)}

    return step


def _cells(learner: Learner, minibatch: Minibatch, key: jax.Array) -> tuple[Any, int]:
    """Returns the minibatch with keys [B, views] of each group, and the number of micro-batches.

    That is the smallest number of equal micro-batches that respect `micro_batch_size` and divide
    evenly among the devices.
    """
    rows = len(minibatch["image"])
    # The first group uses the key itself, so that more groups do not change its views.
    keys = [
        view_keys(jax.random.fold_in(key, number) if number else key, rows, group.count)
        for number, group in enumerate(learner.objective.views)
    ]
    cells = minibatch, keys
    if learner.micro_batch_size is None:
        return cells, 1
    devices = learner.mesh.size if learner.mesh else 1
    least = -(-rows // learner.micro_batch_size)
    return cells, next(n for n in range(least, rows + 1) if rows % (n * devices) == 0)


def views_of(learner: Learner, minibatch: Minibatch, keys: jax.Array, group: Views) -> jax.Array:
    """Makes the views of a minibatch of raw crops, the input of the encoder.

    Args:
      learner: preprocessing and augmentations.
      minibatch: raw crops.
      keys: [B, V] random keys, one per view.
      group: size and settings of the views.

    Returns:
      [B, V, H, W, C] float32.
    """
    settings = dict(learner.augmentations)
    for name, changed in (group.operations or {}).items():
        settings[name] = {**settings.get(name, {}), **changed}
    size = max(1, round(learner.preprocessing.size * group.scale))
    augmented = partial(make_views, keys, config=settings, size=size)
    return preprocess(minibatch, learner.preprocessing, augmented)


def _project(
    learner: Learner,
    variables: Variables,
    cells: Any,
    *,
    train: bool,
    groups: int | None = None,
) -> tuple[Any, Any]:
    """Returns the head's outputs [b, V, ...], and (moments of embeddings, running statistics).

    Groups of views differ in size and are encoded one after the other; moments and statistics are
    those of the first group.
    """
    minibatch, keys = cells
    outputs, seen = [], None
    for group, group_keys in list(zip(learner.objective.views, keys, strict=True))[:groups]:
        views = views_of(learner, minibatch, group_keys, group)
        (h, z), updated = learner.model.apply(
            variables,
            views.reshape(-1, *views.shape[2:]),
            train=train,
            mutable=["batch_stats"] if train else [],
        )
        by_cell = jax.tree.map(lambda x, v=group.count: x.reshape(-1, v, *x.shape[1:]), z)
        outputs.append(by_cell)
        if seen is None:
            moments = jnp.mean(h, axis=0), jnp.var(h, axis=0)
            seen = moments, updated.get("batch_stats", {})
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *outputs), seen


def _loss_of(
    learner: Learner,
    state: TrainState,
    cells: Any,
    pieces: int,
    key: jax.Array,
    *,
    train: bool = True,
) -> Callable[[Any], tuple[jax.Array, Any]]:
    """Returns the objective's loss as a function of the student's outputs [B, V, ...].

    Computes the teacher's outputs, which have no gradient.
    """
    objective, teacher = learner.objective, None
    if objective.teacher is not None:
        project = partial(
            _project, learner, state.teacher, train=train, groups=objective.teacher.groups
        )
        codes, _ = gradient_cache.encode_in_pieces(project, cells, pieces=pieces)
        teacher = _by_view(jax.lax.stop_gradient(codes))
    minibatch, _ = cells
    labels = {name: minibatch[LABEL + name] for name in objective.labels}

    def loss(codes: Any) -> tuple[jax.Array, Any]:
        outputs = Outputs(_by_view(codes), teacher, labels, state.objective, stream(key, "loss"))
        return objective.loss(outputs, learner.mesh)

    return loss


def _by_view(codes: Any) -> Any:
    """Transposes outputs [B, V, ...] to [V, B, ...]."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), codes)


def _moved_teacher(learner: Learner, old: TrainState, new: TrainState) -> Any:
    """Moves the teacher towards the updated student, by 1 - momentum."""
    if learner.objective.teacher is None:
        return None
    momentum = learner.objective.teacher.momentum_at(old.step, learner.total_steps)
    return jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, old.teacher, new.variables)


def _spread(means: jax.Array, variances: jax.Array) -> jax.Array:
    """Standard deviation over all rows from moments [pieces, D], mean over features."""
    return jnp.mean(jnp.sqrt(jnp.mean(variances, axis=0) + jnp.var(means, axis=0)))
