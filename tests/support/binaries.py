"""Runs the package's binaries as `python -m` does, without importing their libraries each time.

Importing them takes longer than most tests. One process imports them once, and each run is a fork
of that process with its own arguments, output and exit status.
"""

import atexit
import functools
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
# Time limit of a run, on a machine that is busy with other things.
SECONDS = 1800
# Modules of build, main, eval and embed with slow imports. None of them defines a flag, starts a
# thread or initialises JAX's backends.
_LOADED = (
    "cellclr_jax.data.building",
    "cellclr_jax.data.quality",
    "cellclr_jax.data.sources",
    "cellclr_jax.encoder.embed_dataset",
    "cellclr_jax.encoder.evaluate_run",
    "cellclr_jax.profiling.report",
    "cellclr_jax.training.loop",
    "sklearn.linear_model",
)


def run(binary, *flags):
    """Runs `python -m cellclr_jax.<binary> <flags>` in the repository; returns the process."""
    started = Started(binary, *flags)
    out, errors = started.communicate()
    return subprocess.CompletedProcess(started.flags, started.returncode, out, errors)


class Started:
    """A started binary, with the methods of `subprocess.Popen` that tests use.

    Args:
      binary: name of a module of the package.
      flags: its arguments.
      environment: variables to add; JAX_NUM_CPU_DEVICES also has its effect.
      merged: redirects stderr to stdout.
    """

    def __init__(self, binary, *flags, environment=(), merged=False):
        self.flags, self.returncode = [str(flag) for flag in flags], None
        self._folder = tempfile.TemporaryDirectory()
        job = {"binary": binary, "flags": self.flags, "environment": dict(environment)}
        self.pid = _ask(start=job | {"folder": self._folder.name, "merged": merged})

    def poll(self):
        """Returns the exit status, or None while the process runs."""
        if self.returncode is None:
            self.returncode = _ask(poll=self.pid)
        return self.returncode

    def communicate(self, timeout=None):
        """Waits for the end; returns stdout and stderr."""
        if self.returncode is None:
            self.returncode = _ask(wait=self.pid)
        return tuple(Path(self._folder.name, name).read_text() for name in ("stdout", "stderr"))

    def send_signal(self, number):
        """Sends a signal."""
        os.kill(self.pid, number)

    def kill(self):
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _ask(**request):
    """Sends a request to the server and returns its answer."""
    server = _server()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    ready, _, _ = select.select([server.stdout], [], [], SECONDS)
    if not ready:
        _server.cache_clear()
        server.kill()
    answer = server.stdout.readline()
    assert answer, f"no answer to {request}"
    return json.loads(answer)


@functools.cache
def _server():
    """Starts the process that has imported the binaries' libraries."""
    server = subprocess.Popen(
        [sys.executable, __file__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    atexit.register(server.kill)
    return server


def _serve() -> None:
    """Forks a binary for each request to start one; waits for binaries on request."""
    sys.path[0] = str(ROOT)
    for name in _LOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        ((kind, value),) = json.loads(line).items()
        if kind == "start":
            answer = os.fork()
            if answer == 0:
                _become(**value)
        else:
            pid, status = os.waitpid(value, os.WNOHANG if kind == "poll" else 0)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)


def _become(
    binary: str, flags: list[str], environment: dict[str, str], folder: str, merged: bool
) -> NoReturn:
    """Runs a binary to its end in this process."""
    status = 0
    os.environ.update(environment)
    if "JAX_NUM_CPU_DEVICES" in environment:  # read when JAX was imported
        sys.modules["jax"].config.update(
            "jax_num_cpu_devices", int(environment["JAX_NUM_CPU_DEVICES"])
        )
    names = (os.devnull, f"{folder}/stdout", f"{folder}/stderr")
    for number, (name, how) in enumerate(zip(names, "rww", strict=True)):
        with open(name, how) as file:
            os.dup2(1 if merged and number == 2 else file.fileno(), number)
    sys.argv[1:] = flags
    try:
        runpy.run_module(f"cellclr_jax.{binary}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    # Ends like an interpreter, but without destroying all modules, which takes a second.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _serve()
