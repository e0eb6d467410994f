"""Saves and restores the checkpoints of a run with Orbax, and moves damaged ones aside."""

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from cellclr_jax.console import listed
from cellclr_jax.errors import BadData, BadUse

CHECKPOINTS = "checkpoints"
_METRIC = "validation_loss"  # ranks checkpoints
# Orbax writes a file of this name in a folder of this name.
_METRICS = "metrics"
# Errors of TensorStore contain pages of its internals.
_MESSAGE_LENGTH = 240
_ASIDE = "unreadable"
_STATE, _PROGRESS = "state", "progress"
_OF_ANOTHER = "use the config that it was trained with, or another --workdir"
# The newest checkpoint may be damaged by the end of a run; the one before is then the last good.
_LATEST_KEPT = 2
# Orbax measures the time of a save on the system clock, which may be set meanwhile: only a limit of
# years has no effect.
_SECONDS_TO_SAVE = 10 * 365 * 24 * 3600

Shapes = Mapping[str, tuple[int, ...]]


def shapes(tree: Any, parts: Iterable[str] | None = None) -> Shapes:
    """Returns the shapes of a tree's leaves by path, e.g. `params/encoder/Dense_0/kernel`.

    Args:
      tree: arrays or their descriptions.
      parts: includes only leaves under these paths, such as `params/encoder`; None: all leaves.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
    if parts is None:
        return named
    under = tuple(f"{part}/" for part in parts)
    return {name: shape for name, shape in named.items() if name.startswith(under)}


def differences(saved: Shapes, expected: Shapes) -> str:
    """Describes in one line how shapes of a checkpoint differ from the expected ones; '' if equal.

    Lists the first few differences of each kind, parameters first.
    """
    common = saved.keys() & expected.keys()
    kinds = {
        "it lacks": [name for name in expected if name not in common],
        "it also has": [name for name in saved if name not in common],
        "other shapes:": [
            f"{name} {saved[name]}, expected {expected[name]}"
            for name in common
            if saved[name] != expected[name]
        ],
    }
    for names in kinds.values():
        names.sort(key=lambda name: (not name.startswith("params/"), name))
    return "; ".join(f"{kind} {listed(names)}" for kind, names in kinds.items() if names)


def loss_of(checkpoint: epath.Path) -> float | None:
    """Reads the saved validation loss of a checkpoint; None if it is not ranked.

    Raises:
      ValueError: the loss is missing or damaged.
      OSError: a failure that may be temporary, e.g. of a network disk.
    """
    file = checkpoint / _METRICS / _METRICS
    if not file.parent.exists():
        return None
    try:
        return float(json.loads(file.read_text())[_METRIC])
    except (FileNotFoundError, ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{file} cannot be read") from error


def unranked(directory: epath.Path) -> list[int]:
    """Returns the steps of checkpoints with a damaged validation loss."""
    found = []
    for folder in [path for path in directory.iterdir() if path.name.isdigit()]:
        try:
            loss_of(folder)
        except ValueError:
            found.append(int(folder.name))
    return found


def first_line(error: Exception) -> str:
    """Returns the first line of a message, of a long one both ends: the reason often comes last."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    half = _MESSAGE_LENGTH // 2
    return lines[0] if len(lines[0]) <= 2 * half else f"{lines[0][:half]} … {lines[0][-half:]}"


