"""Content of metrics.json, and checks before an evaluation replaces another one."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import differences, read_json
from cellclr_jax.pages.crop_strips import Pictures
from cellclr_jax.profiling.evaluation import METRICS_JSON, Evaluation
from cellclr_jax.profiling.measures import MEASURES
from cellclr_jax.profiling.measures.uncertainty import uncertainty
from cellclr_jax.profiling.moa import Score, batch_set, single_batch_moas
from cellclr_jax.profiling.protocol import FITTED_ON_ALL, Protocol
from cellclr_jax.profiling.published import is_bbbc021, published_scores
from cellclr_jax.profiling.single_cells import CellEvaluation, describe_cells

UNFINISHED = ".evaluating"
"""Marks a folder whose evaluation is not complete yet."""
# Files that only some evaluations have.
_OPTIONAL = (
    "wells.*",
    "treatments.*",
    "cells.*",
    "neighbours.csv",
    *(f"{name}.csv" for name in MEASURES),
    "confusion_*.png",
    "tsne_*.png",
    "report.html",
)
# Settings in the record of single cells.
_OF_CELLS = ("label_column", "grouped_by")
# The name of the checkpoint, such as 'last', is not a setting; its step is.
_NO_SETTING = ("checkpoint",)
# Characters of a difference in a message: a list of mechanisms can be long.
_LONGEST = 120


@dataclass(frozen=True)
class ScoreSummary:
    """A score with its uncertainty, as in metrics.json.

    Attributes:
      correct, total, accuracy, undefined, unanswerable: see `moa.Score`.
      interval: 95 % confidence interval of the accuracy; None if the score is undefined.
      chance: mean accuracy after mechanisms are shuffled among compounds.
      p: share of shuffles that are at least as accurate.
    """

    correct: int | None
    total: int
    accuracy: float | None
    undefined: str = ""
    interval: list[float] | None = None
    chance: float | None = None
    p: float | None = None
    unanswerable: int = 0

    @classmethod
    def of(cls, score: Score) -> "ScoreSummary":
        """Summarizes a score."""
        shared = ("correct", "total", "accuracy", "undefined", "unanswerable")
        own = cls(**{name: getattr(score, name) for name in shared})
        if score.undefined:
            return own
        found = uncertainty(score)
        return replace(own, interval=[found.low, found.high], chance=found.chance, p=found.p)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ScoreSummary":
        """Reads a score of a metrics.json; missing keys get their default."""
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})

    def as_json(self) -> dict[str, Any]:
        """Returns correct, total, accuracy, and further values that differ from the default."""
        required = ("correct", "total", "accuracy")
        defaults = {name: one.default for name, one in self.__dataclass_fields__.items()}
        values = asdict(self).items()
        return {name: v for name, v in values if name in required or v != defaults[name]}


@dataclass(frozen=True)
class Summary:
    """Scores under one correction; `drop` is NSC - NSCB in percentage points."""

    nsc: ScoreSummary
    nscb: ScoreSummary
    drop: float | None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Summary":
        """Reads the scores of one correction of a metrics.json."""
        nsc, nscb = (ScoreSummary.from_json(values[kind]) for kind in ("nsc", "nscb"))
        return cls(nsc, nscb, values["drop"])

    def as_json(self) -> dict[str, Any]:
        """Returns the scores as in metrics.json."""
        return {"nsc": self.nsc.as_json(), "nscb": self.nscb.as_json(), "drop": self.drop}


Scores = Mapping[str, Mapping[str, Summary]]
"""By name of the profiles, the evaluated ones first, then by correction."""


def summarize(evaluation: Evaluation) -> dict[str, Summary]:
    """Summarizes the scores of an evaluation, by correction."""
    return {
        name: Summary(ScoreSummary.of(found.nsc), ScoreSummary.of(found.nscb), found.drop)
        for name, found in evaluation.scores.items()
    }


@dataclass(frozen=True)
class Results:
    """Everything that the files of an evaluation are made from.

    Attributes:
      evaluation: of the profiles; None if no treatment can be scored.
      name: of the profiles.
      baselines: evaluations of other profiles of the same cells, by name.
      details: further values of the record (step, checkpoint, cells); JSON values.
      cells: evaluation of single cells, if there is one.
      pictures: crops of the treatments.
      history: of the training, one row an entry of metrics.jsonl.
      provenance: config, commit, versions, data manifest; JSON values.
    """

    evaluation: Evaluation | None = None
    name: str = "trained"
    baselines: Mapping[str, Evaluation] = field(default_factory=dict)
    details: Mapping[str, object] = field(default_factory=dict)
    cells: CellEvaluation | None = None
    pictures: Pictures | None = field(default=None, repr=False)
    history: pd.DataFrame | None = field(default=None, repr=False)
    provenance: Mapping[str, object] = field(default_factory=dict, repr=False)

    @cached_property
    def scores(self) -> dict[str, dict[str, Summary]]:
        """See `Scores`; empty without treatments."""
        if self.evaluation is None:
            return {}
        sets = {self.name: self.evaluation, **self.baselines}
        return {name: summarize(evaluation) for name, evaluation in sets.items()}

    @cached_property
    def measures(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Summaries of the measures by correction; corrections without measures are left out."""
        if self.evaluation is None:
            return {}
        return {
            correction: {name: found.summary for name, found in scores.measures.items()}
            for correction, scores in self.evaluation.scores.items()
            if scores.measures
        }

    @property
    def notes(self) -> list[str]:
        """Notes on the scores, of the baselines, too."""
        if self.evaluation is None:
            return []
        own = self.evaluation.notes
        others = [(n, note) for n, other in self.baselines.items() for note in other.notes]
        return [*own, *(f"{name}: {note}" for name, note in others if note not in own)]

    @property
    def baseline_protocols(self) -> dict[str, dict[str, object]]:
        """The protocols of baselines that differ from that of the profiles."""
        return {
            name: describe_protocol(other)
            for name, other in self.baselines.items()
            if self.evaluation is not None and other.protocol != self.evaluation.protocol
        }

    @property
    def published(self) -> list[dict[str, str]]:
        """Published scores; empty unless the compounds are BBBC021's."""
        if self.evaluation is None:
            return []
        of_bbbc021 = is_bbbc021(self.evaluation.treatments["Metadata_Compound"])
        return published_scores() if of_bbbc021 else []


