"""What the report's script draws of treatments: map, neighbours, confusion matrix, dose series."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from cellclr_jax.console import plural
from cellclr_jax.data.columns import round_concentrations
from cellclr_jax.errors import BadData
from cellclr_jax.pages import COLOURS, GREY, SCALE, SYMBOLS, label, look, number
from cellclr_jax.profiling.correction import standardize
from cellclr_jax.profiling.evaluation import CorrectionScores, Evaluation
from cellclr_jax.profiling.feature_columns import own_features
from cellclr_jax.profiling.measures.mechanisms import confusion
from cellclr_jax.profiling.moa import (
    BATCH_SEPARATOR,
    Score,
    batch_order,
    other_batch,
    other_compound,
)
from cellclr_jax.profiling.nearest import Neighbours, nearest, unit_vectors
from cellclr_jax.profiling.protocol import Protocol
from cellclr_jax.profiling.report.figures import Maps, why_no_map
from cellclr_jax.profiling.report.verdict import KINDS

SHOWN = 3


@dataclass(frozen=True)
class Neighbourhood:
    """The nearest treatments of each of N treatments.

    Attributes:
      rows: [N, 3] int, the nearest first; -1 where there is none.
      cosines: [N, 3] float; NaN there.
      correct: [N] whether the score counts the treatment as right; None: it is no query.
      undefined: why there is no score, or ''.
    """

    rows: np.ndarray
    cosines: np.ndarray
    correct: list[bool | None]
    undefined: str = ""


def treatment_keys(treatments: pd.DataFrame) -> list[tuple[str, float]]:
    """(compound, concentration) of each treatment; 0 where the concentration is unknown."""
    doses = treatments["Metadata_Concentration"].astype(float).fillna(0.0)
    return list(zip(treatments["Metadata_Compound"].astype(str), doses, strict=True))


def find_neighbourhoods(scores: CorrectionScores, protocol: Protocol) -> dict[str, Neighbourhood]:
    """Finds the three nearest treatments of each under NSC's and NSCB's rule.

    Args:
      scores: of a correction that could be fitted.
      protocol: what another batch is, and which mechanisms NSCB leaves out.

    Returns:
      By score, 'nsc' and 'nscb'; rows are those of `scores.treatments`.
    """
    treatments = scores.treatments
    table = pd.DataFrame(
        {name.lower(): treatments[f"Metadata_{name}"] for name in ("Compound", "MoA", "Batch")}
    )
    vectors = unit_vectors(treatments[own_features(treatments)].to_numpy(np.float64))
    rules = [other_compound(table), other_batch(table, protocol.batches, protocol.left_out)]
    found = nearest(vectors, [rule.allowed for rule in rules], SHOWN)
    row_of = {key: row for row, key in enumerate(treatment_keys(treatments))}
    return {
        kind: _as_scored(neighbours, score, row_of)
        for kind, neighbours, score in zip(KINDS, found, (scores.nsc, scores.nscb), strict=True)
    }


def _as_scored(
    found: Neighbours, score: Score, row_of: Mapping[tuple[str, float], int]
) -> Neighbourhood:
    """The neighbours of the score's queries, its own first: it may have seen fewer wells."""
    rows = np.full_like(found.rows, -1)
    cosines = np.full_like(found.cosines, np.nan)
    correct: list[bool | None] = [None] * len(rows)
    if score.undefined:
        return Neighbourhood(rows, cosines, correct, score.undefined)
    asked = score.neighbours
    for compound, dose, other, other_dose, cosine, right in zip(
        asked["compound"],
        asked["concentration"].fillna(0.0),
        asked["neighbour_compound"],
        asked["neighbour_concentration"].fillna(0.0),
        asked["similarity"],
        asked["correct"],
        strict=True,
    ):
        row = row_of[str(compound), float(dose)]
        correct[row] = bool(right)
        first = row_of.get((str(other), float(other_dose)), -1)
        others = [(n, c) for n, c in zip(found.rows[row], found.cosines[row], strict=True)]
        ranked = [(first, cosine), *(pair for pair in others if pair[0] not in (first, -1))]
        for place, (neighbour, similarity) in enumerate(ranked[:SHOWN]):
            rows[row, place], cosines[row, place] = neighbour, similarity
    return Neighbourhood(rows, cosines, correct)


