"""Scores of each mechanism, the vote of several neighbours, and McNemar's test."""

import json
from math import comb

import numpy as np
import pandas as pd
import pytest
from support.corrected_wells import corrected, planted, table

from cellclr_jax.errors import BadData
from cellclr_jax.profiling import moa
from cellclr_jax.profiling.comparison import Agreement, mcnemar
from cellclr_jax.profiling.measures.mechanisms import NEIGHBOURS, k_nearest, mechanisms


def test_precision_recall_and_f1_are_those_of_counting():
    profiles = corrected(planted(0, noise=8.0))
    found = mechanisms(profiles)
    assert set(found.table["score"]) == {"nsc", "nscb"}
    for row in found.table.itertuples():
        pairs = getattr(profiles, row.score).neighbours[["moa", "neighbour_moa"]].to_numpy()
        right = sum(moa == other == row.moa for moa, other in pairs)
        queries = sum(moa == row.moa for moa, _ in pairs)
        predicted = sum(other == row.moa for _, other in pairs)
        assert (row.queries, row.predicted) == (queries, predicted)
        np.testing.assert_allclose(row.precision, right / predicted if predicted else np.nan)
        np.testing.assert_allclose(row.recall, right / queries if queries else np.nan)
        if right:
            harmonic = 2 / (predicted / right + queries / right)
            np.testing.assert_allclose(row.f1, harmonic)
        else:
            assert row.f1 == 0


def test_queries_without_a_neighbour_have_a_column_of_their_own():
    rows = [("P", "B", f"c{index}", 1.0, "ab"[index % 2]) for index in range(6)]
    values = np.random.default_rng(0).normal(size=(6, 4))
    values[0] = 0.0
    found = mechanisms(corrected(table(rows, values)))
    assert found.summary["nsc"]["moas"] == ["a", "b"]
    assert np.array(found.summary["nsc"]["counts"])[:, 2].tolist() == [1, 0]
    assert found.table["queries"].tolist() == [3, 3]
    assert "one batch" in found.summary["nscb"]["undefined"]
    json.dumps(found.summary, allow_nan=False)


def test_mechanisms_of_two_undefined_scores_are_undefined():
    rows = [("P", "B", f"c{index}", 1.0, f"m{index}") for index in range(3)]
    profiles = corrected(table(rows, np.eye(3)))
    assert mechanisms(profiles).summary == {"undefined": profiles.nsc.undefined}


def answers(correct, first=0):
    return pd.DataFrame(
        {
            "compound": [f"c{first + index}" for index in range(len(correct))],
            "concentration": 0.1 + 0.2,
            "correct": correct,
        }
    )


def test_p_is_that_of_a_fair_coin():
    one = answers([True] * 12 + [False] * 5 + [True, False])
    two = answers([False] * 12 + [True] * 5 + [True, False])
    found = mcnemar(one, two)
    assert (found.first_only, found.second_only, found.both, found.neither) == (12, 5, 1, 1)
    heads = sum(comb(17, count) for count in range(18) if count <= 5 or count >= 12)
    np.testing.assert_allclose(found.p, heads / 2**17)
    turned = mcnemar(two, one)
    assert (turned.first_only, turned.second_only, turned.p) == (5, 12, found.p)


def test_runs_are_matched_by_treatment_and_others_are_counted():
    one = answers([True, False, True])
    two = answers([True, True, False, False], first=1).assign(concentration=0.3).iloc[::-1]
    found = mcnemar(one, two)
    assert found == Agreement(1, 0, 1, 0, 1.0, not_in_second=1, not_in_first=2)


def test_answers_that_cannot_be_compared_are_refused():
    with pytest.raises(BadData, match="second run have no column correct"):
        mcnemar(answers([True]), answers([True]).drop(columns="correct"))
    with pytest.raises(BadData, match=r"'c0' at 0\.3 µM is listed twice in the first run"):
        mcnemar(pd.concat([answers([True])] * 2), answers([True]))


@pytest.mark.parametrize("batches", ["joined", "week1"])
def test_each_count_is_the_score_of_so_many_neighbours(batches):
    seen = corrected(planted(0, noise=6.0), batches=batches)
    found = k_nearest(seen)
    assert json.loads(json.dumps(found.summary)) == found.summary
    assert list(found.summary["nsc"]) == [*map(str, NEIGHBOURS)]
    assert found.summary["nsc"]["1"]["correct"] == seen.nsc.correct
    assert found.summary["nscb"]["1"]["total"] == seen.nscb.total
    for count in NEIGHBOURS:
        score = moa.not_same_compound(seen.treatments, features=seen.features, neighbours=count)
        assert found.summary["nsc"][str(count)]["correct"] == score.correct
        assert found.summary["nscb"][str(count)]["total"] == seen.nscb.total
    assert len(found.table) == 2 * len(NEIGHBOURS)


def test_one_batch_has_no_votes_of_other_batches():
    wells = planted(0).assign(Metadata_Batch="Week1")
    found = k_nearest(corrected(wells)).summary
    assert "one batch" in found["nscb"]["3"]["undefined"]
    assert found["nsc"]["3"]["total"] > 0
