"""The evaluation: well profiles in, NSC, NSCB and the drop of every correction out."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.data.counting import plural
from cellclr_jax.profiling import moa, profiles
from cellclr_jax.profiling.corrected import corrected_profiles
from cellclr_jax.profiling.measures.uncertainty import uncertainty
from cellclr_jax.profiling.protocol import Protocol
from cellclr_jax.profiling.standardization import standardize
from cellclr_jax.profiling.tables import ProfileTable, canonical_table


@dataclass(frozen=True)
class CorrectionScores:
    """The scores of one correction.

    Attributes:
      nsc: not-same-compound.
      nscb: not-same-compound-or-batch.
      drop: nsc - nscb in percentage points, or None where either is undefined.
      treatments: the corrected treatment profiles; empty where the correction is undefined.
    """

    nsc: moa.Score
    nscb: moa.Score
    drop: float | None
    treatments: pd.DataFrame = field(repr=False)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
      protocol: the settings.
      scores: by correction, those of the protocol.
      wells: the wells that were used, as they came: controls and annotated wells.
      treatments: the treatment profiles before correction, controls left out.
      data: counts of wells, controls, treatments, compounds, MoAs, batches, features.
      notes: what a reader of the scores must know.
    """

    protocol: Protocol
    scores: dict[str, CorrectionScores]
    wells: pd.DataFrame = field(repr=False)
    treatments: pd.DataFrame = field(repr=False)
    data: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def evaluate(
    wells: pd.DataFrame,
    protocol: Protocol | None = None,
    *,
    features: Sequence[str] | None = None,
) -> Evaluation:
    """Scores well profiles under each correction.

    Args:
      wells: one row a well (the protocol's `aggregate` was applied before): plate, well, batch,
        compound, concentration, MoA under any of the names `tables` understands, and features.
      protocol: the settings; the defaults where None.
      features: the feature columns; by default those of `columns.split_columns`.

    Returns:
      The evaluation. A correction that cannot be fitted (a batch without controls, no batch
      known) and a score that does not exist (one batch alone) are undefined, with the reason, not
      errors.

    Raises:
      BadData: no annotated treatment; a well is listed twice; a feature is not finite;
        standardisation by controls without controls.
    """
    # The matrices are small: BLAS threads that wait for each other on a busy machine make this
    # five times slower. One thread also rounds the same whatever the machine.
    with threadpool_limits(limits=1, user_api="blas"):
        house = canonical_table(wells, control=(protocol or Protocol()).control, features=features)
        return _evaluate(house, protocol or Protocol())


def _evaluate(house: ProfileTable, protocol: Protocol) -> Evaluation:
    """See `evaluate`."""
    table, notes = _used_wells(house.table, protocol.control)
    if house.left_out:
        notes.append(_left_out_note(house.left_out))
    is_control = (table["Metadata_Compound"] == protocol.control).to_numpy()
    if protocol.control != Protocol.control and not is_control.any():
        raise BadUse(f"control {protocol.control!r}: no well has this compound")
    values, features = table[house.features].to_numpy(np.float64), house.features
    if protocol.standardize != "none":
        by_plate = protocol.standardize == "plates"
        values, kept = standardize(
            values,
            is_control,
            plates=table["Metadata_Plate"].to_numpy(object) if by_plate else None,
            robust=protocol.robust,
        )
        constant = [name for name, keep in zip(features, kept, strict=True) if not keep]
        features = [name for name, keep in zip(features, kept, strict=True) if keep]
        if constant:
            where = "those of a plate" if by_plate else "the controls"
            notes.append(f"constant over {where}, left out: {', '.join(constant)}")
    if 0 < is_control.sum() <= len(features):
        notes.append(_rank_note(int(is_control.sum()), len(features)))
    base = table[[c for c in table if str(c).startswith("Metadata_")]]
    batches = base["Metadata_Batch"].to_numpy(object)
    scores = {}
    for name, corrected in corrected_profiles(values, is_control, batches, protocol).items():
        if isinstance(corrected, str):
            scores[name] = _undefined(corrected)
            notes.append(f"{name} is undefined: {corrected}")
        else:
            names = features if corrected.shape[1] == len(features) else _components(corrected)
            scores[name] = _score(_with_features(base, corrected, names), names, protocol)
    notes += _unanswerable_notes(scores["none"])
    return Evaluation(
        protocol,
        scores,
        wells=table,
        treatments=_treatments(_with_features(base, values, features), features, protocol),
        data=_counts(table, is_control, len(features)),
        notes=notes,
    )


