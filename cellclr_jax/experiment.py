"""A config made into objects: cells, model, optimiser, and how a minibatch becomes images.

Training and evaluation build the same things from the same config here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from etils import epath

from cellclr_jax import optim
from cellclr_jax.augment import resize, two_views
from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.data import index, pipeline
from cellclr_jax.data.statistics import plate_percentiles
from cellclr_jax.models.contrastive import ContrastiveModel, make_model
from cellclr_jax.normalization import METHODS, normalize
from cellclr_jax.train_step import TrainState, init_state

CONFIG = "config.json"
# May differ when a run is taken up again: they decide where things lie and what is told, no number.
_FREE = ("data_dir", "log_every", "checkpoint")


@dataclass(frozen=True)
class Experiment:
    """What a config describes, ready to run.

    Attributes:
      config: the settings.
      cells: the dataset, with what its normalisation needs per cell.
      train_rows: [N] rows of the training set.
      validation_rows: [M] rows of the validation set.
      model: encoder and head.
      schedule: learning rate by step.
      optimizer: of the parameters.
      steps_per_epoch: optimiser steps an epoch.
    """

    config: ml_collections.ConfigDict
    cells: pipeline.Cells
    train_rows: np.ndarray
    validation_rows: np.ndarray
    model: ContrastiveModel
    schedule: optim.Schedule
    optimizer: optax.GradientTransformation
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.steps_per_epoch * self.config.epochs

    @property
    def views(self) -> dict[str, dict[str, Any]]:
        """The augmentations, their crops cut to the image size."""
        views = {name: dict(settings) for name, settings in self.config.views.items()}
        for name in ("random_resized_crop", "center_crop"):
            if name in views:
                views[name].setdefault("size", self.config.image_size)
        return views

    def images(self, minibatch: Mapping[str, jax.Array]) -> jax.Array:
        """Normalised images [B, H, W, C] of a minibatch, before augmentation."""
        settings = self.config.normalization
        low, high = minibatch.get("low"), minibatch.get("high")
        if settings.method == "fixed":
            low, high = (jnp.asarray(v, jnp.float32) for v in (settings.low, settings.high))
        images = normalize(minibatch["image"], settings.method, low=low, high=high)
        cropped = {"random_resized_crop", "center_crop"} & set(self.config.views)
        return images if cropped else self.resized(images)

    def resized(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, C] at the side that the encoder sees."""
        return jax.vmap(partial(resize, size=self.config.image_size))(images)

    def init(self, key: jax.Array) -> TrainState:
        """The state at step 0."""
        side, channels = self.config.image_size, self.cells.image_shape[-1]
        return init_state(self.model, self.optimizer, key, (side, side, channels))


def make_experiment(config: ml_collections.ConfigDict) -> Experiment:
    """Opens the dataset and builds what the config names.

    Raises:
      BadUse: for a setting that does not exist or does not fit the dataset.
      BadData: where the dataset cannot be read.
    """
    cells = pipeline.open_cells(config.data_dir, config.dataset)
    held_out = index.validation_mask(cells.table["cell_id"], config.validation_fraction)
    train_rows = np.flatnonzero(~held_out)
    steps = pipeline.steps_per_epoch(len(train_rows), config.minibatch_size)
    try:
        schedule = _schedule(config, steps)
        optimizer = optim.make_optimizer(
            config.optimizer.name,
            schedule,
            weight_decay=config.optimizer.weight_decay,
            momentum=config.optimizer.momentum,
            trust_coefficient=config.optimizer.trust_coefficient,
        )
        model = make_model(
            config.model.encoder,
            dtype=config.model.dtype,
            encoder_settings=_plain(config.model.encoder_settings),
            head_settings=_plain(config.model.head),
        )
    except ValueError as error:
        raise BadUse(str(error)) from error
    experiment = Experiment(
        config=config,
        cells=_with_scale(cells, config.normalization),
        train_rows=train_rows,
        validation_rows=np.flatnonzero(held_out),
        model=model,
        schedule=schedule,
        optimizer=optimizer,
        steps_per_epoch=steps,
    )
    _check_views(experiment)
    return experiment


def write_config(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Writes `config.json`, or checks that the one in the work directory is the same.

    Raises:
      BadUse: the directory holds a run of another config; the message names the differences.
    """
    wanted = _as_json(config)
    path = workdir / CONFIG
    if path.exists():
        there = json.loads(path.read_text())
        if differences := _differences(there, wanted):
            raise BadUse(
                f"{workdir} holds a run of another config ({'; '.join(differences)}): "
                "choose another --workdir, or the same settings"
            )
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = workdir / f"{CONFIG}.tmp"
    temporary.write_text(json.dumps(wanted, indent=2) + "\n")
    temporary.replace(path)


def read_config(workdir: epath.Path) -> ml_collections.ConfigDict:
    """Reads the config of a run.

    Raises:
      BadUse: the directory holds no run.
      BadData: its config cannot be read.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise BadUse(f"no run in {workdir}: {CONFIG} is missing. Train first, or mend --workdir")
    try:
        return ml_collections.ConfigDict(json.loads(path.read_text()))
    except ValueError as error:
        raise BadData(f"{path}: not a readable config ({error})") from error


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
    low, high = plate_percentiles(cells, low=settings.percentiles[0], high=settings.percentiles[1])
    return replace(cells, per_cell={"low": low, "high": high})


def _check_views(experiment: Experiment) -> None:
    """Traces the augmentations, which tells of a wrong name or setting before anything is run."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    cells = {"image": jax.ShapeDtypeStruct((2, *experiment.cells.image_shape), np.uint16)}
    cells |= {
        name: jax.ShapeDtypeStruct((2, *values.shape[1:]), values.dtype)
        for name, values in experiment.cells.per_cell.items()
    }
    try:
        jax.eval_shape(
            lambda k, minibatch: two_views(k, experiment.images(minibatch), experiment.views),
            key,
            cells,
        )
    except (ValueError, TypeError) as error:
        raise BadUse(f"config.views: {error}") from error


def _plain(settings: ml_collections.ConfigDict) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}


def _as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(config.to_json())
    return plain


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Settings that differ, as `path: old → new`; those that decide no number are passed over."""
    if path in _FREE or old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for name in sorted(old.keys() | new.keys())
            for line in _differences(
                old.get(name), new.get(name), f"{path}.{name}" if path else name
            )
        ]
    return [f"{path}: {old!r} there, {new!r} here"]
