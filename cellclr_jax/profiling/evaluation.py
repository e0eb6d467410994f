"""Evaluates well profiles: corrections, scores, measures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from cellclr_jax.console import QUICK_S, Progress, listed, plural
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling import moa, profiles
from cellclr_jax.profiling.correction import corrected_profiles, standardize
from cellclr_jax.profiling.feature_columns import with_features
from cellclr_jax.profiling.measures import MEASURES
from cellclr_jax.profiling.measures.measure import CorrectedProfiles, Measured, measure
from cellclr_jax.profiling.protocol import FITTED_ON_ALL, Protocol
from cellclr_jax.profiling.tables import ProfileTable, canonical_table

METRICS_JSON = "metrics.json"
"""File name of the scores in the folder of an evaluation."""
# Number of values above which BLAS uses all threads.
_LARGE = 20_000_000
MOST_MEASURED = 20_000
"""Wells above which measures, which then take longest, are computed only if named."""
# If the mean variance is below this fraction of λ, corrections change little.
_WEAK = 0.1
# Columns in a note.
_LISTED = 10
# Compounds in an error message.
_NAMED = 3


@dataclass(frozen=True)
class CorrectionScores:
    """Scores of one correction.

    Attributes:
      nsc: not-same-compound.
      nscb: not-same-compound-or-batch.
      drop: nsc - nscb in percentage points; None if either is undefined.
      treatments: corrected treatment profiles; empty if the correction is undefined.
      measures: results of the measures by name.
    """

    nsc: moa.Score
    nscb: moa.Score
    drop: float | None
    treatments: pd.DataFrame = field(repr=False)
    measures: Mapping[str, Measured] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
      protocol: the settings.
      scores: by correction.
      wells: uncorrected profiles of the wells that were used: controls and annotated wells.
      data: counts of wells, controls, treatments, compounds, MoAs, batches, features.
      notes: warnings for the reader of the scores.
    """

    protocol: Protocol
    scores: dict[str, CorrectionScores]
    wells: pd.DataFrame = field(repr=False)
    data: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def treatments(self) -> pd.DataFrame:
        """The treatment profiles before correction, without controls."""
        return self.scores["none"].treatments

    def summary(self) -> pd.DataFrame:
        """One row a correction: nsc, nscb (accuracies in [0, 1], NaN if undefined), drop
        (percentage points), and their counts."""
        return pd.DataFrame(
            {
                "correction": name,
                "nsc": scores.nsc.accuracy,
                "nscb": scores.nscb.accuracy,
                "drop": scores.drop,
                "nsc_correct": scores.nsc.correct,
                "nsc_total": scores.nsc.total,
                "nscb_correct": scores.nscb.correct,
                "nscb_total": scores.nscb.total,
            }
            for name, scores in self.scores.items()
        )


def evaluate(
    wells: pd.DataFrame | ProfileTable,
    protocol: Protocol | None = None,
    *,
    features: Sequence[str] | None = None,
    measures: Sequence[str] | None = (),
    exact_names: bool = False,
    show_progress: bool = False,
) -> Evaluation:
    """Scores well profiles under each correction.

    Args:
      wells: one row a well (`aggregate` of the protocol is not applied): plate, well, batch,
        compound, concentration, MoA under any name that `tables` understands, and features. A
        `ProfileTable` is used without a copy.
      protocol: the settings; None uses the defaults.
      features: feature columns; by default those of `feature_columns.split_columns`.
      measures: names in `MEASURES`; None computes all, or none above `MOST_MEASURED` wells.
      exact_names: does not merge spellings of names (see `tables.read_profiles`).
      show_progress: shows progress on the console.

    Returns:
      The evaluation. Corrections that cannot be fitted (a batch without controls) and scores
      without queries (a single batch) are not errors but undefined, with the reason.

    Raises:
      BadData: no annotated treatment; a well is listed twice; a feature is not finite;
        standardisation by controls without controls.
      BadUse: no well has the control, an unknown measure, or a library is not installed.
    """
    protocol = protocol or Protocol()
    table = wells
    if not isinstance(table, ProfileTable):
        options: dict[str, Any] = {"features": features, "exact_names": exact_names}
        table = canonical_table(table, control=protocol.control, **options)
    protocol = replace(protocol, control=table.control)
    base, values, notes = _used_wells(table, protocol.control)
    names = list(table.features)
    del table, wells  # frees memory: large tables fit only a few times
    if measures is None:
        measures = tuple(MEASURES) if len(base) <= MOST_MEASURED else ()
        if not measures:
            many = f"{len(base):,} wells"
            notes.append(f"{many}: measures are computed only if --measures names them")
    # With small matrices, one thread is five times faster and rounds equally on all machines.
    threads = None if values.size > _LARGE else 1
    steps = len(protocol.corrections) * (1 + len(measures))
    show = Progress(steps, show_progress, unit="step", task="scored", delay=QUICK_S)
    with threadpool_limits(limits=threads, user_api="blas"), show as progress:
        return _evaluate(base, values, names, notes, protocol, measures, progress)


