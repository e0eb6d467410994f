"""Compiles a training step for TPUs ahead of time, without a TPU, and prints its cost.

python tests/bench/tpu_step.py [--topology=v5e:2x4 …] [--config=configs/simclr.py]
                               [--minibatch_size=4096] [--config.model.encoder=resnet18 …]

Needs libtpu (`pip install -e '.[tpu]'`, preferably in a separate environment). Compiles the step of
`cellclr_jax.main`, from raw crops to updated parameters, for each topology in a separate process
and prints a row of Markdown; --json prints all figures instead. A row takes minutes.

The roofline time is the longer of FLOPs / peak and bytes / bandwidth for one chip. It is given for
two counts of bytes: `touched` by XLA's count, in which prefetched data count twice, when they are
moved to fast memory and when they are read; and bytes moved to and from the chip's main memory,
whose bandwidth is the limit. Model FLOPs are three times those of one forward pass of encoder and
head, counted from their convolutions and matrix products; utilisation is their share of the chip's
peak in that time.
"""

import argparse
import importlib.util
import json
import math
import os
import re
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hlo_text import collectives, memory_bytes


@dataclass(frozen=True)
class Chip:
    """One chip: GB of memory, peak bfloat16 TFLOP/s, GB/s of memory bandwidth."""

    memory: float
    peak: float
    bandwidth: float


# docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e, "system architecture"; GB are GiB there.
CHIPS = {
    "v4": Chip(32, 275, 1200),
    "v5e": Chip(16, 197, 819),
    "v5p": Chip(95, 459, 2765),
    "v6e": Chip(32, 918, 1640),
}
TOPOLOGIES = ("v4:2x2x1", "v4:4x4x4", "v5e:2x4", "v5e:16x16", "v5p:2x2x2", "v6e:2x4")
GIB = 1 << 30

# libtpu without a TPU: does not query the metadata server, and allows several processes.
_WITHOUT_TPU = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# The compiler for v6e needs more stack than the usual 8 MiB; the limit also applies to threads.
_STACK_BYTES = 1 << 30
# BBBC021's crops as `build` stores them.
_CROP = {"shape": (96, 96, 3), "dtype": "uint16", "channels": ["DNA", "actin", "tubulin"]}


