"""The vote of several neighbours, beside the score that it generalises."""

import json

import pytest
from support.corrected_wells import corrected, planted

from cellclr_jax.profiling import moa
from cellclr_jax.profiling.measures.mechanisms import (
    NEIGHBOURS,
    k_nearest,
)


@pytest.mark.parametrize("batches", ["joined", "week1"])
def test_each_count_is_the_score_of_so_many_neighbours(batches):
    seen = corrected(planted(0, noise=6.0), batches=batches)
    found = k_nearest(seen)
    assert json.loads(json.dumps(found.summary)) == found.summary
    assert list(found.summary["nsc"]) == ["1", *map(str, NEIGHBOURS)]
    assert found.summary["nsc"]["1"]["correct"] == seen.nsc.correct
    assert found.summary["nscb"]["1"]["total"] == seen.nscb.total
    for count in NEIGHBOURS:
        score = moa.not_same_compound(seen.treatments, features=seen.features, neighbours=count)
        assert found.summary["nsc"][str(count)]["correct"] == score.correct
        assert found.summary["nscb"][str(count)]["total"] == seen.nscb.total
    assert len(found.table) == 2 * (1 + len(NEIGHBOURS))


def test_one_batch_has_no_votes_of_other_batches():
    wells = planted(0).assign(Metadata_Batch="Week1")
    found = k_nearest(corrected(wells)).summary
    assert "one batch" in found["nscb"]["3"]["undefined"]
    assert found["nsc"]["3"]["total"] > 0
