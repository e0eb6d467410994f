"""Renders report.html, the page of an evaluation."""

from collections.abc import Mapping
from typing import Any

from cellclr_jax.pages import flatten, render, script_json
from cellclr_jax.pages.crop_strips import (
    SIDE,
    Pictures,
    Strip,
    channel_style,
    composite,
    data_uri,
    shown_side,
)
from cellclr_jax.profiling.evaluation import Evaluation
from cellclr_jax.profiling.report import figures, verdict
from cellclr_jax.profiling.report.metrics_json import Results, describe_protocol
from cellclr_jax.profiling.report.score_charts import (
    compare_corrections,
    score_charts,
    training_charts,
)
from cellclr_jax.profiling.report.treatments import (
    confusion_data,
    dose_series,
    map_data,
    treatment_keys,
)
from cellclr_jax.profiling.single_cells import describe_cells

# Dose responses that are visible without opening the details.
_OPEN_SERIES = 24
_PUBLISHED = ("method", "kind", "nsc", "nscb", "drop", "source")


def render_report(
    results: Results,
    pngs: Mapping[str, bytes] | None = None,
    skipped: Mapping[str, str] | None = None,
    maps: figures.Maps | None = None,
) -> str:
    """Renders the report as one self-contained HTML file, which requests nothing.

    Args:
      results: scores of treatments, of cells, or both. With more than `figures.MOST_TREATMENTS`
        treatments the page has only scores and measures.
      pngs: figures by file name; shown if there is no interactive map.
      skipped: why other figures were not drawn, by file name; shown with `pngs`.
      maps: from `figures.place`; None computes the t-SNE maps.

    Returns:
      The page. Names from the data are escaped.
    """
    heading, sentences = verdict.judge(results)
    pictures, scores = results.pictures, results.scores
    channels = pictures.channels if pictures else []
    side = shown_side(pictures.side) if pictures else SIDE
    drawn = None
    if results.evaluation and 0 < len(results.evaluation.treatments) <= figures.MOST_TREATMENTS:
        maps = figures.place(results.evaluation) if maps is None else maps
        drawn = _interactive(results.evaluation, pictures, side, maps)
    return render(
        "profiling/report/report.html.jinja",
        title="CellCLR evaluation",
        name=f"CellCLR evaluation, {results.name}",
        own=results.name,
        heading=heading,
        sentences=sentences,
        score_rows=verdict.score_rows(scores, results.measures),
        score_charts=score_charts(scores),
        published=[[row[name] for name in _PUBLISHED] for row in results.published],
        notes=results.notes,
        comparison=compare_corrections(scores[results.name], results.measures) if scores else None,
        **_cells(results),
        curves=training_charts(results.history),
        settings=_settings(results),
        figures={} if drawn else {n: data_uri(png, "png") for n, png in (pngs or {}).items()},
        skipped={} if drawn else skipped or {},
        channels=channels,
        composite=composite(channels),
        scale=pictures.scale if pictures else "",
        drawn=drawn,
        style=channel_style(len(channels), side),
        script="profiling/report/report.js",
    )


def _interactive(
    evaluation: Evaluation, pictures: Pictures | None, side: int, maps: figures.Maps
) -> dict[str, Any]:
    """Computes the template's variables of the interactive sections."""
    data = map_data(evaluation, maps)
    data["confusion"] = confusion_data(evaluation)
    data["pictures"] = _strips(evaluation, pictures, side) if pictures else None
    data["doses"], no_series = dose_series(evaluation)
    series = data["doses"]["series"] if data["doses"] else []
    defined = [
        name
        for name, scores in evaluation.scores.items()
        if not (scores.nsc.undefined and scores.nscb.undefined)
    ]
    return {
        "data": script_json(data),
        "corrections": list(evaluation.scores),
        "chosen": verdict.leading(defined or list(evaluation.scores)),
        "colourings": [one["title"] for one in data["colourings"]],
        "compounds": sorted(set(data["treatments"]["compounds"])),
        "series": series[:_OPEN_SERIES],
        "more_series": series[_OPEN_SERIES:],
        "no_series": no_series,
    }


def _strips(evaluation: Evaluation, pictures: Pictures, side: int) -> dict[str, Any]:
    """Crops by the row of their treatment, for the script."""
    keys = treatment_keys(evaluation.treatments)
    shown: dict[Any, Strip] = {
        row: pictures.strips[key] for row, key in enumerate(keys) if key in pictures.strips
    }
    if pictures.controls is not None:
        shown["control"] = pictures.controls
    strips = {
        row: [strip.uri, strip.crops, ", ".join(dict.fromkeys(strip.wells))]
        for row, strip in shown.items()
    }
    channels = len(pictures.channels)
    return {"strips": strips, "side": side, "channels": channels, "control": pictures.control}


def _cells(results: Results) -> dict[str, Any]:
    """Computes the template's variables of the section on single cells."""
    cells = results.cells
    if cells is None:
        return {"cells": None}
    tables = verdict.cell_tables(cells)
    values = {
        "undefined": cells.undefined,
        "notes": describe_cells(cells)["notes"],
        "of": next(iter(cells.probes), ""),
        "settings": flatten(tables["settings"]) if tables else [],
    }
    return {"cells": values, "cell_tables": tables}


def _settings(results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """(title, rows) of protocol, data and provenance; empty tables are left out."""
    evaluation = results.evaluation
    tables: list[tuple[str, Mapping[str, object]]] = [
        ("Protocol", describe_protocol(evaluation) if evaluation else {}),
        ("Protocols of baselines, if different", results.baseline_protocols),
        ("Data", evaluation.data if evaluation else {}),
        ("Run", results.details),
        ("Provenance", results.provenance),
    ]
    return [(title, flatten(values)) for title, values in tables if values]
