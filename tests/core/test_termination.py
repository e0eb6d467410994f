"""SIGTERM raises an exception, again if it was dropped, but not during imports and cleaning up."""

import contextlib
import importlib
import signal
import sys
import time

import pytest

from cellclr_jax.cli import Terminated, raise_at_sigterm, stop_raising


@pytest.fixture(autouse=True)
def handlers(monkeypatch):
    """Sets the handlers of a binary; restores those of the tests."""
    monkeypatch.setattr(Terminated, "came", False)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    raise_at_sigterm()
    yield
    stop_raising()
    for number, handler in before.items():
        signal.signal(number, handler)


def arrives(action):
    """Whether an action raises the exception, which is not raised again while it is handled."""
    try:
        action()
    except Terminated:
        stop_raising()
        return True
    return False


def wait():
    """Waits until the exception is raised again."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        time.sleep(0.01)


def raise_signal():
    signal.raise_signal(signal.SIGTERM)


def test_it_is_raised_at_once_and_once():
    assert arrives(raise_signal)
    assert Terminated.came
    time.sleep(0.2)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize("times", [1, 3])
def test_it_is_raised_again_if_it_was_dropped(times):
    def drop():
        for _ in range(times):
            with contextlib.suppress(Terminated):
                raise_signal()
        wait()

    assert arrives(drop)


def test_an_import_is_completed_first(tmp_path, monkeypatch):
    (tmp_path / "signalled.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGTERM)\ncomplete = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def load():
        importlib.import_module("signalled")
        wait()

    assert arrives(load)
    assert sys.modules["signalled"].complete


@contextlib.contextmanager
def slow_clean_up(done):
    try:
        yield
    finally:
        time.sleep(0.2)
        done.append("clean")


def test_cleaning_up_is_not_interrupted():
    done = []

    def begin():
        with slow_clean_up(done), slow_clean_up(done):
            raise_signal()

    assert arrives(begin)
    assert done == ["clean", "clean"]
