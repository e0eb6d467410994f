"""The order of an epoch under each kind of sampling."""

import numpy as np
import pandas as pd
import pytest

from cellclr_jax.data import splits
from cellclr_jax.errors import BadUse


def test_uniform_order_visits_each_cell_once_and_differs_by_epoch_and_seed():
    treatments = np.zeros(50, int)
    orders = [
        splits.epoch_order(treatments, seed=seed, epoch=epoch)
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    again = splits.epoch_order(treatments, seed=0, epoch=0)
    np.testing.assert_array_equal(orders[0], again)


def test_balanced_order_visits_treatments_equally_often():
    treatments = np.repeat([0, 1, 2], [80, 15, 5])
    order = splits.epoch_order(treatments, seed=0, epoch=0, sampling="balanced")
    counts = np.bincount(treatments[order])
    assert len(order) == 100
    assert counts.max() - counts.min() <= 1
    frequent = order[treatments[order] == 0]
    assert len(set(frequent)) == len(frequent)
    rare = np.bincount(order, minlength=100)[95:]
    assert rare.max() - rare.min() <= 1


def naive_groups(keys):
    """Numbers keys in order of first appearance."""
    seen = list(dict.fromkeys(keys))
    return [seen.index(key) for key in keys]


def test_balanced_groups_are_treatments_or_labels():
    compound, dose = list("BBAAC"), [1.0, 1.0, 1.0, 2.0, 1.0]
    table = pd.DataFrame({"compound": compound, "concentration": dose, "label": list("yyxyx")})
    pairs = list(zip(compound, dose, strict=True))
    for columns, keys in (
        (["compound", "concentration", "label"], pairs),
        (["compound", "label"], compound),
        (["label"], list("yyxyx")),
    ):
        groups, _ = splits.epoch_cells(table[columns], "balanced", "DMSO")
        assert groups.tolist() == naive_groups(keys)
    unknown = table.assign(concentration=[1.0, np.nan, 1.0, 1.0, np.nan])
    assert splits.epoch_cells(unknown, "balanced", "DMSO")[0].tolist() == [0, 1, 2, 2, 3]


def test_sampling_without_groups_is_refused():
    table = pd.DataFrame({"plate": ["p", "p"]})
    assert splits.epoch_cells(table, "uniform", "DMSO")[0].tolist() == [0, 0]
    with pytest.raises(BadUse, match=r"compounds or labels: set --config\.sampling=uniform"):
        splits.epoch_cells(table, "balanced", "DMSO")
    with pytest.raises(BadUse, match="sampling 'often'"):
        splits.epoch_cells(table, "often", "DMSO")


def naive_weighted(groups, count, rng):
    """Draws one cell after the other by its weight among the remaining cells."""
    counts = np.bincount(groups)
    weights, drawn = 1 / counts[groups], []
    for _ in range(count):
        weights = weights / weights.sum()
        drawn.append(rng.choice(len(groups), p=weights))
        weights[drawn[-1]] = 0
    return np.array(drawn)


def test_weighted_order_is_that_of_draws_one_after_the_other():
    """Compares the groups' frequencies in the first draw and in all draws."""
    groups = np.repeat([0, 1, 2], [30, 6, 3])
    size = 15
    rng, got, want = np.random.default_rng(0), [], []
    for epoch in range(1500):
        order = splits.epoch_order(groups, seed=1, epoch=epoch, sampling="weighted", count=size)
        assert len(order) == len(set(order)) == size
        other = naive_weighted(groups, size, rng)
        for drawn, found in ((order, got), (other, want)):
            counts = np.bincount(groups[drawn], minlength=3)
            found.append([*(groups[drawn[0]] == np.arange(3)), *counts])
    got, want = np.mean(got, axis=0), np.mean(want, axis=0)
    np.testing.assert_allclose(got, want, atol=0.06)
    np.testing.assert_allclose(got[:3], 1 / 3, atol=0.04)


def test_a_weighted_epoch_has_as_many_controls_as_an_average_treatment():
    compounds = np.repeat(["DMSO ", "a", "b", "c"], [900, 1000, 60, 40])
    table = pd.DataFrame({"compound": compounds})
    groups, size = splits.epoch_cells(table, "weighted", "dmso")
    np.testing.assert_array_equal(groups, np.repeat([0, 1, 2, 3], [900, 1000, 60, 40]))
    assert size == 1100 + 1100 // 3
    assert splits.epoch_cells(table, "balanced", "DMSO")[1] == 2000
    assert splits.epoch_cells(table[:900], "weighted", "DMSO")[1] == 900
    # At most all cells of the table.
    assert splits.epoch_cells(table[897:940], "weighted", "DMSO")[1] == 43
