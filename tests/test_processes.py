"""Two processes on this machine train and evaluate as one does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_together(processes, *arguments):
    """Runs a module in several processes that together hold two devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(2 // processes),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    command = [sys.executable, "-m", *arguments]
    command += ["--distributed"] if processes > 1 else []
    started = [
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
    for process in started:
        output = process.communicate(timeout=180)[0]
        assert process.returncode == 0, output


def test_two_processes_give_the_profiles_of_one(data_dir, tmp_path):
    tables = []
    for processes in (1, 2):
        workdir = tmp_path / str(processes)
        run_together(
            processes,
            "cellclr_jax.main",
            "--config=configs/simclr_demo.py",
            f"--config.data_dir={data_dir}",
            f"--workdir={workdir}",
            "--config.image_size=24",
            "--config.minibatch_size=64",
            "--config.epochs=2",
        )
        run_together(
            processes, "cellclr_jax.eval", f"--workdir={workdir}", "--standardize=controls"
        )
        tables.append(pd.read_parquet(next((workdir / "eval").rglob("wells.parquet"))))
    features = [column for column in tables[0] if column.startswith("cellclr_")]
    assert len(features) == 64
    np.testing.assert_allclose(tables[0][features], tables[1][features], atol=1e-5)
