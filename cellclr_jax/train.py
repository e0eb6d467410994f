"""The training loop: data, state, restore, step, log, save."""

import contextlib
import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from cellclr_jax import sharding
from cellclr_jax.checkpoint import Checkpoints
from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.data import pipeline
from cellclr_jax.experiment import Experiment, make_experiment
from cellclr_jax.lock import alone
from cellclr_jax.logs import RunLog, is_local, say
from cellclr_jax.run_config import check_config, write_config
from cellclr_jax.train_step import Metrics, TrainState
from cellclr_jax.trained_on import check_dataset, describe_dataset
from cellclr_jax.validation import validation_minibatches

CHECKPOINTS = "checkpoints"


class Interrupted(Exception):
    """SIGTERM came; the state was saved."""


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


def train(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, mesh: Mesh | None = None
) -> TrainState:
    """Trains, or goes on from the newest checkpoint in `workdir`, until the last epoch's end.

    Args:
      config: of the experiment (see `default_config`).
      workdir: where everything is written, a folder or a bucket (gs://…).
      mesh: the devices; None takes all.

    Returns:
      The final state, on every device.

    Raises:
      BadUse: for settings that do not fit the dataset, the devices or the run in `workdir`.
      BadData: where the dataset or all checkpoints cannot be read, or the loss stops being finite.
      Interrupted: after SIGTERM, when the state is saved.
    """
    workdir, mesh = epath.Path(workdir), mesh or sharding.make_mesh()
    experiment = make_experiment(config)
    _check_devices(config.minibatch_size, mesh)
    first = jax.process_index() == 0
    check_config(config, workdir)  # by each process, so that all end with the same message
    with contextlib.ExitStack() as stack:
        if first and is_local(workdir):
            stack.enter_context(alone(Path(workdir), ".training", "training in it"))
        keep = config.checkpoint.keep_every_epochs * experiment.steps_per_epoch
        checkpoints = Checkpoints(workdir.resolve() / CHECKPOINTS, keep_every=keep)
        stack.callback(checkpoints.close)
        # Before anything is restored: arrays of another number of channels do not even fit.
        if (newest := checkpoints.newest_progress()) is not None:
            check_dataset(newest, experiment.cells, f"the run in {workdir}")
        if first:
            write_config(config, workdir)
            say(describe(experiment, mesh, workdir))
        return _Run(experiment, mesh, checkpoints, workdir if first else None).go()


def describe(experiment: Experiment, mesh: Mesh, workdir: epath.Path) -> str:
    """One line that says what is trained on what, and where."""
    config = experiment.config
    return (
        f"{workdir}: {config.model.encoder} on {len(experiment.train_rows):,} cells, "
        f"{len(experiment.validation_rows):,} more for validation; {experiment.total_steps:,} "
        f"steps of {config.minibatch_size:,} cells on {mesh.size} × "
        f"{mesh.devices.flat[0].device_kind}; compiling"
    )


def compile_program(experiment: Experiment, mesh: Mesh) -> Program:
    """Wraps the pure functions of an experiment in `jit`, with their shardings over the mesh."""
    everywhere, rows = sharding.replicated(mesh), sharding.by_rows(mesh)
    step, validate = experiment.make_train_step(), experiment.make_validation_step()
    inputs = (everywhere, rows, everywhere)
    return Program(
        init=jax.jit(experiment.init, out_shardings=everywhere),
        step=jax.jit(step, in_shardings=inputs, out_shardings=everywhere, donate_argnums=0),
        validate=jax.jit(validate, in_shardings=inputs, out_shardings=everywhere),
    )


def root_key(seed: int, mesh: Mesh) -> jax.Array:
    """The key that all streams of a run are folded from, on every device of every process."""
    return jax.jit(lambda: jax.random.key(seed), out_shardings=sharding.replicated(mesh))()


