"""What each correction does to every measure: one table, one chart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cellclr_jax.data.quality.look import base_layout
from cellclr_jax.profiling.reporting.escaping import label
from cellclr_jax.profiling.reporting.figures import COLOURS
from cellclr_jax.profiling.reporting.json_values import mapping, real
from cellclr_jax.profiling.reporting.neighbourhoods import KINDS
from cellclr_jax.profiling.reporting.treatment_map import SYMBOLS

# Title and the place in metrics["measures"][correction].
_SHARES = (
    ("Active treatments", ("activity", "share")),
    ("Activity, mean AP", ("activity", "mean_average_precision")),
    ("Consistent mechanisms", ("consistency", "share")),
    ("Consistency, mean AP", ("consistency", "mean_average_precision")),
    ("Replicating treatments", ("reproducibility", "share")),
    ("Same treatment nearest on another plate", ("across_plates", "nearest_share")),
    ("The same by chance", ("across_plates", "chance", "nearest_share")),
    ("Batch told, logistic", ("batch_effect", "balanced_accuracy", "logistic")),
    ("Batch told, 1-NN", ("batch_effect", "balanced_accuracy", "knn")),
    ("Batch told, chance", ("batch_effect", "chance")),
)
_ROW_HEIGHT, _FRAME_HEIGHT = 30, 110


@dataclass(frozen=True)
class Comparison:
    """A table and its chart.

    Attributes:
      heads: the corrections.
      rows: title, then a text for each correction.
      chart: of Plotly; None where there is nothing to draw.
      reasons: why something is missing, and what to be careful with.
    """

    heads: list[str]
    rows: list[list[str]]
    chart: dict[str, object] | None
    reasons: list[str]


def compare_corrections(metrics: Mapping[str, object]) -> Comparison | None:
    """The measures side by side; None without scores of treatments.

    Args:
      metrics: what `record.describe` returns; "measures" may be missing or undefined in parts.
    """
    scores = {name: mapping(entry) for name, entry in mapping(metrics.get("scores")).items()}
    if not scores:
        return None
    measures = {name: mapping(mapping(metrics.get("measures")).get(name)) for name in scores}
    shares = {
        kind.upper(): [real(scores[name].get(kind), "accuracy") for name in scores]
        for kind in KINDS
    }
    for kind in KINDS:
        for count in _counts(measures, kind):
            shares[f"{kind.upper()}, {count} neighbours vote"] = [
                real(mapping(_at(measures[name], ("k_nearest", kind))).get(count), "accuracy")
                for name in scores
            ]
    for title, place in _SHARES:
        shares[title] = [real(_at(measures[name], place[:-1]), place[-1]) for name in scores]
    shares = {
        title: values
        for title, values in shares.items()
        if title in ("NSC", "NSCB") or any(value is not None for value in values)
    }
    drops = [_points(real(entry, "drop")) for entry in scores.values()]
    rows = [[title, *map(_percent, values)] for title, values in shares.items()]
    rows.insert(2, ["Drop, points", *drops])
    return Comparison(list(scores), rows, _chart(shares, list(scores)), _reasons(scores, measures))


def _counts(measures: Mapping[str, Mapping[str, object]], kind: str) -> list[str]:
    """For how many voting neighbours there are scores, one aside."""
    found = {
        count
        for entry in measures.values()
        for count in mapping(_at(entry, ("k_nearest", kind)))
        if count.isdecimal() and count != "1"
    }
    return sorted(found, key=int)


def _at(values: Mapping[str, object], place: Sequence[str]) -> object:
    """What lies at a place of nested JSON objects; nothing where one of them is missing."""
    found: object = values
    for name in place:
        found = mapping(found).get(name)
    return found


def _percent(share: float | None) -> str:
    """A share in per cent, or a dash."""
    return "–" if share is None else f"{100 * share:.1f} %"


def _points(drop: float | None) -> str:
    """A drop, or a dash."""
    return "–" if drop is None else f"{drop:.1f}".replace("-", "−")


def _chart(
    shares: Mapping[str, Sequence[float | None]], corrections: Sequence[str]
) -> dict[str, object] | None:
    """A row a measure, a mark a correction."""
    titles = list(shares)
    if not any(value is not None for values in shares.values() for value in values):
        return None
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": label(correction),
            "x": [None if (v := shares[title][i]) is None else 100 * v for title in titles],
            "y": list(range(len(titles))),
            "marker": {
                "color": COLOURS[i % len(COLOURS)],
                "symbol": SYMBOLS[i % len(SYMBOLS)],
                "size": 11,
                "opacity": 0.85,
            },
            "hoverinfo": "text",
            "hovertext": [
                f"{title}, {label(correction)}: {_percent(shares[title][i])}" for title in titles
            ],
        }
        for i, correction in enumerate(corrections)
    ]
    return {"data": traces, "layout": _layout(titles)}


def _layout(titles: Sequence[str]) -> dict[str, object]:
    """Axes of the chart: a row a measure."""
    return base_layout(
        _FRAME_HEIGHT + _ROW_HEIGHT * len(titles),
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        margin={"l": 10, "r": 16, "t": 40, "b": 40},
        xaxis={
            "range": [-3, 103],
            "gridcolor": "#dfe3e8",
            "zeroline": False,
            "title": {"text": "per cent"},
        },
        yaxis={
            "automargin": True,
            "range": [len(titles) - 0.5, -0.5],
            "tickvals": list(range(len(titles))),
            "ticktext": titles,
            "gridcolor": "#eef0f2",
            "zeroline": False,
        },
    )


def _reasons(
    scores: Mapping[str, Mapping[str, object]], measures: Mapping[str, Mapping[str, object]]
) -> list[str]:
    """What is undefined and why, what asks for caution; the same of several corrections once."""
    where: dict[str, list[str]] = {}
    for correction, entry in scores.items():
        parts = {kind.upper(): entry.get(kind) for kind in KINDS}
        parts |= {
            name.replace("_", " ").capitalize(): found
            for name, found in measures[correction].items()
        }
        for name, found in parts.items():
            for key, words in (("undefined", " is undefined"), ("caution", "")):
                if key in mapping(found):
                    reason = f"{name}{words}: {mapping(found)[key]}"
                    where.setdefault(reason, []).append(correction)
    return [
        reason if len(names) == len(scores) else f"{', '.join(names)}: {reason}"
        for reason, names in where.items()
    ]
