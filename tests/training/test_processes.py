"""Several processes train and evaluate as one does; when one of them ends, so do the others."""

import re
import signal
import time

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
from cellclr_jax.errors import BadData
from cellclr_jax.profiling.profiles import aggregate_wells
from cellclr_jax.training import loop

GONE = re.compile(r"error: .*another process of the job is gone or does not answer.*same command")


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
    config.epochs = 12
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
    assert "resuming from step 3 " in outputs[0]
    step = re.search(r"SIGTERM: saved step (\d+)", outputs[0]).group(1)
    assert f"SIGHUP: saved step {step};" in outputs[1]
    assert checkpoints(run)[-1].name == step
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


@pytest.mark.parametrize(
    ("victim", "how"),
    [
        (0, signal.SIGKILL),  # all others are connected to the first one
        pytest.param(1, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_is_killed_or_does_not_answer_ends_the_others(victim, how):
    started = start_two("tests/support/tiny_job.py", "--heartbeat=20")
    other = started[1 - victim]
    try:
        wait_until(started, lambda: "1.0" in other.stdout.readline())
        started[victim].send_signal(how)
        output = other.communicate(timeout=SECONDS)[0]
        # JAX may end a process itself, by a signal and with a message of its own.
        assert other.returncode != 0
        if other.returncode == 1:
            assert GONE.search(output.splitlines()[-1]), output
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    "message",
    [
        "Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:3301",
        "DEADLINE_EXCEEDED: Barrier timed out",
        "UNAVAILABLE: heartbeat timeout",
    ],
)
def test_an_error_that_comes_of_anothers_end_says_so(message):
    error = BadData("a checkpoint could not be written")
    error.__cause__ = RuntimeError(message)
    assert GONE.search(f"error: {devices.lost_peer(error)}")
    assert devices.lost_peer(BadData("the loss became nan")) is None
