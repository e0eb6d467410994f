"""How far from the controls each compound's wells lie at each concentration, as small drawings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellclr_jax.data.columns import round_concentrations
from cellclr_jax.errors import BadData
from cellclr_jax.pages import number
from cellclr_jax.profiling.correction import standardize
from cellclr_jax.profiling.evaluation import Evaluation
from cellclr_jax.profiling.feature_columns import own_features

FEWEST_DOSES = 3
# Of a drawing in its own units, and the room around its axes.
WIDTH, HEIGHT = 260, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 10, 10, 26
# What control wells span: these percentiles of their distances.
_USUAL = (5, 95)
_HIGHEST_TICKS = 4


@dataclass(frozen=True)
class Dot:
    """A well or a treatment: its place in the drawing, what is told of it, its row (-1: a well)."""

    x: float
    y: float
    text: str
    row: int = -1


@dataclass(frozen=True)
class Series:
    """One compound.

    Attributes:
      compound, moa: names.
      wells: a dot a well.
      treatments: a dot a concentration: the median of its wells.
      line: 'x,y x,y …' through these.
      doses, heights: (place, text) of the ticks of either axis.
      usual: (top, height) of the band of the control wells.
    """

    compound: str
    moa: str
    wells: list[Dot]
    treatments: list[Dot]
    line: str
    doses: list[tuple[float, str]]
    heights: list[tuple[float, str]]
    usual: tuple[float, float]


def dose_series(evaluation: Evaluation) -> tuple[list[Series], str]:
    """A drawing for every compound with three concentrations or more.

    The distance of a well is the root mean square of its features in units of the control wells'
    spread: 1 on average over the controls, whatever the number of features. Concentrations lie on
    a logarithmic axis.

    Returns:
      (drawings, sorted by compound; why there are none, or '').
    """
    wells = evaluation.wells
    is_control = (wells["Metadata_Compound"] == evaluation.protocol.control).to_numpy()
    doses = np.asarray(round_concentrations(wells["Metadata_Concentration"]), np.float64)
    usable = ~is_control & np.isfinite(doses) & (doses > 0)
    counts = pd.Series(doses[usable]).groupby(wells["Metadata_Compound"][usable].to_numpy())
    several = counts.nunique()
    long = sorted(map(str, several.index[several >= FEWEST_DOSES]))
    if not long:
        return [], f"no compound has {FEWEST_DOSES} concentrations"
    try:
        distance = _distances(evaluation, is_control)
    except BadData as error:
        return [], str(error)
    usual = np.percentile(distance[is_control], _USUAL)
    shown = wells["Metadata_Compound"].isin(long).to_numpy() & usable
    top = 1.05 * max(distance[shown].max(), usual[1])
    table = wells.assign(dose=doses, distance=distance)[shown]
    row_of = _rows(evaluation.treatments)
    return [
        _draw(name, table[table["Metadata_Compound"] == name], usual, top, row_of) for name in long
    ], ""


def _rows(treatments: pd.DataFrame) -> dict[tuple[str, float], int]:
    """The row of each treatment by compound and concentration."""
    keys = treatments[["Metadata_Compound", "Metadata_Concentration"]].itertuples(index=False)
    return {(str(name), float(dose)): row for row, (name, dose) in enumerate(keys)}


def _distances(evaluation: Evaluation, is_control: np.ndarray) -> np.ndarray:
    """[N] of every well from the controls."""
    wells, protocol = evaluation.wells, evaluation.protocol
    by_plate = protocol.standardize == "plates"
    scaled, _ = standardize(
        wells[own_features(wells)].to_numpy(np.float64),
        is_control,
        plates=wells["Metadata_Plate"].to_numpy(object) if by_plate else None,
        robust=protocol.robust,
    )
    return np.sqrt(np.mean(scaled**2, axis=1))


def _draw(
    compound: str,
    wells: pd.DataFrame,
    usual: Sequence[float],
    top: float,
    row_of: dict[tuple[str, float], int],
) -> Series:
    """One compound's drawing; `top` is the highest distance that all drawings show."""
    doses = np.sort(wells["dose"].unique())
    low, high = np.log10(doses[0]), np.log10(doses[-1])

    def across(dose: float) -> float:
        share = (np.log10(dose) - low) / (high - low)
        return round(float(_LEFT + 8 + share * (WIDTH - _LEFT - _RIGHT - 16)), 1)

    def down(distance: float) -> float:
        return round(float(HEIGHT - _BOTTOM - distance / top * (HEIGHT - _TOP - _BOTTOM)), 1)

    dots = [
        Dot(across(d), down(r), f"{place}: {r:.2f}")
        for d, r, place in zip(wells["dose"], wells["distance"], _places(wells), strict=True)
    ]
    middles = wells.groupby("dose")["distance"].median()
    treatments = [
        Dot(across(d), down(r), f"{number(d)} µM: {r:.2f}", row_of.get((compound, float(d)), -1))
        for d, r in zip(middles.index.astype(float), middles, strict=True)
    ]
    return Series(
        compound=compound,
        moa=str(wells["Metadata_MoA"].iloc[0]),
        wells=dots,
        treatments=treatments,
        line=" ".join(f"{dot.x},{dot.y}" for dot in treatments),
        doses=_apart(
            [(dot.x, number(d)) for dot, d in zip(treatments, middles.index, strict=True)]
        ),
        heights=[(down(value), number(value)) for value in _ticks(top)],
        usual=(down(usual[1]), round(down(usual[0]) - down(usual[1]), 1)),
    )


def _places(wells: pd.DataFrame) -> list[str]:
    """Plate and well of each row."""
    pairs = zip(wells["Metadata_Plate"], wells["Metadata_Well"], strict=True)
    return [f"{plate} {well}" for plate, well in pairs]


def _apart(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Those of the ticks, from the last back, whose texts do not touch."""
    kept: list[tuple[float, str]] = []
    for place, text in reversed(ticks):
        if not kept or kept[-1][0] - place > 4 * (len(text) + len(kept[-1][1])):
            kept.append((place, text))
    return kept[::-1]


def _ticks(top: float) -> list[float]:
    """Round numbers from 0 to the top, a few."""
    power = 10.0 ** np.floor(np.log10(top))
    steps = [power * factor for factor in (0.1, 0.2, 0.5, 1, 2, 5)]
    step = next(step for step in steps if top / step < _HIGHEST_TICKS + 1)
    return [float(round(value, 10)) for value in np.arange(0, top, step)]
