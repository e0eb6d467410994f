"""Injects faults into a process of the training binary; the run must survive each of them."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from support.binaries import ROOT, SECONDS, Started
from support.training_runs import checkpoints

MODULE = ("-m", "cellclr_jax.main")
# Runs the binary on a clock that is set back and forth by an hour while it runs.
JUMPING_CLOCK = (
    "-c",
    """
import datetime, runpy, time
import cellclr_jax.training.loop  # compiled extensions accept no other class of dates
real = time.time
def jumping():
    return real() + (0, -3600, 3600)[int(time.monotonic() / 0.3) % 3]
class Jumping(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(jumping(), tz)
time.time, time.time_ns = jumping, lambda: int(jumping() * 1e9)
datetime.datetime = Jumping
runpy.run_module("cellclr_jax.main", run_name="__main__", alter_sys=True)
""",
)
# Runs a command on a separate disk of $1 bytes, and copies its files back.
FULL_DISK = """
mount -t tmpfs -o "size=$1" none "$2" && cp -a "$3/." "$2" || exit 99
run=$3; disk=$2; shift 3
"$@"; status=$?
rm -rf "$run"/* && cp -a "$disk/." "$run"; exit $status
"""


class FaultyRun:
    """A training run into which faults are injected.

    Args:
      workdir: work directory.
      data_dir: folder of the dataset.
      settings: flags of the binary.
      seed: of the random times of faults.
    """

    def __init__(self, workdir, data_dir, settings=(), seed=0):
        self.workdir, self.data_dir = Path(workdir), Path(data_dir)
        self.random = random.Random(seed)
        self.settings = (
            "--config=tests/support/tiny_run.py",
            f"--config.data_dir={data_dir}",
            *settings,
        )

    def start(self, *, program=MODULE, workdir=None, before=()):
        """Starts the binary or another program, prefixed by the command `before`."""
        flags = (*self.settings, f"--workdir={workdir or self.workdir}")
        if program == MODULE and not before:
            return Started("main", *flags)
        command = [*before, sys.executable, *program, *flags]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )

    def finish(self, **settings):
        """Runs the binary to its end; returns its stderr."""
        message = wait_for_end(self.start(**settings), 0)
        assert "done: " in message
        return message

    def step(self):
        """Counts the steps in metrics.jsonl."""
        log = self.workdir / "metrics.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return sum('"loss"' in line for line in lines)

    def wait_for(self, process, condition):
        """Waits until a condition holds, or the process has ended."""
        deadline = time.monotonic() + SECONDS
        while process.poll() is None and not condition():
            assert time.monotonic() < deadline, process.kill() or process.communicate()[1]
            time.sleep(0.005)

    def wait_for_first_steps(self, process, most=4):
        """Waits for the first 1 to `most` steps of a process that was just started."""
        log = self.workdir / "metrics.jsonl"
        before = _identity(log)  # a resumed run replaces it
        self.wait_for(process, lambda: _identity(log) not in (None, before))
        self.wait_for_more_steps(process, most)

    def wait_for_more_steps(self, process, most=4):
        """Waits for 1 to `most` further steps."""
        target = self.step() + self.random.randint(1, most)
        self.wait_for(process, lambda: self.step() >= target)


def wait_for_end(process, status):
    """Waits for a process to end with a status and without a traceback; returns its stderr."""
    message = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == status, message
    assert "Traceback" not in message, message
    return message


def final_state(workdir):
    """Reads step and arrays of the last checkpoint."""
    import orbax.checkpoint as ocp

    last = checkpoints(workdir)[-1]
    path = (last / "state").absolute()
    reader = ocp.PyTreeCheckpointer()
    to_host = jax.tree.map(  # regardless of the devices that saved it
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree
    )
    return int(last.name), jax.tree.leaves(reader.restore(path, restore_args=to_host))


def kill(run):
    """Sends SIGKILL after some steps."""
    process = run.start()
    run.wait_for_first_steps(process)
    process.kill()
    process.communicate()
    return f"killed after a row of step {run.step()}"


def _identity(path):
    """Returns the inode of a file, or None if it does not exist."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def kill_while_saving(run):
    """Sends SIGKILL while a checkpoint is being written."""
    folder = run.workdir / "checkpoints"
    left = {_identity(path) for path in folder.glob("*tmp*")}
    process = run.start()
    run.wait_for(
        process, lambda: {_identity(path) for path in folder.glob("*tmp*")} - {None} - left
    )
    time.sleep(run.random.random() * 0.05)
    process.kill()
    process.communicate()
    left = [path.name for path in folder.iterdir() if "tmp" in path.name]
    return f"killed while saving, left {', '.join(left) or 'nothing incomplete'}"


def sigterm(run):
    """Sends SIGTERM after some steps; the run saves a checkpoint first."""
    process = run.start()
    run.wait_for_first_steps(process)
    process.send_signal(signal.SIGTERM)
    message = process.communicate(timeout=SECONDS)[1]
    if process.returncode == 0:
        return "ended before SIGTERM came"
    assert process.returncode == 143, message
    assert "Traceback" not in message
    assert "SIGTERM: saved step" in message or "stopped by SIGTERM" in message, message
    return message.splitlines()[-1]


def full_disk(run):
    """Runs on a disk that fills up, or with a limited file size if no disk can be mounted."""
    run.workdir.mkdir(exist_ok=True)
    pages = sum(-(-f.stat().st_size // 4096) for f in run.workdir.rglob("*") if f.is_file())
    size = 4096 * pages + run.random.randrange(40_000, 120_000)  # a checkpoint takes 100 kB
    disk = run.workdir.with_name("disk")
    disk.mkdir(exist_ok=True)
    script = ["sh", "-c", FULL_DISK, "sh", str(size), str(disk), str(run.workdir)]
    process = run.start(before=["unshare", "-m", *script], workdir=disk)
    message = process.communicate(timeout=SECONDS)[1]
    if process.returncode not in (0, 1, 2):  # no permission to mount a disk
        process = run.start(before=["bash", "-c", 'ulimit -f 8; "$@"', "bash"])
        message = process.communicate(timeout=SECONDS)[1]
    if process.returncode == 0:
        return "the disk was large enough"
    assert process.returncode == 1, message
    assert "Traceback" not in message, message
    error = message.splitlines()[-1]
    assert error.startswith("error: ")
    assert "No space left" in error or "could not be written" in error or "too large" in error
    return error


def truncate_newest(run):
    """Truncates the files of the newest checkpoint's arrays to half their size."""
    saved = checkpoints(run.workdir)
    if len(saved) < 2:
        return "too few checkpoints to truncate one"
    for file in (saved[-1] / "state").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    process = run.start()
    run.wait_for_first_steps(process, 1)
    process.kill()
    message = process.communicate()[1]
    assert f"step {saved[-1].name} cannot be read: moved to unreadable/" in message, message
    assert f"resuming from step {saved[-2].name} " in message
    return f"truncated the checkpoint of step {saved[-1].name}: resumed from {saved[-2].name}"


def delete_newest(run):
    """Removes the newest checkpoint."""
    saved = checkpoints(run.workdir)
    if len(saved) < 2:
        return "too few checkpoints to delete one"
    shutil.rmtree(saved[-1])
    return f"deleted the checkpoint of step {saved[-1].name}"


def vanished_shard(run):
    """Hides a shard of the dataset at the start, and then restores it."""
    shard = run.random.choice(sorted(run.data_dir.rglob("*.array_record-*")))
    hidden = shard.with_name(f"hidden-{shard.name}")
    shard.rename(hidden)
    try:
        message = wait_for_end(run.start(), 1)
    finally:
        hidden.rename(shard)
    error = message.splitlines()[-1]
    assert shard.name in error
    return error


def vanished_while_running(run):
    """Moves a shard while the run reads it: an error unless the file is already open."""
    shard = run.random.choice(sorted(run.data_dir.rglob("*.array_record-*")))
    hidden = shard.with_name(f"hidden-{shard.name}")
    process = run.start()
    run.wait_for_first_steps(process, 2)
    shard.rename(hidden)
    try:
        run.wait_for_more_steps(process)
        process.kill()
        message = process.communicate()[1]
    finally:
        hidden.rename(shard)
    assert process.returncode in (-signal.SIGKILL, 0) or shard.name in message, message
    return f"a shard was missing for some steps, status {process.returncode}"


def jumping_clock(run):
    """Sets the clock back and forth by an hour during the run, until it is killed."""
    process = run.start(program=JUMPING_CLOCK)
    run.wait_for_first_steps(process)
    process.kill()
    message = process.communicate()[1]
    assert "Traceback" not in message, message
    return f"the clock jumped until a row of step {run.step()}"


FAULTS = (
    kill,
    kill_while_saving,
    sigterm,
    full_disk,
    truncate_newest,
    delete_newest,
    vanished_shard,
    vanished_while_running,
    jumping_clock,
)
