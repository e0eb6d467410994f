"""Nearest-neighbour scores equal a naive loop, and leaks are caught."""

import numpy as np
import pandas as pd
import pytest

from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling import moa

FEATURES = ["f_a", "f_b", "f_c", "f_d"]


def treatments(rows, values=None, seed=0):
    """rows: (compound, concentration, moa, batch)."""
    table = pd.DataFrame(
        rows,
        columns=[f"Metadata_{n}" for n in ("Compound", "Concentration", "MoA", "Batch")],
    )
    if values is None:
        values = np.random.default_rng(seed).normal(size=(len(rows), len(FEATURES)))
    names = FEATURES[: np.shape(values)[1]]
    return pd.concat([table, pd.DataFrame(values, columns=names)], axis=1)


def random_treatments(seed, count=40):
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        compound = int(rng.integers(14))
        weeks = sorted({f"Week{w}" for w in rng.integers(1, 5, size=rng.integers(1, 3))})
        rows.append((f"c{compound:02d}", float(index + 1), f"moa{compound % 4}", "|".join(weeks)))
    return treatments(rows, rng.normal(size=(count, 4)), seed)


def naive(table, *, rule=None, left_out=()):
    """Correct and total by plain loops over the rows, in order of compound and concentration."""
    rows = sorted(table.to_dict("records"), key=lambda r: tuple(r.values())[:2])
    rows = [r for r in rows if r["Metadata_MoA"] not in left_out]
    correct = total = 0
    for query in rows:
        best, answer = -np.inf, None
        for other in rows:
            if other["Metadata_Compound"] == query["Metadata_Compound"]:
                continue
            mine, yours = (r["Metadata_Batch"].split("|") for r in (query, other))
            if rule == "joined" and mine == yours:
                continue
            if rule == "disjoint" and set(mine) & set(yours):
                continue
            if rule == "week1" and mine[0] == yours[0]:
                continue
            a, b = (np.array([r[f] for f in FEATURES]) for r in (query, other))
            cosine = a @ b / np.sqrt((a @ a) * (b @ b))
            if cosine > best:
                best, answer = cosine, other["Metadata_MoA"]
        if answer is not None:
            total += 1
            correct += answer == query["Metadata_MoA"]
    return correct, total


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rule", moa.BATCH_RULES)
def test_scores_equal_the_naive_loop(seed, rule):
    table = random_treatments(seed)
    nsc = moa.not_same_compound(table)
    assert (nsc.correct, nsc.total) == naive(table)
    nscb = moa.not_same_compound_or_batch(table, batches=rule)
    assert (nscb.correct, nscb.total) == naive(table, rule=rule)
    left = moa.not_same_compound_or_batch(table, batches=rule, left_out=["moa1"])
    assert (left.correct, left.total) == naive(table, rule=rule, left_out=["moa1"])


def test_row_order_and_the_scale_of_a_profile_change_nothing():
    table = random_treatments(7)
    shuffled = table.sample(frac=1, random_state=1).reset_index(drop=True)
    factors = np.random.default_rng(2).uniform(1e-6, 1e6, size=len(table))
    scaled = table.assign(**{f: table[f] * factors for f in FEATURES})
    for other in (shuffled, scaled):
        for score in (moa.not_same_compound, moa.not_same_compound_or_batch):
            wanted, found = score(table), score(other)
            assert wanted == found
            names = ["compound", "concentration", "neighbour_compound", "neighbour_concentration"]
            pd.testing.assert_frame_equal(wanted.neighbours[names], found.neighbours[names])


def test_a_tie_goes_to_the_first_by_compound_and_concentration():
    rows = [("q", 1, "M", "W1"), ("z", 1, "M", "W1"), ("b", 3, "N", "W1"), ("b", 1, "M", "W1")]
    table = treatments(rows, np.ones((4, 2)))
    score = moa.not_same_compound(table.sample(frac=1, random_state=3))
    answer = score.neighbours.set_index("compound").loc["q"]
    assert (answer["neighbour_compound"], answer["neighbour_concentration"]) == ("b", 1)


def test_another_dose_of_the_same_compound_is_never_the_neighbour():
    rows = [("a", 1, "M", "W1"), ("a", 2, "M", "W2"), ("b", 1, "N", "W3"), ("c", 1, "M", "W4")]
    table = treatments(rows, [[1, 0], [1, 0], [0.9, 0.1], [-1, 0.2]])
    found = moa.not_same_compound(table).neighbours
    assert (found["compound"] != found["neighbour_compound"]).all()
    assert not found.loc[found["compound"] == "a", "correct"].any()


def test_controls_are_neither_query_nor_candidate():
    rows = [
        ("DMSO", 0, "DMSO", "W1"),
        ("a", 1, "M", "W1"),
        ("b", 1, "M", "W2"),
        ("dmso", 1, "M", ""),
    ]
    table = treatments(rows, [[1, 0], [1, 0.01], [0, 1], [1, 0.01]])
    score = moa.not_same_compound(table)
    assert (score.correct, score.total) == (2, 2)
    assert set(score.neighbours["neighbour_compound"]) == {"a", "b"}


def test_moas_of_one_batch_are_left_out_of_nscb_as_queries_and_candidates():
    rows = [
        ("a", 1, "M", "W1"),
        ("b", 1, "M", "W2"),
        ("c", 1, "only", "W3"),
        ("d", 1, "only", "W3"),
    ]
    table = treatments(rows, [[1, 0], [0, 1], [1, 0.01], [0, 1.01]])
    score = moa.not_same_compound_or_batch(table)
    assert (score.correct, score.total) == (2, 2)
    assert score.excluded["moa"].tolist() == ["only", "only"]
    assert "one batch only" in score.excluded["reason"][0]
    assert moa.not_same_compound(table).total == 4


