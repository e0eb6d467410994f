"""Standardisation and corrections of well profiles: whitening, TVN, Harmony, ComBat.

Harmony and ComBat come from other libraries: pip install 'cellclr_jax[batch]'. They are fitted on
all wells, including treated ones. If a treatment lies in a single batch, as nearly all of BBBC021's
do, its effect cannot be distinguished from the batch effect, and they remove part of it.
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
"""Controls needed to estimate a moment."""
# A spread below this fraction of the feature's largest value is rounding error of float64.
_CONSTANT = 1e-12
# Ratio of standard deviation and median absolute deviation of a normal distribution.
_MAD_TO_DEVIATION = 1.482602218505602
# Rows per block: temporary copies of a whole large table would not fit in memory.
_ROWS = 4_096
_SEED = 0
# Harmony's defaults, except for few wells, for which its number of clusters would be 0.
_WELLS_PER_CLUSTER, _MOST_CLUSTERS = 30, 100
_INSTALL = "pip install 'cellclr_jax[batch]'"

Names = Sequence[str] | np.ndarray


def standardize(
    profiles: np.ndarray,
    is_control: np.ndarray,
    *,
    plates: Names | None = None,
    robust: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Computes z-scores by the controls: (x - centre) / spread of each feature.

    Features that are constant over the controls, or over the controls of one plate, are left out.

    Args:
      profiles: [N, D] float, one row a well.
      is_control: [N] bool.
      plates: [N] names: each plate is standardised by its own controls; None standardises all wells
        by all controls.
      robust: uses the median and the median absolute deviation (scaled to the standard deviation of
        a normal distribution) instead of the mean and the population standard deviation.

    Returns:
      ([N, K] float64, [D] bool: the K remaining features).

    Raises:
      BadData: fewer than two controls, overall or on a plate; all features are constant; a value is
        not finite.
    """
    profiles, is_control = _checked(profiles, is_control, "standardisation by controls")
    groups = (
        _rows_of_plates(plates, is_control) if plates is not None else [np.arange(len(profiles))]
    )
    result, varies = np.empty_like(profiles), np.ones(profiles.shape[1], bool)
    for rows in groups:
        controls = profiles[rows[is_control[rows]]]
        centre, spread = controls.mean(axis=0), controls.std(axis=0)
        if robust:
            centre = np.median(controls, axis=0)
            spread = _MAD_TO_DEVIATION * np.median(np.abs(controls - centre), axis=0)
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