def describe_protocol(evaluation: Evaluation) -> dict[str, object]:
    """The settings as they go into `metrics.json`, with what was computed from the data."""
    left_out, treatments = evaluation.protocol.left_out, evaluation.treatments
    if left_out is None:
        rule = evaluation.protocol.batches
        batches = [moa.batch_set(joined, rule) for joined in treatments["Metadata_Batch"]]
        left_out = tuple(moa.single_batch_moas(treatments["Metadata_MoA"], batches))
    return {
        **asdict(evaluation.protocol),
        "corrections": list(evaluation.protocol.corrections),
        "left_out": list(left_out),
        "left_out_computed": evaluation.protocol.left_out is None,
        "neighbours": 1,
        "similarity": "cosine",
        "fitted_on": f"{evaluation.protocol.control} wells",
    }


def describe_scores(evaluation: Evaluation) -> dict[str, dict[str, object]]:
    """The scores as they go into `metrics.json`."""
    return {
        name: {"nsc": _describe(s.nsc), "nscb": _describe(s.nscb), "drop": s.drop}
        for name, s in evaluation.scores.items()
    }


def _describe(score: moa.Score) -> dict[str, object]:
    """One score and what surrounds it, or why there is none."""
    described: dict[str, object] = {
        "correct": score.correct,
        "total": score.total,
        "accuracy": score.accuracy,
    }
    if score.undefined:
        described["undefined"] = score.undefined
        return described
    around = uncertainty(score)
    described["interval"] = [around.low, around.high]
    described |= {"chance": around.chance, "p": around.p}
    if score.unanswerable:
        described["unanswerable"] = score.unanswerable
    return described


def _used_wells(table: pd.DataFrame, control: str) -> tuple[pd.DataFrame, list[str]]:
    """Controls and annotated wells, and a note on the others."""
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
    return table[used].reset_index(drop=True), notes


def _components(corrected: np.ndarray) -> list[str]:
    """Names of principal components."""
    return [f"component_{number:04d}" for number in range(corrected.shape[1])]


def _with_features(base: pd.DataFrame, values: np.ndarray, features: list[str]) -> pd.DataFrame:
    """Metadata and features side by side."""
    return pd.concat([base, pd.DataFrame(values, columns=features)], axis=1)


def _treatments(wells: pd.DataFrame, features: list[str], protocol: Protocol) -> pd.DataFrame:
    """Treatment profiles without the controls."""
    treated = wells[wells["Metadata_Compound"] != protocol.control]
    return profiles.treatment_profiles(treated, statistic=protocol.statistic, features=features)


def _score(wells: pd.DataFrame, features: list[str], protocol: Protocol) -> CorrectionScores:
    """NSC on all wells; NSCB on those that the rule for batches keeps."""
    treatments = _treatments(wells, features, protocol)
    for_nscb = treatments
    if protocol.batches == "week1":
        for_nscb = _treatments(profiles.first_batch_wells(wells), features, protocol)
    nsc = moa.not_same_compound(treatments, features=features, control=protocol.control)
    nscb = moa.not_same_compound_or_batch(
        for_nscb,
        batches=protocol.batches,
        left_out=protocol.left_out,
        features=features,
        control=protocol.control,
    )
    return CorrectionScores(nsc, nscb, moa.drop(nsc, nscb), treatments)


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


def _unanswerable_notes(scores: CorrectionScores) -> list[str]:
    """Says where a perfect score is out of reach; the same under every correction."""
    return [
        f"{name}: {score.unanswerable} of {score.total} queries have no candidate of their MoA and "
        "count as wrong"
        for name, score in (("NSC", scores.nsc), ("NSCB", scores.nscb))
        if score.unanswerable
    ]


def _rank_note(controls: int, features: int) -> str:
    """What whitening in more dimensions than there are controls means."""
    return (
        f"{controls} control wells span at most {controls - 1} of {features} feature directions: "
        "in the others both corrections only scale, by the regularization"
    )


def _left_out_note(left_out: dict[str, str]) -> str:
    """Names the columns that are no features."""
    shown = [f"{name} ({reason})" for name, reason in list(left_out.items())[:10]]
    more = f" and {len(left_out) - 10} more" if len(left_out) > 10 else ""
    return f"columns not used as features: {', '.join(shown)}{more}"
