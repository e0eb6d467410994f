"""Starts a program in two processes of one JAX job and waits for both."""

import os
import socket
import subprocess
import sys

from support.binaries import ROOT, SECONDS, Started


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(*command):
    """Starts `-m cellclr_jax.<binary> <flags>` or a script in two processes of one device each."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
        "PYTHONPATH": str(ROOT),
    }
    return [_start(command, environment | {"JAX_PROCESS_ID": str(rank)}) for rank in range(2)]


def _start(command, environment):
    if command[0] == "-m":
        binary, flags = command[1].removeprefix("cellclr_jax."), command[2:]
        return Started(binary, *flags, "--distributed", environment=environment, merged=True)
    return subprocess.Popen(
        [sys.executable, *command, "--distributed"],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(started, statuses=(0, 0)):
    """Waits for processes, which must end with these statuses; returns their outputs."""
    outputs = [process.communicate(timeout=SECONDS)[0] for process in started]
    assert [process.returncode for process in started] == list(statuses), outputs
    assert not any("Traceback" in output for output in outputs), outputs
    return outputs