def _rows_of_plates(plates: Names, is_control: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each plate; BadData if a plate has too few controls."""
    names = np.asarray(plates, object)
    groups = {name: np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())}
    counts = {name: is_control[rows].sum() for name, rows in groups.items()}
    if few := [f"{n!r} has {count}" for n, count in counts.items() if count < FEWEST_CONTROLS]:
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
    """Whitens profiles by the controls: X V diag(1/√(s+λ)), not rotated back.

    X is centred on the controls' mean, and V diag(s) Vᵀ = C is the second moment of its control
    rows. Directions that the controls do not span have s = 0 and are scaled by 1/√λ, more than all
    others if λ is small; `to_rank` leaves these out.

    Args:
      profiles: [N, D] float, one row a well.
      is_control: [N] bool.
      regularization: λ >= 0, in units of the features' variance.
      relative: `regularization` is a fraction of C's mean eigenvalue, independent of that unit.
      to_rank: keeps only the principal components that the controls span, as many as the rank of C.

    Returns:
      [N, D] float64; with `to_rank` [N, R], components in ascending order of variance.

    Raises:
      BadData: fewer than two controls; C is singular and λ = 0, or C = 0 with `to_rank`/`relative`.
      BadUse: λ is negative or not finite.
    """
    profiles, is_control = _checked(profiles, is_control, "whitening")
    controls = profiles[is_control]
    mean = controls.mean(axis=0)
    controls = controls - mean
    variances, vectors = np.linalg.eigh(controls.T @ controls / len(controls))
    variances = np.maximum(variances, 0.0)  # rounding makes some zeros negative
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
    batches: Names,
    *,
    regularization: float = 1.0,
    relative: bool = False,
) -> np.ndarray:
    """Typical variation normalisation: `whiten`, then `coral` with the same λ.

    Args:
      profiles: [N, D] float, one row a well.
      is_control: [N] bool.
      batches: [N] experimental batch of each well.
      regularization: see `whiten`.
      relative: see `whiten`.

    Returns:
      [N, D] float64.

    Raises:
      BadData, BadUse: see `whiten` and `coral`.
    """
    whitened = whiten(profiles, is_control, regularization=regularization, relative=relative)
    return coral(whitened, is_control, batches, regularization=regularization, relative=relative)


def coral(
    profiles: np.ndarray,
    is_control: np.ndarray,
    batches: Names,
    *,
    regularization: float = 1.0,
    relative: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Gives the controls of each batch the second moment of all controls (Sun et al. 2016).

    X_b (C_b + λI)^-½ (C_all + λI)^½ for the rows X_b of each batch b, where C_b comes from the
    control rows of the batch and C_all from all control rows: second moments about zero, without
    subtracting a mean.

    Args:
      profiles: [N, D] float, whitened.
      is_control: [N] bool.
      batches: [N] experimental batch of each well.
      regularization: λ, which must be above 0 if a batch has fewer controls than features.
      relative: `regularization` is a fraction of C_all's mean eigenvalue.
      out: [N, D] float64 output array, which may be `profiles`; None allocates one.

    Returns:
      [N, D] float64.

    Raises:
      BadData: a batch has fewer than two controls, or λ = 0 and C_b is singular.
      BadUse: λ is negative or not finite.
    """
    labels = np.asarray(batches, object)
    _require_controls(labels, np.asarray(is_control, bool))
    profiles, is_control = _checked(profiles, is_control, "CORAL")
    controls = profiles[is_control]
    mean_eigenvalue = np.square(controls).sum(axis=1).mean() / profiles.shape[1]
    ridge = _ridge(mean_eigenvalue, regularization, relative)
    to_all = _power(controls, ridge, 0.5)
    aligned = np.empty_like(profiles) if out is None else out
    # A batch is fitted before its rows are written, since `out` may be the input.
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


def _require_controls(batches: np.ndarray, is_control: np.ndarray) -> None:
    """Raises BadData if a batch has too few controls."""
    for batch in dict.fromkeys(batches.tolist()):
        if (count := int(is_control[batches == batch].sum())) < FEWEST_CONTROLS:
            raise BadData(
                f"batch {batch!r} has {count} control wells: aligning batches by their controls "
                f"needs at least {FEWEST_CONTROLS} in each (--control names their compound)"
            )


def _power(fitted: np.ndarray, ridge: float, power: float) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function that multiplies rows by (C + λI)^p, C = fittedᵀ fitted / n.

    With fewer rows than features (a batch has about 30 controls, a profile up to thousands of
    features), the [D, D] matrix is not computed: C has at most n directions, the right singular
    vectors U of `fitted`, and C + λI is λI on all others. Hence U diag((s+λ)^p − λ^p) Uᵀ + λ^p I.
    """
    if len(fitted) >= fitted.shape[1]:
        moments, vectors = np.linalg.eigh(fitted.T @ fitted / len(fitted))
        matrix = (vectors * (np.maximum(moments, 0.0) + ridge) ** power) @ vectors.T
        return lambda rows: rows @ matrix
    _, singular, directions = np.linalg.svd(fitted, full_matrices=False)
    outside = ridge**power  # λ > 0 here: `coral` refuses λ = 0 with fewer rows than features
    inside = (np.square(singular) / len(fitted) + ridge) ** power - outside
    return lambda rows: (rows @ directions.T * inside) @ directions + outside * rows


def _ridge(mean_eigenvalue: float, regularization: float, relative: bool) -> float:
    """λ in units of the variance."""
    if not (np.isfinite(regularization) and regularization >= 0):
        raise BadUse(f"regularization {regularization}: a finite number >= 0 was expected")
    if relative and mean_eigenvalue <= 0:
        raise BadData(
            "a relative regularization needs control wells that differ: their variance is 0"
        )
    return float(regularization * mean_eigenvalue) if relative else float(regularization)


def _checked(
    profiles: np.ndarray, is_control: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """float64 [N, D] and bool [N]; BadData without two controls or with values not finite."""
    profiles, is_control = np.asarray(profiles, np.float64), np.asarray(is_control, bool)
    if is_control.sum() < FEWEST_CONTROLS:
        raise BadData(
            f"{name} is fitted on control wells: at least {FEWEST_CONTROLS} are needed, there "
            f"are {is_control.sum()} among {len(profiles)} wells (--control names their compound)"
        )
    if not np.isfinite(profiles).all():
        raise BadData(f"{name}: a profile holds NaN or an infinite value")
    return profiles, is_control


def harmony(profiles: np.ndarray, batches: Names) -> np.ndarray:
    """Harmony (Korsunsky et al. 2019) by harmonypy, with its defaults.

    Args:
      profiles: [N, D] float, one row a well.
      batches: [N] experimental batch of each well.

    Returns:
      [N, D] float64.

    Raises:
      BadData: fewer than two batches, or the result is not finite.
      BadUse: harmonypy is not installed.
    """
    names = _two_batches(batches, "Harmony")
    try:
        from harmonypy import run_harmony
    except ImportError as error:
        raise BadUse(f"the correction harmony needs harmonypy: {_INSTALL}") from error
    found = run_harmony(
        np.asarray(profiles, np.float64).T,  # in a square matrix, harmonypy takes columns for wells
        pd.DataFrame({"batch": names}),
        ["batch"],
        nclust=min(max(round(len(profiles) / _WELLS_PER_CLUSTER), 1), _MOST_CLUSTERS),
        verbose=False,
        random_state=_SEED,
    )
    return _finite(found.Z_corr, "Harmony")


def combat(profiles: np.ndarray, batches: Names) -> np.ndarray:
    """ComBat (Johnson et al. 2007) by scanpy, without covariates.

    Args:
      profiles: [N, D] float, one row a well.
      batches: [N] experimental batch of each well.

    Returns:
      [N, D] float64.

    Raises:
      BadData: fewer than two batches, a batch of one well, or the result is not finite.
      BadUse: scanpy is not installed.
    """
    names = _two_batches(batches, "ComBat")
    wells = pd.Series(names).value_counts()
    if wells.min() < 2:
        raise BadData(f"ComBat: batch {wells.idxmin()!r} has one well, which has no variance")
    try:
        from anndata import AnnData
        from scanpy.preprocessing import combat as scanpy_combat
    except ImportError as error:
        raise BadUse(f"the correction combat needs scanpy: {_INSTALL}") from error
    rows = pd.DataFrame({"batch": pd.Categorical(names)}, index=np.arange(len(names)).astype(str))
    table = AnnData(np.asarray(profiles, np.float64), obs=rows)
    with np.errstate(all="ignore"), contextlib.redirect_stdout(io.StringIO()):
        return _finite(scanpy_combat(table, "batch", inplace=False), "ComBat")


def _require_batches(batches: np.ndarray) -> None:
    """Raises BadData if the batch of a well is unknown ('')."""
    if unknown := int((batches == "").sum()):
        every = unknown == len(batches)
        raise BadData("no batch is known" if every else f"{unknown} wells have no known batch")


def _two_batches(batches: Names, name: str) -> np.ndarray:
    """Returns names of batches [N]; BadData if one is unknown, or with fewer than two."""
    names = np.asarray(batches, object)
    _require_batches(names)
    if len(set(names.tolist())) < 2:
        raise BadData(f"{name} needs two batches: all wells lie in {names[0]!r}")
    return names


def _finite(corrected: np.ndarray, name: str) -> np.ndarray:
    """Converts profiles to float64; BadData if they are not finite."""
    corrected = np.asarray(corrected, np.float64)
    if not np.isfinite(corrected).all():
        raise BadData(f"{name} gave values that are not finite: is a feature constant in a batch?")
    return corrected


def corrected_profiles(
    values: np.ndarray, is_control: np.ndarray, batches: np.ndarray, protocol: Protocol
) -> Iterator[tuple[str, np.ndarray | str]]:
    """Yields the profiles under each correction of the protocol.

    Args:
      values: [N, D] float64, one row a well.
      is_control: [N] bool.
      batches: [N] names; '' for unknown.
      protocol: selects the corrections and λ.

    Yields:
      (name, [N, K] float64, or the reason why it cannot be fitted), in the order of `CORRECTIONS`.
      The next correction may overwrite the array, to save memory.
    """
    ridge, relative = protocol.regularization, protocol.relative_regularization
    whitened = partial(whiten, values, is_control, regularization=ridge, relative=relative)
    whitened_once = cache(whitened)

    def aligned() -> np.ndarray:
        white = whitened_once()
        _require_batches(batches)
        return coral(white, is_control, batches, regularization=ridge, relative=relative, out=white)

    fits: dict[str, Callable[[], np.ndarray]] = {
        "none": lambda: values,
        "pca_whitening": partial(whitened, to_rank=True),
        "whitening": whitened_once,
        "tvn": aligned,
        "harmony": lambda: harmony(values, batches),
        "combat": lambda: combat(values, batches),
    }
    for name in (name for name in CORRECTIONS if name in protocol.corrections):
        try:
            profiles: np.ndarray | str = fits[name]()
        except BadData as error:
            profiles = str(error)
        yield name, profiles
