"""Work in threads: each item has its end, in order, and nothing keeps a process from its own."""

import threading

import pytest

from cellclr_jax.data.download.threads import map_in_threads
from cellclr_jax.errors import BadData


def double(number):
    """Twice a number; fails at 2 and at 3 as reading does, at 7 as a defect does."""
    if number == 2:
        raise BadData("two")
    if number == 3:
        raise OSError("three")
    if number == 7:
        raise KeyError("seven")
    return 2 * number


@pytest.mark.parametrize("threads", [1, 3, 9])
def test_what_goes_wrong_with_an_item_is_its_result(threads):
    stop, done = threading.Event(), []
    results = map_in_threads(double, range(6), threads, stop, lambda: done.append(0))
    assert [str(result) for result in results] == ["0", "2", "two", "three", "8", "10"]
    assert len(done) == 6
    assert not stop.is_set()
    assert map_in_threads(double, [], threads, stop) == []


def test_a_defect_ends_it():
    stop = threading.Event()
    with pytest.raises(KeyError, match="seven"):
        map_in_threads(double, range(9), 2, stop)
    assert stop.is_set()


def test_an_interrupt_stops_the_threads_that_notice_and_leaves_the_others():
    stop, never = threading.Event(), threading.Event()
    noticed = []

    def work(number):
        if number == 0:
            never.wait()
        elif number == 1:
            stop.wait()
            noticed.append(number)

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_in_threads(work, range(9), 3, stop, interrupt)
    assert noticed == [1]
    never.set()
