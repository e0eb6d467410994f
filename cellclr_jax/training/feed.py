"""Puts minibatches on the devices ahead of the training step, in a thread."""

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

# One waits while the thread makes the next one; each may hold hundreds of megabytes.
_WAITING = 1
_SECONDS_TO_CLOSE = 60.0


class Data(Protocol):
    """An iterator of minibatches with a position that can be saved, such as Grain's."""

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]: ...

    def get_state(self) -> dict[str, Any]:
        """Returns the position, from which `set_state` resumes."""


class Fed(NamedTuple):
    """A minibatch.

    Attributes:
      arrays: [B, …] by name, divided by rows among the devices.
      position: the data iterator's state right after it. A checkpoint of the step that trains on
        it stores this one, however far ahead the iterator is by then.
    """

    arrays: dict[str, jax.Array]
    position: dict[str, Any]


class Feed:
    """Takes minibatches from an iterator, in order, and puts them on the devices ahead of time.

    Args:
      data: gives this process's share of each minibatch (see `devices.to_global`); must not be
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
        """Returns the next minibatch.

        Args:
          running: results of the newest step that was started. If no minibatch is ready, they
            are waited for first: until then the devices had work.

        Returns:
          (the minibatch, seconds in which the devices were idle because of it).

        Raises:
          BadData: there is none.
          Whatever else the iterator raised, once the earlier minibatches are used.
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
        while not self._ready.empty():  # so that the thread finds room, and the end
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
