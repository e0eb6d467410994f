"""What asks a run to end is noted, once, and what was ignored before stays so."""

import signal

import jax
import pytest
from jax.experimental import multihost_utils

from cellclr_jax.training.stop_signals import stop_signals_noted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers():
    """As a program in a terminal has them; afterwards those of the tests."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_until_the_step_is_done(number, capfd):
    with stop_signals_noted() as asked:
        assert asked(1) is None
        signal.raise_signal(number)
        assert asked(2) == number
    assert capfd.readouterr().err.count("saving after this step") == 1


@pytest.mark.parametrize("number", SIGNALS)
def test_one_of_several_processes_tells_the_others_as_jax_does(number, monkeypatch, capfd):
    """JAX's own handler of SIGTERM knows them; it is in the place of Python's."""
    told = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: bool(told) and step > 5
    )
    with stop_signals_noted() as asked:
        assert asked(6) is None
        signal.raise_signal(number)
        assert asked(5) is None
        assert asked(6) == number
    assert told == [signal.SIGTERM]
    expected = number != signal.SIGTERM
    assert capfd.readouterr().err.count("that all processes agree on") == expected


def test_a_second_ctrl_c_ends_at_once():
    with stop_signals_noted():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_second_sigterm_does_not_interrupt_saving():
    with stop_signals_noted() as asked:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert asked(1) == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_is_ignored_stays_ignored(number):
    """By jobs in the background, and under nohup."""
    signal.signal(number, signal.SIG_IGN)
    with stop_signals_noted() as asked:
        signal.raise_signal(number)
        assert asked(1) is None
    assert signal.getsignal(number) == signal.SIG_IGN