class Checkpoints:
    """The checkpoints in one folder, each named by its step.

    Args:
      directory: folder of the checkpoints; created if missing.
      keep_every: keeps the checkpoints of multiples of this number of steps, in addition to the
        last and the best ones; 0: none.
      read_only: neither writes nor deletes anything, so that a run may train in the folder.

    Attributes:
      unranked: steps of checkpoints that were moved aside because of a damaged validation loss.
    """

    def __init__(
        self, directory: epath.PathLike, *, keep_every: int = 0, read_only: bool = False
    ) -> None:
        self.directory = str(directory)
        preserved: list[policies.PreservationPolicy] = [
            policies.LatestN(_LATEST_KEPT),
            policies.BestN(
                get_metric_fn=lambda metrics: metrics[_METRIC],
                n=1,
                reverse=True,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        if keep_every:
            preserved.append(policies.EveryNSteps(keep_every))
        logging.set_verbosity(logging.FATAL)  # the caller gets errors as exceptions
        self.unranked: list[int] = []
        if not read_only:  # Orbax would delete unranked ones
            first, folder = jax.process_index() == 0, epath.Path(self.directory)
            self.unranked = unranked(folder) if first and folder.is_dir() else []
            self._set_aside(self.unranked)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                # Reads no metrics, which may be damaged in a checkpoint that is not needed.
                lightweight_initialize=read_only,
                best_fn=None if read_only else lambda metrics: metrics[_METRIC],
                best_mode="min",
                preservation_policy=(
                    None if read_only else policies.AnyPreservationPolicy(preserved)
                ),
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
                async_options=ocp.options.AsyncOptions(
                    timeout_secs=_SECONDS_TO_SAVE,
                    # For folders created in a thread there is a fixed limit of 300 s on that clock.
                    create_directories_asynchronously=False,
                ),
            ),
        )

    def steps(self) -> list[int]:
        """Returns the steps of all finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: Any,
        progress: Mapping[str, Any],
        *,
        validation_loss: float | None = None,
    ) -> None:
        """Saves in the background; the state may be donated right after the call.

        Args:
          step: step of the state.
          state: tree of arrays over the mesh.
          progress: JSON object with everything else that a run needs to resume.
          validation_loss: ranks the checkpoint; None leaves it unranked.

        Raises:
          BadData: there is a checkpoint of this step or a later one, or writing failed.
        """
        # Intended transfers; the training loop forbids implicit ones.
        with jax.transfer_guard("allow"), self._named_failure():
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        _STATE: ocp.args.StandardSave(state),
                        _PROGRESS: ocp.args.JsonSave(dict(progress)),
                    }
                ),
                metrics=None if validation_loss is None else {_METRIC: validation_loss},
            )
        if not saved:
            steps = ", ".join(map(str, self.steps()))
            raise BadData(f"step {step} was not saved: {self.directory} holds steps {steps}")

    def restore_newest(self, template: Any) -> tuple[Any, dict[str, Any], list[int]] | None:
        """Restores the newest readable checkpoint, and moves later, unreadable ones aside.

        Their steps will be trained and saved again. Nothing is deleted: the disk may only be
        unavailable for a while. `template` is a tree like the state, of arrays or of shapes with
        dtypes and shardings.

        Returns:
          (state, progress, steps of the checkpoints that were moved aside); None without any.

        Raises:
          BadData: there are checkpoints and none can be read.
          BadUse: the checkpoint has another tree; the message names the differences.
        """
        failures: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                self._check_tree(step, shapes(template))
                abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
                restored = self._restore(step, ocp.args.StandardRestore(abstract))
            except (MemoryError, BadUse):
                raise
            except Exception as error:  # TensorStore raises bare exceptions
                failures[step] = first_line(error)
                continue
            if failures:
                self._set_aside(failures)
                self._manager.reload()
            return *restored, sorted([*failures, *self.unranked])
        if failures:
            listed = "; ".join(f"step {step}: {why}" for step, why in failures.items())
            raise BadData(f"no checkpoint in {self.directory} can be read: {listed}")
        return None

    def progress(self, step: int) -> dict[str, Any]:
        """Reads the saved progress of a checkpoint; raises BadData if it cannot be read."""
        with self._named_damage(step):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(**{_PROGRESS: ocp.args.JsonRestore()})
            )
        progress: dict[str, Any] = restored[_PROGRESS]
        return progress

    def newest_progress(self) -> dict[str, Any] | None:
        """Reads the newest readable progress; None if there is none."""
        for step in reversed(self.steps()):
            with contextlib.suppress(BadData):
                return self.progress(step)
        return None

    def find(self, which: str) -> int:
        """Returns the step of `last`, `best` or a number; BadUse without such a checkpoint."""
        steps = self.steps()
        if not steps:
            raise BadUse(f"no checkpoint in {self.directory}: train first")
        if which == "last":
            return steps[-1]
        if which == "best":
            losses: dict[int, float] = {}
            for step in steps:
                with contextlib.suppress(ValueError):
                    loss = loss_of(epath.Path(self.directory) / str(step))
                    losses |= {} if loss is None else {step: loss}
            if not losses:
                raise BadUse(
                    f"no checkpoint in {self.directory} has a validation loss: use --step=last"
                )
            return min(losses, key=losses.__getitem__)
        if not which.isdigit() or int(which) not in steps:
            found = ", ".join(map(str, steps))
            raise BadUse(f"no checkpoint of step {which!r} in {self.directory}: there are {found}")
        return int(which)

    def restore_part(
        self,
        step: int,
        template: dict[str, Any],
        *,
        parts: Iterable[str] | None = None,
        advice: str = _OF_ANOTHER,
    ) -> tuple[Any, dict[str, Any]]:
        """Restores the parts of a state that the template names, and the progress.

        Args:
          step: step of the checkpoint.
          template: attributes of the state by name, each a tree as in `restore_newest`.
          parts: paths of the state, such as `params/encoder`, under which the template has to name
            all leaves; None: under each of its attributes.
          advice: remedy in the message on a checkpoint with another tree.

        Raises:
          BadData: the checkpoint cannot be read.
          BadUse: it is of another model; the message names the differences.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
        part = ocp.args.PyTreeRestore(abstract, restore_args=arguments, partial_restore=True)
        with self._named_damage(step):
            self._check_tree(step, shapes(template), parts or template, advice)
            return self._restore(step, part)

    def wait(self) -> None:
        """Waits until all saves have reached the disk; raises BadData if one failed."""
        with self._named_failure():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the saves and ends the background threads."""
        with self._named_failure():
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error of several processes one of them may be gone: do not wait for it.
        if kind is None or jax.process_count() == 1:
            self.close()

    @contextlib.contextmanager
    def _named_failure(self) -> Iterator[None]:
        """Raises BadData for a failed save, perhaps an earlier one in the background."""
        try:
            yield
        except (MemoryError, BadData):
            raise
        except Exception as error:
            folder, free = self.directory, "?"
            if os.path.isdir(folder):
                free = f"{shutil.disk_usage(folder).free / 1e6:.0f} MB free"
            raise BadData(
                f"a checkpoint could not be written to {folder} ({free}): {first_line(error)}; "
                "once that is fixed, the same command resumes from the newest one"
            ) from error

    @contextlib.contextmanager
    def _named_damage(self, step: int) -> Iterator[None]:
        """Raises BadData for a requested checkpoint that cannot be read."""
        try:
            yield
        except (MemoryError, BadUse):
            raise
        except Exception as error:  # TensorStore raises bare exceptions
            others = ", ".join(str(other) for other in self.steps() if other != step)
            raise BadData(
                f"checkpoint {self.directory}/{step} cannot be read ({first_line(error)}); "
                + (f"other steps are {others}" if others else "it is the only one")
            ) from error

    def _set_aside(self, steps: Iterable[int]) -> None:
        """Moves checkpoints into `unreadable` on the first process, while all others wait."""
        directory = epath.Path(self.directory)
        aside = directory.parent / _ASIDE
        for step in steps if jax.process_index() == 0 else ():
            aside.mkdir(parents=True, exist_ok=True)
            names = itertools.chain([f"{step}"], (f"{step}.{i}" for i in itertools.count(1)))
            free = next(aside / name for name in names if not (aside / name).exists())
            (directory / str(step)).rename(free)
        multihost_utils.sync_global_devices("checkpoints are set aside")

    def _restore(self, step: int, state: ocp.args.CheckpointArgs) -> tuple[Any, dict[str, Any]]:
        """Restores a state and its progress."""
        restored = self._manager.restore(
            step, args=ocp.args.Composite(**{_STATE: state, _PROGRESS: ocp.args.JsonRestore()})
        )
        return restored[_STATE], restored[_PROGRESS]

    def _check_tree(
        self,
        step: int,
        expected: Shapes,
        parts: Iterable[str] | None = None,
        advice: str = _OF_ANOTHER,
    ) -> None:
        """Raises BadUse, with `advice`, if the saved arrays differ in name or shape."""
        path = epath.Path(self.directory) / str(step) / _STATE
        saved = ocp.StandardCheckpointHandler().metadata(path).tree
        if different := differences(shapes(saved, parts), expected):
            raise BadUse(
                f"checkpoint {path.parent} is of another model or optimiser ({different}): {advice}"
            )
