"""Transfers minibatches to the devices ahead of the training step, in a thread."""

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from cellclr_jax import devices
from cellclr_jax.errors import BadData

# Minibatches in the queue while the thread makes the next one; each may take hundreds of megabytes.
_WAITING = 1
_SECONDS_TO_CLOSE = 60.0


class Data(Protocol):
    """An iterator of minibatches with a position that can be saved, such as Grain's."""

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]: ...

    def get_state(self) -> dict[str, Any]:
        """Returns the position, from which `set_state` resumes."""


class Fed(NamedTuple):
    """A minibatch on the devices.

    Attributes:
      arrays: [B, …] by name, divided by rows among the devices.
      position: state of the data iterator after this minibatch, for the checkpoint of its step;
        the iterator itself is ahead of it.
    """

    arrays: dict[str, jax.Array]
    position: dict[str, Any]


class Feed:
    """Transfers minibatches of an iterator, in order, to the devices ahead of time.

    Args:
      data: iterator of this process's rows of each minibatch (see `devices.to_global`); must not be
        used elsewhere from now on.
      mesh: the devices.
    """

    def __init__(self, data: Data, mesh: Mesh) -> None:
        self._data, self._mesh = data, mesh
        self._ready: queue.Queue[Fed | Exception] = queue.Queue(_WAITING)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="feed", daemon=True)
        self._thread.start()

    def next(self, running: Any = None) -> tuple[Fed, float]:
        """Returns the next minibatch, and the seconds for which the devices waited for it.

        The devices are not idle until `running`, results of the last started step, are computed.
        An error of the iterator is raised after the earlier minibatches are used.

        Raises:
          BadData: the data ended.
        """
        if self._ready.empty():
            jax.block_until_ready(running)
        start = time.monotonic()
        fed = self._ready.get()
        if isinstance(fed, Exception):
            raise fed
        return fed, time.monotonic() - start

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        while not self._ready.empty():  # the thread may wait for a free place in the queue
            self._ready.get()
        self._thread.join(_SECONDS_TO_CLOSE)

    def _fill(self) -> None:
        try:
            for minibatch in self._data:
                arrays = devices.to_global(self._mesh, dict(minibatch))
                self._ready.put(Fed(arrays, self._data.get_state()))
                if self._closed.is_set():
                    return
            self._ready.put(BadData("the training data ended before the run did"))
        except Exception as error:
            self._ready.put(error)
