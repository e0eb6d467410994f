"""Keeps metrics on the devices until they are logged; traces steps with the profiler."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cellclr_jax.console import echo
from cellclr_jax.training.step import Metrics

# A gradient that is not finite spoils the parameters one step before the loss shows it, and
# parameters that are not finite must never be saved.
_FINITE = ("loss", "gradient_norm", "parameter_norm")
# Unfinished steps at which the host waits: enough that the devices never wait for the host, and few
# enough to limit the memory of their inputs.
_STEPS_AHEAD = 2
PROFILE = "profile"
# The first steps compile, fill the queues and warm up the memory.
_STEPS_BEFORE = 5


class NotFinite(Exception):
    """A metric of a step is infinite or not a number."""

    def __init__(self, what: str, step: int, value: float) -> None:
        super().__init__(f"the {what} became {value} at step {step}")
        self.step = step


class Pending:
    """Metrics of steps that have not been fetched from the devices."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, Metrics]] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Adds the metrics of a started step; waits while too many steps are unfinished."""
        self._steps.append((step, metrics))
        if len(self._steps) > _STEPS_AHEAD:
            jax.block_until_ready(self._steps[-1 - _STEPS_AHEAD])

    def fetch(self) -> dict[str, float]:
        """Returns means over the steps since the last call, at least one, and the last `lr`.

        Raises:
          NotFinite: names the first step with a metric that is not finite.
        """
        steps, self._steps = self._steps, []
        fetched = jax.device_get([metrics for _, metrics in steps])
        for (step, _), metrics in zip(steps, fetched, strict=True):
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


class Trace:
    """Traces steps of a run, between its first and last step, into a folder, once.

    Without a folder, or with 0 steps, traces nothing.
    """

    def __init__(self, folder: Path | None, *, first_step: int, last_step: int, steps: int) -> None:
        self._folder, self._running = folder, False
        self._begin = min(first_step + _STEPS_BEFORE, max(first_step, last_step - steps + 1))
        self._end = min(self._begin + steps - 1, last_step)
        if folder is None or not steps:
            self._begin = 0
        elif first_step > last_step:
            echo("nothing to trace: no step is left")
        elif self._begin == first_step:
            echo("the trace includes the first step and its compilation: few steps are left")

    def before(self, step: int) -> None:
        """Starts the trace before its first step."""
        if self._folder is not None and step == self._begin:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, metrics: Any) -> None:
        """Ends the trace after its last step, waiting for its metrics; prints how to open it."""
        if self._running and step == self._end:
            jax.block_until_ready(metrics)
            self.close()
            echo(
                f"traced steps {self._begin} to {self._end}: pip install xprof; "
                f"xprof --logdir={self._folder}; or open its .trace.json.gz in "
                "https://ui.perfetto.dev"
            )

    def close(self) -> None:
        """Writes an unfinished trace."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
