"""Batch corrections of other libraries: Harmony and ComBat, fitted on all wells.

Unlike those of `correction`, they look at treated wells: where a treatment lies in one batch
alone, as nearly all of BBBC021's do, its effect and its batch's cannot be told apart, and some of
either is taken away. Both are an extra: pip install 'cellclr_jax[batch]'.
"""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import pandas as pd

from cellclr_jax.errors import BadData, BadUse

FITTED_ON_ALL = ("harmony", "combat")
"""Their names."""
_SEED = 0
# Harmony's defaults, but for few wells, of which they would make no cluster.
_WELLS_A_CLUSTER, _MOST_CLUSTERS = 30, 100
_INSTALL = "pip install 'cellclr_jax[batch]'"


def harmony(profiles: np.ndarray, batches: Sequence[str] | np.ndarray) -> np.ndarray:
    """Harmony (Korsunsky et al. 2019) by harmonypy, with its defaults.

    Args:
      profiles: [N, D] float, one row a well.
      batches: [N] the experimental batch of each well.

    Returns:
      [N, D] float64.

    Raises:
      BadData: fewer than two batches, or the result is not finite.
      BadUse: harmonypy is not installed.
    """
    profiles, names = _checked(profiles, batches, "Harmony")
    try:
        from harmonypy import run_harmony
    except ImportError as error:
        raise BadUse(f"the correction harmony needs harmonypy: {_INSTALL}") from error
    found = run_harmony(
        profiles.T,  # features by wells: of a square matrix it takes the columns for wells
        pd.DataFrame({"batch": names}),
        ["batch"],
        nclust=min(max(round(len(profiles) / _WELLS_A_CLUSTER), 1), _MOST_CLUSTERS),
        verbose=False,
        random_state=_SEED,
    )
    return _finite(np.asarray(found.Z_corr, np.float64), "Harmony")


def combat(profiles: np.ndarray, batches: Sequence[str] | np.ndarray) -> np.ndarray:
    """ComBat (Johnson et al. 2007) by scanpy, without covariates.

    Args:
      profiles: [N, D] float, one row a well.
      batches: [N] the experimental batch of each well.

    Returns:
      [N, D] float64.

    Raises:
      BadData: fewer than two batches, a batch of one well, or the result is not finite.
      BadUse: scanpy is not installed.
    """
    profiles, names = _checked(profiles, batches, "ComBat")
    wells = pd.Series(names).value_counts()
    if wells.min() < 2:
        raise BadData(f"ComBat: batch {wells.idxmin()!r} has one well, which has no variance")
    try:
        from anndata import AnnData
        from scanpy.preprocessing import combat as scanpy_combat
    except ImportError as error:
        raise BadUse(f"the correction combat needs scanpy: {_INSTALL}") from error
    rows = pd.DataFrame({"batch": pd.Categorical(names)}, index=np.arange(len(names)).astype(str))
    with np.errstate(all="ignore"), contextlib.redirect_stdout(io.StringIO()):
        found = scanpy_combat(AnnData(profiles, obs=rows), "batch", inplace=False)
    return _finite(np.asarray(found, np.float64), "ComBat")


def check_known(batches: np.ndarray) -> None:
    """Raises BadData where the batch of a well is not known: '' would pass for a batch."""
    unknown = int((batches == "").sum())
    if unknown:
        every = unknown == len(batches)
        raise BadData("no batch is known" if every else f"{unknown} wells have no known batch")


def _checked(
    profiles: np.ndarray, batches: Sequence[str] | np.ndarray, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """float64 [N, D] and the names [N] of at least two batches."""
    profiles, names = np.asarray(profiles, np.float64), np.asarray(batches, object)
    if profiles.ndim != 2 or names.shape != profiles.shape[:1]:
        raise ValueError(f"profiles [N, D] and batches [N] were expected, not {profiles.shape}")
    check_known(names)
    if len(set(names.tolist())) < 2:
        raise BadData(f"{what} needs two batches: all wells lie in {names[0]!r}")
    return profiles, names


def _finite(corrected: np.ndarray, what: str) -> np.ndarray:
    """The profiles, known to be finite."""
    if not np.isfinite(corrected).all():
        raise BadData(f"{what} gave values that are not finite: is a feature constant in a batch?")
    return corrected
