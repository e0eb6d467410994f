"""A run that suffers faults ends with the same parameters as an undisturbed one, bit for bit.

`tests/bench/torture.py` does the same for minutes, in a random order.
"""

import shutil

import numpy as np
import pytest
from support.faults import (
    JUMPING_CLOCK,
    MODULE,
    FaultyRun,
    delete_newest,
    final_state,
    full_disk,
    kill_while_saving,
    sigterm,
    truncate_newest,
    vanished_shard,
)
from support.training_runs import rows

STEPS_PER_EPOCH = 3
SHORT = (kill_while_saving, sigterm)
LONG = (kill_while_saving, vanished_shard, sigterm, full_disk, truncate_newest, delete_newest)


def losses(workdir):
    """(step, name, value) of training and validation losses."""
    names = ("loss", "validation_loss")
    return [
        (row["step"], name, row[name]) for row in rows(workdir) for name in names if name in row
    ]


@pytest.mark.parametrize(
    ("faults", "epochs", "program"),
    [(SHORT, 4, MODULE), pytest.param(LONG, 20, JUMPING_CLOCK, marks=pytest.mark.slow)],
)
def test_a_run_with_faults_equals_an_undisturbed_one(data_dir, tmp_path, faults, epochs, program):
    shutil.copytree(data_dir, tmp_path / "data")  # faults move shards
    settings = (f"--config.epochs={epochs}", "--config.checkpoint.save_every_steps=2")
    undisturbed = FaultyRun(tmp_path / "undisturbed", tmp_path / "data", settings)
    assert "first step" in undisturbed.finish()
    run = FaultyRun(tmp_path / "run", tmp_path / "data", settings)
    for fault in faults:
        fault(run)
    assert "resuming from step" in run.finish(program=program)
    (step, expected), (last, found) = map(final_state, (undisturbed.workdir, run.workdir))
    assert step == last == STEPS_PER_EPOCH * epochs
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
    assert losses(run.workdir) == losses(undisturbed.workdir)
    # Rates measured on a clock that jumps by an hour are positive or left out.
    assert all(row.get("cells_per_second", 1.0) > 0 for row in rows(run.workdir))
