"""What the scores say, in a heading and a few sentences; the tables of all scores."""

from collections.abc import Iterator, Mapping, Sequence

from cellclr_jax.profiling.report.metrics_json import is_undefined, mapping, pair, real
from cellclr_jax.profiling.report.treatments import KINDS
from cellclr_jax.profiling.single_cells.probes import TITLES

# A score is told from chance, or not, at this level.
_LEVEL = 0.05
# From so many points on, a drop is said to be large: a score's interval is about as wide.
_LARGE_DROP = 10.0
_RULES = {"nsc": "another compound", "nscb": "another compound and batch"}


LEADING = ("tvn", "whitening", "pca_whitening", "none", "harmony", "combat")
"""Corrections in the order in which a page leads with one."""


def leading(corrections: Sequence[str]) -> str:
    """The correction that a page leads with, of some."""
    return min(corrections, key=_rank)


def _rank(correction: str) -> int:
    """Its place in `LEADING`; what is not there comes last."""
    return LEADING.index(correction) if correction in LEADING else len(LEADING)


def judge(metrics: Mapping[str, object]) -> tuple[str, list[str]]:
    """The heading of the page, and the sentences that say what it rests on.

    The correction is the first of `LEADING` that has a score, whatever the others score: choosing
    the best would flatter.

    Args:
      metrics: what `record.describe` returns.
    """
    sets = profile_sets(metrics)
    defined = [] if not sets else list(_defined(next(iter(sets.values()))))
    if not defined:
        return _judge_cells(metrics)
    correction = leading([name for name, _ in defined])
    kind = dict(defined)[correction]
    name = next(iter(sets))
    score = score_of(sets[name], correction, kind)
    said = [_said_of(metrics, sets[name], correction, kind)]
    # What has no such correction, as a number of cells, is compared as it is scored.
    others = {
        other: score_of(scores, correction if correction in scores else leading(list(scores)), kind)
        for other, scores in sets.items()
        if other != name
    }
    others = {other: found for other, found in others.items() if not is_undefined(found)}
    parts = [f"{o.replace('_', ' ')} {count_words(found)}" for o, found in others.items()]
    parts.append(f"mechanisms shuffled among compounds {percent_words(score.get('chance'))}")
    said.append(f"For comparison: {'; '.join(parts)}.")
    said += _said_of_batches(sets[name], correction, kind)
    return _heading(score, others, real(sets[name][correction], "drop")), said


def score_rows(metrics: Mapping[str, object]) -> list[dict[str, object]]:
    """Rows of the table of scores: profiles, correction, a cell for each score, drop."""
    measures = mapping(metrics.get("measures"))
    rows: list[dict[str, object]] = []
    for name, scores in profile_sets(metrics).items():
        for correction, entry in scores.items():
            drop = real(entry, "drop")
            own = name == metrics["profiles"]
            wells = mapping(mapping(measures.get(correction)).get("well_intervals")) if own else {}
            cells = {
                kind: _cell(mapping(mapping(entry).get(kind)), pair(wells.get(kind)))
                for kind in KINDS
            }
            told = "undefined" if drop is None else f"{drop:.1f}".replace("-", "−")
            rows.append({"profiles": name, "correction": correction, "drop": told, **cells})
    return rows


def published_rows(metrics: Mapping[str, object]) -> list[list[str]]:
    """Rows of the table of published scores: method, kind, NSC, NSCB, drop, source."""
    listed = metrics.get("published")
    if not isinstance(listed, Sequence):
        return []
    return [
        [str(one.get("method") or ""), str(one.get("kind") or "")]
        + [_as_published(one.get(name)) for name in (*KINDS, "drop")]
        + [str(one.get("source") or "")]
        for one in map(mapping, listed)
    ]


