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
def config(data_dir):
    config = get_config()
    config.data_dir = str(data_dir)
    config.epochs = 8
    return config


def two_after_some_steps(config, workdir):
    """Starts two processes of a run that has begun, and waits until they did a few steps."""
    log = workdir / "metrics.jsonl"
    before = log.stat().st_ino
    command = ["-m", "cellclr_jax.main", "--config=tests/support/tiny_run.py"]
    command += [f"--config.{name}={config[name]}" for name in ("data_dir", "epochs")]
    started = start_two(*command, f"--workdir={workdir}")
    wait_until(started, lambda: log.stat().st_ino != before)  # written again on resumption
    steps = len(rows(workdir))
    wait_until(started, lambda: len(rows(workdir)) > steps + 1)
    return started


def losses(workdir):
    names = ("loss", "validation_loss")
    return [row[name] for row in rows(workdir) for name in names if name in row]


def assert_close(found, expected):
    for a, b in zip(*(jax.tree.leaves(jax.device_get(s)) for s in (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_one_and_two_processes_resume_the_same_run(config, tmp_path):
    mesh = devices.make_mesh(1)
    undisturbed = loop.train(config, tmp_path / "undisturbed", mesh)
    run = tmp_path / "run"
    with crash_at(3):
        loop.train(config, run, mesh)
    started = two_after_some_steps(config, run)
    started[1].send_signal(signal.SIGHUP)
    outputs = finish(started, (143, 129))
    assert "resuming from step 3 " in outputs[0]
    step = re.search(r"SIGTERM: saved step (\d+)", outputs[0]).group(1)
    assert f"SIGHUP: saved step {step};" in outputs[1]  # both stopped at the same step
    assert checkpoints(run)[-1].name == step
    assert_close(loop.train(config, run, mesh), undisturbed)
    np.testing.assert_allclose(losses(run), losses(tmp_path / "undisturbed"), atol=1e-5)


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(config, tmp_path):
    config.epochs = 1
    mesh = devices.make_mesh(2)
    state = loop.train(config, tmp_path, mesh)
    finish(start_two("-m", "cellclr_jax.eval", f"--workdir={tmp_path}", "--measures=none"))
    sites = apply.site_profiles(make_cell_encoder(config), mesh, {"trained": state.variables})
    one, two = (
        table.set_index(["Metadata_Plate", "Metadata_Well"]).sort_index()
        for table in (
            aggregate_wells(sites["trained"]),
            pd.read_parquet(next((tmp_path / "eval").rglob("wells.parquet"))),
        )
    )
    features = [column for column in one if column.startswith("cellclr_")]
    assert features
    assert (one["Metadata_CellCount"] == two["Metadata_CellCount"]).all()
    np.testing.assert_allclose(one[features], two[features], atol=1e-5)


@pytest.mark.parametrize(
    ("victim", "how"),
    [
        (0, signal.SIGKILL),  # the coordinator, to which all others are connected
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
        # JAX may abort a process, with a message of its own.
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
def test_an_error_caused_by_the_end_of_another_process_is_explained(message, monkeypatch):
    monkeypatch.setattr(devices, "_peer_lost", False)
    error = BadData("a checkpoint could not be written")
    error.__cause__ = RuntimeError(message)
    assert GONE.search(f"error: {devices.lost_peer(error)}")
    assert devices.lost_peer(BadData("the loss became nan")) is None
