"""Scores of single cells: how well classifiers predict their class."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.console import listed, plural
from cellclr_jax.data.columns import CELL_NAMES, NAMES
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling.profiles import feature_names
from cellclr_jax.profiling.protocol import AUTO, GROUPS, NOTHING
from cellclr_jax.profiling.single_cells import probes
from cellclr_jax.profiling.single_cells.folds import choose_groups, stratified_subset, usable

# Enough for two digits of a score; nearest neighbours of more cells take minutes.
MOST_CELLS = 20_000
SEED = 0
# Columns of classes; the last two only if no treatment can be scored.
_CLASSES = ("label", "moa", "compound")


@dataclass(frozen=True)
class Sample:
    """A sample of cells for the evaluation.

    Attributes:
      rows: [K] rows in the dataset, ascending.
      label_column: column of the classes; '' if there is none.
      labels: [K] str, classes.
      table: one row a cell: Metadata_CellId and the dataset's metadata as `Metadata_*`.
      labelled: number of cells in the dataset with a class.
      unlabelled: number of cells without a class.
      left_out: classes that are not in the sample, with the reason.
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
      grouped_by: groups that lie in one fold each: 'plate', 'batch', 'well', 'site', 'compound', or
        '' for none.
      probes: scores by the name of the features.
      features: [K, D] by name.
    """

    sample: Sample
    grouped_by: str
    probes: dict[str, probes.Probe]
    features: Mapping[str, np.ndarray] = field(repr=False)

    @property
    def undefined(self) -> str:
        """Reason why there is no score, or ''."""
        if not self.sample.label_column:
            return "the dataset has neither labels nor treatments: there is nothing to score"
        return next(iter(self.probes.values())).undefined


class KeptCells:
    """Collects the features of a sample of cells from minibatches.

    Args:
      rows: [K] rows in the dataset, ascending.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows
        self.features: dict[str, np.ndarray] = {}

    def add(self, rows: np.ndarray, features: Mapping[str, np.ndarray]) -> None:
        """Adds those cells of a minibatch that are in the sample: rows [b], features [b, D]."""
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
    """Draws a reproducible sample of cells, stratified by class.

    Args:
      cells: one row a cell: cell_id and columns of `data.columns.COLUMNS`.
      with_treatments: treatments are scored; then only the column label can be the class.
      label: column of the classes; None takes the first existing one of label and, without
        treatments, moa and compound.
      size: largest number of cells.

    Returns:
      The sample, from all cells if fewer than two classes are usable; None if treatments are scored
      and there is no column of labels.

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
    # The first column with two usable classes, or else the first column.
    column = next((name for name in columns if _distinct(cells[name]) > 1), None)
    column = column or next(iter(columns), "")
    labels = _text(cells[column]) if column else np.full(len(cells), "", object)
    is_usable, left_out = usable(labels)
    if len(np.unique(labels[is_usable].astype(str))) < 2:
        is_usable = np.full(len(cells), True)
    candidates = np.flatnonzero(is_usable)
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
    """Scores several kinds of features on the same cells, classes and folds.

    Args:
      sample: K cells.
      features: [K, D] by name.
      hold_out: groups of `protocol.HELD_OUT` that lie in one fold each.
      classifiers: names in `probes.CLASSIFIERS`.

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
    """Returns label_column and grouped_by in the form of `describe_cells`.

    Raises:
      BadUse: the cells have no such groups.
    """
    grouped_by = _groups(sample, hold_out)[0] if sample.label_column else ""
    return {"label_column": sample.label_column or None, "grouped_by": grouped_by or None}


def _groups(sample: Sample, hold_out: str) -> tuple[str, np.ndarray | None]:
    """Name of the groups that lie in one fold each, and group of each cell; ('', None) for none."""
    candidates = _candidates(sample.table)
    if hold_out == NOTHING:
        return "", None
    if hold_out == AUTO:
        candidates.pop("compound", None)  # it may be the class itself
        return choose_groups(candidates, sample.labels)
    if hold_out not in candidates:
        known = ", ".join(candidates) or "none of these"
        raise BadUse(f"hold_out {hold_out!r}: the cells have {known}")
    return hold_out, candidates[hold_out]


