"""Checkpoints of a run: saved while training goes on, found again, restored to the bit. Only Orbax.

Kept are the last two, the best by validation loss, and one every so many steps.
"""

from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from cellclr_jax.cli import BadData, BadUse

_METRIC = "validation_loss"
# The newest may be damaged by what ended a run; the one before is then the last good state.
_LATEST_KEPT = 2


class Checkpoints:
    """The checkpoints in one folder, each named by its step.

    Args:
      directory: where they lie; made where it is not.
      keep_every: keeps one every so many steps beside the last and the best; 0 keeps none.
      read_only: neither writes nor clears anything, so that a run may go on in the folder.
    """

    def __init__(
        self, directory: epath.PathLike, *, keep_every: int = 0, read_only: bool = False
    ) -> None:
        self.directory = str(directory)
        kept: list[policies.PreservationPolicy] = [
            policies.LatestN(_LATEST_KEPT),
            policies.BestN(
                get_metric_fn=lambda metrics: metrics[_METRIC],
                n=1,
                reverse=True,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        logging.set_verbosity(logging.ERROR)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=lambda metrics: metrics[_METRIC],
                best_mode="min",
                preservation_policy=policies.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
            ),
        )

    def steps(self) -> list[int]:
        """The steps of all finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: Any,
        progress: Mapping[str, Any],
        *,
        validation_loss: float | None = None,
    ) -> None:
        """Saves in the background; a step that is there already is left as it is.

        Args:
          step: the state's step.
          state: a tree of arrays over the mesh; it may be donated right after.
          progress: a JSON object: what beside the state a run needs to go on.
          validation_loss: ranks the checkpoint; None leaves it unranked.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(dict(progress))
            ),
            metrics=None if validation_loss is None else {_METRIC: validation_loss},
        )

    def restore_newest(self, template: Any) -> tuple[Any, dict[str, Any]] | None:
        """Restores the newest checkpoint that can be read.

        Args:
          template: a tree like the state, of arrays or shapes with dtypes and shardings.

        Returns:
          (state, progress), or None where there is no checkpoint at all.

        Raises:
          BadData: there are some and none can be read.
        """
        failures = []
        for step in reversed(self.steps()):
            try:
                return self._restore(step, template)
            except (ValueError, OSError, KeyError, TypeError) as error:
                failures.append(f"step {step}: {_first_line(error)}")
                logging.error("checkpoint of %s; trying the one before", failures[-1])
        if failures:
            raise BadData(f"no checkpoint in {self.directory} can be read: {'; '.join(failures)}")
        return None

    def find(self, which: str) -> int:
        """The step that `last`, `best` (by validation loss) or a number names.

        Raises:
          BadUse: there is no such checkpoint; the message lists those that are there.
        """
        steps = self.steps()
        if not steps:
            raise BadUse(f"no checkpoint in {self.directory}: train first")
        if which == "last":
            return steps[-1]
        if which == "best":
            best = self._manager.best_step()
            return steps[-1] if best is None else best
        if not which.isdigit() or int(which) not in steps:
            known = ", ".join(map(str, steps))
            raise BadUse(f"no checkpoint of step {which!r} in {self.directory}: there are {known}")
        return int(which)

    def restore(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
        """Restores the checkpoint of a step as (state, progress).

        Raises:
          BadData: it cannot be read or belongs to another model.
        """
        try:
            return self._restore(step, template)
        except (ValueError, OSError, KeyError, TypeError) as error:
            raise BadData(
                f"checkpoint {self.directory}/{step} cannot be read: {_first_line(error)}"
            ) from error

    def wait(self) -> None:
        """Returns when all saves have reached the disk; raises what went wrong with them."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the saves and ends the background threads."""
        self._manager.close()

    def _restore(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["progress"]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
