"""Corrections equal their equations and are fitted only on controls."""

import builtins

import numpy as np
import pytest

from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling import correction
from cellclr_jax.profiling.correction import combat, harmony, standardize


def wells(seed=0, count=60, dims=7, scale=1.0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(dims, dims))
    values = scale * (rng.normal(size=(count, dims)) @ mixing + rng.normal(size=dims))
    batches = np.array([f"W{i % 3}" for i in range(count)], object)
    return values, np.arange(count) % 2 == 0, batches


def power(matrix, exponent):
    """A symmetric matrix' power by its eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(values**exponent) @ vectors.T


def cosines(rows):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


def naive_tvn(values, control, batches, ridge):
    centred = values - values[control].mean(axis=0)
    moment = centred[control].T @ centred[control] / control.sum()
    variances, vectors = np.linalg.eigh(moment)
    white = centred @ vectors @ np.diag(1 / np.sqrt(variances + ridge))
    everywhere = white[control].T @ white[control] / control.sum()
    identity, aligned = np.eye(values.shape[1]), np.empty_like(white)
    for row, batch in enumerate(batches):
        fitted = white[control & (batches == batch)]
        own = fitted.T @ fitted / len(fitted)
        aligned[row] = white[row] @ power(own + ridge * identity, -0.5)
        aligned[row] = aligned[row] @ power(everywhere + ridge * identity, 0.5)
    return white, aligned


@pytest.mark.parametrize("ridge", [1.0, 0.01, 1e-6])
@pytest.mark.parametrize("seed", [0, 1])
def test_whitening_and_tvn_equal_the_equations(ridge, seed):
    values, control, batches = wells(seed)
    white, aligned = naive_tvn(values, control, batches, ridge)
    found = correction.whiten(values, control, regularization=ridge)
    # The eigenvectors' signs are free: compare what does not depend on them.
    np.testing.assert_allclose(found @ found.T, white @ white.T, rtol=1e-8, atol=1e-8)
    found = correction.tvn(values, control, batches, regularization=ridge)
    np.testing.assert_allclose(found @ found.T, aligned @ aligned.T, rtol=1e-7, atol=1e-7)


def test_tvn_with_fewer_controls_than_features_equals_the_equations():
    values, control, batches = wells(3, count=24, dims=30)
    _, aligned = naive_tvn(values, control, batches, 0.1)
    found = correction.tvn(values, control, batches, regularization=0.1)
    np.testing.assert_allclose(found @ found.T, aligned @ aligned.T, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("fit", ["whiten", "tvn", "standardize"])
def test_changing_treated_rows_does_not_change_the_fit(fit):
    values, control, batches = wells()
    changed = np.where(control[:, None], values, 1000 * values + 7)
    run = {
        "whiten": lambda x: correction.whiten(x, control),
        "tvn": lambda x: correction.tvn(x, control, batches),
        "standardize": lambda x: standardize(x, control)[0],
    }[fit]
    np.testing.assert_array_equal(run(values)[control], run(changed)[control])


@pytest.mark.parametrize("fit", ["whiten", "tvn"])
def test_a_relative_regularization_does_not_depend_on_the_units(fit):
    def directions(scale):
        values, control, batches = wells(scale=scale)
        settings = {"regularization": 0.1, "relative": True}
        if fit == "whiten":
            return cosines(correction.whiten(values, control, **settings))
        return cosines(correction.tvn(values, control, batches, **settings))

    np.testing.assert_allclose(directions(1.0), directions(1e-4), atol=1e-8)


def test_standardize_uses_the_controls_mean_and_population_deviation():
    values, control, _ = wells()
    values[:, 2] = 0.1
    found, kept = standardize(values, control)
    assert kept.tolist() == [True, True, False, True, True, True, True]
    for column, source in enumerate(np.flatnonzero(kept)):
        mine = values[control, source]
        mean = sum(mine) / len(mine)
        deviation = (sum((v - mean) ** 2 for v in mine) / len(mine)) ** 0.5
        np.testing.assert_allclose(found[:, column], (values[:, source] - mean) / deviation)


@pytest.mark.parametrize("robust", [False, True])
def test_each_plate_is_standardised_by_its_own_controls(robust):
    values, control, plates = wells()
    values[plates == "W1"] = 5 * values[plates == "W1"] + 3
    values[plates == "W2", 4] = 2.0  # without a scale there, though it varies on the others
    found, kept = standardize(values, control, plates=plates, robust=robust)
    assert kept.tolist() == [True, True, True, True, False, True, True]
    for row, plate in enumerate(plates):
        for column, source in enumerate(np.flatnonzero(kept)):
            mine = sorted(values[control & (plates == plate), source])
            if robust:
                centre = np.median(mine)
                spread = np.median([abs(v - centre) for v in mine]) / 0.6744897501960817
            else:
                centre = sum(mine) / len(mine)
                spread = (sum((v - centre) ** 2 for v in mine) / len(mine)) ** 0.5
            np.testing.assert_allclose(found[row, column], (values[row, source] - centre) / spread)


def test_plates_without_controls_are_named():
    values, control, plates = wells()
    with pytest.raises(BadData, match=r"needs 2 control wells on each: plate 'W1' has 0 \("):
        standardize(values, control & (plates != "W1"), plates=plates)


def test_whitening_to_the_controls_rank_keeps_what_they_span():
    values, control, _ = wells(3, count=24, dims=30)
    found = correction.whiten(values, control, regularization=0.0, to_rank=True)
    assert found.shape == (24, 11)  # of twelve controls, centred on their mean
    moment = found[control].T @ found[control] / control.sum()
    np.testing.assert_allclose(moment, np.eye(11), atol=1e-8)
    centred = values - values[control].mean(axis=0)
    inverse = np.linalg.pinv(centred[control].T @ centred[control] / control.sum(), rcond=1e-9)
    np.testing.assert_allclose(found @ found.T, centred @ inverse @ centred.T, rtol=1e-6, atol=1e-6)
    with pytest.raises(BadData, match="are all the same"):
        correction.whiten(np.ones_like(values), control, to_rank=True)


def test_missing_controls_are_errors():
    values, control, batches = wells()
    none = np.zeros_like(control)
    for run in (correction.whiten, standardize):
        with pytest.raises(BadData, match="at least 2 are needed, there are 0 among 60 wells"):
            run(values, none)
    for kept in (0, 1):
        few = control & (batches != "W1")
        few[np.flatnonzero(batches == "W1")[:kept]] = True
        with pytest.raises(BadData, match=f"batch 'W1' has {kept} control wells"):
            correction.tvn(values, few, batches)


def test_invalid_settings_and_values_are_errors():
    values, control, batches = wells()
    for ridge in (-1.0, np.nan, np.inf):
        with pytest.raises(BadUse, match="regularization"):
            correction.whiten(values, control, regularization=ridge)
    with pytest.raises(BadData, match="a regularization above 0 is needed"):
        correction.whiten(values[:6], control[:6], regularization=0.0)
    with pytest.raises(BadData, match="do not span"):
        correction.coral(values[:12], control[:12], batches[:12], regularization=0.0)
    with pytest.raises(BadData, match="their variance is 0"):
        correction.whiten(np.ones_like(values), control, relative=True)
    with pytest.raises(BadData, match="all 7 features are constant"):
        standardize(np.ones_like(values), control)
    values[5, 2] = np.nan
    with pytest.raises(BadData, match="NaN"):
        correction.whiten(values, control)


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
    """Computes the distance of the batches' means in standard deviations."""
    means = [profiles[batches == name].mean(axis=0) for name in ("one", "two")]
    return np.abs(means[0] - means[1]).mean() / profiles.std()


@pytest.mark.parametrize("name", WAYS)
def test_a_planted_shift_is_removed(name):
    pytest.importorskip("harmonypy" if name == "harmony" else "scanpy")
    profiles, batches = shifted()
    corrected = WAYS[name](profiles, batches)
    assert corrected.shape == profiles.shape
    assert apart(corrected, batches) < 0.5 * apart(profiles, batches)
    np.testing.assert_array_equal(corrected, WAYS[name](profiles, batches))


@pytest.mark.parametrize("name", WAYS)
def test_corrections_that_cannot_be_fitted_are_errors(name, monkeypatch):
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
def test_harmony_takes_rows_for_wells_for_any_shape(wells, dims):
    pytest.importorskip("harmonypy")
    profiles, batches = shifted(wells=wells, dims=dims)
    corrected = harmony(profiles, batches)
    own = [np.corrcoef(profiles[i], corrected[i])[0, 1] for i in range(0, wells, 2)]
    assert np.median(own) > 0.8


def test_combat_refuses_a_batch_of_one_well():
    profiles, batches = shifted()
    batches[0] = "single"
    with pytest.raises(BadData, match="batch 'single' has one well"):
        combat(profiles, batches)
