"""Evaluates well profiles: corrections, scores, measures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypedDict

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from cellclr_jax.console import plural
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling import moa, profiles
from cellclr_jax.profiling.correction import corrected_profiles, standardize
from cellclr_jax.profiling.correction_libraries import FITTED_ON_ALL
from cellclr_jax.profiling.feature_columns import with_features
from cellclr_jax.profiling.measures import MEASURES, measure
from cellclr_jax.profiling.measures.measured import CorrectedProfiles, Measured
from cellclr_jax.profiling.moa import Score
from cellclr_jax.profiling.protocol import Protocol
from cellclr_jax.profiling.single_cells import AUTO
from cellclr_jax.profiling.tables import ProfileTable, canonical_table

# Matrices of so many numbers are worth the threads of BLAS.
_LARGE = 20_000_000


MOST_MEASURED = 20_000
"""Wells: of more, measures take longer than all else, and are taken where they are named."""


@dataclass(frozen=True)
class Options:
    """Choices of an evaluation.

    Attributes:
      measures: of `measures.MEASURES`; None for all, unless there are too many wells.
      formats: of the tables that are written, of `exports.FORMATS`.
      umap: whether the report's map of treatments can be laid out by UMAP, too.
      label: the column of the cells that tells their classes; None: see `cells.draw_sample`.
      hold_out: what is kept whole when classes are told, of `cells.HELD_OUT`.
    """

    measures: tuple[str, ...] | None = None
    formats: tuple[str, ...] = ("parquet",)
    umap: bool = False
    label: str | None = None
    hold_out: str = AUTO

    def measures_of(self, wells: int) -> tuple[str, ...]:
        """The names of what is measured of a table with so many wells."""
        if self.measures is not None:
            return self.measures
        return tuple(MEASURES) if wells <= MOST_MEASURED else ()

    def note(self, wells: int) -> str:
        """What is to be said of measures that are not taken; '' for nothing."""
        if self.measures is not None or wells <= MOST_MEASURED:
            return ""
        return f"of {wells:,} wells no measures are taken, unless --measures names them"


class _Rule(TypedDict):
    """Which treatments NSCB asks, and of whom."""

    batches: str
    left_out: tuple[str, ...] | None


@dataclass(frozen=True)
class CorrectionScores:
    """The scores of one correction.

    Attributes:
      nsc: not-same-compound.
      nscb: not-same-compound-or-batch.
      drop: nsc - nscb in percentage points, or None where either is undefined.
      treatments: the corrected treatment profiles; empty where the correction is undefined.
      measures: what else was measured, by name.
    """

    nsc: moa.Score
    nscb: moa.Score
    drop: float | None
    treatments: pd.DataFrame = field(repr=False)
    measures: Mapping[str, Measured] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
      protocol: the settings.
      scores: by correction, those of the protocol.
      wells: the wells that were used, as they came: controls and annotated wells.
      data: counts of wells, controls, treatments, compounds, MoAs, batches, features.
      notes: what a reader of the scores must know.
    """

    protocol: Protocol
    scores: dict[str, CorrectionScores]
    wells: pd.DataFrame = field(repr=False)
    data: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def treatments(self) -> pd.DataFrame:
        """The treatment profiles before correction, controls left out."""
        return self.scores["none"].treatments

    def summary(self) -> pd.DataFrame:
        """One row a correction: nsc, nscb (accuracies in [0, 1], NaN where undefined), drop
        (points), and the counts that they come from."""
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
    measures: Sequence[str] = (),
) -> Evaluation:
    """Scores well profiles under each correction.

    Args:
      wells: one row a well (the protocol's `aggregate` was applied before): plate, well, batch,
        compound, concentration, MoA under any of the names `tables` understands, and features.
        What `tables.read_profiles` gives is taken as it is, without another copy.
      protocol: the settings; the defaults where None.
      features: the feature columns; by default those of `columns.split_columns`.
      measures: what else to measure of each correction's profiles, of `measures.MEASURES`.

    Returns:
      The evaluation. A correction that cannot be fitted (a batch without controls, no batch
      known) and a score that does not exist (one batch alone) are undefined, with the reason, not
      errors.

    Raises:
      BadData: no annotated treatment; a well is listed twice; a feature is not finite;
        standardisation by controls without controls.
      BadUse: a control that no well has, an unknown measure, or the library of a correction is not
        installed.
    """
    protocol = protocol or Protocol()
    if isinstance(wells, ProfileTable):
        house = wells
    else:
        house = canonical_table(wells, control=protocol.control, features=features)
    base, values, notes = _used_wells(house, protocol.control)
    names = list(house.features)
    del house, wells  # of a large table there is room for few copies
    # BLAS threads that wait for each other over small matrices make this five times slower; and one
    # thread rounds the same whatever the machine.
    threads = None if values.size > _LARGE else 1
    with threadpool_limits(limits=threads, user_api="blas"):
        return _evaluate(base, values, names, notes, protocol, measures)


