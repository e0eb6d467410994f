"""Several processes train and evaluate as one does; when one of them goes, the others say so."""

import os
import re
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from support.tiny_run import get_config
from support.training_runs import checkpoints, crash_at, rows
from support.two_processes import SECONDS, finish, start_two

from cellclr_jax import devices
from cellclr_jax.encoder import apply
from cellclr_jax.encoder.load import make_cell_encoder
from cellclr_jax.profiling.profiles import aggregate_wells
from cellclr_jax.training import loop

ROOT = Path(__file__).parents[2]
GONE = re.compile(r"error: .*another process of the job is gone or does not answer.*same command")


def watched(process):
    """The child that trains, of which the process is to tell the end."""
    task = next(Path(f"/proc/{process.pid}/task").iterdir())
    return int((task / "children").read_text().split()[0])


def wait_until(started, condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in started), finish(started)
        time.sleep(0.01)


@pytest.fixture
def settings(data_dir):
    config = get_config()
    config.data_dir = str(data_dir)
    config.epochs = 24
    return config


class Pair:
    """Two processes that train in a work directory, again and again."""

    def __init__(self, config, workdir):
        self.workdir = workdir
        self.command = (
            *(
                "-m",
                "cellclr_jax.main",
                "--config=tests/support/tiny_run.py",
                f"--workdir={workdir}",
            ),
            f"--config.data_dir={config.data_dir}",
            f"--config.epochs={config.epochs}",
        )

    def after_some_steps(self):
        """Starts both and waits until a few steps are done."""
        before = (self.workdir / "metrics.jsonl").stat().st_ino
        started = start_two(*self.command)
        wait_until(started, lambda: (self.workdir / "metrics.jsonl").stat().st_ino != before)
        steps = len(rows(self.workdir))
        wait_until(started, lambda: len(rows(self.workdir)) > steps + 3)
        return started


def profiles(config, mesh, state):
    """Well profiles, made by this process."""
    sites = apply.site_profiles(make_cell_encoder(config), mesh, {"trained": state.variables})
    wells = aggregate_wells(sites["trained"])
    return wells.set_index(["Metadata_Plate", "Metadata_Well"]).sort_index()


def losses(workdir):
    names = ("loss", "validation_loss")
    return [row[name] for row in rows(workdir) for name in names if name in row]


def test_any_number_of_processes_goes_on_and_none_goes_on_without_the_others(settings, tmp_path):
    mesh = devices.make_mesh(2)
    whole = loop.train(settings, tmp_path / "whole", mesh)
    # One process begins.
    run = tmp_path / "run"
    with crash_at(3):
        loop.train(settings, run, mesh)
    pair = Pair(settings, run)
    # Two go on, and agree on the step to stop at.
    started = pair.after_some_steps()
    started[1].send_signal(signal.SIGHUP)
    outputs = finish(started, (143, 129))
    assert "going on from step 3 " in outputs[0]
    step = re.search(r"SIGTERM: saved step (\d+)", outputs[0]).group(1)
    assert f"SIGHUP: saved step {step};" in outputs[1]
    assert checkpoints(run)[-1].name == step
    # Neither the first, which all others are connected to, nor the last can vanish unnoticed.
    for victim in (1, 0):
        started = pair.after_some_steps()
        started[victim].kill()
        output = finish([started[1 - victim]], (1,))[0]
        assert GONE.search(output.splitlines()[-1]), output
        started[victim].communicate()
    # One finishes.
    state = loop.train(settings, run, mesh)
    for a, b in zip(*(jax.tree.leaves(jax.device_get(s)) for s in (state, whole)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(losses(run), losses(tmp_path / "whole"), atol=1e-5)
    # Two evaluate.
    finish(start_two("-m", "cellclr_jax.eval", f"--workdir={run}", "--measures=none"))
    two = pd.read_parquet(next((run / "eval").rglob("wells.parquet")))
    one = profiles(settings, mesh, whole)
    two = two.set_index(["Metadata_Plate", "Metadata_Well"]).sort_index()
    features = [column for column in one if column.startswith("cellclr_")]
    assert features
    assert (one["Metadata_CellCount"] == two["Metadata_CellCount"]).all()
    np.testing.assert_allclose(one[features], two[features], atol=1e-5)


def test_a_process_that_does_not_answer_ends_the_job():
    started = start_two("tests/support/tiny_job.py", "--heartbeat=4")
    try:
        wait_until(started, lambda: "1.0" in started[0].stdout.readline())
        os.kill(watched(started[1]), signal.SIGSTOP)
        output = finish([started[0]], (1,))[0]
        assert GONE.search(output.splitlines()[-1]), output
    finally:
        started[1].kill()
        started[1].communicate()
