"""Intervals have their coverage, and chance equals shuffled mechanisms."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from cellclr_jax.profiling.measures.uncertainty import effective_interval, uncertainty
from cellclr_jax.profiling.moa import Score, not_same_compound_or_batch


def scored(rows):
    """A score of (compound, moa, neighbour's compound, neighbour's moa)."""
    names = ["compound", "moa", "neighbour_compound", "neighbour_moa"]
    table = pd.DataFrame(rows, columns=names)
    table["correct"] = (table["moa"] == table["neighbour_moa"]) & (table["neighbour_moa"] != "")
    correct = int(table["correct"].sum())
    return Score(correct, len(table), correct / len(table), neighbours=table)


FOUR = [
    ("a", "m", "b", "m"),
    ("b", "m", "a", "m"),
    ("c", "n", "d", "n"),
    ("d", "n", "a", "m"),
    ("d", "n", "c", "n"),
]


def test_chance_and_p_are_those_of_all_permutations():
    compounds, moas = ["a", "b", "c", "d"], ["m", "m", "n", "n"]
    counts = []
    for order in itertools.permutations(moas):
        label = dict(zip(compounds, order, strict=True))
        counts.append(sum(label[asked] == label[answer] for asked, _, answer, _ in FOUR))
    found = uncertainty(scored(FOUR), resamples=20_000)
    np.testing.assert_allclose(found.chance, np.mean(counts) / len(FOUR), atol=0.01)
    np.testing.assert_allclose(found.p, np.mean(np.array(counts) >= 4), atol=0.01)


def simulated(rng, compounds, accuracy, correlation):
    """[Q] compound and correctness of queries whose chances vary between compounds (beta)."""
    sizes = rng.choice([1, 1, 2, 2, 2, 3, 3, 3, 4, 5], compounds)
    if correlation == 1:
        chances = (rng.random(compounds) < accuracy).astype(float)
    else:
        weight = (1 - correlation) / correlation
        chances = rng.beta(accuracy * weight, (1 - accuracy) * weight, compounds)
    asked = np.repeat(np.arange(compounds), sizes)
    return asked, rng.random(len(asked)) < chances[asked]


def coverage(draws, *settings):
    """How often the interval holds the true accuracy, and how often it lies above."""
    rng, accuracy = np.random.default_rng(0), settings[1]
    ends = np.array([effective_interval(*simulated(rng, *settings)) for _ in range(draws)])
    above = ends[:, 0] > accuracy
    return 1 - np.mean(above | (ends[:, 1] < accuracy)), above.mean()


@pytest.mark.parametrize("compounds", [12, 38])
def test_the_interval_holds_the_accuracy_near_one(compounds):
    """A percentile bootstrap covers 0.89 here, and nearly all its failures lie above."""
    for accuracy in (0.8, 0.9):
        covered, above = coverage(400, compounds, accuracy, 0.6)
        assert covered > 0.92
        assert above < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("compounds", [12, 20, 38, 100])
@pytest.mark.parametrize("accuracy", [0.5, 0.8, 0.9, 0.95, 0.98])
def test_the_interval_has_its_coverage(compounds, accuracy):
    for correlation in (0.01, 0.3, 0.6, 1):
        covered, _ = coverage(4000, compounds, accuracy, correlation)
        print(f"{compounds} compounds, {accuracy}, correlation {correlation}: {covered:.3f}")
        assert 0.915 < covered < 0.985


def test_with_one_treatment_a_compound_the_interval_is_wilsons():
    correct = np.arange(30) < 26
    wanted = binomtest(26, 30).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(effective_interval(np.arange(30), correct), wanted)


def test_treatments_of_one_compound_count_as_one():
    """Ten concentrations with equal predictions count as much as one."""
    few = [(f"c{i}", "m", "x", "m" if i % 2 else "n") for i in range(10)]
    once, often = uncertainty(scored(few)), uncertainty(scored(few * 10))
    assert (once.low, once.high) == (often.low, often.high)


def test_a_query_without_a_neighbour_is_never_right():
    found = uncertainty(scored([("a", "m", "", ""), ("b", "m", "", "")]))
    assert (found.low, found.chance, found.p) == (0, 0, 1)
    wilson = binomtest(0, 2).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(found.high, wilson.high)


def without_signal(rng, compounds, doses, moas, batches):
    """Treatments whose profiles are independent of their MoA; doses of a compound are alike."""
    moa, batch = rng.permutation(np.arange(compounds) % moas), rng.integers(0, batches, compounds)
    base = np.repeat(rng.normal(size=(compounds, 12)), doses, axis=0)
    compound = np.repeat(np.arange(compounds), doses)
    features = pd.DataFrame(0.8 * base + 0.6 * rng.normal(size=base.shape)).add_prefix("f")
    names = {
        "Metadata_Compound": [f"c{c}" for c in compound],
        "Metadata_Concentration": np.tile(np.arange(1.0, doses + 1), compounds),
        "Metadata_MoA": [f"m{moa[c]}" for c in compound],
        "Metadata_Batch": [f"W{batch[c]}" for c in compound],
    }
    return pd.concat([pd.DataFrame(names), features], axis=1)


def nscb_without_signal(tables, *shape):
    """p, reported chance and accuracy of each table, and the MoAs left out by default."""
    found = []
    for seed in range(tables):
        score = not_same_compound_or_batch(without_signal(np.random.default_rng(seed), *shape))
        if not score.undefined:
            level = uncertainty(score, resamples=300)
            found.append((level.p, level.chance, score.accuracy))
    return np.array(found).T


def test_nscb_without_signal_scores_the_chance_that_is_reported():
    """Which mechanisms are left out depends on the mechanisms: exchanges have to respect it."""
    p, chance, accuracy = nscb_without_signal(30, 40, 3, 20, 2)
    assert abs(chance.mean() - accuracy.mean()) < 0.02  # any exchange: 0.057 of 0.107
    assert np.mean(p <= 0.05) < 0.15
    assert np.mean(p <= 0.2) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(40, 3, 20, 2), (24, 2, 12, 3), (24, 2, 12, 2), (38, 3, 12, 10)])
def test_nscb_rejects_chance_as_often_as_it_says(shape):
    p, chance, accuracy = nscb_without_signal(500, *shape)
    print(f"{shape}: {np.mean(p <= 0.05):.3f}, {chance.mean():.4f} of {accuracy.mean():.4f}")
    assert np.mean(p <= 0.05) < 0.08
    assert abs(chance.mean() - accuracy.mean()) < 0.015


def test_nscb_exchanges_mechanisms_between_compounds_of_the_same_batches():
    rows = [("a", "m", "c", "m"), ("b", "n", "c", "m"), ("c", "m", "a", "m"), ("d", "n", "b", "n")]
    score = scored(rows)
    score.neighbours["batch"] = ["W1", "W1", "W2", "W2"]
    labels = list(itertools.product(["mn", "nm"], repeat=2))  # of a and b, of c and d
    counts = [
        sum((first[0] == second[0], first[1] == second[0], second[0] == first[0]))
        + (second[1] == first[1])
        for first, second in labels
    ]
    excluded = pd.DataFrame(columns=["compound", "moa", "batch"])
    found = uncertainty(replace(score, excluded=excluded, across_batches=True), resamples=4000)
    np.testing.assert_allclose(found.chance, np.mean(counts) / 4, atol=0.01)
    np.testing.assert_allclose(found.p, np.mean(np.array(counts) >= 3), atol=0.03)