def _evaluate(
    base: pd.DataFrame,
    values: np.ndarray,
    features: list[str],
    notes: list[str],
    protocol: Protocol,
    measures: Sequence[str],
) -> Evaluation:
    """See `evaluate`; `base` holds the metadata of the wells that are used."""
    is_control = (base["Metadata_Compound"] == protocol.control).to_numpy()
    if protocol.control != Protocol.control and not is_control.any():
        raise BadUse(f"control {protocol.control!r}: no well has this compound")
    wells = with_features(base, values, features)
    values, features, about = _standardized(base, values, features, is_control, protocol)
    notes += about
    scaling = [name for name in ("whitening", "tvn") if name in protocol.corrections]
    if 0 < is_control.sum() <= len(features) and scaling:
        notes.append(rank_note(int(is_control.sum()), len(features), scaling))
    if scaling:
        notes += strength_notes(values[is_control], protocol, scaling)
    scores = {}
    batches = base["Metadata_Batch"].to_numpy(object)
    for name, corrected in corrected_profiles(values, is_control, batches, protocol):
        if isinstance(corrected, str):
            scores[name] = _undefined(corrected)
            notes.append(f"{name} is undefined: {corrected}")
        else:
            names = features if corrected.shape[1] == len(features) else _components(corrected)
            scores[name] = _score(base, corrected, names, protocol, measures)
            notes += [fitted_on_all_note(name)] if name in FITTED_ON_ALL else []
    notes += unanswerable_notes(scores["none"].nsc, scores["none"].nscb)
    notes += unknown_batch_notes(scores["none"].nscb)
    data = _counts(base, is_control, len(features))
    return Evaluation(protocol, scores, wells=wells, data=data, notes=notes)


def _standardized(
    base: pd.DataFrame,
    values: np.ndarray,
    features: list[str],
    is_control: np.ndarray,
    protocol: Protocol,
) -> tuple[np.ndarray, list[str], list[str]]:
    """Values and names of the features as the protocol wants them, and a note on those left out."""
    if protocol.standardize == "none":
        return values, features, []
    by_plate = protocol.standardize == "plates"
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


def _used_wells(house: ProfileTable, control: str) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """Metadata and features of controls and annotated wells, and what is to be said of others."""
    table = house.table[[c for c in house.table if c not in set(house.features)]]
    repeated = table.duplicated(["Metadata_Plate", "Metadata_Well"])
    if repeated.any():
        row = table[repeated].iloc[0]
        raise BadData(
            f"well {row['Metadata_Well']} of plate {row['Metadata_Plate']} is listed twice: one "
            "row a well was expected (profiles.aggregate_wells averages sites and cells)"
        )
    is_control = table["Metadata_Compound"] == control
    used = is_control | (table["Metadata_MoA"] != "")
    if not (used & ~is_control).any():
        raise BadData(f"no well but controls ({control}) has a MoA: there is nothing to score")
    unused = int((~used).sum())
    notes = [f"not used: {plural(unused, 'well')} without a MoA"] if unused else []
    if house.left_out:
        notes.append(left_out_note(house.left_out))
    values = house.values[used.to_numpy()] if unused else house.values
    return table[used].reset_index(drop=True), values, notes


def _components(corrected: np.ndarray) -> list[str]:
    """Names of principal components."""
    return [f"component_{number:04d}" for number in range(corrected.shape[1])]


