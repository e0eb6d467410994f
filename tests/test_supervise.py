"""Who watches over a process of a job ends as that one does, and says what it could not."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
START = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from cellclr_jax.startup.supervise import go_on_in_child
{before}
go_on_in_child()
print(os.getpid(), flush=True)
{rest}
"""


def start(rest, before=""):
    program = START.format(root=str(ROOT), before=before, rest=rest)
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("rest", "status", "told"),
    [
        ("sys.exit(0)", 0, ""),
        ("sys.exit(143)", 143, ""),
        ("print('error: no such thing', file=sys.stderr); sys.exit(2)", 2, "no such thing"),
        ("os.abort()", 1, "SIGABRT (most likely another process of the job is gone"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "SIGKILL (by hand, or for want of memory)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "SIGSEGV (by the system)"),
    ],
)
def test_the_end_of_the_child_is_passed_on_and_told(rest, status, told):
    process = start(rest)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == status
    assert told in error
    assert error.count("\n") == bool(told)


def test_a_signal_is_passed_on():
    process = start(
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.01)"
    )
    assert process.stdout.readline()
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143


def test_a_signal_that_comes_while_it_forks_is_passed_on():
    """The child is there, what watches it is not ready: the signal waits, and none is lost."""
    until_the_child_is_ready = (
        "import os, signal\n"
        "fork = os.fork\n"
        "told, tell = os.pipe()\n"
        "def slow_fork():\n"
        "    child = fork()\n"
        "    if child:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        os.read(told, 1)\n"
        "    return child\n"
        "os.fork = slow_fork\n"
    )
    process = start(
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "os.write(tell, b'.')\n"
        "while True: time.sleep(0.01)",
        before=until_the_child_is_ready,
    )
    assert process.wait(60) == 7


def test_the_child_goes_with_the_one_that_watches():
    process = start("time.sleep(600)")
    child = int(process.stdout.readline())
    process.kill()
    process.wait(60)
    deadline = time.monotonic() + 60
    while not has_ended(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def has_ended(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0] in "ZX"
    except OSError:
        return True
