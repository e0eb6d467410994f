"""Signs in the metrics of a run that its representation collapses."""

from collections.abc import Mapping

from cellclr_jax.objectives import Objective

# Of the first row's spread. A healthy encoder's spread changes by a few times its size, with the
# embeddings' scale; what is left at a hundredth is rounding of a common offset.
_LEAST_SPREAD = 0.01
# One row may be a few steps at the very beginning.
_ROWS = 3


class CollapseWatch:
    """Judges rows of training metrics, in their order.

    There are two signs of a collapse. The embeddings' spread falls below a hundredth of what the
    run began with: an encoder dies so behind a ReLU that is never open. Or in three rows running
    the objective sees a collapse in its own metrics (`Objective.sign_of_collapse`).

    Args:
      objective: of the run.
      minibatch_size: of training.
    """

    def __init__(self, objective: Objective, minibatch_size: int) -> None:
        self._objective, self._minibatch_size = objective, minibatch_size
        self._first_spread: float | None = None
        self._signs = 0

    def __call__(self, row: Mapping[str, float]) -> str | None:
        """Returns a warning and what to try where a row shows a collapse."""
        reason = self._reason(row)
        advice = self._objective.advice
        return reason and f"the representation may be collapsing: {reason}; {advice}"

    def _reason(self, row: Mapping[str, float]) -> str | None:
        spread = row.get("embedding_spread")
        if self._first_spread is None:
            self._first_spread = spread
        first = self._first_spread
        if spread is not None and first is not None and spread < _LEAST_SPREAD * first:
            return f"the embeddings' spread fell from {first:.3g} to {spread:.3g}"
        sign = self._objective.sign_of_collapse(row, self._minibatch_size)
        self._signs = self._signs + 1 if sign else 0
        return sign if self._signs >= _ROWS else None
