"""The validation set as minibatches that stay on the devices, the same at every epoch."""

import math

import jax
from jax.sharding import Mesh

from cellclr_jax import sharding
from cellclr_jax.data import pipeline
from cellclr_jax.experiment import Experiment
from cellclr_jax.train_step import stream


def validation_minibatches(
    experiment: Experiment, mesh: Mesh, key: jax.Array
) -> list[tuple[dict[str, jax.Array], jax.Array]]:
    """Minibatches of the validation set with a key each; a few cells left over are left out.

    All are of one size, since the loss of a row grows with the number of its negatives. They stay
    on the devices, and their views are the same at every epoch.
    """
    rows = experiment.validation_rows
    size = validation_size(len(rows), experiment.config.minibatch_size, mesh.size)
    if size < 2:
        return []
    minibatches = pipeline.sequential_minibatches(
        experiment.cells,
        rows[: len(rows) // size * size],
        minibatch_size=size,
        process=(jax.process_index(), jax.process_count()),
    )
    on_device = [sharding.to_global(mesh, local) for _, local in minibatches]
    keys = jax.jit(
        lambda root: [stream(root, "validation", i) for i in range(len(on_device))],
        out_shardings=sharding.replicated(mesh),
    )
    return list(zip(on_device, keys(key), strict=True))


def validation_size(cells: int, minibatch_size: int, devices: int) -> int:
    """Cells of a validation minibatch: the set in equal parts, none above a training minibatch.

    Args:
      cells: of the validation set.
      minibatch_size: of training.
      devices: that divide a minibatch among them.

    Returns:
      A multiple of a power of two of about an eighth of it, so that any such number of devices
      sees the same minibatches; 0 where the set is too small.
    """
    if not cells:
        return 0
    size = cells // math.ceil(cells / minibatch_size)
    grain = 1 << max(0, (size // 8).bit_length() - 1)
    grain = math.lcm(grain, devices)
    return size // grain * grain
