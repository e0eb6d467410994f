"""Data of the report's interactive parts: map, neighbours, confusion matrix, dose response."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from cellclr_jax.console import plural
from cellclr_jax.data.columns import round_concentrations
from cellclr_jax.errors import BadData
from cellclr_jax.pages import COLOURS, GREY, SCALE, SYMBOLS, colour_and_symbol, label, number
from cellclr_jax.pages.crop_strips import UNKNOWN_DOSE
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

NEIGHBOURS = 3
"""Neighbours of a treatment that the page shows."""
# Decimal places of coordinates, cosines and distances.
_DIGITS = 3
# A legend of more names cannot be read.
_LONGEST_LEGEND = 30


def treatment_keys(treatments: pd.DataFrame) -> list[tuple[str, float]]:
    """(compound, concentration in µM) of each treatment; `UNKNOWN_DOSE` if unknown."""
    doses = treatments["Metadata_Concentration"].astype(float).fillna(UNKNOWN_DOSE)
    return list(zip(treatments["Metadata_Compound"].astype(str), doses, strict=True))


def find_neighbourhoods(scores: CorrectionScores, protocol: Protocol) -> dict[str, dict[str, Any]]:
    """Finds the three nearest neighbours of each of N treatments under NSC and NSCB.

    Args:
      scores: of a correction that could be fitted.
      protocol: decides which treatments are valid neighbours.

    Returns:
      By score, 'nsc' and 'nscb': rows [N, 3] int, the nearest first (-1: none); cosines [N, 3]
      float (NaN: none); correct [N] bool, None for a treatment that is not scored; undefined: why
      the score is undefined, or ''.
    """
    treatments = scores.treatments
    table = pd.DataFrame(
        {name.lower(): treatments[f"Metadata_{name}"] for name in ("Compound", "MoA", "Batch")}
    )
    vectors = unit_vectors(treatments[own_features(treatments)].to_numpy(np.float64))
    rules = [other_compound(table), other_batch(table, protocol.batches, protocol.left_out)]
    found = nearest(vectors, [rule.allowed for rule in rules], NEIGHBOURS)
    row_of = {key: row for row, key in enumerate(treatment_keys(treatments))}
    return {
        kind: _with_scored_neighbour(neighbours, score, row_of)
        for kind, neighbours, score in zip(KINDS, found, (scores.nsc, scores.nscb), strict=True)
    }


def _with_scored_neighbour(
    found: Neighbours, score: Score, row_of: Mapping[tuple[str, float], int]
) -> dict[str, Any]:
    """Puts the neighbour of the score first: under 'week1', NSCB profiles have fewer wells."""
    rows = np.full_like(found.rows, -1)
    cosines = np.full_like(found.cosines, np.nan)
    correct: list[bool | None] = [None] * len(rows)
    queries = score.neighbours
    if score.undefined:
        return {"rows": rows, "cosines": cosines, "correct": correct, "undefined": score.undefined}
    for compound, dose, other, other_dose, cosine, right in zip(
        queries["compound"],
        queries["concentration"].fillna(UNKNOWN_DOSE),
        queries["neighbour_compound"],
        queries["neighbour_concentration"].fillna(UNKNOWN_DOSE),
        queries["similarity"],
        queries["correct"],
        strict=True,
    ):
        row = row_of[str(compound), float(dose)]
        correct[row] = bool(right)
        first = row_of.get((str(other), float(other_dose)), -1)
        others = [(n, c) for n, c in zip(found.rows[row], found.cosines[row], strict=True)]
        ranked = [(first, cosine), *(pair for pair in others if pair[0] not in (first, -1))]
        for rank, (neighbour, similarity) in enumerate(ranked[:NEIGHBOURS]):
            rows[row, rank], cosines[row, rank] = neighbour, similarity
    return {"rows": rows, "cosines": cosines, "correct": correct, "undefined": ""}


def describe_treatments(table: pd.DataFrame) -> dict[str, Any]:
    """Collects the metadata of N treatments.

    Args:
      table: one row a treatment, from `profiles.treatment_profiles`.

    Returns:
      Lists [N]: names ('taxol 0.3 µM'), compounds, moas, batches, wells (int), cells (int);
      cells is None if they were not counted.
    """
    compounds = table["Metadata_Compound"].astype(str).tolist()
    doses = table["Metadata_Concentration"].astype(float)
    return {
        "names": [
            f"{name} {number(dose)} µM" if dose == dose else name
            for name, dose in zip(compounds, doses, strict=True)
        ],
        "compounds": compounds,
        "moas": table["Metadata_MoA"].fillna("").astype(str).tolist(),
        "batches": table["Metadata_Batch"].fillna("").astype(str).tolist(),
        "wells": table["Metadata_WellCount"].astype(int).tolist(),
        "cells": table["Metadata_CellCount"].astype(int).tolist()
        if "Metadata_CellCount" in table
        else None,
    }


def map_data(evaluation: Evaluation, maps: Maps) -> dict[str, Any]:
    """Returns the data of map, search and misclassified treatments as JSON values.

    Args:
      evaluation: of at least one treatment.
      maps: from `figures.place`.

    Returns:
      {'treatments': see `describe_treatments`, 'colourings', 'states': of the colouring by
      prediction, 'corrections': {name: {'maps', 'no_map', 'hover', 'nsc', 'nscb'} or {'undefined':
      reason}}}. Names are plain text; labels, titles and hover texts are escaped for Plotly.
    """
    treatments = describe_treatments(evaluation.treatments)
    states = (
        (COLOURS[0], "circle", "correct"),
        (COLOURS[3], "x", "incorrect"),
        (GREY, "circle-open", "not scored"),
    )
    return {
        "treatments": treatments,
        "colourings": _colourings(treatments),
        "states": [dict(zip(("colour", "symbol", "title"), s, strict=True)) for s in states],
        "corrections": {
            name: _correction(scores, evaluation.protocol, treatments, maps.get(name, {}))
            for name, scores in evaluation.scores.items()
        },
    }


def _correction(
    scores: CorrectionScores,
    protocol: Protocol,
    treatments: Mapping[str, Any],
    places: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Coordinates, hover texts and neighbours under one correction."""
    if scores.treatments.empty:
        return {"undefined": scores.nsc.undefined}
    with threadpool_limits(limits=1):  # BLAS threads wait for each other on a busy machine
        near = find_neighbourhoods(scores, protocol)
    hover = _hover(treatments, near["nscb" if near["nsc"]["undefined"] else "nsc"])
    for found in near.values():
        found["cosines"] = found["cosines"].round(_DIGITS)
    return {
        "maps": {name: points.T.round(_DIGITS) for name, points in places.items()},
        "no_map": why_no_map(scores.treatments, scores.nsc),
        "hover": hover,
        **near,
    }


