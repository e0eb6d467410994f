"""Intervals hold what they promise, and chance is what shuffled mechanisms score."""

import itertools

import numpy as np
import pandas as pd

from cellclr_jax.profiling.measures.uncertainty import uncertainty
from cellclr_jax.profiling.moa import Score


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


def test_the_interval_is_that_of_compounds_drawn_one_by_one():
    rng = np.random.default_rng(0)
    rows = [
        (f"c{i}", f"m{i % 4}", "other", f"m{i % 4}" if rng.random() < 0.7 else "none")
        for i in range(30)
        for _ in range(rng.integers(1, 5))
    ]
    by_compound = {}
    for compound, moa, _, found in rows:
        by_compound.setdefault(compound, []).append(moa == found)
    accuracies = []
    for _ in range(4000):
        drawn = rng.choice(list(by_compound), len(by_compound))
        accuracies.append(np.mean(np.concatenate([by_compound[name] for name in drawn])))
    found = uncertainty(scored(rows))
    wanted = np.quantile(accuracies, [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], wanted, atol=0.02)
    assert found == uncertainty(scored(rows))


def test_treatments_of_one_compound_count_as_one():
    """Ten concentrations that agree tell no more than one does."""
    few = [(f"c{i}", "m", "x", "m" if i % 2 else "n") for i in range(10)]
    once, often = uncertainty(scored(few)), uncertainty(scored(few * 10))
    assert (once.low, once.high) == (often.low, often.high)


def test_a_query_without_a_neighbour_is_never_right():
    found = uncertainty(scored([("a", "m", "", ""), ("b", "m", "", "")]))
    assert (found.low, found.chance, found.p) == (0, 0, 1)
    # Of two compounds none is right: Clopper and Pearson.
    np.testing.assert_allclose(found.high, 1 - 0.025 ** (1 / 2))
