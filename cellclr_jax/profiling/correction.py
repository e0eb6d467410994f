"""Standardization and corrections of well profiles: whitening, TVN, Harmony, ComBat.

Harmony and ComBat come from other libraries: pip install 'cellclr_jax[batch]'. They are fitted on
all wells, treated ones too. Where a treatment lies in a single batch, as nearly all of BBBC021's
do, its effect cannot be distinguished from its batch's, and they remove part of it.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import numpy as np
import pandas as pd

from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling.protocol import CORRECTIONS, Protocol

FEWEST_CONTROLS = 2
"""Controls needed for a moment that is more than one well's own accident."""
# A spread below this fraction of the feature's largest value is rounding of float64, not signal.
_CONSTANT = 1e-12
# The median absolute deviation of a normal distribution, times this, is its standard deviation.
_MAD_TO_DEVIATION = 1.482602218505602
# Rows that are changed at once: large tables leave no room for temporary copies.
_ROWS = 4_096
_SEED = 0
# Harmony's defaults, except for few wells, of which it would make no cluster.
_WELLS_A_CLUSTER, _MOST_CLUSTERS = 30, 100
_INSTALL = "pip install 'cellclr_jax[batch]'"


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
    profiles, is_control = _checked(profiles, is_control, "standardisation by controls")
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
            f"{', '.join(few[:5])}{more} (--control names their compound)"
        )
    return list(groups.values())


def whiten(
    profiles: np.ndarray,
    is_control: np.ndarray,
    *,
    regularization: float = 1.0,
    relative: bool = False,
    to_rank: bool = False,
) -> np.ndarray:
    """Makes the controls' variation white: X V diag(1/√(s+λ)), not rotated back.

    X is centred on the controls' mean and C = V diag(s) Vᵀ is the second moment of its control
    rows. Where there are fewer controls than features, the directions that C does not reach have
    s = 0 and are scaled by 1/√λ: by more than any other where λ is small. `to_rank` leaves them
    out.

    Args:
      profiles: [N, D] float, one row a well.
      is_control: [N] bool.
      regularization: λ >= 0, in the units of the features' variance; with `relative`, a fraction
        of C's mean eigenvalue, which makes the result's directions independent of that unit.
      relative: whether `regularization` is that fraction.
      to_rank: keeps only the principal components that the controls span, as many as C has rank.

    Returns:
      [N, D] float64; with `to_rank` [N, R], the component of the least variance first.

    Raises:
      BadData: fewer than two controls; λ = 0 where C is singular and `to_rank` is not asked for;
        C = 0 where it or `relative` is.
      BadUse: a negative or non-finite λ.
    """
    profiles, is_control = _checked(profiles, is_control, "whitening")
    controls = profiles[is_control]
    mean = controls.mean(axis=0)
    controls = controls - mean
    variances, vectors = np.linalg.eigh(controls.T @ controls / len(controls))
    variances = np.maximum(variances, 0.0)  # rounding leaves zeros a little below zero
    ridge = _ridge(variances.mean(), regularization, relative)
    spanned = variances > len(variances) * np.finfo(float).eps * variances[-1]
    if to_rank:
        if not spanned.any():
            raise BadData(f"whitening: the {len(controls)} control wells are all the same")
        variances, vectors = variances[spanned], vectors[:, spanned]
    elif ridge == 0 and not spanned.all():
        raise BadData(
            f"whitening: {len(controls)} control wells do not span {profiles.shape[1]} features; "
            "a regularization above 0 is needed"
        )
    vectors = vectors / np.sqrt(variances + ridge)
    white = np.empty((len(profiles), vectors.shape[1]))
    for start in range(0, len(profiles), _ROWS):
        white[start : start + _ROWS] = (profiles[start : start + _ROWS] - mean) @ vectors
    return white


