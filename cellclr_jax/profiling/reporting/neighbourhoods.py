"""The treatments nearest to each under the rules of both scores, and whether it is told rightly."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellclr_jax.profiling.candidates import other_batch, other_compound
from cellclr_jax.profiling.columns import own_features
from cellclr_jax.profiling.evaluation import CorrectionScores
from cellclr_jax.profiling.moa import Score
from cellclr_jax.profiling.nearest import Neighbours, nearest, unit_vectors
from cellclr_jax.profiling.protocol import Protocol

SHOWN = 3
KINDS = ("nsc", "nscb")
"""The scores as metrics name them: not-same-compound, not-same-compound-or-batch."""


@dataclass(frozen=True)
class Neighbourhood:
    """Who is nearest to each of N treatments.

    Attributes:
      rows: [N, 3] int, the nearest first; -1 where there is none.
      cosines: [N, 3] float; NaN there.
      correct: [N] whether the score counts the treatment as right; None: it is no query.
      undefined: why there is no score, or ''.
    """

    rows: np.ndarray
    cosines: np.ndarray
    correct: list[bool | None]
    undefined: str = ""


def treatment_keys(treatments: pd.DataFrame) -> list[tuple[str, float]]:
    """(compound, concentration) of each treatment."""
    doses = treatments["Metadata_Concentration"].astype(float)
    return list(zip(treatments["Metadata_Compound"].astype(str), doses, strict=True))


def find_neighbourhoods(scores: CorrectionScores, protocol: Protocol) -> dict[str, Neighbourhood]:
    """The three nearest treatments of each under NSC's and NSCB's rule.

    Args:
      scores: of a correction that could be fitted.
      protocol: what another batch is, and which mechanisms NSCB leaves out.

    Returns:
      By score, 'nsc' and 'nscb'; rows are those of `scores.treatments`.
    """
    treatments = scores.treatments
    table = pd.DataFrame(
        {name.lower(): treatments[f"Metadata_{name}"] for name in ("Compound", "MoA", "Batch")}
    )
    vectors = unit_vectors(treatments[own_features(treatments)].to_numpy(np.float64))
    rules = [other_compound(table), other_batch(table, protocol.batches, protocol.left_out)]
    found = nearest(vectors, [rule.allowed for rule in rules], SHOWN)
    row_of = {key: row for row, key in enumerate(treatment_keys(treatments))}
    return {
        kind: _as_scored(neighbours, score, row_of)
        for kind, neighbours, score in zip(KINDS, found, (scores.nsc, scores.nscb), strict=True)
    }


def _as_scored(
    found: Neighbours, score: Score, row_of: Mapping[tuple[str, float], int]
) -> Neighbourhood:
    """The neighbours of the score's queries, its own first: it may have seen fewer wells."""
    rows = np.full_like(found.rows, -1)
    cosines = np.full_like(found.cosines, np.nan)
    correct: list[bool | None] = [None] * len(rows)
    if score.undefined:
        return Neighbourhood(rows, cosines, correct, score.undefined)
    asked = score.neighbours
    for compound, dose, other, other_dose, cosine, right in zip(
        asked["compound"],
        asked["concentration"],
        asked["neighbour_compound"],
        asked["neighbour_concentration"],
        asked["similarity"],
        asked["correct"],
        strict=True,
    ):
        row = row_of[str(compound), float(dose)]
        correct[row] = bool(right)
        first = row_of.get((str(other), float(other_dose)), -1)
        others = [(n, c) for n, c in zip(found.rows[row], found.cosines[row], strict=True)]
        ranked = [(first, cosine), *(pair for pair in others if pair[0] not in (first, -1))]
        for place, (neighbour, similarity) in enumerate(ranked[:SHOWN]):
            rows[row, place], cosines[row, place] = neighbour, similarity
    return Neighbourhood(rows, cosines, correct)
