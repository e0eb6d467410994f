"""Weights that training starts from: parts of a checkpoint of another work directory."""

import contextlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from cellclr_jax.checkpoint import CHECKPOINTS, Checkpoints
from cellclr_jax.cli import BadUse
from cellclr_jax.data.pipeline import Cells
from cellclr_jax.train_step import Variables
from cellclr_jax.trained_on import check_channels


def read_initial_weights(
    settings: Mapping[str, Any], variables: Variables, cells: Cells
) -> Variables:
    """Reads what a run starts from in the place of random weights.

    Args:
      settings: `config.init`.
      variables: of the run's model, arrays or shapes with dtypes and shardings.
      cells: the dataset that will be trained on.

    Returns:
      {"params": {"encoder": …}, "batch_stats": {"encoder": …}}, with "head" where that is asked
      for; {} where weights are random.

    Raises:
      BadUse: there is no such checkpoint, or it is of another architecture or other channels.
      BadData: it cannot be read.
    """
    if not settings["workdir"]:
        return {}
    workdir = epath.Path(settings["workdir"])
    if not (workdir / CHECKPOINTS).is_dir():
        raise BadUse(
            f"config.init.workdir: no checkpoint in {workdir / CHECKPOINTS}. Weights of PyTorch "
            f"get there by python -m cellclr_jax.convert --input=FILE --workdir={workdir}; "
            "--config.init.workdir= starts from random ones"
        )
    names = ("encoder", "head") if settings["head"] else ("encoder",)
    template = {
        kind: {name: tree[name] for name in names if name in tree}
        for kind, tree in variables.items()
    }
    checkpoints = Checkpoints(workdir.resolve() / CHECKPOINTS, read_only=True)
    with contextlib.closing(checkpoints):
        step = checkpoints.find(settings["step"])
        check_channels(checkpoints.progress(step), cells, f"the run in {workdir}")
        parts = [f"{kind}/{name}" for kind in variables for name in names]
        found, _ = checkpoints.restore_part(step, template, parts=parts)
    return dict(found)


def with_parts(variables: Variables, parts: Variables) -> Variables:
    """Variables in which what `read_initial_weights` found takes the place of what was there."""
    return {kind: {**tree, **parts.get(kind, {})} for kind, tree in variables.items()}