# Colour, symbol and name of right, wrong, and no query.
_STATES = (
    (COLOURS[0], "circle", "right"),
    (COLOURS[3], "x", "wrong"),
    (GREY, "circle-open", "no query"),
)
# A legend of more names than this cannot be read.
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
    """Collects what is known of the treatments of a profile table.

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
    """Returns a name such as 'taxol 0.3 µM', without a concentration where none is known."""
    return f"{compound} {number(dose)} µM" if dose == dose and dose != 0 else compound


def map_data(evaluation: Evaluation, treatments: Treatments, maps: Maps) -> dict[str, Any]:
    """Returns what the page's script draws maps, search and tables of wrong treatments from.

    Args:
      evaluation: its treatments are at least one.
      treatments: of `evaluation.treatments`.
      maps: of `figures.place`.

    Returns:
      JSON values: names as text, everything that Plotly shows escaped.
    """
    return {
        "treatments": vars(treatments),
        "colourings": _colourings(treatments),
        "states": [dict(zip(("colour", "symbol", "title"), s, strict=True)) for s in _STATES],
        "corrections": {
            name: _correction(scores, evaluation, treatments, maps.get(name, {}))
            for name, scores in evaluation.scores.items()
        },
    }


def _correction(
    scores: CorrectionScores,
    evaluation: Evaluation,
    treatments: Treatments,
    places: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Places, hover texts and neighbours under one correction; or why there are none."""
    if scores.treatments.empty:
        return {"undefined": scores.nsc.undefined}
    with threadpool_limits(limits=1):  # BLAS threads wait for each other on a busy machine
        near = find_neighbourhoods(scores, evaluation.protocol)
    return {
        "maps": {name: points.T.round(_DIGITS) for name, points in places.items()},
        "no_map": why_no_map(scores.treatments, scores.nsc),
        "hover": _hover(treatments, near),
        **{kind: _near(near[kind]) for kind in KINDS},
    }


def _near(near: Neighbourhood) -> dict[str, Any]:
    """Neighbours of every treatment as JSON."""
    return {
        "rows": near.rows,
        "cosines": near.cosines.round(_DIGITS),
        "correct": near.correct,
        "undefined": near.undefined,
    }


def _hover(treatments: Treatments, near: Mapping[str, Neighbourhood]) -> list[str]:
    """The text on hover of each treatment."""
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


def _colourings(treatments: Treatments) -> list[dict[str, Any]]:
    """What points can be coloured by: groups with a colour and a symbol each, or numbers."""
    batches = ["several" if BATCH_SEPARATOR in name else name for name in treatments.batches]
    found: list[dict[str, Any]] = [
        {"title": "mechanism of action", "groups": _groups(treatments.moas)},
        {"title": "batch", "groups": _groups(batches)},
        {"title": "compound", "groups": _groups(treatments.compounds)},
        {"title": "right or wrong"},
    ]
    if treatments.cells is not None:
        found.append({"title": "cells", "values": treatments.cells, "scale": SCALE})
    return found


def _groups(labels: Sequence[str]) -> list[dict[str, Any]]:
    """Each label's rows with a look that no other of the first 24 has."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(labels):
        rows.setdefault(name, []).append(row)
    ordered = sorted(rows, key=batch_order)
    groups = []
    for index, name in enumerate(ordered):
        colour, symbol = look(index)
        groups.append(
            {
                "label": label(name or "unknown"),
                "colour": colour,
                "symbol": SYMBOLS[symbol],
                "rows": rows[name],
                "legend": len(ordered) <= _LONGEST_LEGEND,
            }
        )
    return groups


_NOBODY = "no neighbour"


def confusion_data(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """Counts of every correction and score as JSON values; names are escaped for Plotly.

    Returns:
      {correction: {'nsc': {'moas', 'answers', 'counts', 'table'}, 'nscb': …}}; {'undefined':
      reason} in the place of an undefined score. A row of 'table': mechanism (as text), queries,
      right, recall, precision.
    """
    return {
        correction: {
            kind: _describe(score)
            for kind, score in zip(KINDS, (scores.nsc, scores.nscb), strict=True)
        }
        for correction, scores in evaluation.scores.items()
    }


def _describe(score: Score) -> Mapping[str, Any]:
    """One score's counts, or why there are none."""
    if score.undefined:
        return {"undefined": score.undefined}
    moas, counts = confusion(score)
    answers = [*moas, ""][: counts.shape[1]]
    right = np.diagonal(counts)
    asked, answered = counts.sum(axis=1), counts.sum(axis=0)[: len(moas)]
    table = [
        [moa, int(a), int(r), _share(r, a), _share(r, told)]
        for moa, a, r, told in zip(moas, asked, right, answered, strict=True)
        if a
    ]
    return {
        "moas": [label(moa) for moa in moas],
        "answers": [label(moa or _NOBODY) for moa in answers],
        "counts": counts,
        "table": table,
    }


