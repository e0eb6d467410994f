"""Fields that are unlike the others of their plate, with the reason in words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellclr_jax.data.quality.measures import columns_of

BOUND = 5.0
"""Robust standard deviations from its plate's median beyond which a field stands out."""

FEWEST_FIELDS = 8
"""A plate of fewer fields has no usual field: it is compared with all fields of the dataset."""

# The median absolute deviation times this is the standard deviation of a normal distribution.
_MAD_TO_DEVIATION = 1.4826
# Deviations are no smaller than these, however alike the fields of a plate are. Intensities, focus
# and counts are compared by their logarithm (stains, lamps and cell numbers differ by factors):
# with a tenth, a field within a factor of 1.6 of the usual never stands out.
_LEAST_LOG = 0.1
# Saturation is compared as a share of the pixels: half a percent more than usual stands out.
_LEAST_SHARE = 0.001
# Smaller values are taken for these: one count of intensity; a blur beyond which none is told.
_LEAST_INTENSITY, _LEAST_FOCUS = 1.0, 0.1
# A field in which there is nothing to focus on stands out where so many of its plate have a score.
_USUALLY_IN_FOCUS = 0.9
_INTENSITIES = {"mean": "mean", "p50": "median pixel", "p99": "99th percentile"}


@dataclass(frozen=True)
class _Group:
    """Fields that are judged, and those that say what is usual."""

    rows: np.ndarray
    fields: pd.DataFrame
    among: pd.DataFrame
    whose: str


# Row within the group, |z|, words, and the channel that they end with ('' for none).
_Reason = tuple[int, float, str, str]


def find_outliers(
    fields: pd.DataFrame, channels: Sequence[str], *, bound: float = BOUND
) -> pd.DataFrame:
    """Finds fields whose measures are far from those of their plate.

    A treatment may do that as well as a fault: the reason says what was measured, not why.

    Args:
      fields: the table of fields: `cells`, `problem`, measures, and `plate` where it is known.
        Those with a problem are passed over; a measure that is absent or NaN is not judged.
      channels: whose measures are looked at.
      bound: of the robust z-score, (value - median) / (1.4826 median absolute deviation).

    Returns:
      The rows that stand out, the worst first, with two more columns: `reason` in words and
      `score`, the largest |z| (infinite for a field without cells).
    """
    usable = fields[fields["problem"] == ""]
    found: dict[int, list[_Reason]] = {}
    for group in _groups(usable):
        for reason in _judge(group, channels, bound):
            found.setdefault(int(group.rows[reason[0]]), []).append(reason)
    outliers = usable.iloc[list(found)].copy()
    # Arrays of their types: what nothing stands out of is a table of the same columns.
    outliers["reason"] = np.array([_join(said) for said in found.values()], str)
    outliers["score"] = np.array([max(one[1] for one in said) for said in found.values()], float)
    return outliers.sort_values("score", ascending=False, kind="stable")


def find_outlying_plates(
    fields: pd.DataFrame, channels: Sequence[str], *, bound: float = BOUND
) -> pd.DataFrame:
    """Finds plates whose median measures are far from those of the other plates.

    Args:
      fields, channels, bound: see `find_outliers`.

    Returns:
      As `find_outliers`, one row a plate: `plate`, medians, `reason`, `score`.
    """
    usable = fields[fields["problem"] == ""]
    measures = [name for name in ("cells", *columns_of(channels)) if name in usable]
    if "plate" not in usable:
        return find_outliers(usable.head(0), channels)
    medians = usable.groupby("plate", sort=False)[measures].median().assign(problem="")
    outliers = find_outliers(medians, channels, bound=bound)
    return outliers.reset_index()


def _groups(fields: pd.DataFrame) -> Iterator[_Group]:
    """The plates; those of few fields are compared with all fields."""
    everyone = np.arange(len(fields))
    if "plate" not in fields:
        yield _Group(everyone, fields, fields, "the")
        return
    codes, plates = pd.factorize(fields["plate"], use_na_sentinel=False)
    for code in range(len(plates)):
        rows = np.flatnonzero(codes == code)
        plate = fields.iloc[rows]
        if len(rows) < FEWEST_FIELDS:
            yield _Group(rows, plate, fields, "the")
        else:
            yield _Group(rows, plate, plate, "its plate's")


