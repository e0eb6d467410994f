"""The evaluation cell by cell as a record for metrics.json, and as a table."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.data.counting import plural
from cellclr_jax.profiling.probing import probes
from cellclr_jax.profiling.probing.cells import MOST_CELLS, SEED, CellEvaluation
from cellclr_jax.profiling.profiles import feature_names

# Names of classes without a score that a record holds.
_LISTED = 50
# What cells on both sides of a fold may share, by what was kept whole.
_SHARED = {
    "": "plate, well or image",
    "well": "plate",
    "site": "plate or well",
    "compound": "plate, well or image",
}


def cell_table(evaluation: CellEvaluation, name: str) -> pd.DataFrame:
    """One row a cell of the sample: `Metadata_*`, then the features of this name as cellclr_0000 …

    The features are float32.
    """
    values = np.asarray(evaluation.features[name], np.float32)
    columns = pd.DataFrame(values, columns=feature_names(values.shape[1]))
    return pd.concat([evaluation.sample.table, columns], axis=1)


def describe_cells(evaluation: CellEvaluation) -> dict[str, Any]:
    """The evaluation as it goes into `metrics.json`.

    Returns:
      {"label_column", "classes": {name: cells}, "left_out": {name: reason}, "cells", "labelled",
      "folds", "grouped_by" (null: nothing), "scores": {features: {"knn": {"balanced_accuracy",
      "accuracy", "recall", "by_fold"}, "logistic": {…}, "forest": {…}}}, "chance", "settings",
      "notes"}; and
      "undefined", the reason, where there is no score.
    """
    sample = evaluation.sample
    first = next(iter(evaluation.probes.values()), None)
    left_out = sample.left_out | (first.left_out if first else {})
    described: dict[str, Any] = {
        "label_column": sample.label_column or None,
        "classes": first.classes if first else {},
        "left_out": dict(list(left_out.items())[:_LISTED]),
        "cells": first.cells if first and not first.undefined else len(sample.rows),
        "labelled": sample.labelled,
        "folds": first.folds if first else 0,
        "grouped_by": evaluation.grouped_by or None,
        "scores": {
            name: {kind: _describe(score) for kind, score in probe.scores.items()}
            for name, probe in evaluation.probes.items()
            if probe.scores
        },
        "chance": first.chance if first else None,
        "settings": _settings(),
        "notes": _notes(evaluation, left_out),
    }
    if evaluation.undefined:
        described["undefined"] = evaluation.undefined
    return described


def _describe(score: probes.ProbeScore) -> dict[str, Any]:
    """One classifier's score."""
    return {
        "balanced_accuracy": score.balanced_accuracy,
        "accuracy": score.accuracy,
        "recall": score.recall,
        "by_fold": list(score.by_fold),
    }


def _settings() -> dict[str, Any]:
    """Every setting that decides the scores."""
    return {
        "neighbours": probes.NEIGHBOURS,
        "similarity": "cosine",
        "inverse_regularization": probes.INVERSE_REGULARIZATION,
        "trees": probes.TREES,
        "cells_a_tree": probes.CELLS_A_TREE,
        "standardized_by": "the cells of the other folds",
        "cells_at_most": MOST_CELLS,
        "seed": SEED,
    }


def _notes(evaluation: CellEvaluation, left_out: Mapping[str, str]) -> list[str]:
    """What a reader of the scores must know."""
    notes, sample = [], evaluation.sample
    if not evaluation.undefined:
        probe = next(iter(evaluation.probes.values()))
        if probe.cells < sample.labelled:
            notes.append(f"{probe.cells:,} of {sample.labelled:,} cells with a class were used")
        if sample.unlabelled:
            notes.append(f"not used: {plural(sample.unlabelled, 'cell')} without a class")
        if evaluation.grouped_by in _SHARED:
            notes.append(_leak_note(evaluation.grouped_by))
        if probe.unanswerable:
            notes.append(
                f"counted as wrong: {plural(probe.unanswerable, 'cell')} of a class that no other "
                "fold has"
            )
    if left_out:
        shown = [f"{name} ({reason})" for name, reason in list(left_out.items())[:10]]
        more = f" and {len(left_out) - 10} more" if len(left_out) > 10 else ""
        notes.append(f"classes left out: {', '.join(shown)}{more}")
    return notes


def _leak_note(grouped_by: str) -> str:
    """Says what makes the scores look better where plates and batches could not be kept whole."""
    whole = (
        f"{grouped_by}s alone could" if grouped_by else "no plates, batches, wells or sites could"
    )
    return (
        f"{whole} be kept whole in the folds: cells of one {_SHARED[grouped_by]} may lie on both "
        "sides, and what they share makes any score look better"
    )