def _evaluate(
    base: pd.DataFrame,
    values: np.ndarray,
    features: list[str],
    notes: list[str],
    protocol: Protocol,
    measures: Sequence[str],
    progress: Progress,
) -> Evaluation:
    """See `evaluate`; `base` holds the metadata of the used wells."""
    is_control = (base["Metadata_Compound"] == protocol.control).to_numpy()
    if not is_control.any():
        common = base["Metadata_Compound"].value_counts().index[:_NAMED]
        message = (
            f"control {protocol.control!r}: no well has this compound; --control names another, "
            f"such as {', '.join(map(repr, common))}"
        )
        if protocol.control != Protocol.control:
            raise BadUse(message)
        if protocol.standardize != "none":
            raise BadData(f"standardisation by controls: {message}")
    wells = with_features(base, values, features)
    if protocol.standardize != "none":
        values, features, about = _standardized(base, values, features, is_control, protocol)
        notes += about
    notes += _whitening_notes(values[is_control], len(features), protocol)
    scores = {}
    batches = base["Metadata_Batch"].to_numpy(object)
    for name, corrected in corrected_profiles(values, is_control, batches, protocol):
        if isinstance(corrected, str):
            undefined = moa.Score(None, 0, None, undefined=corrected)
            scores[name] = CorrectionScores(undefined, undefined, None, pd.DataFrame())
            notes.append(f"{name} is undefined: {corrected}")
            progress.step(units=1 + len(measures))
            continue
        count = corrected.shape[1]
        names = features if count == len(features) else profiles.feature_names(count, "component")
        scores[name] = _score(base, corrected, names, protocol, measures, progress)
        if name in FITTED_ON_ALL:
            notes.append(
                f"{name} is fitted on all wells, including treated ones: it cannot distinguish the "
                "effect of a treatment in a single batch from the batch effect"
            )
    notes += _query_notes(scores["none"].nsc, scores["none"].nscb)
    data = _counts(base, is_control, len(features))
    return Evaluation(protocol, scores, wells=wells, data=data, notes=notes)


def _standardized(
    base: pd.DataFrame,
    values: np.ndarray,
    features: list[str],
    is_control: np.ndarray,
    protocol: Protocol,
) -> tuple[np.ndarray, list[str], list[str]]:
    """Standardised values, names of their features, and a note on those left out."""
    by_plate = protocol.standardize == "plates"
    if by_plate and (base["Metadata_Plate"] == "").any():
        raise BadData("--standardize=plates: the table names no plates (Metadata_Plate)")
    values, kept = standardize(
        values,
        is_control,
        plates=base["Metadata_Plate"].to_numpy(object) if by_plate else None,
        robust=protocol.robust,
    )
    constant = [name for name, keep in zip(features, kept, strict=True) if not keep]
    features = [name for name, keep in zip(features, kept, strict=True) if keep]
    where = "those of a plate" if by_plate else "the controls"
    notes = [f"constant over {where}, left out: {', '.join(constant)}"] if constant else []
    return values, features, notes