def _candidates(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Returns the group [K] of each cell for every grouping whose columns the table has."""
    found = {}
    for name, columns in GROUPS.items():
        existing = [NAMES[column] for column in columns if NAMES[column] in table]
        if NAMES[name] in existing:
            texts = pd.DataFrame({column: _text(table[column]) for column in existing})
            found[name] = texts.groupby(existing).ngroup().to_numpy()
    return found


def _distinct(values: pd.Series) -> int:
    """Number of usable classes in a column."""
    labels = _text(values)
    return len(set(labels[usable(labels)[0]]))


def _text(values: pd.Series) -> np.ndarray:
    """Converts values to [N] str; '' for a missing value."""
    return values.fillna("").astype(str).to_numpy(object)


_NO_GROUPS = "no plates, batches, wells or sites"
# Number of left-out classes in metrics.json.
_LISTED = 50
# What training and test cells may share, by the groups that lie in one fold each.
_SHARED = {
    "": "plate, well or image",
    "well": "plate",
    "site": "plate or well",
    "compound": "plate, well or image",
}


def cell_table(evaluation: CellEvaluation, name: str) -> pd.DataFrame:
    """One row a cell of the sample: `Metadata_*`, then features cellclr_0000 … in float32."""
    values = np.asarray(evaluation.features[name], np.float32)
    columns = pd.DataFrame(values, columns=feature_names(values.shape[1]))
    return pd.concat([evaluation.sample.table, columns], axis=1)


def describe_cells(evaluation: CellEvaluation) -> dict[str, Any]:
    """Describes the evaluation for `metrics.json`.

    Returns:
      {"label_column", "classes": {name: cells}, "left_out": {name: reason}, "cells", "labelled",
      "folds", "grouped_by" (null: nothing), "scores": {features: {"knn": {"balanced_accuracy",
      "accuracy", "recall", "by_fold"}, "logistic": {…}, "forest": {…}}}, "chance", "settings",
      "notes"}; and "undefined", the reason, if there is no score.
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
        "settings": {
            "neighbours": probes.NEIGHBOURS,
            "similarity": "cosine",
            "inverse_regularization": probes.INVERSE_REGULARIZATION,
            "trees": probes.TREES,
            "cells_a_tree": probes.CELLS_A_TREE,
            "standardized_by": "the cells of the other folds",
            "cells_at_most": MOST_CELLS,
            "seed": SEED,
        },
        "notes": _notes(evaluation, left_out),
    }
    if evaluation.undefined:
        described["undefined"] = evaluation.undefined
    return described


def _notes(evaluation: CellEvaluation, left_out: Mapping[str, str]) -> list[str]:
    """Warnings for the reader of the scores."""
    notes, sample = [], evaluation.sample
    if not evaluation.undefined:
        probe = next(iter(evaluation.probes.values()))
        if probe.cells < sample.labelled:
            notes.append(f"{probe.cells:,} of {sample.labelled:,} cells with a class were used")
        if sample.unlabelled:
            notes.append(f"not used: {plural(sample.unlabelled, 'cell')} without a class")
        if evaluation.grouped_by in _SHARED:
            groups = f"only {evaluation.grouped_by}s" if evaluation.grouped_by else _NO_GROUPS
            notes.append(
                f"{groups} could be held out: cells of one {_SHARED[evaluation.grouped_by]} may be "
                "in both training and test folds, which raises all scores"
            )
        if probe.unanswerable:
            notes.append(
                f"counted as wrong: {plural(probe.unanswerable, 'cell')} of a class that no other "
                "fold has"
            )
    if left_out:
        reasons = (f"{name} ({reason})" for name, reason in left_out.items())
        notes.append(f"classes left out: {listed(reasons, 10)}")
    return notes
