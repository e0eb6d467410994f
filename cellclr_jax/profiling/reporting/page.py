"""The HTML page of an evaluation: scores, protocol, notes, figures, in one file without scripts."""

import base64
import html
from collections.abc import Iterable, Mapping

from cellclr_jax.profiling.probing.probes import TITLES

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ccc; padding: .3rem .8rem; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
img { max-width: 100%; height: auto; }
.undefined { color: #6b4a00; }
"""


def render_report(metrics: Mapping[str, object], pngs: Mapping[str, bytes]) -> str:
    """The HTML page: scores, protocol, data, notes, figures.

    Args:
      metrics: what `report.describe` returns: scores of treatments, of cells, or both.
      pngs: figures by file name; they are laid into the page.
    """
    figures = [_image(file, png) for file, png in pngs.items()]
    figures += [
        f"<p class='undefined'>{_escape(file)} was not drawn: {_escape(reason)}</p>"
        for file, reason in _mapping(metrics.get("figures_skipped", {})).items()
    ]
    body = [
        *(_treatment_scores(metrics) if "scores" in metrics else []),
        *_section("Notes", _list(metrics["notes"])),
        *(_cell_scores(_mapping(metrics["cells"])) if "cells" in metrics else []),
        *_section("Protocol", _definitions(_mapping(metrics.get("protocol", {})))),
        *_section("Data", _definitions(_mapping(metrics.get("data", {})))),
        *_section("Run", _definitions(_mapping(metrics["run"]))),
        *_section("Figures", "\n".join(figures)),
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>CellCLR evaluation</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _treatment_scores(metrics: Mapping[str, object]) -> list[str]:
    """NSC, NSCB and drop of the profiles and their baselines."""
    sets = {str(metrics["profiles"]): metrics["scores"], **_mapping(metrics["baselines"])}
    rows = [
        _score_row(name, correction, _mapping(entry))
        for name, scores in sets.items()
        for correction, entry in _mapping(scores).items()
    ]
    return [
        "<h1>Mechanism of action by nearest neighbour</h1>",
        _table(("Profiles", "Correction", "NSC", "NSCB", "Drop (points)"), rows),
        "<p>NSC: the nearest treatment of another compound has the same mechanism. NSCB: of "
        "another compound and another experimental batch. Drop: NSC − NSCB, in percentage points; "
        "a large drop says that profiles resemble their batch. NSCB leaves out mechanisms that lie "
        "in one batch alone: where there are some, the drop compares different treatments.</p>",
        "<p>Below each score: the interval that holds 95 % of resamples of the compounds, and the "
        "mean score where mechanisms are shuffled among the compounds.</p>",
    ]


def _cell_scores(cells: Mapping[str, object]) -> list[str]:
    """Balanced accuracies of the probes, and how well each class is told."""
    title, notes = "<h1>Classes of cells</h1>", _list(cells["notes"])
    if "undefined" in cells:
        return [title, f"<p class='undefined'>{_escape(cells['undefined'])}</p>", notes]
    scores = {name: _mapping(entry) for name, entry in _mapping(cells["scores"]).items()}
    kinds = list(next(iter(scores.values())))
    titles = [TITLES[kind] for kind in kinds]
    rows = [
        _row(name, [_percent(_mapping(entry[kind])["balanced_accuracy"]) for kind in kinds])
        for name, entry in scores.items()
    ]
    kept = f", each {cells['grouped_by']} kept whole" if cells["grouped_by"] else ""
    return [
        title,
        _table(("Features", *titles), rows),
        "<p>Balanced accuracy: the mean over classes of the share of cells whose "
        f"{_escape(cells['label_column'])} is told rightly by a classifier that was fitted on "
        f"other cells ({_escape(cells['folds'])} folds{kept}). {_escape(cells['cells'])} cells; "
        f"guessing gives {_percent(cells['chance'])}.</p>",
        notes,
        f"<h2>Cells of each class that are told rightly, {_escape(next(iter(scores)))}</h2>",
        _recalls(_mapping(cells["classes"]), next(iter(scores.values())), titles),
        "<h2>Settings</h2>",
        _definitions(_mapping(cells["settings"])),
    ]


def _recalls(
    classes: Mapping[str, object], scores: Mapping[str, object], titles: Iterable[str]
) -> str:
    """One row a class: its cells, and the share of them that each classifier tells rightly."""
    recalls = [_mapping(_mapping(score)["recall"]) for score in scores.values()]
    rows = [
        _row(label, [_escape(count), *(_percent(recall[label]) for recall in recalls)])
        for label, count in classes.items()
    ]
    return _table(("Class", "Cells", *titles), rows)


def _table(titles: Iterable[str], rows: Iterable[str]) -> str:
    """A table with a head."""
    head = "".join(f"<th>{_escape(title)}</th>" for title in titles)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(name: str, numbers: Iterable[str]) -> str:
    """A row of numbers with a name."""
    cells = "".join(f"<td class='number'>{number}</td>" for number in numbers)
    return f"<tr><td>{_escape(name)}</td>{cells}</tr>"


def _percent(share: object) -> str:
    """A share in percent."""
    return f"{100 * float(str(share)):.1f} %"


def _score_row(name: str, correction: str, entry: Mapping[str, object]) -> str:
    """One row of the page's table of scores."""
    cells = []
    for kind in ("nsc", "nscb"):
        score = _mapping(entry[kind])
        if "undefined" in score:
            cells.append(f"<td class='undefined'>undefined: {_escape(score['undefined'])}</td>")
        else:
            count = f"{score['correct']}/{score['total']}"
            low, high = (_percent(end) for end in _pair(score["interval"]))
            cells.append(
                f"<td class='number'>{count} ({_percent(score['accuracy'])})"
                f"<br><small>{low} to {high}; chance {_percent(score['chance'])}</small></td>"
            )
    drop = "undefined" if entry["drop"] is None else f"{float(str(entry['drop'])):.1f}"
    return (
        f"<tr><td>{_escape(name)}</td><td>{_escape(correction)}</td>{''.join(cells)}"
        f"<td class='number'>{drop}</td></tr>"
    )


def _section(title: str, content: str) -> list[str]:
    """A heading and its content; nothing where there is none."""
    return [f"<h2>{title}</h2>", content] if content else []


def _list(items: object) -> str:
    """An unordered list."""
    entries = "".join(f"<li>{_escape(item)}</li>" for item in list(items))  # type: ignore[call-overload]
    return f"<ul>{entries}</ul>" if entries else ""


def _definitions(values: Mapping[str, object]) -> str:
    """A table of names and values."""
    rows = "".join(
        f"<tr><td>{_escape(key.replace('_', ' '))}</td><td>{_escape(_plain(value))}</td></tr>"
        for key, value in values.items()
    )
    return f"<table>{rows}</table>" if rows else ""


def _plain(value: object) -> str:
    """A setting in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _image(file: str, png: bytes) -> str:
    """A figure within the page."""
    data = base64.b64encode(png).decode("ascii")
    return f"<p><img alt='{_escape(file)}' src='data:image/png;base64,{data}'></p>"


def _escape(value: object) -> str:
    """Text that is safe in HTML, attributes included."""
    return html.escape(str(value), quote=True)


def _pair(value: object) -> tuple[object, object]:
    """The value, known to be two of something."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise TypeError(f"a pair was expected, not {value!r}")
    return value[0], value[1]


def _mapping(value: object) -> Mapping[str, object]:
    """The value, known to be a JSON object."""
    if not isinstance(value, Mapping):
        raise TypeError(f"a mapping was expected, not {type(value).__name__}")
    return value
