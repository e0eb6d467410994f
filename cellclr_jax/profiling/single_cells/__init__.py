"""Scores of labelled single cells."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.console import plural
from cellclr_jax.data.columns import CELL_NAMES, NAMES
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling.profiles import feature_names
from cellclr_jax.profiling.protocol import AUTO, GROUPS, NOTHING
from cellclr_jax.profiling.single_cells import probes
from cellclr_jax.profiling.single_cells.folds import choose_groups, stratified_subset, usable

# Enough for two digits of a score; the nearest neighbours of more take minutes.
MOST_CELLS = 20_000
SEED = 0
# What can be a cell's class; the last two where no treatment can be scored.
_CLASSES = ("label", "moa", "compound")


@dataclass(frozen=True)
class Sample:
    """Cells that are drawn for the evaluation.

    Attributes:
      rows: [K] their rows in the dataset, ascending.
      label_column: the column of their classes; '' if there is none.
      labels: [K] str.
      table: one row a cell: Metadata_CellId and the dataset's metadata as `Metadata_*`.
      labelled: cells of the dataset that have a class.
      unlabelled: cells that have none.
      left_out: classes of the dataset of which no cell was drawn, and why.
    """

    rows: np.ndarray = field(repr=False)
    label_column: str
    labels: np.ndarray = field(repr=False)
    table: pd.DataFrame = field(repr=False)
    labelled: int
    unlabelled: int
    left_out: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class CellEvaluation:
    """The result of `evaluate_cells`.

    Attributes:
      sample: the cells.
      grouped_by: 'plate', 'batch', 'well', 'site' or 'compound': the groups that folds kept whole;
        '' for none.
      probes: by the features' name.
      features: [K, D] of each cell, by the features' name.
    """

    sample: Sample
    grouped_by: str
    probes: dict[str, probes.Probe]
    features: Mapping[str, np.ndarray] = field(repr=False)

    @property
    def undefined(self) -> str:
        """Why there is no score, or ''."""
        if not self.sample.label_column:
            return "the dataset has neither labels nor treatments: there is nothing to score"
        return next(iter(self.probes.values())).undefined


class KeptCells:
    """Collects the features of chosen cells from minibatches.

    Args:
      rows: [K] of the dataset, ascending.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows
        self.features: dict[str, np.ndarray] = {}

    def add(self, rows: np.ndarray, features: Mapping[str, np.ndarray]) -> None:
        """Adds the chosen cells of a minibatch: rows [b], features [b, D] by name."""
        place = np.searchsorted(self.rows, rows)
        chosen = np.append(self.rows, -1)[place] == rows
        for name, values in features.items():
            if name not in self.features:
                self.features[name] = np.empty((len(self.rows), values.shape[1]), np.float32)
            self.features[name][place[chosen]] = values[chosen]


def draw_sample(
    cells: pd.DataFrame,
    *,
    with_treatments: bool,
    label: str | None = None,
    size: int = MOST_CELLS,
) -> Sample | None:
    """Draws cells by class, the same ones each time.

    Args:
      cells: one row a cell: cell_id and columns of `data.columns.COLUMNS`.
      with_treatments: whether treatments are scored; then only labels are classes.
      label: the column of the classes; None takes the first existing one of label and, without
        treatments, moa and compound.
      size: how many to draw at most.

    Returns:
      The sample; of all cells if there are no two classes to tell apart; None if treatments are
      scored and there is no column of labels.

    Raises:
      BadUse: there is no such column.
    """
    if label is not None and label not in cells:
        raise BadUse(
            f"label {label!r}: no such column; the cells have {', '.join(map(str, cells))}"
        )
    columns = [name for name in _CLASSES[: 1 if with_treatments else None] if name in cells]
    columns = columns if label is None else [label]
    if with_treatments and not columns:
        return None
    # Where several columns could be classes, the first that has two.
    column = next((name for name in columns if _distinct(cells[name]) > 1), None)
    column = column or next(iter(columns), "")
    labels = _text(cells[column]) if column else np.full(len(cells), "", object)
    kept, left_out = usable(labels)
    if len(np.unique(labels[kept].astype(str))) < 2:
        kept = np.full(len(cells), True)
    candidates = np.flatnonzero(kept)
    rows = candidates[stratified_subset(labels[candidates], size, seed=SEED)]
    names = [name for name in CELL_NAMES if name in cells]
    table = cells.iloc[rows][names].rename(columns=CELL_NAMES).reset_index(drop=True)
    labelled = int((labels != "").sum())
    return Sample(rows, column, labels[rows], table, labelled, len(labels) - labelled, left_out)