def _hover(treatments: Mapping[str, Any], near: Mapping[str, Any]) -> list[str]:
    """Formats the hover text of each treatment."""
    names, moas, cells = (treatments[key] for key in ("names", "moas", "cells"))
    texts = []
    for row, name in enumerate(names):
        counts = [label(treatments["batches"][row] or "unknown batch")]
        counts.append(plural(treatments["wells"][row], "well"))
        if cells is not None:
            counts.append(plural(cells[row], "cell"))
        lines = [f"<b>{label(name)}</b>", label(moas[row]), ", ".join(counts)]
        for other, cosine in zip(near["rows"][row], near["cosines"][row], strict=True):
            if other >= 0:
                mark = "✓" if moas[other] == moas[row] else "✗"
                lines.append(f"{mark} {cosine:.2f} {label(names[other])} · {label(moas[other])}")
        texts.append("<br>".join(lines))
    return texts


def _colourings(treatments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Ways to colour the map: by groups with a colour and a symbol each, or by numbers."""
    batches = ["several" if BATCH_SEPARATOR in name else name for name in treatments["batches"]]
    found: list[dict[str, Any]] = [
        {"title": "Mechanism of action", "groups": _groups(treatments["moas"])},
        {"title": "Batch", "groups": _groups(batches)},
        {"title": "Compound", "groups": _groups(treatments["compounds"])},
        {"title": "Prediction"},
    ]
    if treatments["cells"] is not None:
        found.append({"title": "Cell count", "values": treatments["cells"], "scale": SCALE})
    return found


def _groups(labels: Sequence[str]) -> list[dict[str, Any]]:
    """Groups rows by label, with a colour and symbol for each."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(labels):
        rows.setdefault(name, []).append(row)
    groups = []
    for index, name in enumerate(sorted(rows, key=batch_order)):
        colour, symbol = colour_and_symbol(index)
        groups.append(
            {
                "label": label(name or "unknown"),
                "colour": colour,
                "symbol": SYMBOLS[symbol],
                "rows": rows[name],
                "legend": len(rows) <= _LONGEST_LEGEND,
            }
        )
    return groups


def confusion_data(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """Returns the confusion matrix of every correction and score as JSON values.

    Returns:
      {correction: {'nsc': {'moas', 'predicted', 'counts', 'table'}, 'nscb': …}}, names escaped for
      Plotly; {'undefined': reason} for an undefined score. A row of 'table': mechanism (plain
      text), treatments, correct, recall, precision.
    """
    return {
        correction: {
            kind: _confusion(score)
            for kind, score in zip(KINDS, (scores.nsc, scores.nscb), strict=True)
        }
        for correction, scores in evaluation.scores.items()
    }


def _confusion(score: Score) -> dict[str, Any]:
    if score.undefined:
        return {"undefined": score.undefined}
    moas, counts = confusion(score)
    right, queries = np.diagonal(counts).tolist(), counts.sum(axis=1).tolist()
    predicted = counts.sum(axis=0).tolist()
    table = [
        [moa, n, r, r / n, r / p if p else None]
        for moa, n, r, p in zip(moas, queries, right, predicted, strict=False)
        if n
    ]
    columns = [*moas, "no neighbour"][: counts.shape[1]]
    return {
        "moas": [label(moa) for moa in moas],
        "predicted": [label(moa) for moa in columns],
        "counts": counts,
        "table": table,
    }


_FEWEST_DOSES = 3
# Percentiles of the distances of control wells that the grey band spans.
_CONTROL_BAND = (5, 95)


def dose_series(evaluation: Evaluation) -> tuple[dict[str, Any] | None, str]:
    """Returns the distance from controls of the wells of each compound with several doses.

    The distance of a well is the root mean square of its features in units of the control wells'
    standard deviation: about 1 for controls, whatever the number of features.

    Returns:
      ({'usual': [low, high] of control wells, 'top': the largest distance, 'series': sorted by
      compound, each with 'compound', 'moa', 'wells' (x: concentrations in µM, y: distances, text)
      and 'treatments' (the median at each concentration: x, y, text, rows of the treatments)} or
      None; why there are none, or ''). Texts are escaped for Plotly, names are not.
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
    usual = np.percentile(distance[is_control], _CONTROL_BAND)
    rows = {key: row for row, key in enumerate(treatment_keys(evaluation.treatments))}
    series = [_series(str(name), own, rows) for name, own in table.groupby("Metadata_Compound")]
    return {"usual": usual, "top": max(table["distance"].max(), usual[1]), "series": series}, ""


def distances_from_controls(
    wells: pd.DataFrame, is_control: np.ndarray, protocol: Protocol
) -> np.ndarray:
    """Returns the distance [N] of every well from the control wells; see `dose_series`.

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
    """Wells of one compound, and the median distance at each concentration."""
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
