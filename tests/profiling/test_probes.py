"""Probes equal plain loops, groups prevent leaks, unusable classes are reported."""

from functools import partial

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from cellclr_jax.errors import BadData
from cellclr_jax.profiling.single_cells import probes
from cellclr_jax.profiling.single_cells.folds import choose_groups, folds_of, stratified_subset
from cellclr_jax.profiling.single_cells.probes import probe


@pytest.fixture(autouse=True)
def _small_forests(monkeypatch):
    monkeypatch.setattr(probes, "TREES", 10)


def blobs(classes=3, cells=30, dims=4, distance=1.5, seed=0):
    """Features around a centre for each class, and the classes."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([f"class {c}" for c in range(classes)], cells)
    centres = rng.normal(size=(classes, dims)) * distance
    features = np.repeat(centres, cells, axis=0) + rng.normal(size=(classes * cells, dims))
    order = rng.permutation(len(labels))
    return features[order], labels[order]


def naive_knn(fitted, codes, asked):
    answers = []
    for row in asked:
        cosines = [row @ other / np.linalg.norm(row) / np.linalg.norm(other) for other in fitted]
        nearest = sorted(range(len(fitted)), key=lambda i: -cosines[i])[: probes.NEIGHBOURS]
        votes = [0] * (max(codes) + 1)
        for i in nearest:
            votes[codes[i]] += 1
        answers.append(votes.index(max(votes)))
    return answers


def naive_logistic(fitted, codes, asked):
    classes, dims = codes.max() + 1, fitted.shape[1]
    weight = len(codes) / classes / np.bincount(codes)

    def loss(flat):
        w = flat.reshape(dims + 1, classes)
        logs = log_softmax(fitted @ w[:-1] + w[-1], axis=1)
        fit = -sum(weight[code] * logs[i, code] for i, code in enumerate(codes))
        return probes.INVERSE_REGULARIZATION * fit + 0.5 * np.square(w[:-1]).sum()

    w = minimize(loss, np.zeros((dims + 1) * classes), tol=1e-10).x.reshape(dims + 1, classes)
    return np.argmax(asked @ w[:-1] + w[-1], axis=1)


@pytest.mark.parametrize(("kind", "naive"), [("knn", naive_knn), ("logistic", naive_logistic)])
@pytest.mark.parametrize("grouped", [False, True])
def test_classifiers_equal_plain_loops(kind, naive, grouped):
    features, labels = blobs()
    groups = np.arange(len(labels)) % 3 if grouped else None
    found = probe(features, labels, groups, classifiers=[kind], seed=5)
    names, codes = np.unique(labels, return_inverse=True)
    right = np.zeros(len(labels), bool)
    for fitted, asked in folds_of(codes, groups, 5):
        mean, deviation = features[fitted].mean(axis=0), features[fitted].std(axis=0)
        scaled = (features - mean) / deviation
        right[asked] = naive(scaled[fitted], codes[fitted], scaled[asked]) == codes[asked]
    recall = {name: right[labels == name].mean() for name in names}
    assert found.scores[kind].recall == pytest.approx(recall)
    assert found.scores[kind].balanced_accuracy == pytest.approx(np.mean(list(recall.values())))
    assert found.scores[kind].accuracy == pytest.approx(right.mean())
    assert 0.5 < right.mean() < 1


def test_separate_classes_are_predicted_and_noise_is_not():
    features, labels = blobs(distance=30)
    for score in probe(features, labels).scores.values():
        assert score.balanced_accuracy == 1
    noise = np.random.default_rng(0).normal(size=(600, 8))
    found = probe(noise, np.resize(["a", "b", "c"], 600))
    assert found.chance == pytest.approx(1 / 3)
    for score in found.scores.values():
        assert score.balanced_accuracy == pytest.approx(1 / 3, abs=0.08)


def test_features_of_the_plate_only_score_chance_if_plates_stay_together():
    rng = np.random.default_rng(0)
    plates = np.repeat(np.arange(10), 40)
    # Each plate holds both classes, mostly one of them: the plate predicts the class.
    frequent = rng.random(400) < 0.9
    labels = np.where(frequent == (plates % 2 == 0), "treated", "control")
    features = np.eye(10)[plates] + 0.01 * rng.normal(size=(400, 10))
    kinds = ("knn", "logistic")
    leaking, whole = (probe(features, labels, g, classifiers=kinds) for g in (None, plates))
    for kind in kinds:
        assert leaking.scores[kind].balanced_accuracy > 0.85
        assert whole.scores[kind].balanced_accuracy < 0.6


def test_scores_are_reproducible_and_independent_of_units():
    features, labels = blobs()
    found = probe(features, labels)
    assert probe(features, labels) == found
    assert probe(features, labels, seed=1) != found
    # A forest draws features by their number, and thresholds between values that rounding moves.
    rest = partial(probe, labels=labels, classifiers=("knn", "logistic"))
    assert rest(features * [1, 10, 100, 1000] + [0, 5, 50, 500]) == rest(features)
    constant = np.column_stack([features, np.full(len(features), 0.1)])
    assert rest(constant.astype(np.float32)) == rest(features.astype(np.float32))


def test_unusable_classes_are_left_out_with_the_reason():
    features, labels = blobs(cells=40)
    labels = labels.astype(object)
    rng = np.random.default_rng(1)
    plates = rng.integers(0, 3, len(labels))
    labels[plates == 2] = np.where(
        labels[plates == 2] == "class 0", "a class of one group", "class 1"
    )
    labels[:9] = "few"
    labels[9:19] = ""
    found = probe(features, labels, plates, classifiers=["knn"])
    assert found.left_out == {
        "a class of one group": "all its cells are of one group",
        "few": "9 cells: at least 10 are needed",
    }
    assert set(found.classes) == {"class 0", "class 1", "class 2"}
    assert found.cells == sum(found.classes.values())
    assert found.cells == len(labels) - 19 - (labels == "a class of one group").sum()
    assert "a class of one group" in probe(features, labels, classifiers=["knn"]).classes


def test_damaged_features_are_refused():
    features, labels = blobs()
    features[7, 1] = np.nan
    with pytest.raises(BadData, match="row 8 "):
        probe(features, labels)
    features[7, 1] = 1e300
    with pytest.raises(BadData, match=r"feature 2 holds 1e\+300: too large"):
        probe(features, labels)
    with pytest.raises(BadData, match="no features"):
        probe(features[:, :0], labels)


@pytest.mark.parametrize("count", [0, 2, 5, 9])
def test_folds_hold_out_each_cell_once_and_keep_groups_together(count):
    rng = np.random.default_rng(count)
    codes = rng.integers(0, 3, 200)
    groups = rng.integers(0, count, 200) if count else None
    asked_rows = []
    for fitted, asked in folds_of(codes, groups, 0):
        assert sorted([*fitted, *asked]) == list(range(200))
        if groups is not None:
            assert not set(groups[fitted]) & set(groups[asked])
        asked_rows += asked.tolist()
    assert sorted(asked_rows) == list(range(200))


def test_groups_are_plates_then_batches_then_none():
    labels = np.repeat(["a", "b"], 40)
    both = np.resize(["p1", "p2"], 80)
    apart = labels == "a"
    one = np.full(80, "p")
    assert choose_groups({"plate": both, "batch": both}, labels)[0] == "plate"
    name, groups = choose_groups({"plate": apart, "batch": both}, labels)
    assert name == "batch"
    np.testing.assert_array_equal(groups, both)
    assert choose_groups({"plate": apart, "batch": one}, labels) == ("", None)
    assert choose_groups({}, labels) == ("", None)
    # Two plates with two classes each, none of which lies on both plates.
    four = np.repeat(["a", "b", "c", "d"], 20)
    assert choose_groups({"plate": np.repeat(["p1", "p2"], 40)}, four) == ("", None)


@pytest.mark.parametrize("size", [100, 333, 2000])
def test_a_subset_keeps_shares_and_whole_rare_classes(size):
    labels = np.random.default_rng(0).permutation(
        np.repeat(["common", "half", "rare"], [1000, 500, 30])
    )
    rows = stratified_subset(labels, size, seed=3)
    assert len(rows) == len(set(rows)) == min(size, len(labels))
    assert (np.diff(rows) > 0).all()
    drawn = {name: (labels[rows] == name).sum() for name in ("common", "half", "rare")}
    assert drawn["rare"] >= min(30, size // 3)
    if size == 333:
        assert drawn["common"] / drawn["half"] == pytest.approx(2, abs=0.3)
    np.testing.assert_array_equal(rows, stratified_subset(labels, size, seed=3))
    if size < len(labels):
        assert not np.array_equal(rows, stratified_subset(labels, size, seed=4))


def test_an_extreme_cell_does_not_change_other_predictions():
    features, labels = blobs(distance=30)
    wanted = probe(features, labels)
    features = np.column_stack([features, np.resize([1e-30, 2e-30], len(features))])
    features = features.astype(np.float32)
    far = features.copy()
    far[4, 4] = 3e38
    for values in (features, far):
        found = probe(values, labels)
        for kind, score in found.scores.items():
            assert score.accuracy >= wanted.scores[kind].accuracy - 2 / len(labels)
