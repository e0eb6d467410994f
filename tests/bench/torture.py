"""Injects faults into a run and compares the result with that of an undisturbed run.

    python tests/bench/torture.py [--faults=30] [--seed=N] [--keep]

A run of some hundred steps is killed, also while it saves, stopped by SIGTERM, moved to a full
disk, deprived of its newest checkpoint or a shard of its data, and given a clock that jumps; after
each fault the same command starts again. Parameters and rows of metrics must equal those of the
undisturbed run, bit for bit. Takes minutes; the short form is `tests/training/test_torture.py`.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from simulated_cells import build_simulated

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[1]))

from support.faults import FAULTS, FaultyRun, final_state
from support.training_runs import rows

SETTINGS = ("--config.epochs=200", "--config.checkpoint.save_every_steps=5")
# Metrics that may differ.
RATES = ("cells_per_second", "input_wait")


def compare(one: Path, other: Path) -> None:
    """Raises AssertionError unless two runs have the same parameters and rows."""
    (step, expected), (last, found) = final_state(one), final_state(other)
    assert step == last, f"one ended at step {step}, the other at {last}"
    equal = (np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
    assert all(equal), "parameters differ"
    first, second = (
        [{name: row[name] for name in row if name not in RATES} for row in rows(folder)]
        for folder in (one, other)
    )
    assert first == second, "metrics differ"


def main() -> None:
    """Injects random faults and prints the outcome of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--keep", action="store_true", help="do not remove the folder")
    settings = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cellclr_torture_"))
    print(f"seed {settings.seed}, in {folder}", flush=True)
    small = "--simulator=height=300,width=360,dmso_wells=3"  # some hundred cells
    data_dir = build_simulated(folder, 48, small, "--workers=1")
    FaultyRun(folder / "undisturbed", data_dir, SETTINGS).finish()
    run = FaultyRun(folder / "run", data_dir, SETTINGS, settings.seed)
    began = time.monotonic()
    for number in range(1, settings.faults + 1):
        fault = run.random.choice(FAULTS)
        outcome = fault(run)
        print(f"{number:3d}. {fault.__name__}: {outcome}", flush=True)
    run.finish()
    compare(folder / "undisturbed", folder / "run")
    minutes = (time.monotonic() - began) / 60
    print(f"{settings.faults} faults in {minutes:.1f} min: the same parameters, bit for bit")
    if not settings.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
