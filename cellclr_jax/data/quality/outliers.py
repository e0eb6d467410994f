"""Detects outlier fields and plates by robust z-scores, with a reason for each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellclr_jax.data.quality.measures import columns_of

BOUND = 5.0
"""Robust standard deviations from the median of its plate beyond which a field is an outlier."""

FEWEST_FIELDS = 8
"""Plates with fewer fields are compared with all fields of the dataset."""

# The median absolute deviation times this is the standard deviation of a normal distribution.
_MAD_TO_DEVIATION = 1.4826
# Least standard deviation, for plates of very similar fields. Intensities, focus and counts are
# compared by logarithm, as stains, lamps and cell numbers differ by factors: with 0.1, a field is
# never an outlier within a factor of 1.6 of the median.
_LEAST_LOG = 0.1
# Saturation is compared as a share of the pixels: an excess of 0.5 % is an outlier.
_LEAST_SHARE = 0.001
# Smaller values are set to these: one gray level; a focus score at which all detail is lost.
_LEAST_INTENSITY, _LEAST_FOCUS = 1.0, 0.1
# A field without a focus score is an outlier if this share of its plate has one.
_USUALLY_IN_FOCUS = 0.9
_INTENSITIES = {"mean": "mean", "p50": "median pixel", "p99": "99th percentile"}


@dataclass(frozen=True)
class _Group:
    """Fields to judge, the fields to compare with, and their name in a reason."""

    rows: np.ndarray
    fields: pd.DataFrame
    reference: pd.DataFrame
    name: str


# Row within the group, |z|, text, and its channel ('' for none).
_Reason = tuple[int, float, str, str]


def find_outliers(
    fields: pd.DataFrame, channels: Sequence[str], *, bound: float = BOUND
) -> pd.DataFrame:
    """Finds fields whose measures are far from those of their plate.

    The cause may be an artefact or a treatment; the reason names only the measure.

    Args:
      fields: the table of fields: `cells`, `problem`, measures, and `plate` if known. Fields with a
        problem are ignored, and so are measures that are missing or NaN.
      channels: names.
      bound: of the robust z-score, (value - median) / (1.4826 median absolute deviation).

    Returns:
      The outliers, the worst first, with two more columns: `reason` (text) and `score`, the largest
      |z| (infinite for a field without cells).
    """
    usable = fields[fields["problem"] == ""]
    found: dict[int, list[_Reason]] = {}
    for group in _groups(usable):
        for reason in _judge(group, channels, bound):
            found.setdefault(int(group.rows[reason[0]]), []).append(reason)
    outliers = usable.iloc[list(found)].copy()
    # Arrays with a type, so that an empty table has the same types.
    outliers["reason"] = np.array([_join(reasons) for reasons in found.values()], str)
    outliers["score"] = np.array(
        [max(one[1] for one in reasons) for reasons in found.values()], float
    )
    return outliers.sort_values("score", ascending=False, kind="stable")


def find_outlying_plates(
    fields: pd.DataFrame, channels: Sequence[str], *, bound: float = BOUND
) -> pd.DataFrame:
    """Finds plates whose median measures are far from those of the other plates.

    Args:
      fields, channels, bound: see `find_outliers`.

    Returns:
      One row a plate: `plate`, medians, `reason`, `score`; see `find_outliers`.
    """
    usable = fields[fields["problem"] == ""]
    measures = [name for name in ("cells", *columns_of(channels)) if name in usable]
    if "plate" not in usable:
        return find_outliers(usable.head(0), channels)
    medians = usable.groupby("plate", sort=False)[measures].median().assign(problem="")
    outliers = find_outliers(medians, channels, bound=bound)
    return outliers.reset_index()


def _groups(fields: pd.DataFrame) -> Iterator[_Group]:
    """Yields the plates; those of few fields are compared with all fields."""
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
    """Yields the reasons why fields of a group are outliers."""
    if not len(group.fields):
        return
    if len(group.reference) < FEWEST_FIELDS:
        bound = np.inf  # too few for statistics: only fields without cells are outliers
    yield from _count_reasons(group, bound)
    for channel in channels:
        yield from _focus_reasons(group, channel, bound)
        yield from _saturation_reasons(group, channel, bound)
        yield from _intensity_reasons(group, channel, bound)


def _count_reasons(group: _Group, bound: float) -> Iterator[_Reason]:
    cells = group.fields["cells"].to_numpy(float)
    among = group.reference["cells"].to_numpy(float)
    usual = float(np.median(among))
    # Counts have at least Poisson noise: the relative error is one by the root of the count.
    least = max(_LEAST_LOG, 1 / np.sqrt(max(usual, 1.0)))
    z = _z_scores(np.log1p(cells), np.log1p(among), least)
    for row in np.flatnonzero(cells == 0):
        yield int(row), np.inf, "no cells", ""
    for row in np.flatnonzero((np.abs(z) > bound) & (cells > 0)):
        text = f"cell count {cells[row]:.0f}, {group.name} median {usual:.0f}"
        yield int(row), abs(z[row]), text, ""


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
    """Yields one reason a field: the intensity that deviates most."""
    worst = np.zeros(len(group.fields))
    reasons = [""] * len(worst)
    for measure, title in _INTENSITIES.items():
        values, among = _values(group, f"{measure}_{channel}")
        z = _z_scores(_log(values, _LEAST_INTENSITY), _log(among, _LEAST_INTENSITY), _LEAST_LOG)
        for row in np.flatnonzero(np.abs(z) > np.maximum(bound, worst)):
            worst[row] = abs(z[row])
            level = "bright" if z[row] > 0 else "dark"
            usual = f"{group.name} median {np.nanmedian(among):,.0f}"
            reasons[row] = f"{channel} {level}: {title} {values[row]:,.0f}, {usual}"
    for row in np.flatnonzero(worst):
        yield int(row), worst[row], reasons[row], ""


def _join(reasons: Sequence[_Reason]) -> str:
    """Joins reasons; the same reason of several channels is written once."""
    channels: dict[str, list[str]] = {}
    for _, _, text, channel in reasons:
        channels.setdefault(text, []).extend(filter(None, [channel]))
    return "; ".join(
        f"{text} in {', '.join(names)}" if names else text for text, names in channels.items()
    )


def _values(group: _Group, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a measure of a group's fields and of its reference fields; NaN if missing."""
    fields, among = (
        table[name].to_numpy(float) if name in table else np.full(len(table), np.nan)
        for table in (group.fields, group.reference)
    )
    return fields, among


def _log(values: np.ndarray, least: float) -> np.ndarray:
    return np.asarray(np.log(np.maximum(values, least)))


def _z_scores(values: np.ndarray, among: np.ndarray, least: float) -> np.ndarray:
    """Robust z-scores; NaN for NaN, and for all if `among` has no finite value."""
    known = among[np.isfinite(among)]
    if not len(known):
        return np.full(len(values), np.nan)
    median = np.median(known)
    deviation = _MAD_TO_DEVIATION * np.median(np.abs(known - median))
    return np.asarray((values - median) / max(deviation, least))
