"""What a reader of the scores must know beside them, in sentences."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cellclr_jax.data.counting import plural
from cellclr_jax.profiling.moa import Score
from cellclr_jax.profiling.protocol import Protocol

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
