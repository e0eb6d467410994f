"""Builds from a config what the training loop needs: dataset, model, optimiser, compiled step."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
import pandas as pd
from jax.sharding import Mesh

from cellclr_jax import devices
from cellclr_jax.augment import OPERATIONS, view_keys
from cellclr_jax.data import minibatches, splits
from cellclr_jax.encoder.load import CellEncoder, make_cell_encoder, make_objective, plain
from cellclr_jax.encoder.preprocessing import IN_UNIT_RANGE
from cellclr_jax.errors import BadUse
from cellclr_jax.objectives import Objective
from cellclr_jax.profiling.protocol import Protocol
from cellclr_jax.training import optimizers
from cellclr_jax.training.step import (
    LABEL,
    Learner,
    Metrics,
    TrainState,
    init_state,
    make_train_step,
    make_validation_step,
    views_of,
)

# Limits of settings that would otherwise fail much later, or train without effect.
_LEAST = {"image_size": 1, "minibatch_size": 2, "epochs": 1, "log_every": 1, "online.cells": 2}
_LEAST |= dict.fromkeys(
    (
        *("seed", "temperature", "micro_batch_size", "loss_block_size", "online.every_epochs"),
        *("checkpoint.save_every_steps", "checkpoint.keep_every_epochs", "model.head.depth"),
        *("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.momentum"),
        *("optimizer.trust_coefficient", "schedule.warmup_epochs", "schedule.hold_epochs"),
        "schedule.final",
    ),
    0,
)
_MOST = {"seed": 2**63 - 1, "optimizer.momentum": 0.9999, "schedule.final": 1}


def check_ranges(config: ml_collections.ConfigDict) -> None:
    """Raises BadUse, with the expected range, for a number outside of the range of its setting."""
    for path, least in _LEAST.items():
        value: Any = config
        for name in path.split("."):
            value = value[name]
        most = _MOST.get(path, math.inf)
        if not (math.isfinite(value) and least <= value <= most):
            expected = f"at least {least}" if math.isinf(most) else f"from {least} to {most}"
            raise BadUse(f"config.{path} is {value}: {expected} was expected")
    cells, at_once = config.minibatch_size, config.micro_batch_size
    if at_once and cells % at_once:
        raise BadUse(
            f"config.micro_batch_size is {at_once}: a divisor of config.minibatch_size {cells}, "
            "or 0 for none, was expected"
        )
    for name, settings in config.views.items():
        share = (settings or {}).get("probability", 1.0)
        if not 0 <= share <= 1:
            raise BadUse(f"config.views.{name}.probability is {share}: from 0 to 1 was expected")


# Errors of JAX, Flax and arithmetic for impossible settings.
_REFUSED = (ValueError, TypeError, IndexError, ArithmeticError)
# On CPUs this pass of XLA removes the barriers of rematerialisation; a later one then merges the
# second computation with the first and keeps the activations.
_KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
# Optimisation level of LLVM: the program of the initial values runs once, and its hundred small
# loops take long to compile.
_COMPILED_QUICKLY = {"xla_backend_optimization_level": 1}


@dataclass(frozen=True)
class Experiment:
    """Everything that a training run computes with.

    Attributes:
      config: settings.
      encoder: dataset, model and preprocessing.
      objective: objective to minimise.
      train_rows: [N] int, rows of the training set.
      validation_rows: [M] int, rows of the validation set.
      schedule: learning rate by step.
      optimizer: optimiser of the parameters.
      steps_per_epoch: optimiser steps per epoch.
      labels: number of distinct values of each label column that the objective needs.
    """

    config: ml_collections.ConfigDict
    encoder: CellEncoder
    objective: Objective
    train_rows: np.ndarray
    validation_rows: np.ndarray
    schedule: optimizers.Schedule
    optimizer: optax.GradientTransformation
    steps_per_epoch: int
    labels: Mapping[str, int]

    @property
    def total_steps(self) -> int:
        """Number of optimiser steps of the whole run."""
        return self.steps_per_epoch * self.config.epochs

    @property
    def augmentations(self) -> dict[str, dict[str, Any]]:
        """Settings of the applied augmentations by operation."""
        names = self.config.operations or tuple(self.config.views)
        return {name: dict(self.config.views[name] or {}) for name in names}

    def learner(self, mesh: Mesh | None = None) -> Learner:
        """Returns the learner on a mesh; None for one device."""
        if mesh is not None:
            self.check_devices(mesh)
        return Learner(
            model=self.encoder.model,
            objective=self.objective,
            preprocessing=self.encoder.preprocessing,
            augmentations=self.augmentations,
            total_steps=self.total_steps,
            micro_batch_size=self.config.micro_batch_size or None,
            mesh=mesh,
        )

    def init(self, key: jax.Array) -> TrainState:
        """Returns the state at step 0."""
        variables = self.encoder.init_variables(key)
        return init_state(self.learner(), variables, self.optimizer, key, self.labels)

    def check_devices(self, mesh: Mesh) -> None:
        """Raises BadUse if minibatch or micro-batch cannot be divided among the devices."""
        for name in ("minibatch_size", "micro_batch_size"):
            if (cells := self.config[name]) % mesh.size:
                what = name.replace("_size", "").replace("_", " ")
                raise BadUse(
                    f"a {what} of {cells} cells cannot be divided among {mesh.size} devices: "
                    f"set --config.{name} to a multiple of {mesh.size}"
                )


def make_experiment(config: ml_collections.ConfigDict) -> Experiment:
    """Opens the dataset, builds model, objective and optimiser, and traces the step once.

    Raises:
      BadUse: a setting does not exist, does not fit the dataset, or is impossible.
      BadData: the dataset cannot be read.
    """
    check_ranges(config)
    _check_operations(config)
    # Raises for wrong settings of the evaluation now instead of after the training.
    Protocol(**plain(config.evaluation), control=config.control)
    encoder, objective = make_cell_encoder(config), make_objective(config)
    encoder, labels = _with_labels(encoder, objective.labels)
    table = encoder.cells.table
    train_rows, validation_rows = splits.training_rows(
        table,
        validation_fraction=config.validation_fraction,
        control_fraction=config.control_fraction,
        control=config.control,
    )
    trained = table.iloc[train_rows]
    _, size = splits.epoch_cells(trained, config.sampling, config.control)
    steps = minibatches.steps_per_epoch(size, config.minibatch_size)
    try:
        schedule = _schedule(config, steps)
        optimizer = optimizers.make_optimizer(
            config.optimizer.name,
            schedule,
            weight_decay=config.optimizer.weight_decay,
            momentum=config.optimizer.momentum,
            trust_coefficient=config.optimizer.trust_coefficient,
            decayed=config.optimizer.decayed,
        )
    except ValueError as error:
        raise BadUse(f"config.optimizer or config.schedule: {error}") from error
    experiment = Experiment(
        config=config,
        encoder=encoder,
        objective=objective,
        train_rows=train_rows,
        validation_rows=validation_rows,
        schedule=schedule,
        optimizer=optimizer,
        steps_per_epoch=steps,
        labels=labels,
    )
    _trace(experiment)
    return experiment


def _with_labels(
    encoder: CellEncoder, columns: Sequence[str]
) -> tuple[CellEncoder, dict[str, int]]:
    """Adds the labels that an objective needs to the cells; counts distinct labels."""
    cells, counts = encoder.cells, {}
    labels = dict(cells.per_cell)
    for column in columns:
        if column not in cells.table:
            names = ", ".join(map(str, cells.table))
            raise BadUse(f"config.objective needs labels {column!r}: the dataset has {names}")
        codes, values = pd.factorize(cells.table[column])
        if unknown := int((codes < 0).sum()):
            raise BadUse(f"config.objective needs labels {column!r}: {unknown:,} cells have none")
        labels[LABEL + column], counts[column] = codes.astype(np.int32), len(values)
    return dataclasses.replace(encoder, cells=dataclasses.replace(cells, per_cell=labels)), counts


def _check_operations(config: ml_collections.ConfigDict) -> None:
    """Raises BadUse for an unknown operation, and one that needs other images."""
    names = config.operations
    if unknown := [name for name in names if name not in config.views or name not in OPERATIONS]:
        raise BadUse(
            f"config.operations: {unknown[0]!r} is not in config.views, which has settings of "
            f'{", ".join(config.views)}; in a shell: \'--config.operations=("one","other")\''
        )
    applied = names or config.views
    if "color_jitter" in applied and config.normalization.method not in IN_UNIT_RANGE:
        raise BadUse(
            "color_jitter works on images in [0, 1]: set config.normalization.method to one of "
            f"{', '.join(IN_UNIT_RANGE)}, or use jitter_channels"
        )


def _schedule(config: ml_collections.ConfigDict, steps: int) -> optimizers.Schedule:
    settings = config.schedule
    peak = optimizers.scaled_learning_rate(
        config.optimizer.learning_rate, config.minibatch_size, config.optimizer.scaling
    )
    if settings.legacy_per_epoch:
        if settings.name != "cosine" or settings.warmup_epochs or settings.final:
            raise ValueError("legacy_per_epoch is a cosine without warm-up that ends at 0")
        if settings.hold_epochs != int(settings.hold_epochs):
            raise ValueError(f"legacy_per_epoch: hold_epochs is {settings.hold_epochs}, no integer")
        return optimizers.legacy_cosine(
            peak, steps_per_epoch=steps, constant_epochs=int(settings.hold_epochs)
        )
    return optimizers.make_schedule(
        settings.name,
        peak=peak,
        total_steps=steps * config.epochs,
        warmup_steps=round(settings.warmup_epochs * steps),
        hold_steps=round(settings.hold_epochs * steps),
        final=settings.final,
    )


def _trace(experiment: Experiment) -> None:
    """Traces the step, to report impossible settings before anything is compiled."""
    cells, rows = experiment.encoder.cells, experiment.config.minibatch_size
    minibatch = {"image": jax.ShapeDtypeStruct((rows, *cells.image_shape), cells.image_dtype)}
    minibatch |= {
        name: jax.ShapeDtypeStruct((rows, *values.shape[1:]), values.dtype)
        for name, values in cells.per_cell.items()
    }
    key, learner = jax.eval_shape(lambda: jax.random.key(0)), experiment.learner()

    def view(key: jax.Array, minibatch: Mapping[str, jax.Array]) -> list[jax.Array]:
        return [
            views_of(learner, minibatch, view_keys(key, rows, group.count), group)
            for group in learner.objective.views
        ]

    try:
        jax.eval_shape(view, key, minibatch)
    except _REFUSED as error:
        raise BadUse(f"config.views: {error}") from error
    try:
        state = jax.eval_shape(experiment.init, key)
        step = make_train_step(learner, experiment.optimizer, experiment.schedule)
        jax.eval_shape(step, state, minibatch, key)
    except _REFUSED as error:
        raise BadUse(f"config: {error}") from error


@dataclass(frozen=True)
class Program:
    """The compiled functions of a run.

    Attributes:
      init: key → state at step 0, on every device.
      step: (state, minibatch, key) → (state, metrics); the state is donated.
      validate: (state, minibatch, key) → metrics.
    """

    init: Callable[[jax.Array], TrainState]
    step: Callable[..., tuple[TrainState, Metrics]]
    validate: Callable[..., Metrics]


def compile_program(experiment: Experiment, mesh: Mesh) -> Program:
    """Wraps the functions of an experiment in `jit`, with their shardings over the mesh."""
    everywhere, rows = devices.replicated(mesh), devices.by_rows(mesh)
    learner = experiment.learner(mesh)
    step = make_train_step(learner, experiment.optimizer, experiment.schedule)
    inputs = (everywhere, rows, everywhere)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return Program(
        init=jax.jit(
            experiment.init,
            out_shardings=everywhere,
            compiler_options=_COMPILED_QUICKLY if on_cpu else None,
        ),
        step=jax.jit(
            step,
            in_shardings=inputs,
            out_shardings=everywhere,
            donate_argnums=0,
            compiler_options=_KEEP_BARRIERS if experiment.config.model.remat and on_cpu else None,
        ),
        validate=jax.jit(
            make_validation_step(learner), in_shardings=inputs, out_shardings=everywhere
        ),
    )


def state_template(experiment: Experiment, mesh: Mesh) -> TrainState:
    """Returns shapes, dtypes and shardings of the state, without compiling anything."""
    everywhere = devices.replicated(mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    template: TrainState = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(experiment.init, key),
    )
    return template


def validation_minibatches(
    experiment: Experiment, mesh: Mesh, key: jax.Array
) -> list[tuple[dict[str, jax.Array], jax.Array]]:
    """Returns the minibatches of the validation set on the devices, each with its key.

    All have the same size, since the loss of a row grows with the number of its negatives; a few
    remaining cells are omitted. The keys give the same views at every epoch.
    """
    rows = experiment.validation_rows
    size = validation_size(len(rows), experiment.config.minibatch_size, mesh.size)
    if size < 2:
        return []
    read = minibatches.sequential_minibatches(
        experiment.encoder.cells,
        rows[: len(rows) // size * size],
        minibatch_size=size,
        process=(jax.process_index(), jax.process_count()),
    )
    on_device = [devices.to_global(mesh, local) for _, local in read]
    keys = jax.jit(
        lambda root: [devices.stream(root, "validation", i) for i in range(len(on_device))],
        out_shardings=devices.replicated(mesh),
    )
    return list(zip(on_device, keys(key), strict=True))


def validation_size(cells: int, minibatch_size: int, devices: int) -> int:
    """Returns the size of validation minibatches: equal parts of at most `minibatch_size` cells.

    The size is a multiple of the number of devices and of a power of two, about an eighth of the
    size. Every number of devices that divides this power gives the same minibatches. Returns 0 if
    there are too few cells.
    """
    if not cells:
        return 0
    size = cells // math.ceil(cells / minibatch_size)
    grain = 1 << max(0, (size // 8).bit_length() - 1)
    grain = math.lcm(grain, devices)
    return size // grain * grain
