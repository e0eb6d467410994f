"""Does to one run, again and again, what may happen to it, and compares what comes out.

    python tests/bench/torture.py [--faults=30] [--seed=N] [--keep]

A run of some hundred steps is killed, also while it saves, asked to end by SIGTERM, put on a full
disk, robbed of its newest checkpoint or of a shard of its data, and shown a clock that jumps; after
each fault the same command is given again. In the end its parameters are those of a run that was
left alone, bit for bit, and so are its rows of metrics. Minutes; `tests/training/test_torture.py`
is short.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from simulated_cells import build_simulated

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.faults import FAULTS, Patient, final_state  # noqa: E402
from support.training_runs import rows  # noqa: E402

SETTINGS = ("--config.epochs=200", "--config.checkpoint.save_every_steps=5")
# Of one machine and one program; rates and waiting are another matter.
UNLIKE = ("cells_per_second", "input_wait")


def compare(one: Path, other: Path) -> None:
    """Raises where two runs did not come to the same parameters and rows."""
    (step, want), (last, got) = final_state(one), final_state(other)
    assert step == last, f"one ended at step {step}, the other at {last}"
    assert all(np.array_equal(a, b) for a, b in zip(want, got, strict=True)), "parameters differ"
    first, second = ([_numbers(row) for row in rows(folder)] for folder in (one, other))
    assert first == second, "metrics differ"


def _numbers(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in UNLIKE}


def main() -> None:
    """Tortures a run and tells what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--keep", action="store_true", help="leave the folder there")
    settings = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cellclr_torture_"))
    print(f"seed {settings.seed}, in {folder}", flush=True)
    small = "--simulator=height=300,width=360,dmso_wells=3"  # some hundred cells
    data_dir = build_simulated(folder, 48, small, "--workers=1")
    Patient(folder / "alone", data_dir, SETTINGS).finish()
    patient = Patient(folder / "run", data_dir, SETTINGS, settings.seed)
    begun = time.monotonic()
    for number in range(1, settings.faults + 1):
        fault = patient.random.choice(FAULTS)
        told = fault(patient)
        print(f"{number:3d}. {fault.__name__}: {told}", flush=True)
    patient.finish()
    compare(folder / "alone", folder / "run")
    minutes = (time.monotonic() - begun) / 60
    print(f"{settings.faults} faults in {minutes:.1f} min: the same parameters, bit for bit")
    if not settings.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
