"""NSC and NSCB where several neighbours vote."""

from functools import partial

import pandas as pd

from cellclr_jax.profiling import moa, profiles
from cellclr_jax.profiling.measures.measured import CorrectedProfiles, Measured

NEIGHBOURS = (3, 5, 10)
"""How many; one is the score itself."""


def k_nearest(seen: CorrectedProfiles) -> Measured:
    """Scores the vote of more than one neighbour (see `moa.not_same_compound`).

    Returns:
      {"nsc": {"1": {"correct", "total", "accuracy"}, "3": …}, "nscb": {…}}; a score that is
      undefined with one neighbour has "undefined" with the reason.
    """
    protocol, features = seen.protocol, seen.features
    scores = {"nsc": {"1": seen.nsc}, "nscb": {"1": seen.nscb}}
    for_nscb = seen.treatments
    if protocol.batches == "week1":
        wells = seen.wells[~seen.controls()]
        first = wells[profiles.in_first_batch(wells)]
        for_nscb = profiles.treatment_profiles(
            first, statistic=protocol.statistic, features=features
        )
    search = partial(
        moa.both_scores,
        neighbours=NEIGHBOURS,
        batches=protocol.batches,
        left_out=protocol.left_out,
        features=features,
        control=protocol.control,
    )
    of_all = search(seen.treatments)
    of_first = of_all if for_nscb is seen.treatments else search(for_nscb)
    for count in NEIGHBOURS:
        scores["nsc"][str(count)], scores["nscb"][str(count)] = of_all[count][0], of_first[count][1]
    described = {
        kind: {count: _describe(score) for count, score in found.items()}
        for kind, found in scores.items()
    }
    rows = [
        {"score": kind, "neighbours": int(count), **score}
        for kind, found in described.items()
        for count, score in found.items()
    ]
    return Measured(dict(described), pd.DataFrame(rows))


def _describe(score: moa.Score) -> dict[str, object]:
    """As JSON."""
    if score.undefined:
        return {"undefined": score.undefined}
    return {"correct": score.correct, "total": score.total, "accuracy": score.accuracy}