def evaluate_cells(
    sample: Sample,
    features: Mapping[str, np.ndarray],
    *,
    hold_out: str = AUTO,
    classifiers: Sequence[str] = probes.CLASSIFIERS,
) -> CellEvaluation:
    """Probes each kind of features on the same cells, classes and folds.

    Args:
      sample: of the dataset.
      features: [K, D] by name, a row for each of the sample's.
      hold_out: the groups that a fold keeps whole, of `protocol.HELD_OUT`.
      classifiers: which, of `probes.CLASSIFIERS`.

    Raises:
      BadData: a feature is not finite.
      BadUse: the cells have no such groups.
    """
    for name, values in features.items():
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            cell = sample.table["Metadata_CellId"].iloc[int(np.argmin(finite))]
            raise BadData(f"the {name} features of cell {cell!r} hold NaN or an infinite value")
    if not sample.label_column:
        return CellEvaluation(sample, "", {}, features)
    grouped_by, groups = _groups(sample, hold_out)
    found = {
        name: probes.probe(values, sample.labels, groups, classifiers=classifiers, seed=SEED)
        for name, values in features.items()
    }
    return CellEvaluation(sample, grouped_by, found, features)


def cell_settings(sample: Sample, hold_out: str) -> dict[str, str | None]:
    """Returns label_column and grouped_by as `describe_cells` will have them.

    Raises:
      BadUse: the cells have no such groups.
    """
    grouped_by = _groups(sample, hold_out)[0] if sample.label_column else ""
    return {"label_column": sample.label_column or None, "grouped_by": grouped_by or None}


def _groups(sample: Sample, hold_out: str) -> tuple[str, np.ndarray | None]:
    """The groups that folds keep whole, and the group of each cell; ('', None) for none."""
    candidates = _candidates(sample.table)
    if hold_out == NOTHING:
        return "", None
    if hold_out == AUTO:
        candidates.pop("compound", None)  # it may be the class itself
        return choose_groups(candidates, sample.labels)
    if hold_out not in candidates:
        known = ", ".join(candidates) or "none of these"
        raise BadUse(f"hold_out {hold_out!r}: the cells tell {known}")
    return hold_out, candidates[hold_out]


def _candidates(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """[K] groups of the cells by name, of those whose column the table has."""
    found = {}
    for name, columns in GROUPS.items():
        told = [NAMES[column] for column in columns if NAMES[column] in table]
        if NAMES[name] in told:
            texts = pd.DataFrame({column: _text(table[column]) for column in told})
            found[name] = texts.groupby(told).ngroup().to_numpy()
    return found


def _distinct(values: pd.Series) -> int:
    """How many classes of a column have enough cells."""
    labels = _text(values)
    kept, _ = usable(labels)
    return len(set(labels[kept]))


def _text(values: pd.Series) -> np.ndarray:
    """[N] str, '' for a missing value."""
    return values.fillna("").astype(str).to_numpy(object)


_NO_GROUPS = "no plates, batches, wells or sites"
# Names of classes without a score that metrics.json holds.
_LISTED = 50
# What cells on both sides of a fold may share, by the groups that were kept whole.
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
    """Describes the evaluation for `metrics.json`.

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
            name: {kind: asdict(score) for kind, score in probe.scores.items()}
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
            groups = f"{evaluation.grouped_by}s alone" if evaluation.grouped_by else _NO_GROUPS
            notes.append(
                f"{groups} could be kept whole in the folds: cells of one "
                f"{_SHARED[evaluation.grouped_by]} may lie on both sides, and what they share "
                "makes any score look better"
            )
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
