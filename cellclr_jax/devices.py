"""Devices: mesh, shardings, random streams, several processes, cache of compiled programs."""

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
from cellclr_jax.console import echo
from cellclr_jax.errors import BadUse

AXIS = "data"
# Set by `lost_peer`: there is no other process to wait for.
_peer_lost = False
# After this time without a heartbeat a process counts as dead, and the others end.
_HEARTBEAT_SECONDS = 100
# Processes of a job may start this far apart: some hosts install first, or wait for a disk.
_SECONDS_TO_MEET = 1800
# A process that fails waits so long for the others: they may be about to fail for the same reason,
# e.g. a wrong setting, and JAX ends them as soon as this one ends.
_SECONDS_TO_PART = 20.0
# Errors of collectives, the coordination service and its barriers after a process has ended.
_PEER_GONE = re.compile(
    r"gloo|nccl|coordination|heartbeat|barrier|socket closed|connection (reset|closed|refused)"
    r"|DEADLINE_EXCEEDED|UNAVAILABLE",
    re.IGNORECASE,
)


def make_mesh(devices: int | Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a one-dimensional mesh in which the devices of each process are contiguous.

    `to_global` needs the rows of a process to be contiguous. `jax.make_mesh` would follow the torus
    of a TPU pod slice instead, which changes between hosts several times.

    Args:
      devices: the devices; a number takes as many of the first ones, None takes all.

    Raises:
      ValueError: there are fewer devices than that number.
    """
    if devices is None or isinstance(devices, int):
        count, devices = devices, jax.devices()[:devices]
        if len(devices) < (count or 0):
            raise ValueError(f"{count} devices were requested, there are {len(devices)}")
    in_order = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(in_order), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that places the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that divides the first axis among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def to_global(mesh: Mesh, minibatch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Makes global arrays [B, ...], divided by rows over the mesh, from arrays [b, ...].

    The arrays are those of this process; all processes have the same number of rows, in the order
    of their process index.
    """
    rows = by_rows(mesh)
    # An intended transfer, which JAX counts as implicit on several hosts.
    with jax.transfer_guard("allow"):
        return {
            name: jax.make_array_from_process_local_data(rows, local)
            for name, local in minibatch.items()
        }


def to_host(tree: Any) -> Any:
    """Fetches a tree of global arrays to this process as complete NumPy arrays."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))


def round_up(rows: int, mesh: Mesh) -> int:
    """Rounds `rows` up to a multiple of the number of devices."""
    return math.ceil(rows / mesh.size) * mesh.size


def root_key(seed: int, mesh: Mesh) -> jax.Array:
    """Returns the key from which all random streams of a run are derived, on every device."""
    return jax.jit(lambda: jax.random.key(seed), out_shardings=replicated(mesh))()


def stream(key: jax.Array, name: str, step: jax.Array | int | None = None) -> jax.Array:
    """Derives the key of a named random stream at a step: folds in the name, then the step.

    A checkpoint therefore needs only seed and step, and a new stream changes no other one.
    """
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return key if step is None else jax.random.fold_in(key, step)


def use_all_cores(cells: int) -> None:
    """Makes JAX's CPU backend, before it starts, use one device per core.

    XLA distributes a program among devices better than a convolution among threads. The number of
    devices divides `cells`, the size of the minibatch or micro-batch. Has no effect if JAX finds an
    accelerator, or if the environment sets the number of CPU devices.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if forced or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = next(n for n in range(cores or 1, 0, -1) if cells % n == 0)
    jax.config.update("jax_num_cpu_devices", count)


def join_processes(heartbeat_seconds: int = _HEARTBEAT_SECONDS) -> None:
    """Joins this process with the others of its job.

    TPU pod slices, Slurm and Open MPI define the rank of each process; elsewhere the environment
    does: JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES,
    JAX_PROCESS_ID. From now on an error ends this process at once, even if others wait for it, and
    the message states if the end of another process was the cause. JAX may end this process by
    SIGABRT, e.g. if another one gives no heartbeat for `heartbeat_seconds`.

    Raises:
      BadUse: the rank of this process is undefined or not a number.
    """
    count, rank = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    ranks: dict[str, Any] = {}
    cli.join_job(lost_peer, _leave)
    try:
        if count is not None and rank is not None:
            ranks = {"num_processes": int(count), "process_id": int(rank)}
        jax.distributed.initialize(
            **ranks,
            initialization_timeout=_SECONDS_TO_MEET,
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    except ValueError as error:
        raise BadUse(
            f"--distributed: {str(error).rstrip('.')}. Outside of TPU slices, Slurm and Open MPI, "
            "set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


def lost_peer(error: BaseException | None) -> str | None:
    """Returns a message if an error was caused by the end of another process, otherwise None."""
    global _peer_lost
    while error is not None:
        message = " ".join(str(error).split())
        if not isinstance(error, BadUse) and _PEER_GONE.search(message):
            _peer_lost = True
            return (
                f"another process of the job is gone or does not answer ({message[:120]}); after "
                "all of them have ended, the same command on all hosts resumes"
            )
        error = error.__cause__ or error.__context__
    return None


def _leave(status: int) -> NoReturn:
    """Ends this process without JAX's own exit, which waits minutes for the others."""
    # JAX aborts this process with a stack trace when it notices the end of another one.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if not _peer_lost:
        goodbye = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        goodbye.start()
        goodbye.join(_SECONDS_TO_PART)
    os._exit(status)


# Programs that take less than a second to compile add up: a run has a dozen of them.
_LEAST_SECONDS = 0.2
# Limit of the cache, in which a step of a large network takes some ten megabytes. JAX's own limit
# needs another package, and stops storing once a process was killed between its two writes.
_MOST_BYTES = 4 << 30


def keep_compiled_programs(choice: str | None) -> None:
    """Makes JAX store compiled programs on disk and reuse them; failures cost only time.

    Args:
      choice: a folder, or `off`; None: JAX_COMPILATION_CACHE_DIR, else a folder of this user.
    """
    if choice == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    if choice is None and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    # A program that cannot be read is compiled again, without a traceback in a warning.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    try:
        folder = Path(choice) if choice else _folder()
        # Stored programs are code: no other user may write there.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        with contextlib.suppress(FileNotFoundError):  # another process removes the same program
            _drop_oldest(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        echo(f"note: compiled programs are not stored: {error} (--compilation_cache=DIR|off)")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.resolve()))


def _folder() -> Path:
    """Returns the user's cache for this type of processor: programs for another one may crash."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    kind = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        kind += f"-{hashlib.blake2b(flags.encode(), digest_size=4).hexdigest()}"
    return Path(cache, "cellclr_jax", "xla", kind)


def _drop_oldest(folder: Path) -> None:
    """Removes the oldest programs until the rest fits the limit."""
    files = [(path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob("*-cache")]
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > _MOST_BYTES:
            path.unlink(missing_ok=True)