def describe(results: Results) -> dict[str, Any]:
    """Returns the content of metrics.json.

    Returns:
      {"profiles": name, "protocol": {…}, "scores": {correction: {"nsc": {"correct", "total",
      "accuracy", "interval", "chance", "p"}, "nscb": {…}, "drop"}}, "measures": {correction:
      {name: summary}}, "baselines": {name: scores}, "baseline_protocols": {name: {…}} if
      different, "data": counts, "published": see `published.published_scores`,
      "notes": [str], "run": details, "cells": see `single_cells.describe_cells`}; without an
      evaluation of treatments only "profiles", "notes", "run" and "cells".
      Accuracies are in [0, 1], the drop in percentage points; an undefined score is {"correct":
      null, "total": 0, "accuracy": null, "undefined": reason}.
    """
    described: dict[str, Any] = {"profiles": results.name}
    if results.evaluation is not None:
        own, *others = (_as_json(summaries) for summaries in results.scores.values())
        described |= {
            "protocol": describe_protocol(results.evaluation),
            "scores": own,
            "measures": results.measures,
            "baselines": dict(zip(results.baselines, others, strict=True)),
            "baseline_protocols": results.baseline_protocols,
            "data": results.evaluation.data,
        }
        if results.published:
            described["published"] = results.published
    described |= {"notes": results.notes, "run": dict(results.details)}
    return described | ({"cells": describe_cells(results.cells)} if results.cells else {})


def _as_json(summaries: Mapping[str, Summary]) -> dict[str, dict[str, Any]]:
    return {correction: summary.as_json() for correction, summary in summaries.items()}


