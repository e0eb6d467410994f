"""Nearest neighbours from float32 blocks equal those from sorted float64 cosines."""

import numpy as np
import pytest

from cellclr_jax.profiling import nearest as module
from cellclr_jax.profiling.nearest import nearest, unit_vectors


def naive(vectors, allowed, k):
    """Rows and cosines, by sorting lists."""
    rows, cosines = [], []
    for i, a in enumerate(vectors):
        found = [
            (-round(float(a @ b), 12), j)
            for j, b in enumerate(vectors)
            if allowed[i, j] and a.any() and b.any()
        ]
        found = [*sorted(found)[:k], *[(np.nan, -1)] * k][:k]
        rows.append([j for _, j in found])
        cosines.append([-c for c, _ in found])
    return np.array(rows), np.array(cosines)


@pytest.mark.parametrize("few", [0, 10_000])
@pytest.mark.parametrize("k", [1, 3, 70])
@pytest.mark.parametrize("kind", ["random", "ties", "almost equal"])
def test_neighbours_are_those_of_a_sorted_list(monkeypatch, few, k, kind):
    monkeypatch.setattr(module, "_FEW", few)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 4 * 60 * 7)  # seven rows at once
    rng = np.random.default_rng(0)
    profiles = rng.normal(size=(60, 5))
    if kind == "ties":
        profiles = np.round(profiles)  # some are zeros, many are alike
    if kind == "almost equal":  # float32 cannot distinguish them
        profiles = 1 + 1e-4 * profiles
    vectors = unit_vectors(profiles)
    allowed = rng.random((60, 60)) < 0.7
    allowed[3] = False
    found = nearest(vectors, [lambda rows: allowed[rows], lambda rows: ~allowed[rows]], k)
    for result, mask in zip(found, (allowed, ~allowed), strict=True):
        rows, cosines = naive(vectors, mask, k)
        np.testing.assert_array_equal(result.rows, rows)
        np.testing.assert_allclose(result.cosines, cosines, atol=2e-12)


def test_unit_vectors_keep_zeros_and_do_not_overflow():
    vectors = unit_vectors(np.array([[3e200, 4e200], [0.0, 0.0], [1e-200, 0.0]]))
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 0], [0, 0]])
    assert not unit_vectors(np.zeros((2, 3))).any()


def test_no_rows_have_no_neighbours():
    found = nearest(np.zeros((0, 3)), [lambda rows: np.zeros((0, 0), bool)], 2)[0]
    assert found.rows.shape == (0, 2)
