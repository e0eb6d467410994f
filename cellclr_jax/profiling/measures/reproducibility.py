"""Reproducibility: correlation of a treatment's wells against wells of different treatments."""

import numpy as np

from cellclr_jax.profiling.measures.measure import CorrectedProfiles, Measured, undefined
from cellclr_jax.profiling.nearest import TIE_DIGITS, unit_vectors

DRAWS = 1_000
"""Random sets of wells of different treatments, for each number of wells."""
PERCENTILE = 95.0
"""Percentile of their medians above which a treatment replicates."""
# Medians of larger sets vary less, so a null of this many wells is conservative for larger sets.
_LARGEST_SET = 20
# From treatments of more wells, such as positive controls, this many are drawn.
_MOST_WELLS = 500
_SEED = 0
# Sets in memory: 20 wells of 2,048 features take 33 MB.
_BLOCK = 100


def reproducibility(profiles: CorrectedProfiles) -> Measured:
    """Percent replicating: treatments whose wells correlate more than wells of others.

    Way et al. 2022, "Morphology and gene expression profiling provide complementary information
    for mapping cell state": the median of the pairwise Pearson correlations of a treatment's
    wells, against those of as many treated wells of different treatments (1,000 random sets, all
    treatments with equal chance). A set has at most 20 wells, and at most as many as there are
    treatments: larger treatments are compared with sets of that size.

    Returns:
      Table: one row a treatment of two wells or more: compound, concentration, moa, batch, wells,
      median_correlation, null (the 95th percentile), replicating. Undefined without replicates, or
      with fewer than two treatments or features.
    """
    treatment = profiles.treatment_of_wells()
    rows = np.argsort(treatment, kind="stable")[np.count_nonzero(treatment < 0) :]
    wells = np.bincount(treatment[rows], minlength=len(profiles.treatments))
    replicated = np.flatnonzero(wells > 1)
    if len(profiles.features) < 2:
        return undefined("a correlation needs two features")
    if not len(replicated):
        return undefined("no treatment has two wells")
    if np.count_nonzero(wells) < 2:
        return undefined("there is only one treatment: nothing to compare its wells with")
    medians, limits = _compared(_centred(profiles.well_values()[rows]), wells)
    table = profiles.named_treatments().assign(wells=wells).iloc[replicated].reset_index(drop=True)
    table = table.assign(median_correlation=medians, null=limits, replicating=medians > limits)
    summary: dict[str, object] = {
        "treatments": len(table),
        "replicating": int(table["replicating"].sum()),
        "share": float(table["replicating"].mean()),
        "without_replicates": int((wells == 1).sum()),
        "median_correlation": float(np.median(medians)),
        "percentile": PERCENTILE,
        "draws": DRAWS,
    }
    return Measured(summary, table)


def _compared(centred: np.ndarray, wells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median correlation and limit of treatments of two wells or more.

    `centred` [W, D] holds the wells of the N treatments in order, `wells` [N] their numbers.
    """
    rng = np.random.default_rng(_SEED)
    groups = np.split(np.arange(len(centred)), np.cumsum(wells)[:-1])
    medians = [_median_of_some(centred, group, rng) for group in groups if len(group) > 1]
    drawn_from = [group for group in groups if len(group)]
    sizes = np.minimum(wells[wells > 1], min(_LARGEST_SET, len(drawn_from)))
    limits = np.empty(len(sizes))
    for size in np.unique(sizes).tolist():
        null = null_medians(centred, drawn_from, size, rng)
        limits[sizes == size] = np.percentile(null, PERCENTILE)
    # Equal wells must not differ from the null by rounding.
    return np.round(medians, TIE_DIGITS), np.round(limits, TIE_DIGITS)


def null_medians(
    centred: np.ndarray, groups: list[np.ndarray], size: int, rng: np.random.Generator
) -> np.ndarray:
    """Computes median correlations [DRAWS] of random sets of `size` wells of different treatments.

    `centred` [W, D] has rows of mean 0 and length 1, `groups` the rows of each treatment.
    """
    counts = np.array([len(group) for group in groups])
    starts = np.cumsum(counts) - counts
    rows = np.concatenate(groups)
    medians = []
    for start in range(0, DRAWS, _BLOCK):
        order = rng.random((min(_BLOCK, DRAWS - start), len(groups)))
        chosen = np.argpartition(order, size - 1, axis=1)[:, :size]
        within = (rng.random(chosen.shape) * counts[chosen]).astype(np.int64)
        medians.append(_medians(centred[rows[starts[chosen] + within]]))
    return np.concatenate(medians)


def _centred(values: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and length 1, so that products are correlations; constant rows are zeros."""
    # The mean of equal numbers may differ from them by rounding.
    constant = values.max(axis=1) == values.min(axis=1)
    centred = np.where(constant[:, None], 0.0, values - values.mean(axis=1, keepdims=True))
    return unit_vectors(centred)


def _median_of_some(centred: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> float:
    """Computes the median pairwise correlation of a treatment's wells, of a sample if many."""
    if len(group) > _MOST_WELLS:
        group = rng.choice(group, _MOST_WELLS, replace=False)
    return float(_medians(centred[None, group])[0])


def _medians(sets: np.ndarray) -> np.ndarray:
    """Computes medians [S] of the pairwise products within each set of rows [S, k, D]."""
    first, second = np.triu_indices(sets.shape[1], 1)
    products = sets @ sets.transpose(0, 2, 1)
    return np.asarray(np.median(products[:, first, second], axis=1))
