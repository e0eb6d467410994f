"""The map of treatments: their places, what colours and shapes tell, and who is near to whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from threadpoolctl import threadpool_limits

from cellclr_jax.data.counting import plural
from cellclr_jax.data.quality.look import SCALE, number
from cellclr_jax.profiling.candidates import BATCH_SEPARATOR, batch_order
from cellclr_jax.profiling.evaluation import CorrectionScores, Evaluation
from cellclr_jax.profiling.reporting.escaping import label
from cellclr_jax.profiling.reporting.figures import COLOURS, place_treatments, why_no_map
from cellclr_jax.profiling.reporting.neighbourhoods import (
    KINDS,
    Neighbourhood,
    find_neighbourhoods,
)

# As matplotlib's in the PNG files, in the same order.
SYMBOLS = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "triangle-down",
    "cross",
    "x",
    "star",
    "triangle-left",
    "pentagon",
    "triangle-right",
    "hexagon",
)
# Colour, symbol and name of right, wrong, and no query.
_STATES = (
    ("#0072B2", "circle", "right"),
    ("#D55E00", "x", "wrong"),
    ("#7a8290", "circle-open", "no query"),
)
# A legend of more names than this tells nobody anything.
_LONGEST_LEGEND = 30
# Digits of a place on the map, and of a cosine.
_DIGITS = 3


@dataclass(frozen=True)
class Treatments:
    """What the page knows of N treatments, in the order of their profiles.

    Attributes:
      names: 'taxol 0.3 µM'.
      compounds, moas, batches: as in the table.
      doses: concentrations.
      wells, cells: how many; cells are None where they were not counted.
    """

    names: list[str]
    compounds: list[str]
    doses: list[float]
    moas: list[str]
    batches: list[str]
    wells: list[int]
    cells: list[int] | None


def describe_treatments(table: pd.DataFrame) -> Treatments:
    """What is known of the treatments of a profile table.

    Args:
      table: one row a treatment, `profiles.treatment_profiles`.
    """
    compounds = table["Metadata_Compound"].astype(str).tolist()
    doses = table["Metadata_Concentration"].astype(float).tolist()
    counted = "Metadata_CellCount" in table
    return Treatments(
        names=[treatment_name(*one) for one in zip(compounds, doses, strict=True)],
        compounds=compounds,
        doses=doses,
        moas=table["Metadata_MoA"].fillna("").astype(str).tolist(),
        batches=table["Metadata_Batch"].fillna("").astype(str).tolist(),
        wells=[int(count) for count in table["Metadata_WellCount"]],
        cells=[int(count) for count in table["Metadata_CellCount"]] if counted else None,
    )


def treatment_name(compound: str, dose: float) -> str:
    """Such as 'taxol 0.3 µM'; the compound alone where no concentration is told."""
    return f"{compound} {number(dose)} µM" if dose == dose and dose != 0 else compound


def map_data(
    evaluation: Evaluation, treatments: Treatments, *, with_umap: bool = False
) -> dict[str, object]:
    """What the page's script draws maps, search and tables of wrong treatments from.

    Args:
      evaluation: its treatments are at least one.
      treatments: of `evaluation.treatments`.
      with_umap: see `figures.place_treatments`.

    Returns:
      JSON values: names as text, everything that Plotly shows escaped.
    """
    return {
        "treatments": vars(treatments),
        "colourings": _colourings(treatments),
        "states": [dict(zip(("colour", "symbol", "title"), s, strict=True)) for s in _STATES],
        "corrections": {
            name: _correction(scores, evaluation, treatments, with_umap)
            for name, scores in evaluation.scores.items()
        },
    }


def _correction(
    scores: CorrectionScores, evaluation: Evaluation, treatments: Treatments, with_umap: bool
) -> dict[str, object]:
    """Places, hover texts and neighbours under one correction; or why there are none."""
    if scores.treatments.empty:
        return {"undefined": scores.nsc.undefined}
    # One thread: those of BLAS and OpenMP wait for each other on a busy machine.
    with threadpool_limits(limits=1):
        near = find_neighbourhoods(scores, evaluation.protocol)
        reason = why_no_map(scores.treatments, scores.nsc)
        maps = {} if reason else place_treatments(scores.treatments, with_umap=with_umap)
    return {
        "maps": {name: points.T.round(_DIGITS) for name, points in maps.items()},
        "no_map": reason,
        "hover": _hover(treatments, near),
        **{kind: _near(near[kind]) for kind in KINDS},
    }


def _near(near: Neighbourhood) -> dict[str, object]:
    """Neighbours of every treatment as JSON."""
    return {
        "rows": near.rows,
        "cosines": near.cosines.round(_DIGITS),
        "correct": near.correct,
        "undefined": near.undefined,
    }


def _hover(treatments: Treatments, near: Mapping[str, Neighbourhood]) -> list[str]:
    """What is told of each treatment when it is pointed at."""
    shown = near["nsc"] if not near["nsc"].undefined else near["nscb"]
    texts = []
    for row, name in enumerate(treatments.names):
        lines = [f"<b>{label(name)}</b>", label(treatments.moas[row]), _about(treatments, row)]
        for other, cosine in zip(shown.rows[row], shown.cosines[row], strict=True):
            if other >= 0:
                same = treatments.moas[other] == treatments.moas[row]
                what = f"{label(treatments.names[other])} · {label(treatments.moas[other])}"
                lines.append(f"{'✓' if same else '✗'} {cosine:.2f} {what}")
        texts.append("<br>".join(lines))
    return texts


def _about(treatments: Treatments, row: int) -> str:
    """Batch, wells and cells of a treatment in a line."""
    parts = [label(treatments.batches[row] or "no batch"), plural(treatments.wells[row], "well")]
    if treatments.cells is not None:
        parts.append(plural(treatments.cells[row], "cell"))
    return ", ".join(parts)


def _colourings(treatments: Treatments) -> list[dict[str, object]]:
    """What points can be coloured by: groups with a colour and a symbol each, or numbers."""
    batches = ["several" if BATCH_SEPARATOR in name else name for name in treatments.batches]
    found: list[dict[str, object]] = [
        {"title": "mechanism of action", "groups": _groups(treatments.moas)},
        {"title": "batch", "groups": _groups(batches)},
        {"title": "compound", "groups": _groups(treatments.compounds)},
        {"title": "right or wrong"},
    ]
    if treatments.cells is not None:
        found.append({"title": "cells", "values": treatments.cells, "scale": SCALE})
    return found


def _groups(labels: Sequence[str]) -> list[dict[str, object]]:
    """Each label's rows with a look that no other of the first 24 has."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(labels):
        rows.setdefault(name, []).append(row)
    ordered = sorted(rows, key=batch_order)
    return [
        {
            "label": label(name or "unknown"),
            "colour": COLOURS[index % len(COLOURS)],
            # 8 colours and 12 symbols repeat together after 24 labels; shifting then makes 96.
            "symbol": SYMBOLS[(index + index // 24) % len(SYMBOLS)],
            "rows": rows[name],
            "legend": len(ordered) <= _LONGEST_LEGEND,
        }
        for index, name in enumerate(ordered)
    ]
