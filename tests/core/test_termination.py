"""SIGTERM arrives as an exception, whatever drops it, and leaves imports and tidying up alone."""

import contextlib
import importlib
import signal
import sys
import time

import pytest

from cellclr_jax.cli import Terminated, raise_at_sigterm, stop_raising


@pytest.fixture(autouse=True)
def handlers(monkeypatch):
    """As a binary has them; afterwards those of the tests."""
    monkeypatch.setattr(Terminated, "came", False)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    raise_at_sigterm()
    yield
    stop_raising()
    for number, handler in before.items():
        signal.signal(number, handler)


def arrives(action):
    """Whether the exception comes out of an action. While it is handled no other comes."""
    try:
        action()
    except Terminated:
        stop_raising()
        return True
    return False


def wait():
    """Longer than the exception takes to come again."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        time.sleep(0.01)


def raise_signal():
    signal.raise_signal(signal.SIGTERM)


def test_it_comes_at_once_and_once():
    assert arrives(raise_signal)
    assert Terminated.came
    time.sleep(0.2)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize("times", [1, 3])
def test_it_comes_again_where_it_was_dropped(times):
    def drop():
        for _ in range(times):
            with contextlib.suppress(Terminated):
                raise_signal()
        wait()

    assert arrives(drop)


def test_what_is_being_imported_is_imported_first(tmp_path, monkeypatch):
    (tmp_path / "signalled.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGTERM)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def load():
        importlib.import_module("signalled")
        wait()

    assert arrives(load)
    assert sys.modules["signalled"].whole


@contextlib.contextmanager
def slowly_tidied_up(done):
    try:
        yield
    finally:
        time.sleep(0.2)
        done.append("tidy")


def test_tidying_up_is_not_interrupted():
    done = []

    def begin():
        with slowly_tidied_up(done), slowly_tidied_up(done):
            raise_signal()

    assert arrives(begin)
    assert done == ["tidy", "tidy"]
