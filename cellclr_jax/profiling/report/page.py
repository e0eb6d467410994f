"""report.html: one self-contained page of an evaluation."""

import base64
from collections.abc import Mapping, Sequence
from importlib import resources

import pandas as pd

from cellclr_jax.pages import flatten, script_json
from cellclr_jax.pages.crop_strips import CROP, channel_style, composite, shown_side
from cellclr_jax.profiling.evaluation import Evaluation
from cellclr_jax.profiling.report import verdict
from cellclr_jax.profiling.report.crop_pictures import Pictures
from cellclr_jax.profiling.report.dose_series import HEIGHT, WIDTH, Series, dose_series
from cellclr_jax.profiling.report.metrics_json import mapping
from cellclr_jax.profiling.report.score_charts import (
    cell_tables,
    compare_corrections,
    score_charts,
    training_charts,
)
from cellclr_jax.profiling.report.treatments import (
    confusion_data,
    describe_treatments,
    map_data,
    treatment_keys,
)

_TEMPLATE, _STYLE = "report.html.jinja", "report.css"
# They share names, and are one block of the page.
_SCRIPTS = ("common", "map", "mechanisms", "panel", "choices")
# Drawings of doses that are open from the start.
_OPEN_SERIES = 24


def render_report(
    metrics: Mapping[str, object],
    pngs: Mapping[str, bytes] | None = None,
    *,
    evaluation: Evaluation | None = None,
    pictures: Pictures | None = None,
    history: pd.DataFrame | None = None,
    provenance: Mapping[str, object] | None = None,
    with_umap: bool = False,
) -> str:
    """The page as HTML in one file that loads nothing from anywhere.

    Args:
      metrics: what `record.describe` returns: scores of treatments, of cells, or both. Further
        keys, each of which may be missing: "measures" by correction, "published" scores.
      pngs: figures by file name; laid into the page where there is no `evaluation` to draw from.
      evaluation: the profiles that `metrics` is about; None leaves out maps, confusion matrices,
        wrong treatments and doses.
      pictures: crops of the treatments; None leaves them out.
      history: of the training (see `training_curves.training_charts`).
      provenance: config, commit, versions and the like, JSON values.
      with_umap: lets the reader choose a UMAP map, too, where the library `umap` is installed;
        it takes some seconds to start.

    Returns:
      The page. Names from the data are text in it and nothing else.
    """
    from jinja2 import Environment
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    heading, sentences = verdict.judge(metrics)
    channels = pictures.channels if pictures else []
    side = shown_side(pictures.side) if pictures else CROP
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        _text(_TEMPLATE)
    )
    return page.render(
        name=str(metrics.get("profiles", "")),
        heading=heading,
        sentences=sentences,
        score_rows=verdict.score_rows(metrics),
        score_charts=[script_json(chart) for chart in score_charts(metrics)],
        published=verdict.published_rows(metrics),
        notes=_texts(metrics.get("notes")),
        comparison=compare_corrections(metrics),
        cells=cell_tables(mapping(metrics["cells"])) if "cells" in metrics else None,
        curves=[script_json(chart) for chart in training_charts(history)],
        settings=_settings(metrics, provenance),
        figures=[] if evaluation else [_image(*one) for one in (pngs or {}).items()],
        skipped={} if evaluation else mapping(metrics.get("figures_skipped")),
        channels=channels,
        composite=composite(channels),
        scale=pictures.scale if pictures else "",
        style=Markup(_text(_STYLE) + channel_style(len(channels), side)),
        script=Markup(_script()),
        plotly=Markup(get_plotlyjs()),
        script_json=script_json,
        **_interactive(evaluation, pictures, side, with_umap),
    )


def _interactive(
    evaluation: Evaluation | None, pictures: Pictures | None, side: int, with_umap: bool
) -> dict[str, object]:
    """What the template needs of the treatments; nothing without them."""
    if evaluation is None or evaluation.treatments.empty:
        return {"data": None, "corrections": [], "series": [], "more_series": [], "no_series": ""}
    treatments = describe_treatments(evaluation.treatments)
    data = map_data(evaluation, treatments, with_umap=with_umap)
    data["confusion"] = confusion_data(evaluation)
    data["pictures"] = _strips(evaluation, pictures, side) if pictures else None
    drawn, reason = dose_series(evaluation)
    return {
        "data": script_json(data),
        "corrections": list(evaluation.scores),
        "chosen": _chosen(evaluation),
        "colourings": [one["title"] for one in _listed(data["colourings"])],
        "compounds": sorted(set(treatments.compounds)),
        "canvas": (WIDTH, HEIGHT),
        **_in_parts(drawn),
        "no_series": reason,
    }


def _in_parts(series: Sequence[Series]) -> dict[str, object]:
    """The drawings that are open from the start, and the others."""
    return {"series": series[:_OPEN_SERIES], "more_series": series[_OPEN_SERIES:]}


def _chosen(evaluation: Evaluation) -> str:
    """The correction that the page opens with: that of the verdict, where one has a score."""
    defined = [
        name
        for name, scores in evaluation.scores.items()
        if not (scores.nsc.undefined and scores.nscb.undefined)
    ]
    return verdict.leading(defined or list(evaluation.scores))


def _strips(evaluation: Evaluation, pictures: Pictures, side: int) -> dict[str, object]:
    """Pictures by the row of their treatment, as the script reads them."""
    keys = treatment_keys(evaluation.treatments)
    shown = {row: pictures.tiles[key] for row, key in enumerate(keys) if key in pictures.tiles}
    strips: dict[object, object] = {
        row: [_uri(strip.picture), strip.crops, ", ".join(dict.fromkeys(strip.places))]
        for row, strip in shown.items()
    }
    control = pictures.controls
    if control is not None:
        places = ", ".join(dict.fromkeys(control.places))
        strips["control"] = [_uri(control.picture), control.crops, places]
    channels = len(pictures.channels)
    return {"strips": strips, "side": side, "channels": channels, "control": pictures.control}


def _settings(
    metrics: Mapping[str, object], provenance: Mapping[str, object] | None
) -> list[tuple[str, list[tuple[str, str]]]]:
    """(title, rows) of what the scores rest on; without what is empty."""
    tables = [
        ("Protocol", mapping(metrics.get("protocol"))),
        ("Protocols of the baselines that differ", mapping(metrics.get("baseline_protocols"))),
        ("Data", mapping(metrics.get("data"))),
        ("Run", mapping(metrics.get("run"))),
        ("Provenance", provenance or {}),
    ]
    return [(title, flatten(values)) for title, values in tables if values]


def _script() -> str:
    """All scripts as one block, in which their names stay."""
    parts = [_text(f"scripts/{name}.js") for name in _SCRIPTS]
    return '"use strict";\n{\n' + "\n".join(parts) + "}\n"


def _text(name: str) -> str:
    """A file that lies beside this module."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _texts(values: object) -> list[str]:
    """The entries of a list as text."""
    return [str(value) for value in _listed(values)]


def _listed(value: object) -> Sequence[dict[str, object]]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, (list, tuple)) else []


def _image(file: str, png: bytes) -> tuple[str, str]:
    """A figure's name and address within the page."""
    return file, f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _uri(picture: bytes) -> str:
    """A picture's address within the page."""
    return f"data:image/webp;base64,{base64.b64encode(picture).decode('ascii')}"
