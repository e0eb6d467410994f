"""Progress on the console: a bar on a terminal, plain lines in a file."""

import sys
import time
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from cellclr_jax.console import echo
from cellclr_jax.objectives import Metric

# Without a terminal, training metrics are printed at most this often.
_SECONDS_BETWEEN_LINES = 10.0
_TITLES = {"knn": "k-NN", "nsc": "NSC", "nscb": "NSCB", "tvn": "TVN", "moa": "MoA"}
# Fits into 80 columns; a narrower terminal cuts off the end.
_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}  {desc}"


class Console:
    """Shows the progress of a run and those metrics that have a console format, in their order.

    If not `shown`, prints nothing (processes other than the first).
    """

    def __init__(
        self,
        shown: bool,
        metrics: Sequence[Metric],
        *,
        first_step: int,
        total_steps: int,
        steps_per_epoch: int,
    ) -> None:
        self._shown, self._total = shown, total_steps
        self._formats = {metric.name: metric.console for metric in metrics if metric.console}
        self._epochs = -(-total_steps // steps_per_epoch)
        self._last_line = time.monotonic()
        self._compiling = first_step < total_steps
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            desc="compiling the step …" if self._compiling else None,
            bar_format=_BAR,
            disable=not (shown and sys.stderr.isatty()),
            dynamic_ncols=True,
        )
        if self._compiling and self._bar.disable:
            self.line("compiling the step, which takes a while the first time")

    def line(self, message: str) -> None:
        """Prints a line."""
        if self._shown:
            echo(message)

    def compiled(self) -> None:
        """Removes the message that the step compiles."""
        if self._compiling:
            self._compiling = False
            self._last_line = time.monotonic()
            self._bar.set_description_str("")

    def advance(self) -> None:
        """Moves the bar by one step."""
        self._bar.update()

    def row(
        self, step: int, epoch: int, metrics: Mapping[str, float], seconds_left: float | None
    ) -> None:
        """Shows training metrics in the bar; without a bar, prints a line if one is due."""
        parts = [] if seconds_left is None else [f"{tqdm.format_interval(seconds_left)} left"]
        parts.append(self._formatted(metrics))
        if "cells_per_second" in metrics:
            parts.append(f"{metrics['cells_per_second']:,.0f} cells/s")
            parts.append(f"input {metrics['input_wait']:.0%}")
        text = "  ".join(filter(None, parts))
        if not self._bar.disable:
            self._bar.set_description_str(text)
        elif (now := time.monotonic()) - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.line(f"{self._place(step, epoch)}  {text}")

    def validation(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Prints a line of validation metrics."""
        self.line(f"{self._place(step, epoch)}  validation {self._formatted(metrics)}")

    def scores(self, step: int, epoch: int, scores: Mapping[str, float]) -> None:
        """Prints a line of online scores."""
        text = "  ".join(f"{_title(name)} {value:.1%}" for name, value in scores.items())
        self.line(f"{self._place(step, epoch)}  {text}")

    def close(self) -> None:
        """Stops updating the bar."""
        self._bar.close()

    def _formatted(self, metrics: Mapping[str, float]) -> str:
        return "  ".join(
            text.format(metrics[name]) for name, text in self._formats.items() if name in metrics
        )

    def _place(self, step: int, epoch: int) -> str:
        return f"epoch {epoch}/{self._epochs}  step {step:,}/{self._total:,}"


def _title(name: str) -> str:
    """'nscb_whitening' → 'NSCB whitening', 'knn_moa' → 'k-NN MoA'."""
    return " ".join(_TITLES.get(word, word) for word in name.split("_"))
