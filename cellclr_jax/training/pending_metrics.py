"""Keeps metrics on the devices until they are logged; traces steps with the profiler."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cellclr_jax.console import say
from cellclr_jax.training.step import Metrics

# A gradient that is not finite spoils the parameters one step before the loss shows it, and
# parameters that are not finite must never be saved.
_FINITE = ("loss", "gradient_norm", "parameter_norm")
# Steps that may be started before the one so far back is done: the devices never wait for the
# host, and what was started holds no more memory than that.
_STEPS_AHEAD = 2


class NotFinite(Exception):
    """A metric is infinite or not a number.

    Attributes:
      what: its name in words.
      step: of the optimiser.
      value: as it came.
    """

    def __init__(self, what: str, step: int, value: float) -> None:
        super().__init__(f"the {what} became {value} at step {step}")
        self.what, self.step, self.value = what, step, value


class Pending:
    """Keeps the metrics of steps until they are fetched."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, Metrics]] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Keeps the metrics of a step that was started; waits while too many are unfinished."""
        self._kept.append((step, metrics))
        if len(self._kept) > _STEPS_AHEAD:
            jax.block_until_ready(self._kept[-1 - _STEPS_AHEAD])

    def fetch(self) -> dict[str, float]:
        """Means of the steps since the last call; the learning rate of the last one.

        Returns:
          Python floats by name, none where there was no step.

        Raises:
          NotFinite: names the first step that went wrong.
        """
        kept, self._kept = self._kept, []
        if not kept:
            return {}
        fetched = jax.device_get([metrics for _, metrics in kept])
        for (step, _), metrics in zip(kept, fetched, strict=True):
            check_finite(step, metrics)
        return mean(fetched) | {"lr": float(fetched[-1]["lr"])}


def check_finite(step: int, metrics: Mapping[str, Any], kind: str = "") -> None:
    """Raises NotFinite if a metric that reflects the parameters is not finite."""
    for name in _FINITE:
        if name in metrics and not math.isfinite(metrics[name]):
            what = f"{kind}{name.replace('_', ' ')}"
            raise NotFinite(what, step, float(metrics[name]))


def mean(fetched: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the means of metrics by name."""
    return {name: float(np.mean([m[name] for m in fetched])) for name in fetched[0]}


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
        """Starts the trace before the first step to trace."""
        if self._folder is not None and step == self._begin:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, metrics: Any) -> None:
        """Ends the trace after the last step to trace, and prints how to open it.

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