def tvn(
    profiles: np.ndarray,
    is_control: np.ndarray,
    batches: Sequence[str] | np.ndarray,
    *,
    regularization: float = 1.0,
    relative: bool = False,
) -> np.ndarray:
    """Typical variation normalisation: `whiten`, then `coral` with the same λ.

    Args:
      profiles: [N, D] float, one row a well.
      is_control: [N] bool.
      batches: [N] the experimental batch of each well.
      regularization: see `whiten`.
      relative: see `whiten`.

    Returns:
      [N, D] float64.

    Raises:
      BadData: as `whiten`; or a batch has fewer than two controls.
      BadUse: a negative or non-finite λ.
    """
    whitened = whiten(profiles, is_control, regularization=regularization, relative=relative)
    return coral(whitened, is_control, batches, regularization=regularization, relative=relative)


def coral(
    profiles: np.ndarray,
    is_control: np.ndarray,
    batches: Sequence[str] | np.ndarray,
    *,
    regularization: float = 1.0,
    relative: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Gives each batch's controls the second moment of all controls (Sun et al. 2016).

    X_b (C_b + λI)^-½ (C_all + λI)^½ for the rows X_b of each batch b, C_b of the batch's control
    rows and C_all of all of them: second moments about zero, no mean is subtracted.

    Args:
      profiles: [N, D] float, whitened.
      is_control: [N] bool.
      batches: [N] the experimental batch of each well.
      regularization: λ, here above 0 wherever a batch has fewer controls than features; with
        `relative` a fraction of C_all's mean eigenvalue.
      relative: whether `regularization` is that fraction.
      out: [N, D] float64 to write to, which may be `profiles` itself; None makes a new one.

    Returns:
      [N, D] float64.

    Raises:
      BadData: a batch has fewer than two controls, or λ = 0 and C_b is singular.
      BadUse: a negative or non-finite λ.
    """
    _check_batches(is_control, batches)
    profiles, is_control = _checked(profiles, is_control, "CORAL")
    controls, labels = profiles[is_control], np.asarray(batches, object)
    mean_eigenvalue = np.square(controls).sum(axis=1).mean() / profiles.shape[1]
    ridge = _ridge(mean_eigenvalue, regularization, relative)
    to_all = _power(controls, ridge, 0.5)
    aligned = np.empty_like(profiles) if out is None else out
    # Each batch is fitted before its rows are written: `out` may be what is read.
    for batch in dict.fromkeys(labels.tolist()):
        rows = labels == batch
        fitted = profiles[rows & is_control]
        if ridge == 0 and np.linalg.matrix_rank(fitted) < profiles.shape[1]:
            raise BadData(
                f"CORAL: the {len(fitted)} control wells of batch {batch!r} do not span "
                f"{profiles.shape[1]} features; a regularization above 0 is needed"
            )
        from_batch = _power(fitted, ridge, -0.5)
        aligned[rows] = to_all(from_batch(profiles[rows]))
    return aligned


def _power(fitted: np.ndarray, ridge: float, power: float) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function that multiplies rows by (C + λI)^p, C = fittedᵀ fitted / n.

    Where there are fewer rows than features, the [D, D] matrix is not formed: C has at most n
    directions, the right singular vectors U of `fitted`; on all others C + λI is λI. Hence
    U diag((s+λ)^p − λ^p) Uᵀ + λ^p I: a batch has some 30 controls, a profile thousands of features.
    """
    if len(fitted) >= fitted.shape[1]:
        moments, vectors = np.linalg.eigh(fitted.T @ fitted / len(fitted))
        matrix = (vectors * (np.maximum(moments, 0.0) + ridge) ** power) @ vectors.T
        return lambda rows: rows @ matrix
    _, singular, directions = np.linalg.svd(fitted, full_matrices=False)
    outside = ridge**power  # λ = 0 is let through only where `fitted` spans every direction
    inside = (np.square(singular) / len(fitted) + ridge) ** power - outside
    return lambda rows: (rows @ directions.T * inside) @ directions + outside * rows


def _ridge(mean_eigenvalue: float, regularization: float, relative: bool) -> float:
    """λ in the units of the variance."""
    if not (np.isfinite(regularization) and regularization >= 0):
        raise BadUse(f"regularization {regularization}: a finite number of at least 0 was expected")
    if relative and mean_eigenvalue <= 0:
        raise BadData(
            "a relative regularization needs control wells that differ: their variance is 0"
        )
    return float(regularization * mean_eigenvalue) if relative else float(regularization)


def _checked(
    profiles: np.ndarray, is_control: np.ndarray, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """float64 [N, D] and bool [N]; BadData without two controls; `what` is fitted on them."""
    profiles, is_control = np.asarray(profiles, np.float64), np.asarray(is_control, bool)
    if is_control.sum() < FEWEST_CONTROLS:
        raise BadData(
            f"{what} is fitted on control wells: at least {FEWEST_CONTROLS} are needed, there "
            f"are {is_control.sum()} among {len(profiles)} wells (--control names their compound)"
        )
    if not np.isfinite(profiles).all():
        raise BadData(f"{what}: a profile holds NaN or an infinite value")
    return profiles, is_control


def _check_batches(is_control: np.ndarray, batches: Sequence[str] | np.ndarray) -> None:
    """Raises BadData where a batch has too few controls to be aligned by them."""
    labels = np.asarray(batches, object)
    for batch in dict.fromkeys(labels.tolist()):
        count = int(np.asarray(is_control, bool)[labels == batch].sum())
        if count < FEWEST_CONTROLS:
            raise BadData(
                f"batch {batch!r} has {count} control wells: aligning batches by their controls "
                f"needs at least {FEWEST_CONTROLS} in each (--control names their compound)"
            )


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
    profiles, names = _checked_batches(profiles, batches, "Harmony")
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
    profiles, names = _checked_batches(profiles, batches, "ComBat")
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


def _check_known(batches: np.ndarray) -> None:
    """Raises BadData where the batch of a well is unknown: '' would count as a batch."""
    unknown = int((batches == "").sum())
    if unknown:
        every = unknown == len(batches)
        raise BadData("no batch is known" if every else f"{unknown} wells have no known batch")


def _checked_batches(
    profiles: np.ndarray, batches: Sequence[str] | np.ndarray, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """float64 [N, D] and the names [N] of at least two batches."""
    profiles, names = np.asarray(profiles, np.float64), np.asarray(batches, object)
    _check_known(names)
    if len(set(names.tolist())) < 2:
        raise BadData(f"{what} needs two batches: all wells lie in {names[0]!r}")
    return profiles, names


def _finite(corrected: np.ndarray, what: str) -> np.ndarray:
    """Returns the profiles; BadData where they are not finite."""
    if not np.isfinite(corrected).all():
        raise BadData(f"{what} gave values that are not finite: is a feature constant in a batch?")
    return corrected


def corrected_profiles(
    values: np.ndarray, is_control: np.ndarray, batches: np.ndarray, protocol: Protocol
) -> Iterator[tuple[str, np.ndarray | str]]:
    """Computes the profiles under each correction of the protocol, or why it cannot be fitted.

    Args:
      values: [N, D] float64, one row a well.
      is_control: [N] bool.
      batches: [N] names; '' where none is known.
      protocol: which corrections, and their λ.

    Yields:
      (name, [N, K] float64 or a reason), in the order of `CORRECTIONS`. The array of a correction
      is overwritten when the next one is asked for: of large tables there is room for few copies.
    """
    ridge, relative = protocol.regularization, protocol.relative_regularization
    whitened = partial(whiten, values, is_control, regularization=ridge, relative=relative)
    whitened_once = cache(whitened)

    def aligned() -> np.ndarray:
        white = whitened_once()
        _check_known(batches)
        return coral(white, is_control, batches, regularization=ridge, relative=relative, out=white)

    ways: dict[str, Callable[[], np.ndarray]] = {
        "none": lambda: values,
        "pca_whitening": partial(whitened, to_rank=True),
        "whitening": whitened_once,
        "tvn": aligned,
        "harmony": lambda: harmony(values, batches),
        "combat": lambda: combat(values, batches),
    }
    for name in (name for name in CORRECTIONS if name in protocol.corrections):
        try:
            profiles: np.ndarray | str = ways[name]()
        except BadData as error:
            profiles = str(error)
        yield name, profiles
