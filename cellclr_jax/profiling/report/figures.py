"""Figures of an evaluation as PNG bytes: confusion matrices and t-SNE maps of the treatments."""

import io
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from cellclr_jax.console import plural
from cellclr_jax.pages import colour_and_symbol
from cellclr_jax.profiling.evaluation import Evaluation
from cellclr_jax.profiling.feature_columns import own_features
from cellclr_jax.profiling.moa import BATCH_SEPARATOR, Score, batch_order

# matplotlib's markers, in the order of Plotly's `pages.SYMBOLS`.
_SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "p", ">", "h")
_PIXELS_PER_INCH = 110
# Fewer treatments have no meaningful neighbourhoods.
_FEWEST_TREATMENTS = 8
MOST_TREATMENTS = 5_000
"""With more treatments, maps take minutes, and the page is slow to open."""
# A confusion matrix of more mechanisms cannot be read.
_MOST_MECHANISMS = 60
_PERPLEXITY = 10.0
# Up to this many points the exact gradient is faster than Barnes-Hut.
_EXACT = 500
# Of Barnes-Hut. Twice as many improve the trustworthiness of 2,500 treatments only from 0.985 to
# 0.986.
_ITERATIONS = 500
# A legend of more names cannot be read, and its layout takes seconds.
_LONGEST_LEGEND = 30
_SEED = 0
_UMAP_NEIGHBOURS = 10


Maps = dict[str, dict[str, np.ndarray]]
"""[N, 2] float32 coordinates by correction and method, 't-SNE' or 'UMAP'."""


def plan(evaluation: Evaluation) -> dict[str, str]:
    """Lists the figures of an evaluation.

    Returns:
      By file name ('confusion_none.png', 'tsne_tvn.png' …): '', or why it cannot be drawn.
    """
    found = {}
    for name, scores in evaluation.scores.items():
        found[f"confusion_{name}.png"] = _why_no_confusion(scores.nsc, scores.nscb)
        found[f"tsne_{name}.png"] = why_no_map(scores.treatments, scores.nsc)
    return found


def place(
    evaluation: Evaluation, *, with_umap: bool = False, after: Callable[[], None] = lambda: None
) -> Maps:
    """Computes a map of the treatments under each correction that allows one.

    Args:
      evaluation: of treatments.
      with_umap: see `place_treatments`.
      after: called after each correction.
    """
    maps: Maps = {}
    for name, scores in evaluation.scores.items():
        if not why_no_map(scores.treatments, scores.nsc):
            maps[name] = place_treatments(scores.treatments, with_umap=with_umap)
        after()
    return maps


def draw(evaluation: Evaluation, maps: Maps) -> Iterator[tuple[str, bytes]]:
    """Draws the figures of an evaluation that can be drawn; see `plan`.

    Args:
      evaluation: of treatments.
      maps: from `place`.

    Yields:
      File name and PNG.
    """
    reasons = plan(evaluation)
    for name, scores in evaluation.scores.items():
        if not reasons[file := f"confusion_{name}.png"]:
            yield file, confusion(scores.nsc, scores.nscb, name)
        if not reasons[file := f"tsne_{name}.png"]:
            yield file, tsne(scores.treatments, maps[name]["t-SNE"], name)


