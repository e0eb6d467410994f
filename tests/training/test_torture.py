"""A run to which everything happens ends like one that was left alone, bit for bit.

`tests/bench/torture.py` does the same for minutes, in a random order.
"""

import numpy as np
import pytest
from support.faults import (
    JUMPING,
    Patient,
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
    """(step, loss, validation loss) of all rows."""
    names = ("loss", "validation_loss")
    return [
        (row["step"], name, row[name]) for row in rows(workdir) for name in names if name in row
    ]


@pytest.mark.parametrize(
    ("faults", "epochs"), [(SHORT, 8), pytest.param(LONG, 20, marks=pytest.mark.slow)]
)
def test_nothing_that_happens_to_a_run_changes_what_comes_of_it(data_dir, tmp_path, faults, epochs):
    settings = (f"--config.epochs={epochs}", "--config.checkpoint.save_every_steps=2")
    alone = Patient(tmp_path / "alone", data_dir, settings)
    assert "first step" in alone.finish()
    patient = Patient(tmp_path / "run", data_dir, settings)
    for fault in faults:
        fault(patient)
    assert "resuming from step" in patient.finish(program=JUMPING)
    (step, want), (last, got) = final_state(alone.workdir), final_state(patient.workdir)
    assert step == last == STEPS_PER_EPOCH * epochs
    assert all(np.array_equal(a, b) for a, b in zip(want, got, strict=True))
    assert losses(patient.workdir) == losses(alone.workdir)
    # The clock that jumps by an hour measures nothing.
    assert all(row.get("cells_per_second", 1.0) > 0 for row in rows(patient.workdir))
