"""Corrections of other libraries take away what is planted, and refuse what they cannot do."""

import builtins

import numpy as np
import pytest

from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling.correction import combat, harmony

WAYS = {"harmony": harmony, "combat": combat}


def shifted(seed=0, wells=120, dims=6):
    """Profiles whose second batch is moved and twice as wide."""
    rng = np.random.default_rng(seed)
    batches = np.array(["one", "two"] * (wells // 2), object)
    kinds = rng.normal(size=(3, dims)) * 3
    profiles = kinds[rng.integers(0, 3, wells)] + rng.normal(size=(wells, dims))
    second = batches == "two"
    profiles[second] = 2 * profiles[second] + 5
    return profiles, batches


def apart(profiles, batches):
    """How far the batches' means lie from each other, in deviations."""
    means = [profiles[batches == name].mean(axis=0) for name in ("one", "two")]
    return np.abs(means[0] - means[1]).mean() / profiles.std()


@pytest.mark.parametrize("name", WAYS)
def test_a_planted_shift_is_taken_away(name):
    pytest.importorskip("harmonypy" if name == "harmony" else "scanpy")
    profiles, batches = shifted()
    corrected = WAYS[name](profiles, batches)
    assert corrected.shape == profiles.shape
    assert apart(corrected, batches) < 0.5 * apart(profiles, batches)
    np.testing.assert_array_equal(corrected, WAYS[name](profiles, batches))


@pytest.mark.parametrize("name", WAYS)
def test_what_cannot_be_corrected_is_told(name, monkeypatch):
    profiles, batches = shifted()
    with pytest.raises(BadData, match="needs two batches: all wells lie in 'one'"):
        WAYS[name](profiles, np.full(len(batches), "one", object))
    with pytest.raises(BadData, match="no batch is known"):
        WAYS[name](profiles, np.full(len(batches), "", object))
    really = builtins.__import__

    def without(module, *args, **kwargs):
        if module.split(".")[0] in ("harmonypy", "scanpy", "anndata"):
            raise ImportError(module)
        return really(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BadUse, match=r"pip install 'cellclr_jax\[batch\]'"):
        WAYS[name](profiles, batches)


@pytest.mark.parametrize(("wells", "dims"), [(60, 60), (12, 5)])
def test_harmony_takes_rows_for_wells_whatever_the_shape(wells, dims):
    pytest.importorskip("harmonypy")
    profiles, batches = shifted(wells=wells, dims=dims)
    corrected = harmony(profiles, batches)
    own = [np.corrcoef(profiles[i], corrected[i])[0, 1] for i in range(0, wells, 2)]
    assert np.median(own) > 0.8


def test_wells_of_an_unknown_batch_are_no_batch():
    profiles, batches = shifted()
    batches[:3] = ""
    with pytest.raises(BadData, match="3 wells have no known batch"):
        harmony(profiles, batches)


def test_combat_refuses_a_batch_of_one_well():
    profiles, batches = shifted()
    batches[0] = "alone"
    with pytest.raises(BadData, match="batch 'alone' has one well"):
        combat(profiles, batches)
