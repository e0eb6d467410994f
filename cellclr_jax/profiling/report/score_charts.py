"""Charts of scores, corrections, training curves and classes of cells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cellclr_jax.pages import base_layout, flatten, label
from cellclr_jax.profiling.measures import MEASURES
from cellclr_jax.profiling.report.figures import COLOURS
from cellclr_jax.profiling.report.metrics_json import is_undefined, mapping, pair, real
from cellclr_jax.profiling.report.treatments import KINDS, SYMBOLS
from cellclr_jax.profiling.report.verdict import count_words, percent_words, profile_sets, score_of
from cellclr_jax.profiling.single_cells.probes import TITLES

_ROW_HEIGHT, _FRAME_HEIGHT = 26, 110


def score_charts(metrics: Mapping[str, object]) -> list[dict[str, object]]:
    """A Plotly figure for each score that is defined somewhere: dots, intervals and chance."""
    sets = profile_sets(metrics)
    rows = [(name, correction) for name, scores in sets.items() for correction in scores]
    charts: list[dict[str, object]] = []
    for kind in KINDS:
        found = [score_of(sets[name], correction, kind) for name, correction in rows]
        if all(map(is_undefined, found)):
            continue
        traces = [
            _dots(name, [(r, s) for (r, s) in enumerate(found) if rows[r][0] == name], colour)
            for name, colour in zip(sets, COLOURS * len(sets), strict=False)
        ]
        charts.append({"data": [_chance(found), *traces], "layout": _layout(kind, rows)})
    return charts


def _dots(
    name: str, scores: Sequence[tuple[int, Mapping[str, object]]], colour: str
) -> dict[str, object]:
    """Accuracies and intervals of one kind of profiles."""
    kept = [(row, score) for row, score in scores if not is_undefined(score)]
    middles = [100 * (real(score, "accuracy") or 0.0) for _, score in kept]
    spans = [pair(score.get("interval")) for _, score in kept]
    ends = [s or (m / 100, m / 100) for s, m in zip(spans, middles, strict=True)]
    bar = {
        "type": "data",
        "symmetric": False,
        "array": [100 * end[1] - middle for end, middle in zip(ends, middles, strict=True)],
        "arrayminus": [middle - 100 * end[0] for end, middle in zip(ends, middles, strict=True)],
        "color": colour,
        "thickness": 2,
        "width": 5,
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(name),
        "x": middles,
        "y": [row for row, _ in kept],
        "error_x": bar,
        "marker": {"color": colour, "size": 10},
        "hoverinfo": "text",
        "hovertext": [
            f"{label(name)}: {count_words(score)} ({percent_words(score.get('accuracy'))})"
            for _, score in kept
        ],
    }


def _chance(scores: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """A tick where shuffled mechanisms score."""
    known = [(r, c) for r, s in enumerate(scores) if (c := real(s, "chance")) is not None]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [100 * chance for _, chance in known],
        "y": [row for row, _ in known],
        "marker": {
            "symbol": "line-ns",
            "size": 14,
            "line": {"width": 2, "color": "#7a8290"},
        },
        "hoverinfo": "text",
        "hovertext": [f"shuffled mechanisms: {100 * chance:.1f} %" for _, chance in known],
    }


def _layout(kind: str, rows: Sequence[tuple[str, str]]) -> dict[str, object]:
    """Axes of the chart of one score."""
    return base_layout(
        _FRAME_HEIGHT + _ROW_HEIGHT * len(rows),
        title={"text": f"{kind.upper()}, right answers in %", "font": {"size": 14}, "x": 0},
        margin={"l": 10, "r": 16, "t": 40, "b": 36},
        xaxis={"range": [-3, 103], "gridcolor": "#dfe3e8", "zeroline": False},
        yaxis={
            "automargin": True,
            "range": [len(rows) - 0.5, -0.5],
            "tickvals": list(range(len(rows))),
            "ticktext": [f"{label(name)}, {label(correction)}" for name, correction in rows],
            "showgrid": False,
            "zeroline": False,
        },
    )


_CORRECTION_ROW_HEIGHT, _CORRECTION_FRAME_HEIGHT = 30, 110


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
    for key, measure in MEASURES.items():
        for place, title in measure.shares.items():
            *path, last = (key, *place.split("."))
            shares[title] = [real(_at(measures[name], path), last) for name in scores]
    shares = {
        title: values
        for title, values in shares.items()
        if title in ("NSC", "NSCB") or any(value is not None for value in values)
    }
    drops = [_points(real(entry, "drop")) for entry in scores.values()]
    rows = [[title, *map(_percent_of, values)] for title, values in shares.items()]
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


def _percent_of(share: float | None) -> str:
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
                f"{title}, {label(correction)}: {_percent_of(shares[title][i])}" for title in titles
            ],
        }
        for i, correction in enumerate(corrections)
    ]
    return {"data": traces, "layout": _correction_layout(titles)}


def _correction_layout(titles: Sequence[str]) -> dict[str, object]:
    """Axes of the chart: a row a measure."""
    return base_layout(
        _CORRECTION_FRAME_HEIGHT + _CORRECTION_ROW_HEIGHT * len(titles),
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


# Title of each chart and its columns with their names in the legend.
_CHARTS = (
    ("Loss", {"loss": "training", "validation_loss": "validation"}),
    (
        "Contrastive accuracy",
        {
            "contrastive_accuracy": "training",
            "validation_contrastive_accuracy": "validation",
        },
    ),
    ("Learning rate", {"lr": "learning rate"}),
)
_ONLINE = "online_"
_HEIGHT = 280
# More points than a chart has pixels are drawn for nobody.
_MOST_POINTS = 1_000


def training_charts(history: pd.DataFrame | None) -> list[dict[str, object]]:
    """Plotly figures over epochs: loss, contrastive accuracy, learning rate, online scores.

    Args:
      history: one row an entry of `metrics.jsonl`: step, epoch, and numbers, NaN where the entry
        has none; None or empty: no charts.
    """
    if history is None or history.empty or "step" not in history:
        return []
    online = {str(c): str(c).removeprefix(_ONLINE) for c in history if str(c).startswith(_ONLINE)}
    across, unit = _epochs(history)
    charts: list[dict[str, object]] = []
    for title, columns in (*_CHARTS, ("Scores in training", online)):
        traces = [
            trace
            for colour, (column, name) in zip(COLOURS, columns.items(), strict=False)
            if column in history and (trace := _line(across, history[column], name, colour))
        ]
        if traces:
            charts.append({"data": traces, "layout": _curve_layout(title, unit, len(traces) > 1)})
    return charts


def _epochs(history: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Where each row lies, in epochs where they are told, else in steps.

    `epoch` is the number of the epoch that a row lies in; the last row of one lies at its end, so
    the most steps an epoch number are the steps of an epoch.
    """
    steps = pd.to_numeric(history["step"], errors="coerce").to_numpy(float)
    if "epoch" not in history:
        return steps, "step"
    epochs = pd.to_numeric(history["epoch"], errors="coerce").to_numpy(float)
    known = epochs > 0
    if not known.any() or not (steps[known] > 0).any():
        return steps, "step"
    return steps / np.max(steps[known] / epochs[known]), "epoch"


