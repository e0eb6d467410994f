"""What the scores say, in a heading and a few sentences; the table of all scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cellclr_jax.pages import percent
from cellclr_jax.profiling.report.metrics_json import Results, Scores, ScoreSummary, Summary
from cellclr_jax.profiling.single_cells import CellEvaluation, describe_cells
from cellclr_jax.profiling.single_cells.probes import TITLES

KINDS = ("nsc", "nscb")
"""The scores: not-same-compound, not-same-compound-or-batch."""
LEADING = ("tvn", "whitening", "pca_whitening", "none", "harmony", "combat")
"""Corrections in the order in which a page leads with one."""
# A score is said to differ from chance at this level.
_LEVEL = 0.05
# From so many points on, a drop is said to be large: a score's interval is about as wide.
_LARGE_DROP = 10.0
_RULES = {"nsc": "another compound", "nscb": "another compound and batch"}


def leading(corrections: Sequence[str]) -> str:
    """Returns the correction that a page leads with, of some."""
    return min(
        corrections, key=lambda name: LEADING.index(name) if name in LEADING else len(LEADING)
    )


def judge(results: Results) -> tuple[str, list[str]]:
    """Returns the heading of the page, and the sentences that say what it rests on.

    The correction is the first of `LEADING` that has a score, whatever the others score: choosing
    the best would flatter.
    """
    own = results.scores.get(results.name, {})
    kinds = {correction: _defined(summary) for correction, summary in own.items()}
    defined = [correction for correction, kind in kinds.items() if kind]
    if not defined:
        return _judge_cells(own, results.cells)
    correction = leading(defined)
    return _judge_scores(results.name, results.scores, correction, kinds[correction])


def _defined(summary: Summary) -> str:
    """Returns 'nsc', where there is none 'nscb', and '' where neither is defined."""
    return next((kind for kind in KINDS if not _score(summary, kind).undefined), "")


def _judge_scores(name: str, scores: Scores, correction: str, kind: str) -> tuple[str, list[str]]:
    """Judges by one correction and score; see `judge`."""
    own, score = scores[name], _score(scores[name][correction], kind)
    # What has no such correction, as a number of cells, is compared as it is scored.
    others = {
        other: _score(found[correction if correction in found else leading(list(found))], kind)
        for other, found in scores.items()
        if other != name
    }
    others = {other: found for other, found in others.items() if not found.undefined}
    parts = [f"{other.replace('_', ' ')} {counted(found)}" for other, found in others.items()]
    parts.append(f"mechanisms shuffled among compounds {percent(score.chance)}")
    said = [_own_score(name, own, correction, kind), f"For comparison: {'; '.join(parts)}."]
    if kind == "nsc":
        said.append(_across_batches(own[correction]))
    return _heading(score, others, own[correction].drop), said


def _score(summary: Summary, kind: str) -> ScoreSummary:
    return summary.nsc if kind == "nsc" else summary.nscb


def _own_score(name: str, own: Mapping[str, Summary], correction: str, kind: str) -> str:
    """Says what the evaluation's own profiles score."""
    score = _score(own[correction], kind)
    who = name.capitalize() if name == "profiles" else f"{name.capitalize()} profiles"
    known = {n for one in own.values() if (n := _score(one, kind).correct) is not None}
    spread = f"; {min(known)} to {max(known)} over the corrections" if len(known) > 1 else ""
    return (
        f"{who} name the mechanism of {counted(score)} treatments "
        f"({percent(score.accuracy)}{_interval(score)}) from the nearest treatment of "
        f"{_RULES[kind]} ({kind.upper()}, correction {correction}{spread})."
    )


def _across_batches(summary: Summary) -> str:
    """Says what becomes of the score when the neighbour has to come from another batch."""
    score, drop = summary.nscb, summary.drop
    if score.undefined or drop is None:
        return f"Whether that holds in another batch is not known: {score.undefined}."
    way = "less" if drop > 0 else "more"
    by = "the same" if abs(drop) < 0.05 else f"{abs(drop):.1f} points {way}"
    return (
        f"Where the neighbour has to come from another batch, too, {counted(score)} "
        f"({percent(score.accuracy)}{_interval(score)}): {by}."
    )


def _heading(score: ScoreSummary, others: Mapping[str, ScoreSummary], drop: float | None) -> str:
    """Says what the score is worth."""
    if score.p is None:
        return "How well the profiles tell mechanisms"
    if score.p >= _LEVEL:
        return "The profiles tell mechanisms no better than chance"
    above = "The profiles tell mechanisms better than chance"
    if others and score.interval:
        best = max(others, key=lambda name: others[name].accuracy or 0.0)
        beaten = score.interval[0] > (others[best].accuracy or 0.0)
        above += " and than" if beaten else ", but not clearly better than"
        above += f" the best baseline ({best.replace('_', ' ')})"
    if drop is not None and drop >= _LARGE_DROP:
        return f"{above}; less so across batches"
    return above


