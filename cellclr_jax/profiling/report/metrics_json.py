"""What goes into metrics.json."""

import math
from collections.abc import Mapping
from dataclasses import asdict

from cellclr_jax.profiling.evaluation import Evaluation
from cellclr_jax.profiling.measures.uncertainty import uncertainty
from cellclr_jax.profiling.moa import Score, batch_set, single_batch_moas
from cellclr_jax.profiling.protocol import FITTED_ON_ALL
from cellclr_jax.profiling.published import is_bbbc021, published_scores
from cellclr_jax.profiling.single_cells import CellEvaluation, describe_cells


def describe(
    evaluation: Evaluation | None,
    *,
    name: str = "trained",
    baselines: Mapping[str, Evaluation] | None = None,
    details: Mapping[str, object] | None = None,
    cells: CellEvaluation | None = None,
) -> dict[str, object]:
    """What goes into metrics.json; see `write_evaluation`.

    Returns:
      {"profiles": name, "protocol": {…}, "scores": {correction: {"nsc": {"correct", "total",
      "accuracy", "interval", "chance", "p"}, "nscb": {…}, "drop"}}, "measures": {correction:
      {name: summary}}, "baselines": {name: scores},
      "baseline_protocols": {name: {…}} of those whose settings differ, "data": counts,
      "published": of BBBC021, see `published.published_scores`,
      "notes": [str], "run": details,
      "cells": see `cell_record.describe_cells`}; without an evaluation of treatments only
      "profiles", "notes", "run" and "cells".
      Accuracies are in [0, 1], the drop in percentage points; an undefined score is {"correct":
      null, "total": 0, "accuracy": null, "undefined": reason}.
    """
    described: dict[str, object] = {"profiles": name}
    notes: list[str] = []
    if evaluation is not None:
        baselines = baselines or {}
        notes += evaluation.notes
        for baseline, other in baselines.items():
            notes += [f"{baseline}: {note}" for note in other.notes if note not in evaluation.notes]
        described |= {
            "protocol": describe_protocol(evaluation),
            "scores": describe_scores(evaluation),
            "measures": {
                correction: {name: found.summary for name, found in scores.measures.items()}
                for correction, scores in evaluation.scores.items()
                if scores.measures
            },
            "baselines": {key: describe_scores(other) for key, other in baselines.items()},
            "baseline_protocols": {
                key: describe_protocol(other)
                for key, other in baselines.items()
                if other.protocol != evaluation.protocol
            },
            "data": evaluation.data,
        }
        if is_bbbc021(evaluation.treatments["Metadata_Compound"]):
            described["published"] = published_scores()
    described |= {"notes": notes, "run": dict(details or {})}
    return described | ({} if cells is None else {"cells": describe_cells(cells)})


def describe_protocol(evaluation: Evaluation) -> dict[str, object]:
    """The settings as they go into `metrics.json`, with what was computed from the data."""
    left_out, treatments = evaluation.protocol.left_out, evaluation.treatments
    if left_out is None:
        rule = evaluation.protocol.batches
        batches = [batch_set(joined, rule) for joined in treatments["Metadata_Batch"]]
        left_out = tuple(single_batch_moas(treatments["Metadata_MoA"], batches))
    return {
        **asdict(evaluation.protocol),
        "corrections": list(evaluation.protocol.corrections),
        "left_out": list(left_out),
        "left_out_computed": evaluation.protocol.left_out is None,
        "neighbours": 1,
        "similarity": "cosine",
        "fitted_on": {
            name: "all wells" if name in FITTED_ON_ALL else f"{evaluation.protocol.control} wells"
            for name in evaluation.protocol.corrections
            if name != "none"
        },
    }


def describe_scores(evaluation: Evaluation) -> dict[str, dict[str, object]]:
    """The scores as they go into `metrics.json`."""
    return {
        name: {"nsc": _describe(s.nsc), "nscb": _describe(s.nscb), "drop": s.drop}
        for name, s in evaluation.scores.items()
    }


def _describe(score: Score) -> dict[str, object]:
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


def mapping(value: object) -> Mapping[str, object]:
    """The value where it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def real(values: object, name: str) -> float | None:
    """A finite number of a JSON object; None where it has none of this name."""
    value = mapping(values).get(name)
    usable = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if usable and math.isfinite(value) else None  # type: ignore[arg-type]


def pair(value: object) -> tuple[float, float] | None:
    """Two numbers, such as the ends of an interval; None for anything else."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = value
    if not all(isinstance(end, (int, float)) for end in (low, high)):
        return None
    return float(low), float(high)


def is_undefined(values: object) -> bool:
    """Whether a score or measure was not computed: it says why, or is not there at all."""
    found = mapping(values)
    return not found or "undefined" in found