def _line(
    across: np.ndarray, values: pd.Series, name: str, colour: str
) -> dict[str, object] | None:
    """A line through what is known; None where nothing is."""
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(float)
    known = np.flatnonzero(np.isfinite(numbers) & np.isfinite(across))
    if not len(known):
        return None
    kept = known[:: -(-len(known) // _MOST_POINTS)]
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(kept) <= 60 else "lines",
        "name": label(name),
        "x": across[kept].round(4),
        "y": numbers[kept],
        "line": {"color": colour, "width": 2, "dash": "dot" if name == "validation" else "solid"},
        "marker": {"size": 5},
        "hovertemplate": "%{y:.4g}<extra></extra>",
    }


def _curve_layout(title: str, unit: str, legend: bool) -> dict[str, object]:
    """Axes of a chart."""
    return base_layout(
        _HEIGHT,
        title={"text": title, "font": {"size": 14}, "x": 0},
        showlegend=legend,
        legend={"x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom", "orientation": "h"},
        margin={"l": 10, "r": 12, "t": 50, "b": 40},
        xaxis={"title": {"text": unit}, "gridcolor": "#eef0f2", "zeroline": False},
        yaxis={"automargin": True, "gridcolor": "#dfe3e8", "zeroline": False},
    )


@dataclass(frozen=True)
class CellTables:
    """Tables of the section; all texts.

    Attributes:
      undefined: why there is no score, or ''.
      text: what the numbers are.
      notes: what a reader must know.
      heads, rows: features and classifiers.
      class_heads, class_rows: each class with its cells and recalls of the first features.
      class_of: whose these are.
      settings: (name, value).
    """

    undefined: str
    notes: list[str]
    text: str = ""
    heads: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    class_heads: list[str] = field(default_factory=list)
    class_rows: list[list[str]] = field(default_factory=list)
    class_of: str = ""
    settings: list[tuple[str, str]] = field(default_factory=list)


def cell_tables(cells: Mapping[str, object]) -> CellTables:
    """The section's tables.

    Args:
      cells: what `probing.cells.describe_cells` returns.
    """
    notes = [str(note) for note in _listed(cells.get("notes"))]
    scores = {name: mapping(entry) for name, entry in mapping(cells.get("scores")).items()}
    if "undefined" in cells or not scores:
        return CellTables(str(cells.get("undefined", "no features were scored")), notes)
    first = next(iter(scores))
    kinds = list(scores[first])
    titles = [str(TITLES.get(kind, kind)) for kind in kinds]
    rows = [
        [name, *(_percent(real(entry.get(kind), "balanced_accuracy")) for kind in kinds)]
        for name, entry in scores.items()
    ]
    recalls = [mapping(mapping(scores[first][kind]).get("recall")) for kind in kinds]
    classes = [
        [name, f"{count:,}", *(_percent(real(recall, name)) for recall in recalls)]
        for name, count in mapping(cells.get("classes")).items()
    ]
    return CellTables(
        undefined="",
        notes=notes,
        text=_explained(cells),
        heads=["Features", *titles],
        rows=rows,
        class_heads=["Class", "Cells", *titles],
        class_rows=classes,
        class_of=first,
        settings=flatten(mapping(cells.get("settings"))),
    )


def _explained(cells: Mapping[str, object]) -> str:
    """What a balanced accuracy is here."""
    kept = f", each {cells['grouped_by']} kept whole" if cells.get("grouped_by") else ""
    return (
        "Balanced accuracy: the mean over classes of the share of cells whose "
        f"{cells.get('label_column')} is told rightly by a classifier that was fitted on other "
        f"cells ({cells.get('folds')} folds{kept}). {cells.get('cells'):,} cells; guessing gives "
        f"{_percent(real(cells, 'chance'))}."
    )


def _percent(share: float | None) -> str:
    """A share in per cent, or a dash."""
    return "–" if share is None else f"{100 * share:.1f} %"


def _listed(value: object) -> Sequence[object]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, (list, tuple)) else []
