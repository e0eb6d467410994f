"""Reproducibility: medians equal NumPy's, and 5 % of noise replicates."""

import json

import numpy as np
import pytest
from support.corrected_wells import corrected, planted, table

from cellclr_jax.profiling.measures.reproducibility import DRAWS, null_medians, reproducibility


def noise(seed, treatments, replicates, dims=32):
    rng = np.random.default_rng(seed)
    rows = [
        ("P", "B", f"c{index // 2}", float(index % 2), f"m{index // 2 % 5}")
        for index in range(treatments)
        for _ in range(replicates)
    ]
    return table(rows, rng.normal(size=(len(rows), dims)))


def test_medians_are_those_of_pearson_correlations_pair_by_pair():
    wells = planted(0, noise=3.0).sample(frac=1, random_state=0)
    found = reproducibility(corrected(wells))
    features = [name for name in wells if name.startswith("f")]
    for row in found.table.itertuples():
        own = wells[
            (wells["Metadata_Compound"] == row.compound)
            & (wells["Metadata_Concentration"] == row.concentration)
        ]
        matrix = np.corrcoef(own[features])
        pairs = [matrix[i, j] for i in range(len(own)) for j in range(i)]
        np.testing.assert_allclose(row.median_correlation, np.median(pairs), atol=1e-10)
        assert row.wells == len(own) > 1
    assert (
        found.table["replicating"] == (found.table["median_correlation"] > found.table["null"])
    ).all()
    assert found.summary["without_replicates"] == 1
    assert found.summary["treatments"] == len(found.table)
    assert found.summary["share"] == found.summary["replicating"] / len(found.table)
    json.dumps(found.summary, allow_nan=False)


def test_the_null_is_that_of_wells_of_different_treatments_drawn_one_by_one():
    rng = np.random.default_rng(0)
    groups = [np.arange(0, 10), np.arange(10, 12), np.arange(12, 15), np.arange(15, 16)]
    centred = rng.normal(size=(16, 6)) + np.repeat(rng.normal(size=(4, 6)), [10, 2, 3, 1], axis=0)
    centred -= centred.mean(axis=1, keepdims=True)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    wanted = []
    for _ in range(6_000):
        chosen = [rng.choice(groups[i]) for i in rng.choice(4, 3, replace=False)]
        one, two, three = centred[chosen]
        wanted.append(np.median([one @ two, one @ three, two @ three]))
    found = np.concatenate([null_medians(centred, groups, 3, rng) for _ in range(10)])
    assert len(found) == 10 * DRAWS
    quantiles = [0.05, 0.5, 0.95]
    np.testing.assert_allclose(
        np.quantile(found, quantiles), np.quantile(wanted, quantiles), atol=0.02
    )


@pytest.mark.parametrize("replicates", [2, 5])
def test_noise_replicates_once_in_twenty(replicates):
    shares = [
        reproducibility(corrected(noise(seed, 200, replicates))).summary["share"]
        for seed in range(5)
    ]
    assert 0.03 < np.mean(shares) < 0.075


def test_planted_replicates_replicate():
    wells = noise(0, 40, 3)
    own = np.repeat(np.random.default_rng(1).normal(size=(40, 32)), 3, axis=0)
    wells.loc[:, "f0":] += 2 * own
    assert reproducibility(corrected(wells)).summary["share"] == 1.0


def test_a_profile_without_variation_correlates_with_nothing():
    wells = noise(0, 20, 3)
    wells.loc[wells["Metadata_Compound"] == "c0", "f0":] = 0.1
    found = reproducibility(corrected(wells)).table.set_index("compound")
    assert (found.loc["c0", "median_correlation"] == 0).all()


def test_the_reason_is_given_if_reproducibility_is_undefined():
    assert "two wells" in reproducibility(corrected(noise(0, 6, 1))).summary["undefined"]
    assert "two features" in reproducibility(corrected(noise(0, 6, 2, dims=1))).summary["undefined"]
    one_treatment = noise(0, 1, 4)
    assert "only one treatment" in reproducibility(corrected(one_treatment)).summary["undefined"]
