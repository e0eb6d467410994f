"""From a config to what the training loop needs: dataset, model, optimiser, compiled step."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from cellclr_jax import devices
from cellclr_jax.augment import OPERATIONS, two_views
from cellclr_jax.data import (
    minibatches,
    splits,
)
from cellclr_jax.encoder.load import (
    Encoding,
    make_encoding,
    plain,
)
from cellclr_jax.encoder.normalization import IN_UNIT_RANGE
from cellclr_jax.errors import BadUse
from cellclr_jax.profiling.protocol import Protocol
from cellclr_jax.training import optimizers
from cellclr_jax.training.step import (
    Metrics,
    Objective,
    TrainState,
    init_state,
    stream,
)
from cellclr_jax.training.step import make_train_step as _make_train_step
from cellclr_jax.training.step import make_validation_step as _make_validation_step

# The least and the largest value of each setting that a loop or a formula would trip over much
# later, or that would train on nonsense without a word.
_RANGES = {
    "seed": (0, 2**63 - 1),
    "image_size": (1, math.inf),
    "temperature": (0, math.inf),
    "minibatch_size": (2, math.inf),
    "micro_batch_size": (0, math.inf),
    "loss_block_size": (0, math.inf),
    "epochs": (1, math.inf),
    "log_every": (1, math.inf),
    "online.every_epochs": (0, math.inf),
    "online.cells": (2, math.inf),
    "checkpoint.save_every_steps": (0, math.inf),
    "checkpoint.keep_every_epochs": (0, math.inf),
    "optimizer.learning_rate": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.momentum": (0, 0.9999),
    "optimizer.trust_coefficient": (0, math.inf),
    "schedule.warmup_epochs": (0, math.inf),
    "schedule.hold_epochs": (0, math.inf),
    "schedule.final": (0, 1),
    "model.head.depth": (0, math.inf),
}


def check_ranges(config: ml_collections.ConfigDict) -> None:
    """Refuses numbers that no run could mean.

    Raises:
      BadUse: which names the setting, its value and what was expected.
    """
    for path, (least, most) in _RANGES.items():
        value: Any = config
        for name in path.split("."):
            value = value[name]
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


# What JAX, Flax and arithmetic say of settings that cannot be.
_REFUSED = (ValueError, TypeError, IndexError, ArithmeticError)
# XLA for CPUs drops the barriers of rematerialisation, and then finds that the second computation
# equals the first and keeps the first: unless it leaves out the pass that drops them.
_KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}

# Operations that cut a crop to the encoder's side.
_CROPS = {"random_resized_crop", "center_crop"}


@dataclass(frozen=True)
class Experiment(Encoding):
    """What a training run needs beside.

    Attributes:
      train_rows: [N] rows of the training set.
      validation_rows: [M] rows of the validation set.
      schedule: learning rate by step.
      optimizer: of the parameters.
      steps_per_epoch: optimiser steps an epoch.
    """

    train_rows: np.ndarray
    validation_rows: np.ndarray
    schedule: optimizers.Schedule
    optimizer: optax.GradientTransformation
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.steps_per_epoch * self.config.epochs

    def init(self, key: jax.Array) -> TrainState:
        """The state at step 0."""
        return init_state(self.model, self.optimizer, key, self.view_shape)

    def check_devices(self, mesh: Mesh) -> None:
        """Refuses devices that the minibatch cannot be divided among.

        Raises:
          BadUse: which names the setting to change.
        """
        for name in ("minibatch_size", "micro_batch_size"):
            if (cells := self.config[name]) % mesh.size:
                what = name.replace("_size", "").replace("_", " ")
                raise BadUse(
                    f"a {what} of {cells} cells cannot be divided among {mesh.size} devices: "
                    f"set --config.{name} to a multiple of {mesh.size}"
                )

    def make_train_step(self, mesh: Mesh | None = None) -> Any:
        """See `train_step.make_train_step`; a mesh is one that `check_devices` admits."""
        return _make_train_step(self._objective(mesh), self.optimizer, self.schedule)

    def make_validation_step(self, mesh: Mesh | None = None) -> Any:
        """See `train_step.make_validation_step`; a mesh is one that `check_devices` admits."""
        return _make_validation_step(self._objective(mesh))

    def compiler_options(self, mesh: Mesh) -> dict[str, str]:
        """Options of `jax.jit` for the steps on these devices."""
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        return _KEEP_BARRIERS if self.config.model.remat and on_cpu else {}

    def views(self) -> dict[str, dict[str, Any]]:
        """The augmentations that are used, their crops cut to the image size."""
        used = self.config.operations or tuple(self.config.views)
        views = {name: dict(self.config.views[name] or {}) for name in used}
        for name in _CROPS & set(views):
            views[name].setdefault("size", self.config.image_size)
        return views

    def _objective(self, mesh: Mesh | None) -> Objective:
        if mesh is not None:
            self.check_devices(mesh)
        return Objective(
            model=self.model,
            normalize=self.to_augment,
            augmentations=self.views(),
            standardize=self.standardized,
            temperature=self.config.temperature,
            block_size=self.config.loss_block_size or None,
            micro_batch_size=self.config.micro_batch_size or None,
            mesh=mesh,
        )

    def to_augment(self, minibatch: Mapping[str, jax.Array]) -> jax.Array:
        """Images for `two_views`: of the encoder's side already where no crop makes them so."""
        images = self.images(minibatch)
        return images if _CROPS & set(self.views()) else self.resized(images)


