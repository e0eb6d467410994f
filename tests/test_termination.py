"""SIGTERM arrives as an exception, whatever drops it, and leaves imports and tidying up alone."""

import contextlib
import importlib
import signal
import time

import pytest

from cellclr_jax.startup.termination import Terminated, raise_at_sigterm, stop_raising


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


def wait():
    """Longer than the exception takes to come again."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        time.sleep(0.01)


def test_it_comes_at_once():
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)
    assert Terminated.came


@pytest.mark.parametrize("times", [1, 3])
def test_it_comes_again_where_it_was_dropped(times):
    for _ in range(times):
        with contextlib.suppress(Terminated):
            signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Terminated):
        wait()


def test_what_is_being_imported_is_imported_first(tmp_path, monkeypatch):
    (tmp_path / "signalled.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGTERM)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("signalled")
    assert module.whole
    with pytest.raises(Terminated):
        wait()


@contextlib.contextmanager
def slowly_tidied_up(done):
    try:
        yield
    finally:
        time.sleep(0.2)
        done.append("tidy")


def test_tidying_up_is_not_interrupted():
    done = []
    with pytest.raises(Terminated), slowly_tidied_up(done), slowly_tidied_up(done):
        signal.raise_signal(signal.SIGTERM)
    assert done == ["tidy", "tidy"]


def test_nothing_comes_after_it_was_handled():
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)
    stop_raising()
    time.sleep(0.2)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