def profile_sets(metrics: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    """Scores by profiles, the evaluation's own first; none without treatments."""
    if "scores" not in metrics:
        return {}
    own = {str(metrics["profiles"]): mapping(metrics["scores"])}
    return own | {name: mapping(s) for name, s in mapping(metrics.get("baselines")).items()}


def _defined(scores: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(correction, score) of what is defined: NSC, or where there is none NSCB."""
    for correction in scores:
        for kind in KINDS:
            if not is_undefined(score_of(scores, correction, kind)):
                yield correction, kind
                break


def score_of(scores: Mapping[str, object], correction: str, kind: str) -> Mapping[str, object]:
    """One score."""
    return mapping(mapping(scores.get(correction)).get(kind))


def _said_of(
    metrics: Mapping[str, object], scores: Mapping[str, object], correction: str, kind: str
) -> str:
    """The score of the evaluation's own profiles in a sentence."""
    found = score_of(scores, correction, kind)
    name = str(metrics["profiles"])
    who = name.capitalize() if name == "profiles" else f"{name.capitalize()} profiles"
    alike = [score_of(scores, other, kind) for other in scores]
    counts = [real(one, "correct") for one in alike]
    known = [int(count) for count in counts if count is not None]
    spread = f"; {min(known)} to {max(known)} over the corrections" if len(set(known)) > 1 else ""
    return (
        f"{who} name the mechanism of {count_words(found)} treatments "
        f"({percent_words(found.get('accuracy'))}{_interval(found)}) from the nearest treatment of "
        f"{_RULES[kind]} ({kind.upper()}, correction {correction}{spread})."
    )


def _said_of_batches(scores: Mapping[str, object], correction: str, kind: str) -> list[str]:
    """What becomes of the score when the neighbour has to come from another batch."""
    if kind == "nscb":
        return []
    found, drop = score_of(scores, correction, "nscb"), real(scores[correction], "drop")
    if is_undefined(found) or drop is None:
        return [f"Whether that holds in another batch is not known: {found.get('undefined', '')}."]
    way = "less" if drop > 0 else "more"
    by = "the same" if abs(drop) < 0.05 else f"{abs(drop):.1f} points {way}"
    return [
        f"Where the neighbour has to come from another batch, too, {count_words(found)} "
        f"({percent_words(found.get('accuracy'))}{_interval(found)}): {by}."
    ]


def _heading(
    score: Mapping[str, object], others: Mapping[str, Mapping[str, object]], drop: float | None
) -> str:
    """What the score is worth."""
    p, interval = real(score, "p"), pair(score.get("interval"))
    if p is None:
        return "How well the profiles tell mechanisms"
    if p >= _LEVEL:
        return "The profiles tell mechanisms no better than chance"
    above = "The profiles tell mechanisms better than chance"
    if others and interval:
        best = max(others, key=lambda name: real(others[name], "accuracy") or 0.0)
        beaten = interval[0] > (real(others[best], "accuracy") or 0.0)
        above += " and than" if beaten else ", but not clearly better than"
        above += f" the best baseline ({best.replace('_', ' ')})"
    if drop is not None and drop >= _LARGE_DROP:
        return f"{above}; less so across batches"
    return above


def _judge_cells(metrics: Mapping[str, object]) -> tuple[str, list[str]]:
    """The same of an evaluation without a score of treatments."""
    cells = mapping(metrics.get("cells"))
    scores = mapping(metrics.get("scores"))
    reasons = [
        f"{kind.upper()} is undefined under {correction}: "
        f"{score_of(scores, correction, kind).get('undefined', 'it is not given')}."
        for correction in scores
        for kind in KINDS
    ]
    if not cells or is_undefined(cells):
        why = [f"Cells: {cells['undefined']}."] if cells else []
        return "There is no score", [*reasons, *why]
    said = [
        f"{name.capitalize()} features tell the {cells.get('label_column')} of cells with a "
        f"balanced accuracy of {' and '.join(_probes(mapping(probes)))}."
        for name, probes in mapping(cells.get("scores")).items()
    ]
    return "How well classes of cells are told", [
        *said,
        f"Guessing gives {percent_words(cells.get('chance'))}.",
        *reasons,
    ]


def _probes(scores: Mapping[str, object]) -> list[str]:
    """Balanced accuracy of each classifier in words."""
    return [
        f"{percent_words(mapping(score).get('balanced_accuracy'))} ({TITLES.get(kind, kind)})"
        for kind, score in scores.items()
    ]


def _cell(score: Mapping[str, object], wells: tuple[float, float] | None) -> dict[str, object]:
    """One score of the table in words."""
    if is_undefined(score):
        return {"undefined": str(score.get("undefined", "not given"))}
    lines = []
    if around := pair(score.get("interval")):
        lines.append(f"95 %: {_span(around)} over compounds")
    if wells:
        lines.append(f"95 %: {_span(wells)} over wells")
    if (p := real(score, "p")) is not None:
        told = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
        lines.append(f"chance {percent_words(score.get('chance'))}, {told}")
    if unanswerable := real(score, "unanswerable"):
        lines.append(f"{unanswerable:.0f} cannot be answered")
    count = f"{score['correct']}/{score['total']}"
    return {"count": count, "share": percent_words(score.get("accuracy")), "lines": lines}


def count_words(score: Mapping[str, object]) -> str:
    """'43 of 48'."""
    return f"{score['correct']} of {score['total']}"


def percent_words(share: object) -> str:
    """A share in per cent."""
    return f"{100 * share:.1f} %" if isinstance(share, (int, float)) else "not known"


def _interval(score: Mapping[str, object]) -> str:
    """', 95 % interval 78 to 98' or nothing."""
    around = pair(score.get("interval"))
    return f", 95 % interval {_span(around)}" if around else ""


def _span(ends: tuple[float, float]) -> str:
    """'78.0 to 98.0 %'."""
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"


def _as_published(value: object) -> str:
    """A number as its source gives it; a dash where it gives none."""
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
