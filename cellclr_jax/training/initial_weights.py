"""Reads initial weights from a checkpoint of another work directory."""

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from etils import epath

from cellclr_jax.data.minibatches import Cells
from cellclr_jax.encoder.load import Variables
from cellclr_jax.errors import BadUse
from cellclr_jax.run_folder import check_channels, read_config
from cellclr_jax.training.checkpoints import CHECKPOINTS, Checkpoints

START = "start"
"""Key in the progress of checkpoints of `InitialWeights.provenance`."""


@dataclass(frozen=True)
class InitialWeights:
    """Weights from which a run starts instead of random ones.

    Attributes:
      parts: {"params": {"encoder": …}, "batch_stats": {"encoder": …}}, with "head" if requested.
      step: step of the checkpoint.
    """

    parts: Variables
    step: int

    def in_place_of(self, variables: Variables) -> Variables:
        """Returns the variables with these parts replaced."""
        return {kind: {**tree, **self.parts.get(kind, {})} for kind, tree in variables.items()}

    def provenance(self) -> dict[str, Any]:
        """Returns the step and the SHA-256 of the weights, to detect that they were replaced."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.parts):
            digest.update(np.asarray(jax.device_get(leaf)).tobytes())
        return {"step": self.step, "sha256": digest.hexdigest()}


def read_initial_weights(
    settings: Mapping[str, Any], encoder: str, variables: Variables, cells: Cells
) -> InitialWeights | None:
    """Reads the initial weights that a config names; None for random weights.

    Args:
      settings: `config.init`.
      encoder: name of the run's encoder.
      variables: variables of the run's model: arrays, or shapes with dtypes and shardings.
      cells: training dataset.

    Raises:
      BadUse: there is no such checkpoint, or it has another architecture or other channels.
      BadData: it cannot be read.
    """
    if not settings["workdir"]:
        return None
    workdir = epath.Path(settings["workdir"])
    checkpoints = _open(workdir)
    if (found := read_config(workdir).model.encoder) != encoder:
        raise BadUse(
            f"config.init.workdir: {workdir} holds a {found}, but config.model.encoder is {encoder}"
        )
    names = ("encoder", "head") if settings["head"] else ("encoder",)
    template = {
        kind: {name: tree[name] for name in names if name in tree}
        for kind, tree in variables.items()
    }
    with contextlib.closing(checkpoints):
        step = checkpoints.find(str(settings["step"]))
        check_channels(checkpoints.progress(step), cells, f"the run in {workdir}")
        weights, _ = checkpoints.restore_part(
            step,
            template,
            parts=[f"{kind}/{name}" for kind in variables for name in names],
            advice="config.model must equal that of config.init.workdir"
            + ("; --config.init.head=False uses only its encoder" if settings["head"] else ""),
        )
    return InitialWeights(dict(weights), step)


def _open(workdir: epath.Path) -> Checkpoints:
    """Opens the checkpoints of a work directory; BadUse if it has none."""
    if (workdir / CHECKPOINTS).is_dir():
        checkpoints = Checkpoints(workdir.resolve() / CHECKPOINTS, read_only=True)
        if checkpoints.steps():
            return checkpoints
        checkpoints.close()
    raise BadUse(
        f"config.init.workdir: no checkpoint in {workdir / CHECKPOINTS}. Convert weights of "
        f"PyTorch by python -m cellclr_jax.convert --input=FILE --workdir={workdir}, or start from "
        "random weights by --config.init.workdir="
    )
