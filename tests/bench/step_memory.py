"""Prints the memory of a training step, with and without micro-batches and rematerialisation.

python tests/bench/step_memory.py [--config=configs/simclr_demo.py] [--cells=4096] [--micro=256]
                                  [--run_below=MB] [--config.model.encoder=resnet18 …]

Compiles the step of `cellclr_jax.main` for the available devices and prints a row of Markdown for
each variant: peak bytes on a device without minibatch and state and, with --run_below, seconds a
step of variants with fewer MB, on cells of noise.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tpu_step import _experiment, _value

from cellclr_jax import devices
from cellclr_jax.training.setup import Experiment, compile_program

STEPS = 3
ROOT = Path(__file__).parents[2]


def variants(cells: int, micro: int) -> dict[str, dict[str, Any]]:
    """Returns the settings of each row by name."""
    remat = {"model.remat": True}
    whole, small = {"minibatch_size": cells}, {"minibatch_size": micro}
    parts = whole | {"micro_batch_size": micro}
    return {
        f"{micro:,}": small,
        f"{micro:,}, rematerialised": small | remat,
        f"{cells:,}": whole,
        f"{cells:,}, rematerialised": whole | remat,
        f"{cells:,} in micro-batches of {micro:,}": parts,
        f"{cells:,} in micro-batches of {micro:,}, rematerialised": parts | remat,
    }


def measure(experiment: Experiment, run_below: float) -> tuple[float, float | None]:
    """Measures (MB of temporaries per device, median seconds a step or None if not run)."""
    mesh = devices.make_mesh()
    program = compile_program(experiment, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shape = (experiment.config.minibatch_size, *experiment.encoder.cells.image_shape)
    minibatch = {"image": jax.ShapeDtypeStruct(shape, experiment.encoder.cells.image_dtype)}
    state = jax.eval_shape(experiment.init, key)
    step = program.step.lower(state, minibatch, key).compile()
    megabytes = step.memory_analysis().temp_size_in_bytes / 1e6
    if megabytes >= run_below:
        return megabytes, None
    noise = np.random.default_rng(0).integers(0, 1000, shape, np.uint16)
    cells = devices.to_global(mesh, {"image": noise})
    key = jax.device_put(jax.random.key(0), devices.replicated(mesh))
    state, taken = program.init(key), []
    for _ in range(1 + STEPS):
        began = time.perf_counter()
        state, metrics = step(state, cells, key)
        jax.block_until_ready(metrics)
        taken.append(time.perf_counter() - began)
    return megabytes, statistics.median(taken[1:])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=str(ROOT / "configs/simclr_demo.py"))
    parser.add_argument("--cells", type=int, default=4096)
    parser.add_argument("--micro", type=int, default=256)
    parser.add_argument("--run_below", type=float, default=0.0, help="MB")
    arguments, rest = parser.parse_known_args()
    pairs = [text.removeprefix("--config.").split("=", 1) for text in rest]
    given = {name: _value(value) for name, value in pairs}
    devices.use_all_cores(arguments.micro)
    print(f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)")
    print("| cells a step | temporaries, MB a device | seconds a step |\n|---|---|---|")
    for name, settings in variants(arguments.cells, arguments.micro).items():
        experiment = _experiment(arguments.config, given | settings)
        megabytes, seconds = measure(experiment, arguments.run_below)
        text = "–" if seconds is None else f"{seconds:.2f}"
        print(f"| {name} | {megabytes:,.0f} | {text} |", flush=True)


if __name__ == "__main__":
    main()
