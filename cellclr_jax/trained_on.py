"""What a checkpoint tells of the dataset that it was trained on; whether another one fits it."""

from collections.abc import Mapping
from typing import Any

from cellclr_jax.cli import BadUse
from cellclr_jax.data.pipeline import Cells


def describe_dataset(cells: Cells) -> dict[str, Any]:
    """What goes into a checkpoint's progress: the dataset's fingerprint, its channels in order."""
    return {"dataset": cells.manifest["fingerprint"], "channels": cells.channels}


def check_channels(progress: Mapping[str, Any], cells: Cells, run: object) -> None:
    """Checks that an encoder meets the channels that it was trained on, in their order.

    Args:
      progress: of a checkpoint; one that tells no channels fits any.
      cells: the dataset.
      run: how the message names the run.

    Raises:
      BadUse: the dataset has others; the message says what to do.
    """
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
    check_channels(progress, cells, run)
    fingerprint = cells.manifest["fingerprint"]
    if progress["dataset"] != fingerprint:
        raise BadUse(
            f"{run} was trained on another dataset ({progress['dataset'][:12]}, here "
            f"{fingerprint[:12]}): give its --config.data_dir"
        )
