"""Two processes on this machine train and evaluate as one does."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from cellclr_jax import embed, sharding, train
from cellclr_jax.experiment import make_encoding
from cellclr_jax.profiling.profiles import aggregate_wells
from configs.simclr_demo import get_config as simclr_demo

ROOT = Path(__file__).parents[1]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_together(processes, *arguments):
    """Starts a module in several processes that together hold two devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(2 // processes),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    command = [sys.executable, "-m", *arguments]
    command += ["--distributed"] if processes > 1 else []
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | {"JAX_PROCESS_ID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]


def finish(started, status=0):
    """Waits for all processes, each of which must end with the status; their outputs."""
    outputs = [process.communicate(timeout=180)[0] for process in started]
    assert [process.returncode for process in started] == [status] * len(started), outputs
    return outputs


def training(data_dir, workdir, epochs):
    return (
        "cellclr_jax.main",
        "--config=configs/simclr_demo.py",
        f"--config.data_dir={data_dir}",
        f"--workdir={workdir}",
        "--config.image_size=24",
        "--config.minibatch_size=64",
        "--config.log_every=1",
        f"--config.epochs={epochs}",
    )


def profiles_of_one_process(data_dir, workdir):
    """The same training and evaluation in this process, on two devices."""
    config = simclr_demo()
    config.data_dir = str(data_dir)
    config.image_size = 24
    config.minibatch_size = 64
    config.epochs = 2
    mesh = sharding.make_mesh(2)
    state = train.train(config, workdir, mesh)
    sites = embed.site_profiles(make_encoding(config), mesh, {"trained": state.variables})
    return aggregate_wells(sites["trained"])


def test_two_processes_give_the_profiles_of_one(data_dir, tmp_path):
    finish(start_together(2, *training(data_dir, tmp_path / "two", epochs=2)))
    finish(start_together(2, "cellclr_jax.eval", f"--workdir={tmp_path / 'two'}"))
    two = pd.read_parquet(next((tmp_path / "two" / "eval").rglob("wells.parquet")))
    one = profiles_of_one_process(data_dir, tmp_path / "one")
    features = [column for column in one if column.startswith("cellclr_")]
    assert len(features) == 64
    keys = ["Metadata_Plate", "Metadata_Well"]
    one, two = one.set_index(keys).sort_index(), two.set_index(keys).sort_index()
    assert (one["Metadata_CellCount"] == two["Metadata_CellCount"]).all()
    np.testing.assert_allclose(one[features], two[features], atol=1e-5)


def test_sigterm_of_one_process_saves_and_ends_both(data_dir, tmp_path):
    started = start_together(2, *training(data_dir, tmp_path, epochs=1000))
    log = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and '"step": 5,' in log.read_text()):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in started)
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    outputs = finish(started, status=143)
    step = re.search(r"SIGTERM: saved step (\d+)", outputs[0]).group(1)
    assert f"saved step {step};" in outputs[1]
    assert (tmp_path / "checkpoints" / step).is_dir()
