"""Devices: the mesh, shardings, several processes, and the cache of compiled programs."""

import contextlib
import hashlib
import math
import os
import platform
import re
import tempfile
import threading
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cellclr_jax import cli
from cellclr_jax.console import say
from cellclr_jax.errors import BadUse

AXIS = "data"
# A process that is silent for so long counts as dead, and the others end.
_HEARTBEAT_SECONDS = 100
# Processes of a job may start this far apart: some hosts install first, or wait for a disk.
_SECONDS_TO_MEET = 1800
# A process that fails waits so long for others that fail likewise, e.g. for a wrong setting: JAX
# would end them for its sake.
_SECONDS_TO_PART = 20.0
# Errors of collectives, the coordination service and its barriers when a process has ended.
_PEER_GONE = re.compile(
    r"gloo|nccl|coordination|heartbeat|barrier|socket closed|connection (reset|closed|refused)"
    r"|DEADLINE_EXCEEDED|UNAVAILABLE",
    re.IGNORECASE,
)


def make_mesh(devices: int | Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a one-dimensional mesh with the devices of a process next to each other.

    `jax.make_mesh` would follow the torus of a TPU pod slice, to and fro between its hosts. The
    rows of a host are to be one piece of the whole (see `to_global`).

    Args:
      devices: or how many of the first ones (for tests on one process); None takes all.

    Raises:
      ValueError: there are fewer.
    """
    if devices is None or isinstance(devices, int):
        count, devices = devices, jax.devices()[:devices]
        if len(devices) < (count or 0):
            raise ValueError(f"{count} devices were asked for, there are {len(devices)}")
    in_order = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(in_order), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with the first axis divided among the devices."""
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
    """Returns the smallest multiple of the mesh's size that is not below `rows`."""
    return math.ceil(rows / mesh.size) * mesh.size


def root_key(seed: int, mesh: Mesh) -> jax.Array:
    """The key that all random streams of a run are derived from, on every device."""
    return jax.jit(lambda: jax.random.key(seed), out_shardings=replicated(mesh))()


def stream(key: jax.Array, name: str, step: jax.Array | int | None = None) -> jax.Array:
    """Derives a named stream of random keys: folds in the name, then the step.

    A checkpoint thus needs only a seed and a step, and adding a stream changes no other.
    """
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return key if step is None else jax.random.fold_in(key, step)


def use_all_cores(cells: int) -> None:
    """Gives the CPU backend one device per core, before JAX starts it.

    XLA divides a program among devices better than a convolution among threads. The count is the
    largest that divides so many cells: those of a minibatch or micro-batch. Where JAX finds an
    accelerator, or the environment sets the number of CPU devices, this changes nothing.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if forced or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = next(n for n in range(cores or 1, 0, -1) if cells % n == 0)
    jax.config.update("jax_num_cpu_devices", count)


def join_processes(heartbeat_seconds: int = _HEARTBEAT_SECONDS) -> None:
    """Joins this process with the others of its job.

    TPU pod slices, Slurm and Open MPI give each process its place; elsewhere the environment does:
    JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES, JAX_PROCESS_ID.
    From now on an error ends this process at once, whatever the others are waiting for, and an
    error that another process's end caused says so. JAX may end this process itself, by SIGABRT.

    Args:
      heartbeat_seconds: a process that is silent for so long ends the job.

    Raises:
      BadUse: this process has no place, or one that is no number.
    """
    count, rank = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    place: dict[str, Any] = {}
    cli.join_job(lost_peer, _leave)
    try:
        if count is not None and rank is not None:
            place = {"num_processes": int(count), "process_id": int(rank)}
        jax.distributed.initialize(
            **place,
            initialization_timeout=_SECONDS_TO_MEET,
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    except ValueError as error:
        raise BadUse(
            f"--distributed: {str(error).rstrip('.')}. Outside of TPU slices, Slurm and Open MPI, "
            "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID give a "
            "process its place"
        ) from error


def lost_peer(error: BaseException | None) -> str | None:
    """Returns a line if an error was caused by the end of another process."""
    while error is not None:
        message = " ".join(str(error).split())
        if not isinstance(error, BadUse) and _PEER_GONE.search(message):
            return (
                f"another process of the job is gone or does not answer ({message[:120]}); when "
                "none is left, the same command on all of them resumes"
            )
        error = error.__cause__ or error.__context__
    return None


def _leave(status: int) -> NoReturn:
    """Ends this process without JAX's own exit, which waits minutes for the others."""
    goodbye = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    goodbye.start()
    goodbye.join(_SECONDS_TO_PART)
    os._exit(status)


OFF = "off"
# Programs of a second's parts add up: a run has a dozen of them.
_LEAST_SECONDS = 0.2
# A step of a large network takes some ten megabytes; older programs go first. JAX's own limit needs
# another package, and stores nothing any more once a process was killed between its two writes.
_MOST_BYTES = 4 << 30


def keep_compiled_programs(choice: str | None) -> None:
    """Has JAX store compiled programs on the disk and reuse stored ones.

    Whatever fails here costs only time.

    Args:
      choice: a folder, or `off`; None takes JAX_COMPILATION_CACHE_DIR where that is set, else a
        folder of this user.
    """
    if choice == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    if choice is None and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    # One that cannot be read or written is compiled again: a traceback would not help.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    try:
        folder = Path(choice) if choice else _folder()
        # They are code: no other user may write some there.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        with contextlib.suppress(FileNotFoundError):  # another process does so likewise
            _drop_oldest(folder)
    except (OSError, RuntimeError) as error:  # of them the second: there is no home
        say(f"note: compiled programs are not kept: {error} (--compilation_cache=DIR|off)")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.resolve()))


def _folder() -> Path:
    """Returns the user's folder for this kind of processor: programs of another one may crash."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    kind = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        kind += f"-{hashlib.blake2b(flags.encode(), digest_size=4).hexdigest()}"
    return Path(cache, "cellclr_jax", "xla", kind)


def _drop_oldest(folder: Path) -> None:
    """Removes the oldest programs beyond a size."""
    files = [(path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob("*-cache")]
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > _MOST_BYTES:
            path.unlink(missing_ok=True)
