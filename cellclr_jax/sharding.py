"""The mesh over all devices, and arrays of one process as parts of global ones."""

import math
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def make_mesh(devices: int | None = None) -> Mesh:
    """A one-dimensional mesh over the devices of all processes.

    Args:
      devices: takes only the first ones (for tests on one process); None takes all.
    """
    count = devices or jax.device_count()
    return jax.make_mesh(
        (count,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The first axis divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def to_global(mesh: Mesh, minibatch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Makes global arrays, divided by rows, from this process's rows.

    Args:
      mesh: over all devices.
      minibatch: arrays [b, ...] of this process; all processes hold equally many rows, in the
        order of their process index.

    Returns:
      The same names, arrays [B, ...] over the mesh.
    """
    rows = by_rows(mesh)
    # The one place where data go to the devices on purpose; JAX calls it implicit on several hosts.
    with jax.transfer_guard("allow"):
        return {
            name: jax.make_array_from_process_local_data(rows, local)
            for name, local in minibatch.items()
        }


def to_host(tree: Any) -> Any:
    """Fetches a tree of global arrays to this process as NumPy arrays, whole."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))


def round_up(rows: int, mesh: Mesh) -> int:
    """The smallest multiple of the mesh's size that holds so many rows."""
    return math.ceil(rows / mesh.size) * mesh.size


def use_all_cores(minibatch_size: int) -> None:
    """Gives the CPU backend one device per core, before JAX starts it.

    XLA divides a program among devices better than a convolution among threads. The count is the
    largest that divides the minibatch. Where JAX finds an accelerator, or the environment sets the
    number of CPU devices, this changes nothing.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if forced or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = next(n for n in range(cores or 1, 0, -1) if minibatch_size % n == 0)
    jax.config.update("jax_num_cpu_devices", count)


def join_processes() -> None:
    """Joins this process with the others of its job.

    TPU pod slices, Slurm and Open MPI tell each process its place; elsewhere the environment does:
    JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES, JAX_PROCESS_ID.
    """
    count, rank = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    if count is None or rank is None:
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(num_processes=int(count), process_id=int(rank))