class _Run:
    """One call of `train`: what the loop holds between its steps."""

    def __init__(
        self,
        experiment: Experiment,
        mesh: Mesh,
        checkpoints: Checkpoints,
        workdir: epath.Path | None,
    ) -> None:
        self.experiment, self.mesh, self.checkpoints = experiment, mesh, checkpoints
        self.workdir = workdir
        self.config = experiment.config
        self.process = (jax.process_index(), jax.process_count())
        self.program = compile_program(experiment, mesh)
        self.key = root_key(self.config.seed, mesh)
        self.validation = validation_minibatches(experiment, mesh, self.key)
        self.pending: list[tuple[int, Metrics]] = []
        self.stopped = False

    def go(self) -> TrainState:
        """Restores, loops over the remaining steps, and saves."""
        state, data = self._start()
        start, total = int(state.step), self.experiment.total_steps
        self.log = RunLog(
            self.workdir,
            first_step=start,
            total_steps=total,
            minibatch_size=self.config.minibatch_size,
        )
        if self.workdir is not None and not self.validation:
            say("no validation set: validation loss and the best checkpoint are left out")
        # Of several processes, JAX's own handler lets all of them agree on the step to stop at.
        single = self.process[1] == 1
        before = signal.signal(signal.SIGTERM, self._on_sigterm) if single else None
        try:
            minibatches = self._on_device(data)
            # Everything that crosses to or from the host in the loop does so on purpose.
            with jax.transfer_guard("disallow"):
                for step in range(start + 1, total + 1):
                    state, metrics = self.program.step(state, next(minibatches), self.key)
                    if step == start + 1:
                        jax.block_until_ready(metrics)
                        self.log.restart_clock(step)  # the rate is one without compilation
                    self._after_step(step, state, metrics, data)
            self.checkpoints.wait()
            if self.workdir is not None:
                say(f"done: python -m cellclr_jax.eval --workdir={self.workdir}")
        finally:
            self.log.close()
            if single:
                signal.signal(signal.SIGTERM, before)
        return state

    def _start(self) -> tuple[TrainState, Any]:
        """The state and the data iterator: from the newest checkpoint, or fresh ones."""
        experiment, config = self.experiment, self.config
        data = iter(
            pipeline.training_minibatches(
                experiment.cells,
                experiment.train_rows,
                minibatch_size=config.minibatch_size,
                epochs=config.epochs,
                seed=config.seed,
                sampling=config.sampling,
                process=self.process,
            )
        )
        state = self.program.init(self.key)
        restored = self.checkpoints.restore_newest(state)
        if restored is None:
            return state, data
        state, progress, damaged = restored
        data.set_state(progress["data"])
        if self.workdir is not None:
            for step in damaged:
                say(f"the checkpoint of step {step} cannot be read: moved to unreadable/")
            say(f"going on from step {int(state.step)} of {experiment.total_steps}")
        return state, data

    def _on_device(self, data: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, jax.Array]]:
        """Minibatches as global arrays."""
        for minibatch in data:
            yield sharding.to_global(self.mesh, minibatch)

    def _after_step(self, step: int, state: TrainState, metrics: Metrics, data: Any) -> None:
        """Logs, validates and saves when it is time."""
        self.pending.append((step, metrics))
        self.log.advance()
        epoch_ends = step % self.experiment.steps_per_epoch == 0
        interval = self.config.checkpoint.save_every_steps
        stop = self._should_stop(step)
        save = epoch_ends or stop or bool(interval and step % interval == 0)
        if save or step % self.config.log_every == 0:
            self._flush()
        if save:
            loss = self._validate(step, state) if epoch_ends else None
            progress = {"data": data.get_state(), **describe_dataset(self.experiment.cells)}
            self.checkpoints.save(step, state, progress, validation_loss=loss)
            self.log.restart_clock(step)
        if stop:
            self.checkpoints.wait()
            raise Interrupted(f"SIGTERM: saved step {step}; the same command goes on from there")

    def _flush(self) -> None:
        """Fetches the metrics of the steps since the last time and records their mean."""
        if not self.pending:
            return
        steps = [step for step, _ in self.pending]
        fetched = jax.device_get([metrics for _, metrics in self.pending])
        self.pending.clear()
        for step, metrics in zip(steps, fetched, strict=True):
            # A gradient that is not finite spoils the parameters one step before the loss shows it.
            for name in ("loss", "gradient_norm", "parameter_norm"):
                if not math.isfinite(metrics[name]):
                    self._refuse(step, name.replace("_", " "), float(metrics[name]))
        mean = {name: float(np.mean([m[name] for m in fetched])) for name in fetched[-1]}
        mean["lr"] = float(fetched[-1]["lr"])
        self.log.record(steps[-1], self._epoch(steps[-1]), mean)

    def _refuse(self, step: int, what: str, value: float) -> None:
        self.checkpoints.wait()
        saved = self.checkpoints.steps()
        last = f"the last good checkpoint is of step {saved[-1]}" if saved else "none was saved yet"
        raise BadData(
            f"the {what} became {value} at step {step} (epoch {self._epoch(step)}); {last} "
            f"({self.checkpoints.directory}). A lower learning rate or a longer warm-up may help"
        )

    def _validate(self, step: int, state: TrainState) -> float | None:
        """The mean validation loss, recorded; None without a validation set."""
        if not self.validation:
            return None
        total: list[Metrics] = []
        for minibatch, key in self.validation:
            total.append(self.program.validate(state, minibatch, key))
        fetched = jax.device_get(total)
        mean = {name: float(np.mean([m[name] for m in fetched])) for name in fetched[0]}
        if not math.isfinite(mean["loss"]):
            self._refuse(step, "validation loss", mean["loss"])
        self.log.record_epoch(step, self._epoch(step), mean)
        return mean["loss"]

    def _epoch(self, step: int) -> int:
        return -(-step // self.experiment.steps_per_epoch)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True

    def _should_stop(self, step: int) -> bool:
        """Whether SIGTERM came: to this process, or to any of several (agreed on by all)."""
        if self.process[1] == 1:
            return self.stopped
        return bool(multihost_utils.reached_preemption_sync_point(step))


def _check_devices(minibatch_size: int, mesh: Mesh) -> None:
    if minibatch_size % mesh.size:
        raise BadUse(
            f"a minibatch of {minibatch_size} cells cannot be divided among {mesh.size} devices: "
            f"set --config.minibatch_size to a multiple of {mesh.size}"
        )