@pytest.mark.parametrize("rule", moa.BATCH_RULES)
def test_treatments_of_unknown_batch_are_neither_queries_nor_candidates_of_nscb(rule):
    rows = [("a", 1, "M", "W1"), ("b", 1, "M", ""), ("c", 1, "M", "W2"), ("d", 1, "N", "W1")]
    table = treatments([*rows, ("e", 1, "N", "W2")], [[1, 0], [1, 0.01], [1, 2], [0, 1], [0, 2]])
    score = moa.not_same_compound_or_batch(table, batches=rule)
    assert score.total == 4
    assert "b" not in set(score.neighbours["neighbour_compound"])
    assert score.excluded["reason"].tolist() == ["its batch is not known"]


def test_queries_of_a_moa_of_one_compound_count_as_wrong_and_unanswerable():
    rows = [
        ("a", 1, "M", "W1"),
        ("b", 1, "M", "W2"),
        ("c", 1, "lone", "W1"),
        ("c", 2, "lone", "W2"),
    ]
    score = moa.not_same_compound(treatments(rows, [[1, 0], [1, 0.1], [0, 1], [0, 1]]))
    assert (score.correct, score.total, score.unanswerable) == (2, 4, 2)


@pytest.mark.parametrize(
    "rows",
    [[("a", 1, "M", "W1"), ("b", 1, "N", "W2")], [("a", 1, "M", "W1"), ("a", 2, "M", "W2")], []],
)
def test_nsc_without_a_right_answer_is_undefined(rows):
    score = moa.not_same_compound(treatments(rows, np.ones((len(rows), 2))))
    reason = "no treatment has another compound of its MoA"
    assert (score.correct, score.total, score.accuracy, score.undefined) == (None, 0, None, reason)


def test_nscb_of_one_batch_is_undefined_and_so_is_the_drop():
    table = treatments([("a", 1, "M", "W1"), ("b", 1, "M", "W1")])
    nsc, nscb = moa.not_same_compound(table), moa.not_same_compound_or_batch(table)
    assert nscb.accuracy is None
    assert "one batch ('W1')" in nscb.undefined
    assert moa.drop(nsc, nscb) is None
    unknown = moa.not_same_compound_or_batch(table.assign(Metadata_Batch=""))
    assert unknown.undefined == "no batch is known"


def test_a_profile_of_zeros_is_wrong_and_not_a_neighbour():
    rows = [("a", 1, "M", "W1"), ("b", 1, "M", "W1"), ("c", 1, "M", "W1")]
    score = moa.not_same_compound(treatments(rows, [[0, 0], [1, 0], [-1, 0.1]]))
    assert (score.correct, score.total) == (2, 3)
    assert "a" not in set(score.neighbours["neighbour_compound"])
    assert np.isnan(score.neighbours["similarity"][0])


def test_invalid_input_is_an_error():
    table = random_treatments(0)
    with pytest.raises(BadUse, match="joined, disjoint, week1"):
        moa.not_same_compound_or_batch(table, batches="week2")
    with pytest.raises(BadData, match="Metadata_MoA"):
        moa.not_same_compound(table.drop(columns="Metadata_MoA"))
    with pytest.raises(BadData, match="listed twice"):
        moa.not_same_compound(pd.concat([table, table.iloc[:1]]))
    with pytest.raises(BadData, match="holds NaN"):
        moa.not_same_compound(table.assign(f_a=np.nan))


def naive_vote(table, neighbours):
    """Right answers where the nearest of other compounds vote, by plain loops."""
    rows = sorted(table.to_dict("records"), key=lambda r: tuple(r.values())[:2])
    correct = 0
    for query in rows:
        others = [r for r in rows if r["Metadata_Compound"] != query["Metadata_Compound"]]
        a = np.array([query[f] for f in FEATURES])
        cosines = []
        for other in others:
            b = np.array([other[f] for f in FEATURES])
            cosines.append(round(a @ b / np.sqrt((a @ a) * (b @ b)), 12))
        nearest = sorted(range(len(others)), key=lambda i: (-cosines[i], i))[:neighbours]
        moas = [others[i]["Metadata_MoA"] for i in nearest]
        most = max(moas.count(name) for name in moas)
        correct += next(m for m in moas if moas.count(m) == most) == query["Metadata_MoA"]
    return correct


@pytest.mark.parametrize("neighbours", [1, 2, 3, 5, 100])
def test_the_vote_of_several_neighbours_equals_the_naive_loop(neighbours):
    for seed in range(3):
        table = random_treatments(seed)
        table[FEATURES] = table[FEATURES].round(0) + 0.5  # full of ties
        score = moa.not_same_compound(table, neighbours=neighbours)
        assert score.correct == naive_vote(table, neighbours)
        assert (score.neighbours["predicted"] == score.neighbours["moa"]).sum() == score.correct
    with pytest.raises(BadUse, match="at least 1"):
        moa.not_same_compound(table, neighbours=0)


@pytest.mark.parametrize("rule", moa.BATCH_RULES)
def test_both_scores_equal_the_separate_scores(rule):
    table = random_treatments(3)
    found = moa.both_scores(table, batches=rule, neighbours=[1, 3])
    assert found[1][0] == moa.not_same_compound(table)
    nsc, nscb = found[3]
    only_nscb = moa.not_same_compound_or_batch(table, batches=rule, neighbours=3)
    assert nsc == moa.not_same_compound(table, neighbours=3)
    assert nscb == only_nscb
    pd.testing.assert_frame_equal(nscb.neighbours, only_nscb.neighbours)
    one_batch = moa.both_scores(table.assign(Metadata_Batch="W1"), batches=rule)[1]
    assert one_batch[0].total == 40
    assert "one batch" in one_batch[1].undefined
