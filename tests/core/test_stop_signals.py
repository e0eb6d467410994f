"""Signals to end a run are recorded until a step is done; ignored signals stay ignored."""

import signal

import jax
import pytest
from jax.experimental import multihost_utils

from cellclr_jax.training.stop_signals import stop_signals_noted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers():
    """Sets the handlers of a program in a terminal; restores those of the tests."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_recorded_until_the_step_is_done(number, capfd):
    with stop_signals_noted() as should_stop:
        assert should_stop(1) is None
        signal.raise_signal(number)
        assert should_stop(2) == number
    assert capfd.readouterr().err.count("saving after this step") == 1


@pytest.mark.parametrize("number", SIGNALS)
def test_one_of_several_processes_informs_the_others_by_jax(number, monkeypatch, capfd):
    """JAX's handler of SIGTERM, which replaces Python's, informs the other processes."""
    received = []
    signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: bool(received) and step > 5
    )
    with stop_signals_noted() as should_stop:
        assert should_stop(6) is None
        signal.raise_signal(number)
        assert should_stop(5) is None
        assert should_stop(6) == number
    assert received == [signal.SIGTERM]
    expected = number != signal.SIGTERM
    assert capfd.readouterr().err.count("that all processes agree on") == expected


def test_a_second_ctrl_c_ends_at_once():
    with stop_signals_noted():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_second_sigterm_does_not_interrupt_saving():
    with stop_signals_noted() as should_stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert should_stop(1) == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_that_background_jobs_ignore_stay_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    with stop_signals_noted() as should_stop:
        signal.raise_signal(number)
        assert should_stop(1) is None
    assert signal.getsignal(number) == signal.SIG_IGN
