"""Compares time and memory of NT-Xent's forward and backward pass with other implementations.

python tests/bench/loss_speed.py [--seconds=10]

CellCLR's loss on one device and with its rows divided among all (one per core on CPUs);
`optax.losses.ntxent`; PyTorch with cosine similarities by broadcasting, [2B, 2B, D], as in
published code, and with the matrix [2B, 2B]. All take turns, one run each, and medians over the
turns are compared: ratios above 1 favour CellCLR on one device. Runs of more than a second get two
turns, and programs that do not fit into the free memory are skipped.

Memory excludes the projections. For JAX it is the compiler's plan for a device, for PyTorch on a
CPU the growth of the resident memory of a new process to its peak, on a GPU the allocator's count.
"""

import argparse
import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil
import torch
import torch_peer

from cellclr_jax import devices as sharding
from cellclr_jax.objectives import nt_xent

TEMPERATURE = 0.1
# Cells, width of a projection, programs; [2B, 2B, D] is computed only if it takes a few GB.
CASES = [
    (128, 256, ("one device", "all devices", "torch matrix", "optax", "torch broadcast")),
    (512, 256, ("one device", "all devices", "torch matrix", "optax")),
    (2048, 256, ("one device", "all devices", "torch matrix")),
    (8192, 128, ("one device", "all devices", "torch matrix")),
]
# Smallest number of copies of its largest array that PyTorch holds.
COPIES = 6
# Before a run, so that the threads of the previous one no longer spin.
PAUSE_SECONDS = 0.005

Run = Callable[[], object]


def projections(cells: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws two correlated views [B, D]."""
    z1, noise = np.random.default_rng(0).normal(size=(2, cells, width)).astype(np.float32)
    return z1, z1 + noise


def cellclr_loss(cells: int, width: int, devices: int | None) -> tuple[Run, int]:
    """Compiles CellCLR's loss; returns (forward and backward pass, planned bytes on a device)."""
    mesh = sharding.make_mesh(devices)
    z = jax.device_put(projections(cells, width), sharding.by_rows(mesh))
    return compiled(lambda a, b: nt_xent.nt_xent(a, b, TEMPERATURE, mesh=mesh), *z)


def optax_loss(cells: int, width: int) -> tuple[Run, int]:
    """Compiles Optax's loss; see `cellclr_loss`."""
    labels = jnp.tile(jnp.arange(cells), 2)

    def loss(a: jax.Array, b: jax.Array) -> jax.Array:
        return optax.losses.ntxent(jnp.concatenate([a, b]), labels, TEMPERATURE)

    return compiled(loss, *map(jnp.asarray, projections(cells, width)))


def compiled(loss: Callable[..., jax.Array], *z: jax.Array) -> tuple[Run, int]:
    """Compiles a loss of two arrays with its gradient; returns (run, planned bytes)."""
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*z).compile()
    planned = program.memory_analysis()
    assert planned is not None, "this backend has no memory plan"
    size = planned.temp_size_in_bytes + planned.output_size_in_bytes
    return lambda: jax.block_until_ready(program(*z)), size


def torch_loss(cells: int, width: int, loss: Callable[..., torch.Tensor]) -> Run:
    """Makes forward and backward pass of a loss of [2B, D] with adjacent views of a cell."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pairs = np.stack(projections(cells, width), axis=1).reshape(2 * cells, width)
    z = torch.from_numpy(pairs).to(device).requires_grad_()

    def run() -> object:
        (gradient,) = torch.autograd.grad(loss(z, TEMPERATURE), z)
        return gradient[0, 0].item()

    return run


def broadcast_nt_xent(z: torch.Tensor, temperature: float) -> torch.Tensor:
    """Computes NT-Xent with cosine similarities by an elementwise product and a sum."""
    logits = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=2) / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    partner = torch.arange(len(z), device=z.device) ^ 1
    return torch.nn.functional.cross_entropy(logits.masked_fill(itself, -torch.inf), partner)


TORCH = {"torch matrix": torch_peer.nt_xent, "torch broadcast": broadcast_nt_xent}


def peak(cells: int, width: int, name: str) -> int:
    """Measures peak bytes of a run in PyTorch without its input; called in a new process."""
    torch_loss(8, 8, TORCH[name])()  # threads and libraries
    run = torch_loss(cells, width, TORCH[name])
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = psutil.Process().memory_info().rss
    run()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0]) - before


def peak_of_process(cells: int, width: int, name: str) -> int:
    """Runs `peak` in a new process."""
    command = [sys.executable, __file__, f"--peak={name}", f"--cells={cells}", f"--width={width}"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def fits(cells: int, width: int, name: str) -> bool:
    """Checks whether a program's matrices fit into the free memory."""
    matrix = 4 * (2 * cells) ** 2
    need = {"optax": 3 * width * matrix, "torch broadcast": COPIES * width * matrix}
    return need.get(name, COPIES * matrix) < psutil.virtual_memory().available


def programs(cells: int, width: int, names: tuple[str, ...]) -> dict[str, tuple[Run, int]]:
    """Compiles programs; returns (run, bytes) by name."""
    make: dict[str, Callable[[], tuple[Run, int]]] = {
        "one device": lambda: cellclr_loss(cells, width, 1),
        "all devices": lambda: cellclr_loss(cells, width, None),
        "optax": lambda: optax_loss(cells, width),
    }
    for name, loss in TORCH.items():
        make[name] = functools.partial(
            lambda name, loss: (
                torch_loss(cells, width, loss),
                peak_of_process(cells, width, name),
            ),
            name,
            loss,
        )
    return {name: make[name]() for name in names}


def seconds_taken(run: Run) -> float:
    """Measures the seconds of one run."""
    time.sleep(PAUSE_SECONDS)
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def measure(cells: int, width: int, names: tuple[str, ...], budget: float) -> None:
    """Prints a row for each program; turns end after `budget` seconds."""
    left_out = [name for name in names if not fits(cells, width, name)]
    found = programs(cells, width, tuple(name for name in names if name not in left_out))
    first = {name: min(seconds_taken(run) for _ in range(2)) for name, (run, _) in found.items()}
    taken: dict[str, list[float]] = {name: [] for name in found}
    end = time.monotonic() + budget
    while time.monotonic() < end or any(len(values) < 2 for values in taken.values()):
        for name, (run, _) in found.items():
            if first[name] < 1 or len(taken[name]) < 2:
                taken[name].append(seconds_taken(run))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    print(f"{cells} cells × 2 views, {width} numbers each")
    for name, median in medians.items():
        row = f"  {name:16} {1e3 * median:10.2f} ms  least {1e3 * min(taken[name]):10.2f} ms"
        row += f"  {found[name][1] / 1e6:8.1f} MB  ratio {median / medians['one device']:8.2f}"
        print(row, flush=True)
    if left_out:
        print(f"  not enough memory for {', '.join(left_out)}")


def main() -> None:
    """Measures all cases, or with --peak the memory of one program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of turns, for each size")
    parser.add_argument("--peak", choices=tuple(TORCH), help=argparse.SUPPRESS)
    parser.add_argument("--cells", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(options.cells, options.width, options.peak))
        return
    sharding.use_all_cores(min(cells for cells, *_ in CASES))
    kind, threads = jax.devices()[0].device_kind, torch.get_num_threads()
    print(f"{jax.device_count()} {kind} device(s); torch: {threads} threads")
    for cells, width, names in CASES:
        measure(cells, width, names, options.seconds)


if __name__ == "__main__":
    main()