def _share(part: int, whole: int) -> float | None:
    """part / whole, None where there is no whole."""
    return float(part / whole) if whole else None


_FEWEST_DOSES = 3
# What control wells span: these percentiles of their distances.
_USUAL = (5, 95)


def dose_series(evaluation: Evaluation) -> tuple[dict[str, Any] | None, str]:
    """Returns how far the wells of every compound with several concentrations are from controls.

    The distance of a well is the root mean square of its features in units of the control wells'
    spread: 1 on average over the controls, whatever the number of features.

    Returns:
      ({'usual': [low, high] of control wells, 'top': the largest distance, 'series': sorted by
      compound, each with 'compound', 'moa', 'wells' (x: concentrations, y: distances, text) and
      'treatments' (the median of each concentration: x, y, text, rows of the treatments)}; why
      there are none, or ''). Texts are escaped for Plotly, names are not.
    """
    wells, protocol = evaluation.wells, evaluation.protocol
    is_control = (wells["Metadata_Compound"] == protocol.control).to_numpy()
    doses = np.asarray(round_concentrations(wells["Metadata_Concentration"]), np.float64)
    usable = ~is_control & np.isfinite(doses) & (doses > 0)
    table = wells.assign(dose=doses)[usable]
    several = table.groupby("Metadata_Compound")["dose"].nunique()
    long = several.index[several >= _FEWEST_DOSES]
    if not len(long):
        return None, f"no compound has {_FEWEST_DOSES} concentrations"
    try:
        distance = distances_from_controls(wells, is_control, protocol)
    except BadData as error:
        return None, str(error)
    table = table.assign(distance=distance[usable])
    table = table[table["Metadata_Compound"].isin(long)]
    usual = np.percentile(distance[is_control], _USUAL)
    rows = {key: row for row, key in enumerate(treatment_keys(evaluation.treatments))}
    series = [_series(str(name), own, rows) for name, own in table.groupby("Metadata_Compound")]
    return {"usual": usual, "top": max(table["distance"].max(), usual[1]), "series": series}, ""


def distances_from_controls(
    wells: pd.DataFrame, is_control: np.ndarray, protocol: Protocol
) -> np.ndarray:
    """Returns [N] the distance of every well from the control wells; see `dose_series`.

    Raises:
      BadData: there are too few controls.
    """
    by_plate = protocol.standardize == "plates"
    scaled, _ = standardize(
        wells[own_features(wells)].to_numpy(np.float64),
        is_control,
        plates=wells["Metadata_Plate"].to_numpy(object) if by_plate else None,
        robust=protocol.robust,
    )
    return np.sqrt(np.mean(scaled**2, axis=1))


def _series(
    compound: str, wells: pd.DataFrame, rows: Mapping[tuple[str, float], int]
) -> dict[str, Any]:
    """One compound's wells, and the median of each concentration."""
    places = wells["Metadata_Plate"].astype(str) + " " + wells["Metadata_Well"].astype(str)
    medians = wells.groupby("dose")["distance"].median()
    doses = medians.index.astype(float).tolist()
    return {
        "compound": compound,
        "moa": str(wells["Metadata_MoA"].iloc[0]),
        "wells": {
            "x": wells["dose"].to_numpy(),
            "y": wells["distance"].to_numpy().round(_DIGITS),
            "text": [label(place) for place in places],
        },
        "treatments": {
            "x": doses,
            "y": medians.to_numpy().round(_DIGITS),
            "text": [f"{number(dose)} µM" for dose in doses],
            "rows": [rows.get((compound, dose), -1) for dose in doses],
        },
    }
