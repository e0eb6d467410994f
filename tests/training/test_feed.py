"""Minibatches are on the devices ahead of the step; positions are those of the minibatches."""

import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cellclr_jax import devices
from cellclr_jax.errors import BadData
from cellclr_jax.training import feed
from cellclr_jax.training.feed import Feed


class Numbers:
    """Minibatches that contain their number; reading one of them may fail or wait."""

    def __init__(self, count=20, broken=None, gate=None):
        self.position, self.count, self.broken, self.gate = 0, count, broken, gate

    def __iter__(self):
        return self

    def __next__(self):
        if self.gate is not None:
            self.gate.wait()
        if self.position == self.broken:
            raise BadData("a shard is gone")
        if self.position == self.count:
            raise StopIteration
        self.position += 1
        return {"image": np.full((4, 2), self.position, np.uint16)}

    def get_state(self):
        return {"next_index": self.position}


@pytest.fixture
def feed_of():
    """Makes feeds, and closes them at the end."""
    feeds = []

    def make(data):
        feeds.append(Feed(data, devices.make_mesh(2)))
        return feeds[-1]

    yield make
    for opened in feeds:
        opened.close()
        assert not opened._thread.is_alive()


def test_minibatches_come_in_order_with_the_position_right_after_each(feed_of):
    feed = feed_of(Numbers())
    for number in range(1, 21):
        fed, waited = feed.next()
        assert (np.asarray(fed.arrays["image"]) == number).all()
        assert fed.arrays["image"].sharding.spec == jax.sharding.PartitionSpec("data")
        assert fed.position == {"next_index": number}
        assert waited >= 0


def test_two_minibatches_are_read_ahead(feed_of):
    data = Numbers()
    feed = feed_of(data)
    feed.next()
    deadline = time.monotonic() + 600
    while data.position < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)  # for a third one, which must not be read
    assert data.position == 3  # one in the queue, one in the thread


def test_an_error_is_raised_after_the_minibatches_before_it(feed_of):
    feed = feed_of(Numbers(broken=2))
    assert [feed.next()[0].position["next_index"] for _ in range(2)] == [1, 2]
    with pytest.raises(BadData, match="a shard is gone"):
        feed.next()


def test_the_wait_is_measured_from_the_end_of_the_step(feed_of, monkeypatch):
    gate, now = threading.Event(), [0.0]

    def step_ends(running):
        now[0] += 5.0

    def clock():
        """Releases the data two seconds after the first reading."""
        before = now[0]
        if before == 5.0:
            now[0] += 2.0
            gate.set()
        return before

    monkeypatch.setattr(feed, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(jax, "block_until_ready", step_ends)
    assert feed_of(Numbers(gate=gate)).next(running="a step of five seconds")[1] == 2.0


def test_an_unused_feed_can_be_closed(feed_of):
    feed = feed_of(Numbers())
    feed.close()
    assert not feed._thread.is_alive()


def test_data_that_end_too_early_are_an_error(feed_of):
    feed = feed_of(Numbers(count=1))
    feed.next()
    with pytest.raises(BadData, match="the training data ended"):
        feed.next()
