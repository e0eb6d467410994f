"""Heading and summary sentences of the report, and its tables of scores."""

from collections.abc import Mapping, Sequence
from typing import Any

from cellclr_jax.pages import percent
from cellclr_jax.profiling.report.metrics_json import Results, Scores, ScoreSummary, Summary
from cellclr_jax.profiling.single_cells import CellEvaluation, describe_cells
from cellclr_jax.profiling.single_cells.probes import TITLES

KINDS = ("nsc", "nscb")
"""The scores: not-same-compound, not-same-compound-or-batch."""
LEADING = ("tvn", "whitening", "pca_whitening", "none", "harmony", "combat")
"""Corrections in the order in which one is chosen for the heading."""
# Significance level of the comparison with chance.
_LEVEL = 0.05
# Percentage points from which a drop is mentioned: about the width of a score's interval.
_LARGE_DROP = 10.0
_RULES = {"nsc": "another compound", "nscb": "another compound and batch"}


def leading(corrections: Sequence[str]) -> str:
    """Returns the first of the corrections in the order of `LEADING`."""
    return min(
        corrections, key=lambda name: LEADING.index(name) if name in LEADING else len(LEADING)
    )


def judge(results: Results) -> tuple[str, list[str]]:
    """Returns the heading of the page and the sentences that support it.

    They are about the first correction of `LEADING` that has a score; choosing the correction with
    the best score would be biased.
    """
    own = results.scores.get(results.name, {})
    kinds = {
        correction: next((k for k in KINDS if not getattr(summary, k).undefined), "")
        for correction, summary in own.items()
    }
    defined = [correction for correction, kind in kinds.items() if kind]
    if not defined:
        return _judge_cells(own, results.cells)
    correction = leading(defined)
    return _judge_scores(results.name, results.scores, correction, kinds[correction])


def _judge_scores(name: str, scores: Scores, correction: str, kind: str) -> tuple[str, list[str]]:
    """Heading and sentences about one correction and score."""
    own, score = scores[name], getattr(scores[name][correction], kind)
    # A baseline without this correction, such as cell counts, is compared by its own.
    others = {
        other: getattr(found[correction if correction in found else leading(list(found))], kind)
        for other, found in scores.items()
        if other != name
    }
    others = {other: found for other, found in others.items() if not found.undefined}
    parts = [f"{other.replace('_', ' ')} {counted(found)}" for other, found in others.items()]
    parts.append(f"mechanisms shuffled among compounds {percent(score.chance)}")
    sentences = [_own_score(name, own, correction, kind), f"For comparison: {'; '.join(parts)}."]
    if kind == "nsc":
        sentences.append(_across_batches(own[correction]))
    return _heading(score, others, own[correction].drop), sentences


def _own_score(name: str, own: Mapping[str, Summary], correction: str, kind: str) -> str:
    """Describes the score of the evaluated profiles."""
    score = getattr(own[correction], kind)
    subject = name.capitalize() if name == "profiles" else f"{name.capitalize()} profiles"
    counts = {n for one in own.values() if (n := getattr(one, kind).correct) is not None}
    spread = f"; {min(counts)} to {max(counts)} over all corrections" if len(counts) > 1 else ""
    return (
        f"{subject} predict the mechanism of {counted(score)} treatments correctly "
        f"({percent(score.accuracy)}{_interval(score)}), from the nearest treatment of "
        f"{_RULES[kind]} ({kind.upper()}, correction {correction}{spread})."
    )


def _across_batches(summary: Summary) -> str:
    """Describes the score across batches and its difference from NSC."""
    score, drop = summary.nscb, summary.drop
    if score.undefined or drop is None:
        return f"The accuracy across batches (NSCB) is undefined: {score.undefined}."
    change = f"{abs(drop):.1f} percentage points {'lower' if drop > 0 else 'higher'}"
    return (
        f"If the nearest treatment must also be of another batch (NSCB): {counted(score)} "
        f"({percent(score.accuracy)}{_interval(score)}), "
        f"{'unchanged' if abs(drop) < 0.05 else change}."
    )


