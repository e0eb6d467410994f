"""Compares the time of a training step with PyTorch's: ratios above 1 favour CellCLR.

python tests/bench/step_speed.py [--models=demo,cnn,resnet18,resnet50] [--dtype=float32]

Same architecture, batch, precision and optimiser (SGD with momentum; NT-Xent): forward, backward,
update, on views that are already on the device. CellCLR's minibatch is divided among its devices as
in training (one per core on CPUs). PyTorch runs in a separate process, in both memory layouts,
through torch.compile in the better one, and once more with large pages of the C library. All take
turns; medians over the turns are compared.
"""

import argparse
import statistics
import time
from dataclasses import dataclass

import numpy as np
from turns import Step, Timer, TimingProcess, seconds, take_turns

from cellclr_jax import cli

TEMPERATURE = 0.1


@dataclass(frozen=True)
class Case:
    """A measurement: `cells` of `side` pixels in two views each, through `encoder`."""

    encoder: str
    cells: int
    side: int
    norm: bool = False

    def images(self) -> np.ndarray:
        """Draws images [cells, side, side, 3] float32, the same in each process."""
        shape = (self.cells, self.side, self.side, 3)
        return np.random.default_rng(0).standard_normal(shape, np.float32)


CASES = {
    "demo": Case("cnn", 256, 48, norm=True),
    "cnn": Case("cnn", 256, 96),
    "resnet18": Case("resnet18", 64, 96),
    "resnet50": Case("resnet50", 32, 96),
}


def make_cellclr(case: Case, dtype: str) -> tuple[Step, float]:
    """Makes CellCLR's step; also returns the seconds to its first result."""
    import jax

    from cellclr_jax import devices
    from cellclr_jax.encoder.load import init_variables
    from cellclr_jax.encoder.preprocessing import Preprocessing
    from cellclr_jax.models import make_model
    from cellclr_jax.objectives.nt_xent import NTXent
    from cellclr_jax.training import optimizers
    from cellclr_jax.training.step import Learner, TrainState, init_state, make_train_step

    norm = "batch" if case.norm else "none"
    settings = {"norm": norm} if case.encoder == "cnn" else None
    model = make_model(
        case.encoder, dtype=dtype, encoder_settings=settings, head_settings={"norm": norm}
    )
    schedule = optimizers.make_schedule("constant", peak=1e-3, total_steps=100)
    optimizer = optimizers.make_optimizer("sgd", schedule, weight_decay=1e-6)
    mesh = devices.make_mesh()
    everywhere, rows = devices.replicated(mesh), devices.by_rows(mesh)
    key = jax.device_put(jax.random.key(0), everywhere)
    images = case.images()
    minibatch = devices.to_global(mesh, {"image": images})
    channels = images.shape[-1]
    raw = Preprocessing(images.shape[1], "fixed", low=(0.0,) * channels, high=(1.0,) * channels)
    learner = Learner(model, NTXent(temperature=TEMPERATURE), raw, {}, mesh=mesh)
    began = time.perf_counter()

    def start(key: jax.Array) -> TrainState:
        variables = init_variables(model, key, images.shape[1:])
        return init_state(learner, variables, optimizer, key)

    state = jax.jit(start, out_shardings=everywhere)(key)
    step = jax.jit(
        make_train_step(learner, optimizer, schedule),
        in_shardings=(everywhere, rows, everywhere),
        out_shardings=everywhere,
        donate_argnums=0,
    )

    def run() -> object:
        nonlocal state
        state, metrics = step(state, minibatch, key)
        return jax.block_until_ready(metrics)

    run()
    return run, time.perf_counter() - began


def make_torch(case: Case, dtype: str, layout: str, compiled: bool) -> tuple[Step, float]:
    """Makes the same step in PyTorch."""
    import torch
    import torch_peer

    torch.manual_seed(0)
    peer = torch_peer.Peer(
        torch_peer.make_model(case.encoder, norm=case.norm),
        temperature=TEMPERATURE,
        dtype=getattr(torch, dtype),
        channels_last=layout == "channels_last",
        compiled=compiled,
    )
    views = torch.from_numpy(case.images()).repeat_interleave(2, 0).permute(0, 3, 1, 2)
    views = peer.put(views)

    def run() -> object:
        return peer.step(views).item()

    began = time.perf_counter()
    run()
    return run, time.perf_counter() - began


class Programs:
    """The programs of one case, each with its timer and the seconds to its first step."""

    def __init__(self, case: Case, dtype: str) -> None:
        self.case, self.dtype = case, dtype
        run, first = make_cellclr(case, dtype)
        self.timers: dict[str, Timer] = {"CellCLR": lambda repeats: seconds(run, repeats)}
        self.first = {"CellCLR": first}

    def add(
        self, name: str, process: TimingProcess, layout: str, *, compiled: bool = False
    ) -> None:
        """Adds a program of PyTorch, or prints its error."""
        try:
            made = process.make(self.case, self.dtype, layout, compiled)
        except RuntimeError as error:
            print(f"{name} failed: {error}")
            return
        self.timers[f"{name} {layout}"], self.first[f"{name} {layout}"] = made

    def better_layout(self) -> str:
        """Measures in which memory layout PyTorch is faster."""
        layouts = ("channels_last", "contiguous")
        return min(layouts, key=lambda name: min(self.timers[f"eager {name}"](1) for _ in range(3)))


def measure(
    name: str, case: Case, settings: argparse.Namespace, usual: TimingProcess, large: TimingProcess
) -> None:
    """Prints a row for each program, and the ratio to the best of PyTorch."""
    programs = Programs(case, settings.dtype)
    for layout in ("channels_last", "contiguous"):
        programs.add("eager", usual, layout)
    layout = programs.better_layout()
    if settings.compile:
        programs.add("compiled", usual, layout, compiled=True)
    programs.add("eager, large pages,", large, layout)
    taken = take_turns(programs.timers, settings.turns)
    medians = {program: statistics.median(turns) for program, turns in taken.items()}
    reference = medians["CellCLR"]
    print(f"{name}: {case.cells} cells × 2 views of {case.side}×{case.side}×3, {settings.dtype}")
    for program, median in medians.items():
        print(
            f"  {program:34} {1e3 * median:8.1f} ms  {case.cells / median:7.1f} cells/s"
            f"  least {1e3 * min(taken[program]):8.1f} ms"
            f"  first step {programs.first[program]:5.1f} s  ratio {median / reference:5.2f}"
        )
    others = [m for program, m in medians.items() if program.startswith(("eager", "compiled"))]
    print(f"  against the best of PyTorch: {min(others) / reference:.2f}", flush=True)


def main() -> None:
    """Measures each requested case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    settings = parser.parse_args()
    cli.keep_freed_memory()
    from cellclr_jax import devices

    devices.use_all_cores(min(case.cells for case in CASES.values()))
    import jax

    print(f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)")
    with TimingProcess(make_torch) as usual, TimingProcess(make_torch, large_pages=True) as large:
        for name in settings.models.split(","):
            measure(name, CASES[name], settings, usual, large)


if __name__ == "__main__":
    main()