def make_experiment(config: ml_collections.ConfigDict) -> Experiment:
    """Opens the dataset, builds all that the config names and traces it once.

    Raises:
      BadUse: for a setting that does not exist, does not fit the dataset, or that the program
        refuses.
      BadData: where the dataset cannot be read.
    """
    check_ranges(config)
    _check_operations(config)
    Protocol(**plain(config.evaluation), control=config.control)  # `eval` would refuse it too late
    encoding = make_encoding(config)
    train_rows, validation_rows = splits.training_rows(
        encoding.cells.table,
        validation_fraction=config.validation_fraction,
        control_fraction=config.control_fraction,
        control=config.control,
    )
    trained = encoding.cells.table.iloc[train_rows]
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
        cells=encoding.cells,
        train_rows=train_rows,
        validation_rows=validation_rows,
        model=encoding.model,
        schedule=schedule,
        optimizer=optimizer,
        steps_per_epoch=steps,
    )
    _trace(experiment)
    return experiment


def _check_operations(config: ml_collections.ConfigDict) -> None:
    """Raises BadUse for an operation that is to be used and has no settings."""
    names = config.operations
    if unknown := [name for name in names if name not in config.views or name not in OPERATIONS]:
        raise BadUse(
            f"config.operations: {unknown[0]!r} is not in config.views, which has settings of "
            f'{", ".join(config.views)}; in a shell: \'--config.operations=("one","other")\''
        )
    used = set(names or config.views)
    if "color_jitter" in used and config.normalization.method not in IN_UNIT_RANGE:
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
            raise ValueError(f"legacy_per_epoch holds whole epochs, not {settings.hold_epochs}")
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
    """Traces the step: a setting that it refuses is told before anything is run."""
    cells, rows = experiment.cells, experiment.config.minibatch_size
    minibatch = {"image": jax.ShapeDtypeStruct((rows, *cells.image_shape), cells.image_dtype)}
    minibatch |= {
        name: jax.ShapeDtypeStruct((rows, *values.shape[1:]), values.dtype)
        for name, values in cells.per_cell.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        jax.eval_shape(
            lambda k, crops: two_views(k, experiment.to_augment(crops), experiment.views()),
            key,
            minibatch,
        )
    except _REFUSED as error:
        raise BadUse(f"config.views: {error}") from error
    try:
        state = jax.eval_shape(experiment.init, key)
        jax.eval_shape(experiment.make_train_step(), state, minibatch, key)
    except _REFUSED as error:
        raise BadUse(f"config: {error}") from error


# Of LLVM. Initial values are drawn once, with a hundred small loops that take longest to compile.
_COMPILED_QUICKLY = {"xla_backend_optimization_level": 1}


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
    """Wraps the pure functions of an experiment in `jit`, with their shardings over the mesh."""
    everywhere, rows = devices.replicated(mesh), devices.by_rows(mesh)
    step, validate = experiment.make_train_step(mesh), experiment.make_validation_step(mesh)
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
            compiler_options=experiment.compiler_options(mesh),
        ),
        validate=jax.jit(validate, in_shardings=inputs, out_shardings=everywhere),
    )


def state_template(experiment: Experiment, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, for which nothing is compiled."""
    everywhere = devices.replicated(mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    template: TrainState = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(experiment.init, key),
    )
    return template


def root_key(seed: int, mesh: Mesh) -> jax.Array:
    """The key that all streams of a run are folded from, on every device of every process."""
    return jax.jit(lambda: jax.random.key(seed), out_shardings=devices.replicated(mesh))()


def validation_minibatches(
    experiment: Experiment, mesh: Mesh, key: jax.Array
) -> list[tuple[dict[str, jax.Array], jax.Array]]:
    """Minibatches of the validation set with a key each; a few cells left over are left out.

    All are of one size, since the loss of a row grows with the number of its negatives. They stay
    on the devices, and their views are the same at every epoch.
    """
    rows = experiment.validation_rows
    size = validation_size(len(rows), experiment.config.minibatch_size, mesh.size)
    if size < 2:
        return []
    read = minibatches.sequential_minibatches(
        experiment.cells,
        rows[: len(rows) // size * size],
        minibatch_size=size,
        process=(jax.process_index(), jax.process_count()),
    )
    on_device = [devices.to_global(mesh, local) for _, local in read]
    keys = jax.jit(
        lambda root: [stream(root, "validation", i) for i in range(len(on_device))],
        out_shardings=devices.replicated(mesh),
    )
    return list(zip(on_device, keys(key), strict=True))


def validation_size(cells: int, minibatch_size: int, devices: int) -> int:
    """Cells of a validation minibatch: the set in equal parts, none above a training minibatch.

    Args:
      cells: of the validation set.
      minibatch_size: of training.
      devices: that divide a minibatch among them.

    Returns:
      A multiple of a power of two of about an eighth of it, so that any such number of devices
      sees the same minibatches; 0 where the set is too small.
    """
    if not cells:
        return 0
    size = cells // math.ceil(cells / minibatch_size)
    grain = 1 << max(0, (size // 8).bit_length() - 1)
    grain = math.lcm(grain, devices)
    return size // grain * grain