def describe_protocol(evaluation: Evaluation) -> dict[str, object]:
    """Returns the settings as in metrics.json, with values that were derived from the data."""
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


def check_settings(
    out: str | Path,
    protocol: Protocol,
    details: Mapping[str, object],
    cells: Mapping[str, object] | None = None,
    *,
    overwrite: bool,
) -> None:
    """Checks an output folder before the evaluation; see `check_folder`.

    Args:
      out: the folder.
      protocol: of the evaluation.
      details: see `Results`.
      cells: label_column and grouped_by of single cells, if they are scored.
      overwrite: accepts any earlier evaluation.

    Raises:
      BadUse: the folder contains an evaluation with other settings.
    """
    settings = {name: value for name, value in asdict(protocol).items() if value is not None}
    path = Path(out) / METRICS_JSON
    if path.exists() and not overwrite:
        planned = {"run": dict(details), "protocol": settings, "cells": dict(cells or {})}
        _refuse_different(path, planned, complete=False)


def check_folder(
    out: Path, metrics: Mapping[str, Any], files: Collection[str], *, overwrite: bool
) -> None:
    """Checks that an evaluation may be written to a folder.

    Args:
      out: the folder.
      metrics: new content of metrics.json.
      files: names of the other files to write.
      overwrite: accepts an evaluation with other settings.

    Raises:
      BadUse: the folder contains an evaluation with other settings, or one of the files without a
        metrics.json.
    """
    path = out / METRICS_JSON
    if not path.exists() and not (out / UNFINISHED).exists():
        if existing := sorted(name for name in files if (out / name).exists()):
            raise BadUse(
                f"{out / existing[0]} exists, but no {METRICS_JSON}: no evaluation wrote it; "
                "choose another --out"
            )
    elif path.exists() and not overwrite:
        _refuse_different(path, metrics, complete=True)


def remove_earlier(out: Path, files: Collection[str]) -> None:
    """Removes metrics.json of the earlier evaluation, and its files that are not replaced.

    Args:
      out: a folder that `check_folder` accepted; marks it as `UNFINISHED`.
      files: names of the files to write.
    """
    was_evaluated = (out / METRICS_JSON).exists() or (out / UNFINISHED).exists()
    (out / UNFINISHED).touch()
    # First, as metrics.json must never describe other tables.
    (out / METRICS_JSON).unlink(missing_ok=True)
    if was_evaluated:
        for path in (path for pattern in _OPTIONAL for path in out.glob(pattern)):
            if path.name not in files:
                path.unlink(missing_ok=True)


def _refuse_different(path: Path, metrics: Mapping[str, Any], *, complete: bool) -> None:
    """Raises BadUse if the evaluation at `path` has other settings than `metrics`.

    If `metrics` are complete, a setting that only one of both has is a difference.
    """
    try:
        older = read_json(path, "record of an evaluation")
    except BadData as error:
        raise BadUse(f"{error}: choose another --out=DIR, or --overwrite to replace it") from error
    old, new = _settings(older), _settings(json.loads(json.dumps(metrics)))
    if not complete:
        old, new = ({n: s[n] for n in s if n in old and n in new} for s in (old, new))
    found = differences(old, new)
    for part, what in (("protocol", "treatments"), ("cells", "single cells")):
        # Before the evaluation, `metrics` have no record of cells.
        if "profiles" in metrics and (part in older) != (part in metrics):
            found.insert(0, f"{what} were{'' if part in older else ' not'} scored there")
    if found:
        listed = "; ".join(f if len(f) <= _LONGEST else f"{f[: _LONGEST - 1]}…" for f in found)
        raise BadUse(
            f"{path.parent} contains an evaluation with other settings ({listed}): choose another "
            "--out=DIR, or --overwrite to replace it"
        )


def _settings(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of an evaluation by name."""
    cells = metrics.get("cells", {})
    described = {
        **metrics.get("run", {}),
        **metrics.get("protocol", {}),
        **{name: cells[name] for name in _OF_CELLS if name in cells},
    }
    return {name: value for name, value in described.items() if name not in _NO_SETTING}
