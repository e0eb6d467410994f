"""The training loop: data, state, restore, step, log, save."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from cellclr_jax import default_config, devices
from cellclr_jax.console import echo
from cellclr_jax.data import minibatches
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import is_local
from cellclr_jax.objectives import Objective
from cellclr_jax.run_folder import as_json, describe_dataset, open_run, write_config
from cellclr_jax.training.checkpoints import CHECKPOINTS, Checkpoints
from cellclr_jax.training.feed import Feed
from cellclr_jax.training.initial_weights import START, InitialWeights, read_initial_weights
from cellclr_jax.training.log import RunLog
from cellclr_jax.training.pending_metrics import (
    PROFILE,
    NotFinite,
    Pending,
    Trace,
    check_finite,
    mean,
)
from cellclr_jax.training.setup import (
    Experiment,
    compile_program,
    make_experiment,
    state_template,
    validation_minibatches,
)
from cellclr_jax.training.step import Metrics, TrainState
from cellclr_jax.training.stop_signals import Interrupted, stop_signals_noted


def train(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    mesh: Mesh | None = None,
    *,
    profile_steps: int = 0,
    wandb: str | None = None,
    began: float | None = None,
) -> TrainState:
    """Trains to the last epoch, from the newest checkpoint if there is one; returns the last state.

    Args:
      config: settings (see `default_config`).
      workdir: folder or bucket (gs://…) of all output.
      mesh: devices; None takes all.
      profile_steps: number of steps to trace into <workdir>/profile.
      wandb: project of Weights & Biases that gets the metrics; None for none.
      began: start of the program on `time.monotonic`, for the time to the first step; None: now.

    Raises:
      BadUse: settings do not fit the dataset, the devices or the run in `workdir`.
      BadData: the dataset or all checkpoints cannot be read, or the loss is not finite.
      Interrupted: after SIGTERM, SIGHUP or Ctrl-C, when the state is saved.
    """
    began, workdir = began or time.monotonic(), epath.Path(workdir)
    mesh = mesh or devices.make_mesh()
    if profile_steps and not is_local(workdir):
        raise BadUse(f"--profile needs a --workdir on this machine, not {workdir}")
    run = open_run(workdir, config)  # on each process, so that all end with the same message
    config = run.config
    experiment = make_experiment(config)
    run.check_dataset(experiment.encoder.cells)
    experiment.check_devices(mesh)
    initial = None if run.resumes else _initial_weights(experiment, mesh)
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        if first:
            stack.enter_context(run.claimed())
        # Again, after the lock is held: another job may just have ended there. Reading a checkpoint
        # waits for all processes, so each process reads, after the first one holds the lock.
        multihost_utils.sync_global_devices("the work directory is locked")
        open_run(workdir, config).check_dataset(experiment.encoder.cells)
        keep = config.checkpoint.keep_every_epochs * experiment.steps_per_epoch
        checkpoints = Checkpoints(workdir.resolve() / CHECKPOINTS, keep_every=keep)
        stack.enter_context(checkpoints)
        if first:
            write_config(config, workdir)
            echo("\n".join((describe(experiment, mesh, workdir), *run.notes)))
        training = _Run(experiment, mesh, checkpoints, workdir if first else None, began, initial)
        return training.go(profile_steps, wandb)


def _initial_weights(experiment: Experiment, mesh: Mesh) -> InitialWeights | None:
    config, variables = experiment.config, state_template(experiment, mesh).variables
    cells = experiment.encoder.cells
    return read_initial_weights(config.init, config.model.encoder, variables, cells)


def describe(experiment: Experiment, mesh: Mesh, workdir: epath.Path) -> str:
    """Describes a run in one line (dataset, model, steps, devices), followed by notes."""
    config = experiment.config
    line = (
        f"{workdir}: {config.model.encoder} on {len(experiment.train_rows):,} cells, "
        f"{len(experiment.validation_rows):,} more for validation; {experiment.total_steps:,} "
        f"steps of {config.minibatch_size:,} cells on {mesh.size} × "
        f"{mesh.devices.flat[0].device_kind}"
    )
    falling, period = config.epochs - config.schedule.hold_epochs, experiment.steps_per_epoch
    if config.schedule.legacy_per_epoch and falling > period:
        line += (
            f"\nnote: the published cosine rises again after {period} epochs, the number of steps "
            "of an epoch: --config.schedule.legacy_per_epoch=False ends it with the run"
        )
    changed = config.model.head.to_dict() != default_config.get_config().model.head.to_dict()
    if changed and type(experiment.objective).head is not Objective.head:
        line += f"\nnote: config.model.head has no effect: {config.objective} has its own head"
    return line


class _Run:
    """The state of one call of `train` between its steps."""

    def __init__(
        self,
        experiment: Experiment,
        mesh: Mesh,
        checkpoints: Checkpoints,
        workdir: epath.Path | None,
        began: float,
        initial: InitialWeights | None,
    ) -> None:
        self.experiment, self.mesh, self.checkpoints = experiment, mesh, checkpoints
        self.initial = initial
        # Part of the progress of each checkpoint.
        self.start = None if initial is None else initial.provenance()
        self.workdir, self.began = workdir, began
        self.config = experiment.config
        self.program = compile_program(experiment, mesh)
        self.key = devices.root_key(self.config.seed, mesh)
        self.validation = validation_minibatches(experiment, mesh, self.key)
        self.online = None
        if self.config.online.every_epochs:  # takes a second to import
            from cellclr_jax.training.online_scores import OnlineScore

            self.online = OnlineScore(experiment, mesh)
        self.pending = Pending()

    def go(self, profile_steps: int, wandb: str | None) -> TrainState:
        """Restores, loops over the remaining steps, and saves."""
        state, data = self._start()
        start = int(state.step)
        with contextlib.ExitStack() as stack:
            if self.workdir is not None and not self.validation:
                echo("no validation set: there will be no validation loss and no best checkpoint")
            self.log = stack.enter_context(contextlib.closing(self._open_log(start, wandb)))
            feed = stack.enter_context(contextlib.closing(Feed(data, self.mesh)))
            # Of the first process only: all do the same.
            folder = None if self.workdir is None else Path(self.workdir) / PROFILE
            last = self.experiment.total_steps
            trace = Trace(folder, first_step=start + 1, last_step=last, steps=profile_steps)
            stack.callback(trace.close)
            stack.enter_context(self._not_finite_named())
            self.should_stop = stack.enter_context(stop_signals_noted())
            if start:  # the run may have ended between saving and scoring
                self._score(start, state)
            # Intended transfers between host and devices are allowed one by one.
            stack.enter_context(jax.transfer_guard("disallow"))
            metrics: Metrics = {}
            for step in range(start + 1, last + 1):
                trace.before(step)
                minibatch, waited = feed.next(metrics)
                self.log.waited(waited)
                state, metrics = self.program.step(state, minibatch.arrays, self.key)
                if step == start + 1:
                    self._begin(step, metrics, minibatch.arrays)
                self._after_step(step, state, metrics, minibatch.position)
                trace.after(step, metrics)
            self.checkpoints.wait()
            if self.workdir is not None:
                echo(f"done: python -m cellclr_jax.eval --workdir={self.workdir}")
        return state

    def _start(self) -> tuple[TrainState, Any]:
        """Returns state and data iterator, from the newest checkpoint or at step 0."""
        experiment, config = self.experiment, self.config
        data = iter(
            minibatches.training_minibatches(
                experiment.encoder.cells,
                experiment.train_rows,
                minibatch_size=config.minibatch_size,
                epochs=config.epochs,
                seed=config.seed,
                sampling=config.sampling,
                control=config.control,
                process=(jax.process_index(), jax.process_count()),
            )
        )
        restored = self.checkpoints.restore_newest(state_template(experiment, self.mesh).saved())
        damaged = restored[2] if restored else self.checkpoints.unranked
        for step in damaged if self.workdir is not None else ():
            echo(f"the checkpoint of step {step} cannot be read: moved to unreadable/")
        if restored is None:
            return self._first_state(), data
        saved, progress, _ = restored
        state = TrainState(**saved)
        self.start = progress.get(START)
        data.set_state(progress["data"])
        if self.workdir is not None:
            echo(f"resuming from step {int(state.step)} of {experiment.total_steps}")
        return state, data

    def _first_state(self) -> TrainState:
        """Returns the state at step 0, with random weights or those that the config names."""
        state = self.program.init(self.key)
        if self.initial is None:
            return state
        if self.workdir is not None:
            init = self.config.init
            echo(f"starting from the weights in {init.workdir}, step {self.initial.step}")
        variables = self.initial.in_place_of(state.variables)
        if state.teacher is not None:  # a copy: the student's buffers are donated to the step
            state = state.replace(teacher=jax.tree.map(jnp.array, variables))
        return state.replace(**variables)

    def _open_log(self, start: int, wandb: str | None) -> RunLog:
        return RunLog(
            self.workdir,
            self.experiment.objective,
            first_step=start,
            total_steps=self.experiment.total_steps,
            minibatch_size=self.config.minibatch_size,
            steps_per_epoch=self.experiment.steps_per_epoch,
            wandb=wandb,
        )

    def _begin(self, step: int, metrics: Metrics, minibatch: Mapping[str, jax.Array]) -> None:
        """Waits for the first step and draws its views; then starts the clock of the rate."""
        jax.block_until_ready(metrics)
        if self.workdir is not None:
            echo(f"first step after {time.monotonic() - self.began:.1f} s")
        if step == 1:
            from cellclr_jax.training.view_pictures import view_grid  # imports the report's pages

            views = view_grid(self.experiment, self.mesh, minibatch, self.key)
            self.log.pictures("views", views, step)
        self.log.restart_clock(step)

    def _after_step(
        self, step: int, state: TrainState, metrics: Metrics, position: Mapping[str, Any]
    ) -> None:
        """Logs, validates and saves if due; `position` is that of the next minibatch."""
        self.pending.add(step, metrics)
        self.log.advance()
        epoch_ends = step % self.experiment.steps_per_epoch == 0
        interval = self.config.checkpoint.save_every_steps
        stop = self.should_stop(step)
        save = epoch_ends or stop is not None or bool(interval and step % interval == 0)
        if save or step % self.config.log_every == 0:
            self.log.record(step, self._epoch(step), self.pending.fetch())
        if save:
            loss = self._end_epoch(step, state) if epoch_ends else None
            self._save(step, state, position, loss)
            if epoch_ends and stop is None:
                self._score(step, state)
            self.log.restart_clock(step)
        if stop is not None:
            self.checkpoints.wait()
            raise Interrupted(stop, step)

    def _score(self, step: int, state: TrainState) -> None:
        """Scores the representation if due at this step."""
        ends_epoch = step % self.experiment.steps_per_epoch == 0
        if self.online is not None and ends_epoch and self.online.due(self._epoch(step)):
            self.log.record_scores(step, self._epoch(step), self.online.score(state.variables))

    def _save(
        self, step: int, state: TrainState, position: Mapping[str, Any], loss: float | None
    ) -> None:
        """Saves a state; its metrics have been checked to be finite."""
        progress = {
            "data": dict(position),
            "config": as_json(self.config),
            **describe_dataset(self.experiment.encoder.cells),
        }
        if self.start is not None:
            progress[START] = self.start
        self.checkpoints.save(step, state.saved(), progress, validation_loss=loss)

    def _end_epoch(self, step: int, state: TrainState) -> float | None:
        """Records the mean validation loss and returns it; None without a validation set."""
        if not self.validation:
            return None
        # One at a time: they do not depend on each other, so devices of a CPU could start different
        # ones and wait for each other in their collectives for ever.
        metrics = mean(
            [
                jax.device_get(self.program.validate(state, minibatch, key))
                for minibatch, key in self.validation
            ]
        )
        check_finite(step, metrics, "validation ")
        self.log.record_epoch(step, self._epoch(step), metrics)
        return metrics["loss"]

    @contextlib.contextmanager
    def _not_finite_named(self) -> Iterator[None]:
        """Ends the run if a metric is not finite; the message names the last good checkpoint."""
        try:
            yield
        except NotFinite as error:
            self.checkpoints.wait()
            steps = self.checkpoints.steps()
            last = f"the last good checkpoint is of step {steps[-1]}" if steps else "none was saved"
            raise BadData(
                f"{error} (epoch {self._epoch(error.step)}); {last} "
                f"({self.checkpoints.directory}). "
                "A lower learning rate or a longer warm-up may help"
            ) from error

    def _epoch(self, step: int) -> int:
        return -(-step // self.experiment.steps_per_epoch)
