"""Runs the package's binaries as `python -m` does, without loading their libraries each time.

What they load takes longer than most of what tests have them do. One process loads it once, and
each run is a fork of that process: it has arguments, output and an exit status of its own.
"""

import atexit
import functools
import importlib
import json
import os
import runpy
import select
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
# Seconds that a run may take on a busy machine.
_PATIENCE = 1800
# What is heavy in build, main, eval and embed. None of it defines a flag, starts a thread or finds
# out how many devices there are.
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
    """The finished process of `python -m cellclr_jax.<binary> <flags>` in the repository."""
    with tempfile.TemporaryDirectory() as folder:
        job = {"binary": binary, "flags": [str(flag) for flag in flags], "folder": folder}
        server = _server()
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        ready, _, _ = select.select([server.stdout], [], [], _PATIENCE)
        if not ready:
            _server.cache_clear()
            server.kill()
        status = server.stdout.readline()
        out, errors = (Path(folder, name).read_text() for name in ("stdout", "stderr"))
        assert status, f"{binary} {flags} did not end: {out}{errors}"
    return subprocess.CompletedProcess(job["flags"], int(status), out, errors)


@functools.cache
def _server():
    """The process that has loaded everything."""
    server = subprocess.Popen(
        [sys.executable, __file__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    atexit.register(server.kill)
    return server


def _serve() -> None:
    """Forks a binary for each job that comes in, and tells its exit status."""
    sys.path[0] = str(ROOT)
    for name in _LOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(**json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(binary: str, flags: list[str], folder: str) -> NoReturn:
    """Goes on as a binary, to its end."""
    status = 0
    for number, (name, how) in enumerate(
        ((os.devnull, "r"), (f"{folder}/stdout", "w"), (f"{folder}/stderr", "w"))
    ):
        with open(name, how) as file:
            os.dup2(file.fileno(), number)
    sys.argv[1:] = flags
    try:
        runpy.run_module(f"cellclr_jax.{binary}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    # As an interpreter ends, but for taking all that is loaded to pieces, which takes a second.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _serve()