def _used_wells(wells: ProfileTable, control: str) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """Metadata and features of controls and annotated wells, and notes on other wells."""
    table = wells.table[[c for c in wells.table if c not in set(wells.features)]]
    repeated = table.duplicated(["Metadata_Plate", "Metadata_Well"])
    if repeated.any():
        row = table[repeated].iloc[0]
        raise BadData(
            f"well {row['Metadata_Well']} of plate {row['Metadata_Plate']} is listed twice: one "
            "row a well was expected (profiles.aggregate_wells averages sites and cells)"
        )
    is_control = table["Metadata_Compound"] == control
    known = (table["Metadata_Compound"] != "") & (table["Metadata_MoA"] != "")
    used = is_control | known
    if not (used & ~is_control).any():
        raise BadData(f"no well except controls ({control}) has a MoA: there is nothing to score")
    unused = int((~used).sum())
    notes = list(wells.notes)
    for what, column in (("MoA", "Metadata_MoA"), ("compound", "Metadata_Compound")):
        if count := int((~used & (table[column] == "")).sum()):
            notes.append(f"not used: {plural(count, 'well')} without a {what}")
    if wells.left_out:
        columns = [f"{name} ({reason})" for name, reason in wells.left_out.items()]
        notes.append(f"columns not used as features: {listed(columns, _LISTED)}")
    values = wells.values[used.to_numpy()] if unused else wells.values
    return table[used].reset_index(drop=True), values, notes


def _score(
    base: pd.DataFrame,
    values: np.ndarray,
    features: list[str],
    protocol: Protocol,
    measures: Sequence[str],
    progress: Progress,
) -> CorrectionScores:
    """NSC of all treated wells, NSCB of those selected by the batch rule, and measures."""
    treated = (base["Metadata_Compound"] != protocol.control).to_numpy()
    of = partial(profiles.treatments_of, base, values, features, statistic=protocol.statistic)
    treatments = of(used=treated)
    how: dict[str, Any] = {
        "features": features,
        "control": protocol.control,
        "batches": protocol.batches,
        "left_out": protocol.left_out,
    }
    nsc, nscb = moa.both_scores(treatments, **how)[1]
    if protocol.batches == "week1":
        first = treated.copy()
        first[treated] = profiles.in_first_batch(base[treated])
        nscb = moa.not_same_compound_or_batch(of(used=first), **how)
    progress.step()
    found: Mapping[str, Measured] = {}
    if measures:
        wells = with_features(base, values, features)
        corrected = CorrectedProfiles(wells, treatments, features, nsc, nscb, protocol)
        found = measure(corrected, measures, after=progress.step)
    return CorrectionScores(nsc, nscb, moa.drop(nsc, nscb), treatments, found)


def _counts(table: pd.DataFrame, is_control: np.ndarray, features: int) -> dict[str, int]:
    """Counts for metrics.json."""
    treated = table[~is_control]
    counts = {
        "wells": len(table),
        "control_wells": int(is_control.sum()),
        "treatments": len(
            treated[["Metadata_Compound", "Metadata_Concentration"]].drop_duplicates()
        ),
        "compounds": treated["Metadata_Compound"].nunique(),
        "moas": treated["Metadata_MoA"].nunique(),
        "batches": table["Metadata_Batch"].nunique(),
        "features": features,
    }
    if "Metadata_CellCount" in table:
        counts["cells"] = int(pd.to_numeric(table["Metadata_CellCount"]).sum())
    return counts


def _whitening_notes(controls: np.ndarray, features: int, protocol: Protocol) -> list[str]:
    """Notes if controls do not span all features, or λ is far above the controls' variance."""
    scaling = [name for name in ("whitening", "tvn") if name in protocol.corrections]
    notes = []
    if 0 < len(controls) <= features and scaling:
        notes.append(
            f"{len(controls)} control wells span at most {len(controls) - 1} of {features} feature "
            f"directions: in the others {' and '.join(scaling)} only "
            f"scale{'s' * (len(scaling) == 1)}, by the regularization"
        )
    if scaling and len(controls) > 1 and not protocol.relative_regularization:
        variance = float(controls.var(axis=0).mean())
        if variance < _WEAK * protocol.regularization:
            notes.append(
                f"the controls' features have a mean variance of {variance:.2g}, far below λ = "
                f"{protocol.regularization:g}: {' and '.join(scaling)} change little "
                "(--standardize=controls, or --relative_regularization)"
            )
    return notes


def _query_notes(nsc: moa.Score, nscb: moa.Score) -> list[str]:
    """Notes on queries that cannot be right, and on treatments of unknown batch."""
    notes = [
        f"{name}: {score.unanswerable} of {score.total} queries have no candidate of their MoA and "
        "count as wrong"
        for name, score in (("NSC", nsc), ("NSCB", nscb))
        if score.unanswerable
    ]
    reasons = nscb.excluded.get("reason", pd.Series(dtype=object))
    if count := int((reasons == moa.UNKNOWN_BATCH).sum()):
        notes.append(f"NSCB leaves out {plural(count, 'treatment')} of unknown batch")
    return notes
