"""Metrics of contrastive training, and signs that the representation collapses."""

from collections.abc import Mapping

from cellclr_jax.training.log.metrics_file import Metric

METRICS = (
    Metric("loss", "NT-Xent, mean over minibatches", "lower", "loss {:.4f}"),
    Metric(
        "contrastive_accuracy",
        "share of views whose nearest other view is of the same cell",
        "higher",
        "acc {:.1%}",
    ),
    Metric("alignment", "mean squared distance of a cell's two projections, 0 to 4; 0: equal"),
    Metric("uniformity", "log of the mean Gaussian of distances of cells; 0: all in one point"),
    Metric("embedding_spread", "mean standard deviation of an embedding's features over cells"),
)
# Of the first row's spread. A healthy encoder's spread changes by a few times its size, with the
# embeddings' scale; what is left at a hundredth is rounding beside a common offset.
_LEAST_SPREAD = 0.01
# A projection without direction in it guesses; twice a guess's share of hits is still luck.
_CHANCES = 2.0
# Uniformity of projections about 13 degrees from each other: log exp(-2 d²) where d² is 0.05.
_ONE_POINT = -0.1
# One row may be a few steps at the very beginning.
_ROWS = 3
_ADVICE = (
    "try a lower --config.optimizer.learning_rate, a longer --config.schedule.warmup_epochs, "
    "a higher --config.temperature or --config.model.head.norm=batch"
)


class CollapseWatch:
    """Judges rows of training metrics, in their order.

    There are two signs of a collapse. The embeddings' spread falls below a hundredth of what the
    run began with: an encoder dies so behind a ReLU that is never open. Or in three rows running
    the contrastive accuracy is no better than twice chance while uniformity is above -0.1: the
    projections lie in one point. The second sign needs both values, since a healthy encoder without
    normalisation begins with a uniformity of -0.04, and one with it with a guess's accuracy.

    Args:
      minibatch_size: of training, for chance: a view's other view is one of 2B - 1.
    """

    def __init__(self, minibatch_size: int) -> None:
        self._chance = 1 / (2 * minibatch_size - 1)
        self._first_spread: float | None = None
        self._in_one_point = 0

    def __call__(self, row: Mapping[str, float]) -> str | None:
        """Returns a warning and what to try where a row shows a collapse."""
        reason = self._reason(row)
        return reason and f"the representation may be collapsing: {reason}; {_ADVICE}"

    def _reason(self, row: Mapping[str, float]) -> str | None:
        spread = row.get("embedding_spread")
        if self._first_spread is None:
            self._first_spread = spread
        first = self._first_spread
        if spread is not None and first is not None and spread < _LEAST_SPREAD * first:
            return f"the embeddings' spread fell from {first:.3g} to {spread:.3g}"
        if not {"contrastive_accuracy", "uniformity"} <= row.keys():
            return None
        accuracy, uniformity = row["contrastive_accuracy"], row["uniformity"]
        together = accuracy <= _CHANCES * self._chance and uniformity > _ONE_POINT
        self._in_one_point = self._in_one_point + 1 if together else 0
        if self._in_one_point < _ROWS:
            return None
        return (
            f"contrastive accuracy {accuracy:.2%} is no better than guessing and uniformity is "
            f"{uniformity:.3f}: all cells are projected to one point"
        )
