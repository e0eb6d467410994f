"""Features in units of the controls' spread, over all plates or plate by plate."""

from collections.abc import Sequence

import numpy as np

from cellclr_jax.cli import BadData
from cellclr_jax.profiling.correction import FEWEST_CONTROLS, checked

# A spread below this fraction of the feature's largest value is rounding, not signal.
_CONSTANT = 1e-12
# The median absolute deviation of a normal distribution, times this, is its standard deviation.
_MAD_TO_DEVIATION = 1.482602218505602
# Rows that are worked on at once: large tables leave no room for copies in between.
_ROWS = 4_096


def standardize(
    profiles: np.ndarray,
    is_control: np.ndarray,
    *,
    plates: Sequence[str] | np.ndarray | None = None,
    robust: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """(x - centre) / spread of every feature, both of the controls.

    A feature that is constant over the controls, or over those of one of the plates, has no scale
    to be measured in: it is left out.

    Args:
      profiles: [N, D] float, one row a well.
      is_control: [N] bool.
      plates: [N] names: each plate is measured by its own controls; None measures all wells by all
        controls.
      robust: median and median absolute deviation (scaled to be a normal distribution's standard
        deviation) instead of mean and population standard deviation.

    Returns:
      ([N, K] float64, [D] bool: which K features were kept).

    Raises:
      BadData: fewer than two controls, altogether or on a plate; every feature is constant; a value
        is not finite.
    """
    profiles, is_control = checked(profiles, is_control, "standardisation by controls")
    groups = _plates(plates, is_control) if plates is not None else [np.arange(len(profiles))]
    result, varies = np.empty_like(profiles), np.ones(profiles.shape[1], bool)
    for rows in groups:
        controls = profiles[rows[is_control[rows]]]
        centre, spread = _robust(controls) if robust else (controls.mean(0), controls.std(0))
        has_scale = spread > _CONSTANT * np.abs(controls).max(axis=0)
        scale = np.where(has_scale, spread, 1.0)
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            result[some] = (profiles[some] - centre) / scale
        varies &= has_scale
    if not varies.any():
        raise BadData(
            f"standardisation by controls: all {profiles.shape[1]} features are constant over the "
            f"{is_control.sum()} control wells{' or those of a plate' if len(groups) > 1 else ''}"
        )
    return result if varies.all() else result[:, varies], varies


def _robust(controls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centre = np.median(controls, axis=0)
    return centre, _MAD_TO_DEVIATION * np.median(np.abs(controls - centre), axis=0)


def _plates(plates: Sequence[str] | np.ndarray, is_control: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each plate."""
    names = np.asarray(plates, object)
    if names.shape != is_control.shape:
        raise ValueError(f"plates [N] were expected, not {names.shape}")
    groups = {name: np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())}
    few = [
        f"{name!r} has {is_control[rows].sum()}"
        for name, rows in groups.items()
        if is_control[rows].sum() < FEWEST_CONTROLS
    ]
    if few:
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        raise BadData(
            f"standardisation plate by plate needs {FEWEST_CONTROLS} control wells on each: plate "
            f"{', '.join(few[:5])}{more}"
        )
    return list(groups.values())
