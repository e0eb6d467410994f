"""Tells a representation that collapses: all cells in one point, whatever they look like."""

from collections.abc import Iterable, Mapping
from typing import Any

FLAG = "collapse_warning"
# Of the first row's spread. A healthy encoder's spread changes by a few times its size, with the
# embeddings' scale; what is left at a hundredth is rounding beside a common offset.
_LEAST_SPREAD = 0.01
# A projection without direction in it guesses; twice a guess's share of hits is still luck.
_CHANCES = 2.0
# Uniformity of projections about 13 degrees from each other: log exp(-2 d²) where d² is 0.05.
_ONE_POINT = -0.1
# One row may be a few steps at the very beginning.
_ROWS = 3

ADVICE = (
    "try a lower --config.optimizer.learning_rate, a longer --config.schedule.warmup_epochs, "
    "a higher --config.temperature or --config.model.head.norm=batch"
)


class CollapseWatch:
    """Looks at each row of training metrics and warns once.

    Two signs. The embeddings' spread falls below a hundredth of what the run began with: encoders
    die so, behind a ReLU that is never open. Or three rows running the contrastive accuracy is no
    better than twice chance while uniformity is above -0.1: the projections lie in one point and
    the loss has no way out of it. The second needs both, since a healthy encoder without
    normalisation begins with a uniformity of -0.04, and a healthy one with it with a guess's
    accuracy; and it needs no spread, which too high a learning rate drives up without bound.

    Args:
      minibatch_size: of training, for chance: a view's other view is one of 2B - 1.
      rows: that the run wrote before it was taken up again: its first spread, and whether it
        warned already.
    """

    def __init__(self, minibatch_size: int, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._chance = 1 / (2 * minibatch_size - 1)
        self._first_spread: float | None = None
        self._in_one_point = 0
        self._warned = False
        for row in rows:
            self._warned |= FLAG in row
            self._begin(row)

    def look(self, metrics: Mapping[str, float]) -> str:
        """What is wrong, the first time something is; '' otherwise."""
        self._begin(metrics)
        reason = "" if self._warned else self._reason(metrics)
        self._warned |= bool(reason)
        return reason

    def _begin(self, metrics: Mapping[str, Any]) -> None:
        spread = metrics.get("embedding_spread")
        if self._first_spread is None and isinstance(spread, int | float):
            self._first_spread = spread

    def _reason(self, metrics: Mapping[str, float]) -> str:
        spread, first = metrics.get("embedding_spread"), self._first_spread
        if spread is not None and first is not None and spread < _LEAST_SPREAD * first:
            return f"the embeddings' spread fell from {first:.3g} to {spread:.3g}"
        if {"contrastive_accuracy", "uniformity"} <= metrics.keys():
            guesses = metrics["contrastive_accuracy"] <= _CHANCES * self._chance
            together = guesses and metrics["uniformity"] > _ONE_POINT
            self._in_one_point = self._in_one_point + 1 if together else 0
        if self._in_one_point < _ROWS:
            return ""
        accuracy, uniformity = metrics["contrastive_accuracy"], metrics["uniformity"]
        return (
            f"contrastive accuracy {accuracy:.2%} is no better than guessing and uniformity is "
            f"{uniformity:.3f}: all cells are projected to one point"
        )