def _score(
    base: pd.DataFrame,
    values: np.ndarray,
    features: list[str],
    protocol: Protocol,
    measures: Sequence[str],
) -> CorrectionScores:
    """NSC on all wells, NSCB on those that the rule for batches keeps; and what else is asked."""
    treated = (base["Metadata_Compound"] != protocol.control).to_numpy()
    of = partial(profiles.treatments_of, base, values, features, statistic=protocol.statistic)
    treatments = of(used=treated)
    rule: _Rule = {"batches": protocol.batches, "left_out": protocol.left_out}
    if protocol.batches == "week1":
        first = treated.copy()
        first[treated] = profiles.in_first_batch(base[treated])
        nsc = moa.not_same_compound(treatments, features=features, control=protocol.control)
        nscb = moa.not_same_compound_or_batch(
            of(used=first), features=features, control=protocol.control, **rule
        )
    else:
        nsc, nscb = moa.both_scores(
            treatments, features=features, control=protocol.control, **rule
        )[1]
    found: Mapping[str, Measured] = {}
    if measures:
        wells = with_features(base, values, features)
        seen = CorrectedProfiles(wells, treatments, features, nsc, nscb, protocol)
        found = measure(seen, measures)
    return CorrectionScores(nsc, nscb, moa.drop(nsc, nscb), treatments, found)


def _undefined(reason: str) -> CorrectionScores:
    """The scores of a correction that cannot be fitted."""
    score = moa.Score(None, 0, None, undefined=reason)
    return CorrectionScores(score, score, None, pd.DataFrame())


def _counts(table: pd.DataFrame, is_control: np.ndarray, features: int) -> dict[str, int]:
    """How much went into the scores."""
    treated = table[~is_control]
    counts = {
        "wells": len(table),
        "control_wells": int(is_control.sum()),
        "treatments": len(
            treated.groupby(["Metadata_Compound", "Metadata_Concentration"], sort=False).size()
        ),
        "compounds": treated["Metadata_Compound"].nunique(),
        "moas": treated["Metadata_MoA"].nunique(),
        "batches": table["Metadata_Batch"].nunique(),
        "features": features,
    }
    if "Metadata_CellCount" in table:
        counts["cells"] = int(pd.to_numeric(table["Metadata_CellCount"]).sum())
    return counts


# Of λ: a mean variance below this share of it makes a correction nearly an identity.
_WEAK = 0.1


def unanswerable_notes(nsc: Score, nscb: Score) -> list[str]:
    """Says where a perfect score is out of reach; the same under every correction."""
    return [
        f"{name}: {score.unanswerable} of {score.total} queries have no candidate of their MoA and "
        "count as wrong"
        for name, score in (("NSC", nsc), ("NSCB", nscb))
        if score.unanswerable
    ]


def unknown_batch_notes(nscb: Score) -> list[str]:
    """Says how many treatments NSCB cannot ask; the same under every correction."""
    reasons = nscb.excluded.get("reason", pd.Series(dtype=object))
    count = int((reasons == "its batch is not known").sum())
    return [f"NSCB leaves out {plural(count, 'treatment')} whose batch is not known"] * bool(count)


def rank_note(controls: int, features: int, scaling: Sequence[str]) -> str:
    """What whitening in more dimensions than there are controls means."""
    return (
        f"{controls} control wells span at most {controls - 1} of {features} feature directions: "
        f"in the others {' and '.join(scaling)} only scale{'s' * (len(scaling) == 1)}, by the "
        "regularization"
    )


def strength_notes(controls: np.ndarray, protocol: Protocol, scaling: Sequence[str]) -> list[str]:
    """Says where λ drowns the variance that it is added to."""
    if protocol.relative_regularization or len(controls) < 2:
        return []
    variance = float(controls.var(axis=0).mean())
    if variance >= _WEAK * protocol.regularization:
        return []
    return [
        f"the controls' features have a mean variance of {variance:.2g}, far below λ = "
        f"{protocol.regularization:g}: {' and '.join(scaling)} change little (--standardize="
        "controls, or --relative_regularization)"
    ]


def fitted_on_all_note(name: str) -> str:
    """What a correction that looks at treated wells may take away."""
    return (
        f"{name} is fitted on all wells, treated ones too: of treatments that lie in one batch "
        "alone it takes the effect for the batch's"
    )


def left_out_note(left_out: dict[str, str]) -> str:
    """Names the columns that are no features."""
    shown = [f"{name} ({reason})" for name, reason in list(left_out.items())[:10]]
    more = f" and {len(left_out) - 10} more" if len(left_out) > 10 else ""
    return f"columns not used as features: {', '.join(shown)}{more}"
