"""Retrieval across plates equals loops, excludes the same plate, and has a valid chance level."""

import json

import numpy as np
import pytest
from support.corrected_wells import corrected, planted, table

from cellclr_jax.profiling.measures.across_plates import PERMUTATIONS, across_plates, retrieve


def layout(plates=4, treatments=5, wells=1):
    """Treatment and plate of each row: every treatment on every plate."""
    plate = np.repeat(np.arange(plates), treatments * wells)
    return np.tile(np.repeat(np.arange(treatments), wells), plates), plate


def naive(values, treatment, plate):
    """{row: (nearest, precision)} of the queries."""
    found = {}
    for row in range(len(values)):
        others = [i for i in range(len(values)) if plate[i] != plate[row]]
        own = [i for i in others if treatment[i] == treatment[row]]
        if not own or len(own) == len(others):
            continue
        cosine = {
            i: values[i] @ values[row] / np.linalg.norm(values[i]) / np.linalg.norm(values[row])
            for i in others
        }
        ranked = [treatment[i] == treatment[row] for i in sorted(others, key=lambda i: -cosine[i])]
        hits = [place for place, hit in enumerate(ranked, 1) if hit]
        precision = np.mean([(count + 1) / place for count, place in enumerate(hits)])
        found[row] = (ranked[0], precision)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_ranks_are_those_of_loops(seed):
    rng = np.random.default_rng(seed)
    treatment, plate = rng.integers(0, 7, 40), rng.integers(0, 4, 40)
    treatment[plate == 3] = 8  # a treatment of one plate only
    values = rng.normal(size=(9, 6))[treatment] + rng.normal(size=(40, 6))
    found, wanted = retrieve(values, treatment, plate), naive(values, treatment, plate)
    assert np.flatnonzero(found.is_query).tolist() == sorted(wanted)
    assert 0 < len(wanted) < 40
    for row, (near, precision) in wanted.items():
        assert found.nearest[row] == near
        np.testing.assert_allclose(found.precision[row], precision, rtol=1e-12)
    of_treatments = [
        np.mean([answer for row, answer in wanted.items() if treatment[row] == one], axis=0)
        for one in {treatment[row] for row in wanted}
    ]
    np.testing.assert_allclose(found.means, np.mean(of_treatments, axis=0), rtol=1e-12)


def test_a_planted_effect_is_found_beyond_chance():
    treatment, plate = layout()
    found = retrieve(np.eye(5)[treatment] + 0.01, treatment, plate)
    np.testing.assert_array_equal(found.means, [1.0, 1.0])
    summary = found.summary()
    assert summary["correct"] == summary["asked"] == len(plate)
    assert max(summary["p"].values()) == 1 / (PERMUTATIONS + 1)
    assert summary["chance"]["nearest_share"] < 0.4


def test_wells_of_the_same_plate_do_not_count():
    """Replicates that are equal within a plate, and have nothing in common between plates."""
    treatment, plate = layout(plates=6, wells=3)
    rng = np.random.default_rng(0)
    own = rng.normal(size=(6 * 5, 30))[plate * 5 + treatment]
    found = retrieve(own + 0.01 * rng.normal(size=own.shape), treatment, plate)
    assert found.means[0] < 0.45
    leaking = retrieve(own, treatment, np.arange(len(plate)))
    assert leaking.means[0] == 1.0


def test_pairs_of_similar_plates_raise_the_chance_level():
    """Pairs of plates that resemble each other and share treatments: retrieval without effect."""
    rng = np.random.default_rng(0)
    plate = np.repeat(np.arange(8), 2)
    treatment = 2 * (plate // 2) + np.tile([0, 1], 8)
    batch = rng.normal(size=(4, 30))[plate // 2]
    found = retrieve(batch + 0.1 * rng.normal(size=batch.shape), treatment, plate)
    assert found.means[0] > 0.25  # of eight treatments
    assert abs(found.by_chance[:, 0].mean() - 0.5) < 0.1
    assert found.summary()["p"]["nearest_share"] > 0.05


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5])
def test_profiles_that_are_all_equal_are_no_better_than_a_permutation(value):
    rng = np.random.default_rng(0)
    treatment = rng.permuted(np.tile(np.arange(5), (6, 1)), axis=1).ravel()
    plate = np.repeat(np.arange(6), 5)
    found = retrieve(np.full((30, 4), value), treatment, plate)
    assert found.means[0] < 0.5
    assert found.summary()["p"]["nearest_share"] > 0.05


def test_rows_without_both_kinds_of_candidates_are_not_queries():
    values = np.random.default_rng(0).normal(size=(5, 3))
    one_plate = retrieve(values, np.array([0, 0, 1, 1, 1]), np.zeros(5, int))
    one_treatment = retrieve(values, np.zeros(5, int), np.arange(5))
    none = retrieve(values[:0], np.zeros(0, int), np.zeros(0, int))
    for found in (one_plate, one_treatment, none):
        assert not found.is_query.any()
        assert np.isnan(found.means).all()


def test_the_measure_is_that_of_treated_wells():
    wells = planted(0, noise=3.0)
    found = across_plates(corrected(wells))
    treated = wells[wells["Metadata_Compound"] != "DMSO"]
    keys = treated[["Metadata_Compound", "Metadata_Concentration"]].apply(tuple, axis=1).tolist()
    names = sorted(set(keys))
    treatment = np.array([names.index(key) for key in keys])
    plate = treated["Metadata_Plate"].astype("category").cat.codes.to_numpy()
    wanted = naive(treated.filter(regex="^f").to_numpy(), treatment, plate)
    assert found.summary["asked"] == len(wanted) == found.table["wells"].sum()
    assert found.summary["correct"] == sum(near for near, _ in wanted.values())
    assert found.summary["treatments"] == len(found.table)
    assert found.summary["treatments"] + found.summary["of_one_plate"] == len(names)
    for row in found.table.itertuples():
        one = names.index((row.compound, row.concentration))
        answers = [answer for at, answer in wanted.items() if treatment[at] == one]
        np.testing.assert_allclose(
            [row.nearest_share, row.mean_average_precision], np.mean(answers, axis=0)
        )
        assert row.plates > 1
    assert json.loads(json.dumps(found.summary, allow_nan=False)) == found.summary


def test_the_reason_is_given_if_retrieval_is_undefined():
    values = np.random.default_rng(0).normal(size=(4, 3))
    rows = [("P", "B", name, 1.0, "m") for name in "abab"]
    assert "two plates" in across_plates(corrected(table(rows, values))).summary["undefined"]
    rows = [(plate, "B", "a", dose, "m") for plate in "PQ" for dose in (1.0, 1.0)]
    assert "compare with" in across_plates(corrected(table(rows, values))).summary["undefined"]


def test_too_many_pairs_are_undefined():
    rows = [(f"P{i % 2}", "B", f"c{i % 9}", 1.0, "m") for i in range(4500)]
    profiles = corrected(table(rows, np.random.default_rng(0).normal(size=(4500, 2))))
    assert across_plates(profiles).summary["undefined"].startswith(f"{4500 * 4499 // 2} pairs")
