"""A config made into objects: cells, model, optimiser, and how a minibatch becomes images.

Training and evaluation build the same things from the same config here; nothing else but the
training loop reads a config.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from cellclr_jax import optim
from cellclr_jax.augment import resize, two_views
from cellclr_jax.cli import BadUse
from cellclr_jax.config_ranges import check_ranges
from cellclr_jax.data import index, pipeline
from cellclr_jax.data.statistics import plate_percentiles
from cellclr_jax.models.contrastive import ContrastiveModel, make_model
from cellclr_jax.normalization import METHODS, normalize
from cellclr_jax.train_step import Objective, TrainState, Variables, init_state, init_variables
from cellclr_jax.train_step import make_train_step as _make_train_step
from cellclr_jax.train_step import make_validation_step as _make_validation_step

# What JAX, Flax and arithmetic say of settings that cannot be.
_REFUSED = (ValueError, TypeError, IndexError, ArithmeticError)
# XLA for CPUs drops the barriers of rematerialisation, and then finds that the second computation
# equals the first and keeps the first: unless it leaves out the pass that drops them.
_KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


@dataclass(frozen=True)
class Encoding:
    """What embeds cells.

    Attributes:
      config: the settings.
      cells: the dataset, with what its normalisation needs per cell.
      model: encoder and head.
    """

    config: ml_collections.ConfigDict
    cells: pipeline.Cells
    model: ContrastiveModel

    def images(self, minibatch: Mapping[str, jax.Array]) -> jax.Array:
        """Normalised images [B, H, W, C] of a minibatch, of the crops' own size."""
        settings = self.config.normalization
        low, high = minibatch.get("low"), minibatch.get("high")
        if settings.method == "fixed":
            low, high = (jnp.asarray(v, jnp.float32) for v in (settings.low, settings.high))
        return normalize(minibatch["image"], settings.method, low=low, high=high)

    def resized(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, C] at the side that the encoder sees."""
        return jax.vmap(partial(resize, size=self.config.image_size))(images)

    @property
    def view_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of what the encoder sees."""
        return self.config.image_size, self.config.image_size, self.cells.image_shape[-1]

    def init_variables(self, key: jax.Array) -> Variables:
        """Parameters and statistics as a run with this root key starts from."""
        return init_variables(self.model, key, self.view_shape)


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
    schedule: optim.Schedule
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
        """The augmentations, their crops cut to the image size."""
        views = {name: dict(settings or {}) for name, settings in self.config.views.items()}
        for name in ("random_resized_crop", "center_crop"):
            if name in views:
                views[name].setdefault("size", self.config.image_size)
        return views

    def _objective(self, mesh: Mesh | None) -> Objective:
        if mesh is not None:
            self.check_devices(mesh)
        return Objective(
            model=self.model,
            normalize=self.to_augment,
            augmentations=self.views(),
            temperature=self.config.temperature,
            block_size=self.config.loss_block_size or None,
            micro_batch_size=self.config.micro_batch_size or None,
            mesh=mesh,
        )

    def to_augment(self, minibatch: Mapping[str, jax.Array]) -> jax.Array:
        """Images for `two_views`: of the encoder's side already where no crop makes them so."""
        images = self.images(minibatch)
        crops = {"random_resized_crop", "center_crop"} & set(self.config.views)
        return images if crops else self.resized(images)


def make_encoding(config: ml_collections.ConfigDict) -> Encoding:
    """Opens the dataset and builds the model that the config names.

    Raises:
      BadUse: for a setting that does not exist or does not fit the dataset.
      BadData: where the dataset cannot be read.
    """
    # A run that was made before there was a choice has none written down; so `remat` below.
    access, first = config.get("data_access", "shards"), jax.process_index() == 0
    cells = pipeline.open_cells(config.data_dir, config.dataset, access, progress=first)
    settings = config.model
    try:
        model = make_model(
            settings.encoder,
            dtype=settings.dtype,
            remat=settings.get("remat", False),
            encoder_settings=_plain(settings.get(settings.encoder) or {}),
            head_settings=_plain(settings.head),
        )
    except ValueError as error:
        raise BadUse(f"config.model: {error}") from error
    return Encoding(config, _with_scale(cells, config.normalization), model)


def make_experiment(config: ml_collections.ConfigDict) -> Experiment:
    """Opens the dataset, builds all that the config names and traces it once.

    Raises:
      BadUse: for a setting that does not exist, does not fit the dataset, or that the program
        refuses.
      BadData: where the dataset cannot be read.
    """
    check_ranges(config)
    encoding = make_encoding(config)
    held_out = index.validation_mask(encoding.cells.table["cell_id"], config.validation_fraction)
    train_rows = np.flatnonzero(~held_out)
    steps = pipeline.steps_per_epoch(len(train_rows), config.minibatch_size)
    pipeline.balanced_groups(encoding.cells.table, config.sampling)  # refused before anything runs
    try:
        schedule = _schedule(config, steps)
        optimizer = optim.make_optimizer(
            config.optimizer.name,
            schedule,
            weight_decay=config.optimizer.weight_decay,
            momentum=config.optimizer.momentum,
            trust_coefficient=config.optimizer.trust_coefficient,
        )
    except ValueError as error:
        raise BadUse(f"config.optimizer or config.schedule: {error}") from error
    experiment = Experiment(
        config=config,
        cells=encoding.cells,
        train_rows=train_rows,
        validation_rows=np.flatnonzero(held_out),
        model=encoding.model,
        schedule=schedule,
        optimizer=optimizer,
        steps_per_epoch=steps,
    )
    _trace(experiment)
    return experiment


def _schedule(config: ml_collections.ConfigDict, steps: int) -> optim.Schedule:
    peak = optim.scaled_learning_rate(
        config.optimizer.learning_rate, config.minibatch_size, config.optimizer.scaling
    )
    return optim.make_schedule(
        config.schedule.name,
        peak=peak,
        total_steps=steps * config.epochs,
        warmup_steps=round(config.schedule.warmup_epochs * steps),
        final=config.schedule.final,
    )


def _with_scale(cells: pipeline.Cells, settings: ml_collections.ConfigDict) -> pipeline.Cells:
    """Adds the percentiles of its plate to each cell where the normalisation asks for them."""
    if settings.method not in METHODS:
        raise BadUse(
            f"normalization.method {settings.method!r}: one of {', '.join(METHODS)} was expected"
        )
    channels = cells.image_shape[-1]
    if settings.method == "fixed" and not len(settings.low) == len(settings.high) == channels:
        raise BadUse(f"normalization.low and .high need {channels} numbers, one for each channel")
    if settings.method != "percentile":
        return cells
    low, high = settings.percentiles
    if not 0 <= low < high <= 100:
        raise BadUse(f"normalization.percentiles {low}, {high}: rising, from 0 to 100, expected")
    lows, highs = plate_percentiles(cells, low=low, high=high)
    return replace(cells, per_cell={"low": lows, "high": highs})


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


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