def confusion(nsc: Score, nscb: Score, title: str) -> bytes:
    """Draws the confusion matrices of NSC and NSCB side by side, true MoAs as rows.

    Args:
      nsc: the not-same-compound score.
      nscb: the not-same-compound-or-batch score; one of both may be undefined.
      title: the correction.

    Returns:
      A PNG file.
    """
    scores = [score for score in (nsc, nscb) if not score.undefined]
    names = [score.neighbours[c] for score in scores for c in ("moa", "neighbour_moa")]
    moas = sorted(set(pd.concat(names)) - {""}, key=str.lower)
    side = 2.4 + 0.38 * len(moas)
    figure = Figure(figsize=(2 * side + 1.0, side + 1.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, name, score in zip(axes, ("NSC", "NSCB"), (nsc, nscb), strict=True):
        _draw_confusion(axis, name, score, moas)
    axes[0].set_ylabel("True MoA")
    figure.suptitle(f"Confusion matrix, correction: {title}")
    return _png(figure)


def tsne(treatments: pd.DataFrame, points: np.ndarray, title: str) -> bytes:
    """Draws a t-SNE map of the treatments by cosine distance, coloured by MoA and by batch.

    Args:
      treatments: treatment profiles [N].
      points: [N, 2] coordinates from `place_treatments`.
      title: the correction.

    Returns:
      A PNG file.
    """
    figure = Figure(figsize=(15, 6.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_points(left, points, treatments["Metadata_MoA"].tolist(), "mechanism of action")
    batches = ["several" if BATCH_SEPARATOR in b else b for b in treatments["Metadata_Batch"]]
    _draw_points(right, points, batches, "batch")
    figure.suptitle(f"t-SNE of {len(points)} treatments (cosine distance), correction: {title}")
    return _png(figure)


def place_treatments(treatments: pd.DataFrame, *, with_umap: bool = False) -> dict[str, np.ndarray]:
    """Computes maps of the treatments by cosine distance, reproducibly.

    Args:
      treatments: treatment profiles [N], N at least 8, none of them zeros.
      with_umap: adds UMAP, if its library is installed.

    Returns:
      [N, 2] float32 by method: 't-SNE', 'UMAP'.
    """
    values = treatments[own_features(treatments)].to_numpy(np.float64)
    few = len(values) <= _EXACT
    model = TSNE(
        metric="cosine",
        method="exact" if few else "barnes_hut",
        max_iter=1_000 if few else _ITERATIONS,
        init="random",
        perplexity=min(_PERPLEXITY, (len(values) - 1) / 3),
        random_state=_SEED,
    )
    with threadpool_limits(limits=1):  # OpenMP's threads wait for each other on a busy machine
        found = {"t-SNE": model.fit_transform(values)}
        if with_umap and find_spec("umap"):
            from umap import UMAP

            count = min(_UMAP_NEIGHBOURS, len(values) - 1)
            reducer = UMAP(metric="cosine", n_neighbors=count, random_state=_SEED, n_jobs=1)
            found["UMAP"] = reducer.fit_transform(values)
    return found


def why_no_map(treatments: pd.DataFrame, nsc: Score) -> str:
    """Returns why there is no map, or ''."""
    if treatments.empty:
        return nsc.undefined
    if len(treatments) < _FEWEST_TREATMENTS:
        return f"{plural(len(treatments), 'treatment')}: a map needs at least {_FEWEST_TREATMENTS}"
    if len(treatments) > MOST_TREATMENTS:
        return f"{len(treatments):,} treatments: a map has at most {MOST_TREATMENTS:,}"
    features = own_features(treatments)
    if not np.any(treatments[features].to_numpy(), axis=1).all():
        return "a profile of zeros has no cosine distance"
    return ""


def _why_no_confusion(nsc: Score, nscb: Score) -> str:
    """Returns why there are no confusion matrices, or ''."""
    if nsc.undefined and nscb.undefined:
        return nsc.undefined
    moas = (nsc if nscb.undefined else nscb).neighbours["moa"].nunique()
    too_many = f"{moas} mechanisms: a matrix has at most {_MOST_MECHANISMS}"
    return too_many if moas > _MOST_MECHANISMS else ""


def _draw_confusion(axis: Axes, name: str, score: Score, moas: list[str]) -> None:
    """Draws one matrix with its counts."""
    axis.set_xticks(range(len(moas)), moas, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(moas)), moas)
    axis.set_xlabel("Predicted MoA")
    if score.undefined:
        axis.set_title(f"{name}: undefined")
        axis.set_xlim(-0.5, len(moas) - 0.5)
        return
    neighbours = score.neighbours
    pairs = pd.crosstab(neighbours["moa"], neighbours["neighbour_moa"])
    counts = pairs.reindex(index=moas, columns=moas, fill_value=0).to_numpy()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    for row, column in np.argwhere(counts):
        colour = "white" if shares[row, column] > 0.55 else "black"
        axis.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour)
    axis.set_title(f"{name} {score.correct}/{score.total} ({100 * (score.accuracy or 0):.1f} %)")


def _draw_points(axis: Axes, points: np.ndarray, labels: Sequence[str], what: str) -> None:
    """Draws points with a colour and shape per label, and a legend if it is short enough."""
    names = sorted(set(labels), key=batch_order)
    styles = dict(zip(names, map(colour_and_symbol, range(len(names))), strict=True))
    colours, shapes = zip(*(styles[label] for label in labels), strict=True)
    style: dict[str, Any] = {"s": 60, "edgecolor": "white", "linewidth": 0.5}
    for shape in sorted(set(shapes)):
        rows = np.flatnonzero(np.array(shapes) == shape)
        chosen = [colours[row] for row in rows]
        axis.scatter(*points[rows].T, marker=_SHAPES[shape], color=chosen, **style)
    axis.set_title(f"coloured by {what}")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel("t-SNE 1")
    axis.set_ylabel("t-SNE 2")
    if len(names) <= _LONGEST_LEGEND:
        for name, (colour, shape) in styles.items():
            axis.scatter(
                [], [], marker=_SHAPES[shape], color=colour, label=name or "unknown", **style
            )
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, title=what)


def _png(figure: Figure) -> bytes:
    """Encodes a figure as PNG, independent of the user's matplotlib settings."""
    buffer = io.BytesIO()
    with matplotlib.style.context("default"):
        figure.savefig(buffer, format="png", dpi=_PIXELS_PER_INCH, bbox_inches="tight")
    return buffer.getvalue()
