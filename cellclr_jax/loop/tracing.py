"""A trace of some steps: what the devices and the host did, and when."""

from pathlib import Path
from typing import Any

import jax

from cellclr_jax.logs import say

PROFILE = "profile"
# The first steps compile, fill the queues and warm the memory up.
_STEPS_BEFORE = 5


class Trace:
    """Traces steps of a run into a folder, once.

    Args:
      folder: where to write; None traces nothing.
      first_step: of this call of the run.
      last_step: of the run; a trace of fewer steps than asked for ends with it.
      steps: how many; 0 traces nothing.
    """

    def __init__(self, folder: Path | None, *, first_step: int, last_step: int, steps: int) -> None:
        self._folder = folder if steps else None
        self._begin = min(first_step + _STEPS_BEFORE, max(first_step, last_step - steps + 1))
        self._end = min(self._begin + steps - 1, last_step)
        self._running = False
        if self._folder is not None and first_step > last_step:
            say("nothing to trace: no step is left")
        elif self._folder is not None and self._begin == first_step:
            say("the first step is traced, too: there it compiles, and no more are left")

    def before(self, step: int) -> None:
        """Begins, where a step is the first one to trace."""
        if self._folder is not None and step == self._begin:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, metrics: Any) -> None:
        """Ends, where a step is the last one to trace, and says how to look at it.

        Args:
          step: that was started.
          metrics: of that step, which are waited for.
        """
        if self._running and step == self._end:
            jax.block_until_ready(metrics)
            self.close()
            say(
                f"traced steps {self._begin} to {self._end}: pip install xprof; "
                f"xprof --logdir={self._folder}; or open its .trace.json.gz in "
                "https://ui.perfetto.dev"
            )

    def close(self) -> None:
        """Writes what was traced so far."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
