"""What a checkpoint tells of the dataset that it was trained on; whether another one fits it."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from cellclr_jax.checkpoint import CHECKPOINTS, Checkpoints
from cellclr_jax.cli import BadUse
from cellclr_jax.data.counting import plural
from cellclr_jax.data.pipeline import Cells

CONVERTED = "converted"
"""In the progress of weights that came from elsewhere: their file, its sha256, layout, channels."""


def describe_dataset(cells: Cells) -> dict[str, Any]:
    """What goes into a checkpoint's progress: the dataset's fingerprint, its channels in order."""
    return {"dataset": cells.manifest["fingerprint"], "channels": cells.channels}


def converted_from(progress: Mapping[str, Any]) -> str | None:
    """Such as "weights converted from resnet50.pth"; None where a run has trained them."""
    if CONVERTED not in progress:
        return None
    return f"weights converted from {progress[CONVERTED]['file']}"


def origin_of(progress: Mapping[str, Any]) -> str:
    """The fingerprint of the dataset that was trained on, or what `converted_from` says."""
    return converted_from(progress) or str(progress["dataset"])


def channel_count(progress: Mapping[str, Any]) -> int | None:
    """How many channels the images have that an encoder takes; None where that is not told."""
    if CONVERTED in progress:
        return int(progress[CONVERTED]["channels"])
    return len(progress.get("channels") or ()) or None


def refuse_conversion(workdir: epath.Path) -> None:
    """Checks that no weights from elsewhere are in a work directory that is to be trained in.

    Raises:
      BadUse: there are; the message says how training begins with them.
    """
    if (workdir / CHECKPOINTS).is_dir():
        with Checkpoints((workdir / CHECKPOINTS).resolve(), read_only=True) as checkpoints:
            _refuse_conversion(checkpoints.newest_progress() or {}, workdir)


def _refuse_conversion(progress: Mapping[str, Any], run: object) -> None:
    if source := converted_from(progress):
        raise BadUse(
            f"{run} holds {source}, no run to go on with: train in a --workdir of its own, with "
            "--config.init.workdir naming this one"
        )


def check_channels(progress: Mapping[str, Any], cells: Cells, run: object) -> None:
    """Checks that an encoder meets the channels that it was trained on, in their order.

    Args:
      progress: of a checkpoint; one that tells no channels fits any.
      cells: the dataset.
      run: how the message names the run.

    Raises:
      BadUse: the dataset has others; the message says what to do.
    """
    taken, given = channel_count(progress) or 0, cells.image_shape[-1]
    if CONVERTED in progress and taken != given:
        raise BadUse(
            f"{run} has {converted_from(progress)}, for images of {plural(taken, 'channel')}; "
            f"{cells.directory} has {given}: build a dataset of {taken}, or take other weights"
        )
    trained, there = progress.get("channels"), cells.channels
    if trained is None or list(trained) == there:
        return
    raise BadUse(
        f"{run} was trained on the channels {', '.join(trained)} in this order; "
        f"{cells.directory} has {', '.join(there)}: plates are built in that order by "
        f"--channels={','.join(trained)}, images of single cells have to be put into it; or train "
        "on the dataset in a --workdir of its own"
    )


def check_dataset(progress: Mapping[str, Any], cells: Cells, run: object) -> None:
    """Checks that a run goes on with the dataset that it began with.

    Args:
      progress: of a checkpoint.
      cells: the dataset.
      run: how the message names the run.

    Raises:
      BadUse: it is another one.
    """
    _refuse_conversion(progress, run)
    check_channels(progress, cells, run)
    fingerprint = cells.manifest["fingerprint"]
    if progress["dataset"] != fingerprint:
        raise BadUse(
            f"{run} was trained on another dataset ({progress['dataset'][:12]}, here "
            f"{fingerprint[:12]}): give its --config.data_dir"
        )
