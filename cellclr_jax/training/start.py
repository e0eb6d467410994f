"""What comes before a run's first step: its folder, whose run it goes on with, where it starts."""

import errno
from pathlib import Path

from etils import epath
from jax.sharding import Mesh

from cellclr_jax.errors import BadUse
from cellclr_jax.run_folder import check_dataset, check_same
from cellclr_jax.training.checkpoints import (
    CHECKPOINTS,
    Checkpoints,
)
from cellclr_jax.training.initial_weights import (
    InitialWeights,
    read_initial_weights,
)
from cellclr_jax.training.setup import Experiment, state_template

# What a folder that nobody may write to says, or one such as /proc that holds no others.
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)


def make_folder(workdir: Path) -> None:
    """Makes a work directory; BadUse where nobody may."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise
    except OSError as error:
        if error.errno not in _NOT_ALLOWED:
            raise
        raise BadUse(f"--workdir={workdir} cannot be made: {error.strerror}") from error


def describe(experiment: Experiment, mesh: Mesh, workdir: epath.Path) -> str:
    """A line that says what is trained on what, and where; another for what few would expect."""
    config = experiment.config
    told = (
        f"{workdir}: {config.model.encoder} on {len(experiment.train_rows):,} cells, "
        f"{len(experiment.validation_rows):,} more for validation; {experiment.total_steps:,} "
        f"steps of {config.minibatch_size:,} cells on {mesh.size} × "
        f"{mesh.devices.flat[0].device_kind}"
    )
    falling, period = config.epochs - config.schedule.hold_epochs, experiment.steps_per_epoch
    if config.schedule.legacy_per_epoch and falling > period:
        told += (
            f"\nnote: the published cosine rises again after {period} epochs, the steps of one "
            "here: --config.schedule.legacy_per_epoch=False ends it with the run"
        )
    return told


def check_origin(checkpoints: Checkpoints, experiment: Experiment, workdir: epath.Path) -> None:
    """Raises BadUse where checkpoints are of another dataset or config, whose arrays may fit."""
    if (newest := checkpoints.newest_progress()) is None:
        return
    check_dataset(newest, experiment.encoder.cells, f"the run in {workdir}")
    if "config" in newest:  # an older one does not tell
        check_same(newest["config"], experiment.config, checkpoints.directory)


def initial_weights(
    workdir: epath.Path, experiment: Experiment, mesh: Mesh
) -> InitialWeights | None:
    """What a run starts from in the place of random weights; None for nothing, or if it goes on."""
    there = workdir / CHECKPOINTS
    if there.is_dir() and any(path.name.isdigit() for path in there.iterdir()):
        return None
    config, variables = experiment.config, state_template(experiment, mesh).variables
    return read_initial_weights(
        config.init, config.model.encoder, variables, experiment.encoder.cells
    )