def _judge_cells(own: Mapping[str, Summary], cells: CellEvaluation | None) -> tuple[str, list[str]]:
    """Judges an evaluation without a defined score of treatments."""
    reasons = [
        f"{kind.upper()} is undefined under {correction}: {_score(summary, kind).undefined}."
        for correction, summary in own.items()
        for kind in KINDS
    ]
    if cells is None or cells.undefined:
        why = [f"Cells: {cells.undefined}."] if cells else []
        return "There is no score", [*reasons, *why]
    said = []
    for name, probe in cells.probes.items():
        parts = [f"{percent(s.balanced_accuracy)} ({TITLES[k]})" for k, s in probe.scores.items()]
        said.append(
            f"{name.capitalize()} features tell the {cells.sample.label_column} of cells with a "
            f"balanced accuracy of {' and '.join(parts)}."
        )
    guessing = percent(next(iter(cells.probes.values())).chance)
    return "How well classes of cells are told", [*said, f"Guessing gives {guessing}.", *reasons]


@dataclass(frozen=True)
class Cell:
    """One score of the table in words; `undefined` says why there is none, or ''."""

    count: str = ""
    share: str = ""
    lines: list[str] = field(default_factory=list)
    undefined: str = ""


@dataclass(frozen=True)
class Row:
    """A row of the table of scores."""

    profiles: str
    correction: str
    nsc: Cell
    nscb: Cell
    drop: str


def score_rows(scores: Scores, measures: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Returns the rows of the table of scores.

    Args:
      scores: the evaluation's own profiles first.
      measures: their measures by correction, of which `well_intervals` are shown.
    """
    rows = []
    for name, summaries in scores.items():
        for correction, summary in summaries.items():
            own = measures.get(correction, {}) if name == next(iter(scores)) else {}
            wells = own.get("well_intervals", {})
            nsc, nscb = (_cell(_score(summary, kind), wells.get(kind)) for kind in KINDS)
            drop = "undefined" if summary.drop is None else points(summary.drop)
            rows.append(Row(name, correction, nsc, nscb, drop))
    return rows


def _cell(score: ScoreSummary, wells: Sequence[float] | None) -> Cell:
    """One score of the table."""
    if score.undefined:
        return Cell(undefined=score.undefined)
    lines = [
        f"95 %: {_span(ends)} over {what}"
        for ends, what in ((score.interval, "compounds"), (wells, "wells"))
        if ends
    ]
    if score.p is not None:
        p = "p < 0.001" if score.p < 0.001 else f"p = {score.p:.3f}"
        lines.append(f"chance {percent(score.chance)}, {p}")
    if score.unanswerable:
        lines.append(f"{score.unanswerable} cannot be answered")
    return Cell(f"{score.correct}/{score.total}", percent(score.accuracy), lines)


def counted(score: ScoreSummary) -> str:
    """'43 of 48'."""
    return f"{score.correct} of {score.total}"


def points(drop: float) -> str:
    """Writes a drop, with a true minus."""
    return f"{drop:.1f}".replace("-", "−")


def _interval(score: ScoreSummary) -> str:
    """', 95 % interval 78 to 98 %' or nothing."""
    return f", 95 % interval {_span(score.interval)}" if score.interval else ""


def _span(ends: Sequence[float]) -> str:
    """'78.0 to 98.0 %'."""
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"


def cell_tables(cells: CellEvaluation) -> dict[str, Any] | None:
    """Returns the tables of the section on single cells; None where they have no score.

    Returns:
      text: what the numbers are; heads, rows: features and classifiers; class_heads, class_rows:
      each class with its cells and recalls of the first features; settings: of the classifiers.
    """
    if cells.undefined:
        return None
    first = next(iter(cells.probes.values()))
    found = describe_cells(cells)
    kept = f", each {cells.grouped_by} kept whole" if cells.grouped_by else ""
    titles = [TITLES[kind] for kind in first.scores]
    return {
        "text": "Balanced accuracy: the mean over classes of the share of cells whose "
        f"{cells.sample.label_column} is predicted by a classifier that was fitted on other "
        f"cells ({first.folds} folds{kept}). {first.cells:,} cells; guessing gives "
        f"{percent(first.chance)}.",
        "heads": ["Features", *titles],
        "rows": [
            [name, *(percent(score.balanced_accuracy) for score in probe.scores.values())]
            for name, probe in cells.probes.items()
        ],
        "class_heads": ["Class", "Cells", *titles],
        "class_rows": [
            [name, f"{n:,}", *(percent(s.recall.get(name)) for s in first.scores.values())]
            for name, n in first.classes.items()
        ],
        "settings": found["settings"],
    }