def measure(topology: str, config_file: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Compiles the step for a topology in this process; returns figures by name."""
    import jax

    experiment = _experiment(config_file, settings)
    mesh = _mesh(topology)
    step, arguments = _step(experiment, mesh)
    began = time.monotonic()
    compiled = step.lower(*arguments).compile()
    seconds = time.monotonic() - began
    text, memory, cost = compiled.as_text(), compiled.memory_analysis(), compiled.cost_analysis()
    if folder := os.environ.get("TPU_STEP_HLO"):
        Path(folder, f"{topology.replace(':', '_')}.txt").write_text(text, encoding="utf-8")
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    chip = CHIPS[topology.split(":")[0]]
    model = 3 * 2 * experiment.config.minibatch_size * forward_flops(experiment) / mesh.size
    return {
        "topology": topology,
        "jax": jax.__version__,
        "chips": mesh.size,
        "cells": experiment.config.minibatch_size,
        "temporary_gib": memory.temp_size_in_bytes / GIB,
        "held_gib": held / GIB,
        "fits": memory.temp_size_in_bytes + held <= chip.memory * GIB,
        "collectives": collectives(text),
        "tflop": cost["flops"] / 1e12,
        "model_tflop": model / 1e12,
        "touched": _roofline(chip, cost["flops"], cost["bytes accessed"], model),
        "from_memory": _roofline(chip, cost["flops"], memory_bytes(text), model),
        "compile_seconds": seconds,
    }


def _roofline(chip: Chip, flops: float, moved: float, model: float) -> dict[str, float]:
    """Computes GB moved, a chip's roofline time in milliseconds, and model FLOPs utilisation."""
    seconds = max(flops / (chip.peak * 1e12), moved / (chip.bandwidth * 1e9))
    utilisation = model / (seconds * chip.peak * 1e12)
    return {"gb": moved / 1e9, "milliseconds": 1e3 * seconds, "utilisation": utilisation}


def _experiment(config_file: str, settings: dict[str, Any]) -> Any:
    """Builds the experiment for cells without images, only shapes."""
    import pandas as pd

    from cellclr_jax.data import minibatches
    from cellclr_jax.training.setup import make_experiment

    spec = importlib.util.spec_from_file_location("config", config_file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.update_from_flattened_dict(settings)
    # Enough cells for several steps an epoch without the validation set.
    table = pd.DataFrame({"cell_id": [f"cell-{i}" for i in range(20 * config.minibatch_size)]})
    cells = minibatches.Cells(Path("nowhere"), mock.Mock(), table, {"image": _CROP})
    with mock.patch.object(minibatches, "open_cells", return_value=cells):
        return make_experiment(config)


def _mesh(topology: str) -> Any:
    from jax.experimental import topologies

    from cellclr_jax import devices

    # Both cores of a v4 chip are one device, as in JAX on such a chip.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
    described = topologies.get_topology_desc(topology, "tpu", **options)
    return devices.make_mesh(described.devices)


def _step(experiment: Any, mesh: Any) -> tuple[Any, tuple[Any, ...]]:
    """Returns the jitted step and shapes of its arguments."""
    import jax

    from cellclr_jax.training.setup import compile_program

    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(experiment.init, key)
    shape = (experiment.config.minibatch_size, *experiment.encoder.cells.image_shape)
    minibatch = {"image": jax.ShapeDtypeStruct(shape, experiment.encoder.cells.image_dtype)}
    return compile_program(experiment, mesh).step, (state, minibatch, key)


def forward_flops(experiment: Any) -> float:
    """Counts FLOPs of products in the forward pass of encoder and head for one view."""
    import jax
    import jax.numpy as jnp

    variables = jax.eval_shape(
        experiment.encoder.init_variables, jax.eval_shape(lambda: jax.random.key(0))
    )
    side = experiment.encoder.preprocessing.size
    view_shape = side, side, experiment.encoder.cells.image_shape[-1]
    view = jax.ShapeDtypeStruct((1, *view_shape), jnp.float32)
    traced = jax.make_jaxpr(lambda v, x: experiment.encoder.model.apply(v, x, train=False))(
        variables, view
    )
    return _total_flops(traced.jaxpr)


def _total_flops(jaxpr: Any) -> float:
    """Sums FLOPs of all equations, also nested ones; of branches, only the largest counts."""
    total = 0.0
    for equation in jaxpr.eqns:
        given = [v for p in equation.params.values() for v in (p if isinstance(p, tuple) else (p,))]
        inner = [getattr(value, "jaxpr", value) for value in given]
        parts = [_total_flops(jaxpr) for jaxpr in inner if hasattr(jaxpr, "eqns")]
        whole = max if equation.primitive.name == "cond" else sum
        total += _flops(equation) + (whole(parts) if parts else 0.0)
    return total


def _flops(equation: Any) -> float:
    out = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * out * math.prod(left[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = equation.params["dimension_numbers"].rhs_spec[0]
        return 2 * out * math.prod(kernel) / kernel[features]
    return 0.0


def in_own_process(topology: str, arguments: list[str]) -> dict[str, Any]:
    """Measures a topology in a separate process, so that a compiler crash loses only its row."""
    command = [sys.executable, __file__, f"--topology={topology}", "--here", *arguments]

    def raise_stack() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_STACK)
        size = _STACK_BYTES if hard == resource.RLIM_INFINITY else min(_STACK_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_STACK, (size, hard))

    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=raise_stack,
        env=os.environ | _WITHOUT_TPU,
    )
    if ran.returncode == 0:
        return json.loads(ran.stdout.splitlines()[-1])
    print(ran.stderr[-4000:], file=sys.stderr)
    how = f"signal {-ran.returncode}" if ran.returncode < 0 else f"status {ran.returncode}"
    return {"topology": topology, "error": f"the compiler ended with {how}"}


HEADER = """\
| topology | chips | cells | memory, of | collectives (MB) | TFLOP | \
GB touched: roofline, MFU | GB from memory: roofline, MFU |
|---|---|---|---|---|---|---|---|"""


def as_markdown(row: dict[str, Any]) -> str:
    """Formats one line of the table."""
    if "error" in row:
        return f"| {row['topology']} | {row['error']} | | | | | | |"
    chip = CHIPS[row["topology"].split(":")[0]]
    shown = [f"{c['count']} {k} ({c['bytes'] / 1e6:.1f})" for k, c in row["collectives"].items()]
    memory = f"{row['temporary_gib'] + row['held_gib']:.1f} of {chip.memory:.0f} GiB"
    rooflines = [
        f"{row[name]['gb']:.1f}: {row[name]['milliseconds']:.1f} ms, {row[name]['utilisation']:.0%}"
        for name in ("touched", "from_memory")
    ]
    cells = [
        row["topology"],
        row["chips"],
        f"{row['cells']:,}",
        memory + ("" if row["fits"] else ": does not fit"),
        ", ".join(shown),
        f"{row['tflop']:.2f}",
        *rooflines,
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--topology", action="append", help="may be given several times")
    parser.add_argument("--config", default=str(Path(__file__).parents[2] / "configs/simclr.py"))
    parser.add_argument("--minibatch_size", type=int, default=4096)
    parser.add_argument("--json", action="store_true", help="all figures, a line each")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    flags, rest = parser.parse_known_args()
    settings: dict[str, Any] = {"minibatch_size": flags.minibatch_size}
    for flag in rest:
        match = re.fullmatch(r"--config\.([\w.]+)=(.*)", flag)
        if not match:
            parser.error(f"unknown flag {flag}")
        settings[match[1]] = _value(match[2])
    if flags.here:
        print(json.dumps(measure(flags.topology[0], flags.config, settings)))
        return
    if not flags.json:
        print(HEADER)
    given = [f"--config={flags.config}", f"--minibatch_size={flags.minibatch_size}", *rest]
    for topology in flags.topology or TOPOLOGIES:
        print(f"{topology}: compiling", file=sys.stderr, flush=True)
        row = in_own_process(topology, given)
        print(json.dumps(row) if flags.json else as_markdown(row), flush=True)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    main()