def _judge(group: _Group, channels: Sequence[str], bound: float) -> Iterator[_Reason]:
    """What is unusual about the fields of a group."""
    if not len(group.fields):
        return
    if len(group.among) < FEWEST_FIELDS:
        bound = np.inf  # too few to tell what is usual; a field without cells is none anywhere
    yield from _count_reasons(group, bound)
    for channel in channels:
        yield from _focus_reasons(group, channel, bound)
        yield from _saturation_reasons(group, channel, bound)
        yield from _intensity_reasons(group, channel, bound)


def _count_reasons(group: _Group, bound: float) -> Iterator[_Reason]:
    cells = group.fields["cells"].to_numpy(float)
    among = group.among["cells"].to_numpy(float)
    usual = float(np.median(among))
    # Cells lie by chance: about as many more or fewer as the root of their number.
    least = max(_LEAST_LOG, 1 / np.sqrt(max(usual, 1.0)))
    z = _z_scores(np.log1p(cells), np.log1p(among), least)
    for row in np.flatnonzero(cells == 0):
        yield int(row), np.inf, "no cells", ""
    for row in np.flatnonzero((np.abs(z) > bound) & (cells > 0)):
        words = f"cell count {cells[row]:.0f}, {group.whose} median {usual:.0f}"
        yield int(row), abs(z[row]), words, ""


def _focus_reasons(group: _Group, channel: str, bound: float) -> Iterator[_Reason]:
    scores, among = _values(group, f"focus_{channel}")
    z = _z_scores(_log(scores, _LEAST_FOCUS), _log(among, _LEAST_FOCUS), _LEAST_LOG)
    for row in np.flatnonzero(z < -bound):
        yield int(row), -z[row], "out of focus", channel
    if np.isfinite(bound) and np.isfinite(among).mean() >= _USUALLY_IN_FOCUS:
        for row in np.flatnonzero(np.isnan(scores)):
            yield int(row), bound, "nothing to focus on", channel


def _saturation_reasons(group: _Group, channel: str, bound: float) -> Iterator[_Reason]:
    shares, among = _values(group, f"saturated_{channel}")
    z = _z_scores(shares, among, _LEAST_SHARE)
    for row in np.flatnonzero(z > bound):
        yield int(row), z[row], f"{100 * shares[row]:.1f} % saturated", channel


def _intensity_reasons(group: _Group, channel: str, bound: float) -> Iterator[_Reason]:
    """One reason a field: that of the intensity which is furthest from the usual."""
    worst = np.zeros(len(group.fields))
    reasons = [""] * len(worst)
    for measure, words in _INTENSITIES.items():
        values, among = _values(group, f"{measure}_{channel}")
        z = _z_scores(_log(values, _LEAST_INTENSITY), _log(among, _LEAST_INTENSITY), _LEAST_LOG)
        for row in np.flatnonzero(np.abs(z) > np.maximum(bound, worst)):
            worst[row] = abs(z[row])
            level = "bright" if z[row] > 0 else "dark"
            usual = f"{group.whose} median {np.nanmedian(among):,.0f}"
            reasons[row] = f"{channel} {level}: {words} {values[row]:,.0f}, {usual}"
    for row in np.flatnonzero(worst):
        yield int(row), worst[row], reasons[row], ""


def _join(reasons: Sequence[_Reason]) -> str:
    """The reasons in a line; what holds for several channels is said once."""
    channels: dict[str, list[str]] = {}
    for _, _, words, channel in reasons:
        channels.setdefault(words, []).extend(filter(None, [channel]))
    return "; ".join(
        f"{words} in {', '.join(named)}" if named else words for words, named in channels.items()
    )


def _values(group: _Group, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A measure of the fields that are judged and of the others; NaN where there is none."""
    fields, among = (
        table[name].to_numpy(float) if name in table else np.full(len(table), np.nan)
        for table in (group.fields, group.among)
    )
    return fields, among


def _log(values: np.ndarray, least: float) -> np.ndarray:
    return np.asarray(np.log(np.maximum(values, least)))


def _z_scores(values: np.ndarray, among: np.ndarray, least: float) -> np.ndarray:
    """Robust z-scores; NaN for NaN, and for all where none is usual."""
    known = among[np.isfinite(among)]
    if not len(known):
        return np.full(len(values), np.nan)
    median = np.median(known)
    deviation = _MAD_TO_DEVIATION * np.median(np.abs(known - median))
    return np.asarray((values - median) / max(deviation, least))