def _heading(score: ScoreSummary, others: Mapping[str, ScoreSummary], drop: float | None) -> str:
    """Summarizes the comparison with chance, baselines and other batches."""
    if score.p is None:
        return "Accuracy of mechanism-of-action prediction"
    if score.p >= _LEVEL:
        return "The profiles predict mechanisms no better than chance"
    text = "The profiles predict mechanisms better than chance"
    if others and score.interval:
        best = max(others, key=lambda name: others[name].accuracy or 0.0)
        better = score.interval[0] > (others[best].accuracy or 0.0)
        text += " and better than" if better else ", but not clearly better than"
        text += f" the best baseline ({best.replace('_', ' ')})"
    return f"{text}; less so across batches" if (drop or 0.0) >= _LARGE_DROP else text


def _judge_cells(own: Mapping[str, Summary], cells: CellEvaluation | None) -> tuple[str, list[str]]:
    """Heading and sentences of an evaluation without a defined score of treatments."""
    reasons = [
        f"{kind.upper()} is undefined under {correction}: {getattr(summary, kind).undefined}."
        for correction, summary in own.items()
        for kind in KINDS
    ]
    if cells is None or cells.undefined:
        return "No score", [*reasons, *([f"Single cells: {cells.undefined}."] if cells else [])]
    sentences = []
    for name, probe in cells.probes.items():
        parts = [f"{percent(s.balanced_accuracy)} ({TITLES[k]})" for k, s in probe.scores.items()]
        sentences.append(
            f"{name.capitalize()} features predict the {cells.sample.label_column} of cells with a "
            f"balanced accuracy of {' and '.join(parts)}."
        )
    chance = percent(next(iter(cells.probes.values())).chance)
    return "Accuracy of single-cell classification", [*sentences, f"Chance is {chance}.", *reasons]


def score_rows(scores: Scores, measures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of the table of scores.

    Args:
      scores: the evaluated profiles first.
      measures: their measures by correction, of which `well_intervals` are shown.

    Returns:
      profiles, correction, scores (NSC and NSCB, each with count, share, lines or undefined), drop.
    """
    rows = []
    for name, summaries in scores.items():
        for correction, summary in summaries.items():
            own = measures.get(correction, {}) if name == next(iter(scores)) else {}
            wells = own.get("well_intervals", {})
            cells = [_cell(getattr(summary, kind), wells.get(kind)) for kind in KINDS]
            drop = "undefined" if summary.drop is None else points(summary.drop)
            row = {"profiles": name, "correction": correction, "scores": cells, "drop": drop}
            rows.append(row)
    return rows


def _cell(score: ScoreSummary, wells: Sequence[float] | None) -> dict[str, Any]:
    """One score of the table."""
    if score.undefined:
        return {"undefined": score.undefined}
    lines = [
        f"95 % CI {_span(ends)} over {units}"
        for ends, units in ((score.interval, "compounds"), (wells, "wells"))
        if ends
    ]
    if score.p is not None:
        p = "p < 0.001" if score.p < 0.001 else f"p = {score.p:.3f}"
        lines.append(f"chance {percent(score.chance)}, {p}")
    if score.unanswerable:
        lines.append(f"{score.unanswerable} have no possible correct neighbour")
    return {"count": f"{score.correct}/{score.total}", "share": percent(score.accuracy)} | {
        "lines": lines
    }


def counted(score: ScoreSummary) -> str:
    """Formats counts, such as '43 of 48'."""
    return f"{score.correct} of {score.total}"


def points(drop: float) -> str:
    """Formats a drop in percentage points, with a minus sign instead of a hyphen."""
    return f"{drop:.1f}".replace("-", "−")


def _interval(score: ScoreSummary) -> str:
    """Formats an interval, such as ', 95 % CI 78.0 to 98.0 %'."""
    return f", 95 % CI {_span(score.interval)}" if score.interval else ""


def _span(ends: Sequence[float]) -> str:
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"


def cell_tables(cells: CellEvaluation) -> dict[str, Any] | None:
    """Returns the tables of the section on single cells; None if they have no score.

    Returns:
      text: explanation; heads, rows: balanced accuracy by features and classifier; class_heads,
      class_rows: cells and recall of each class, of the first features; settings: of the
      classifiers.
    """
    if cells.undefined:
        return None
    first = next(iter(cells.probes.values()))
    grouped = f", grouped by {cells.grouped_by}" if cells.grouped_by else ""
    titles = [TITLES[kind] for kind in first.scores]
    return {
        "text": f"Balanced accuracy: the mean recall over the classes of "
        f"{cells.sample.label_column}, by cross-validation ({first.folds} folds{grouped}). "
        f"{first.cells:,} cells; chance is {percent(first.chance)}.",
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
        "settings": describe_cells(cells)["settings"],
    }
