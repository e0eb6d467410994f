"""Intervals over wells: each well drawn once is the score itself, and the rule is that of `moa`."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.corrected_wells import corrected, planted, table

from cellclr_jax.profiling import moa
from cellclr_jax.profiling.measures.uncertainty import MOST_TREATMENTS, Replicates, well_intervals
from cellclr_jax.profiling.moa import BATCH_RULES
from cellclr_jax.profiling.profiles import treatment_profiles


def in_all_weeks(wells):
    """The treatment of one well gets one in each week, like a positive control."""
    alone = wells["Metadata_Compound"] == "alone"
    values = np.random.default_rng(1).normal(size=(3, 8))
    more = [("Week1_0", f"Week{week}", "alone", 1.0, "m0") for week in (1, 2, 3)]
    return pd.concat([wells[~alone], table(more, values)], ignore_index=True)


@pytest.fixture
def no_chance(monkeypatch):
    """Every resample draws every well once."""
    drawn = Replicates.profiles
    monkeypatch.setattr(Replicates, "profiles", lambda self, rng: drawn(self, None))


def assert_interval_is_score(profiles):
    found = well_intervals(profiles).summary
    for name, score in (("nsc", profiles.nsc), ("nscb", profiles.nscb)):
        assert 0 < score.accuracy < 1
        assert found[name] == pytest.approx([score.accuracy] * 2)
        np.testing.assert_allclose(found["mean"][name], score.accuracy)


@pytest.mark.parametrize("statistic", ["median", "mean"])
@pytest.mark.parametrize("batches", BATCH_RULES)
@pytest.mark.parametrize("left_out", [None, ("m1",)])
@pytest.mark.usefixtures("no_chance")
def test_without_chance_the_interval_is_the_score(statistic, batches, left_out):
    wells = in_all_weeks(planted(0, noise=7.0)).sample(frac=1, random_state=0)
    assert_interval_is_score(
        corrected(wells, statistic=statistic, batches=batches, left_out=left_out)
    )


@pytest.mark.usefixtures("no_chance")
def test_ties_profiles_of_zeros_and_the_order_of_treatments_change_nothing():
    rng = np.random.default_rng(0)
    rows = [
        ("P", f"Week{index % 3}", f"c{index // 2}", float(index % 2), f"m{index // 2 % 4}")
        for index in range(48)
        for _ in range(3)
    ]
    values = rng.integers(-1, 2, size=(len(rows), 3)).astype(float)
    values[:9] = 0.0
    profiles = corrected(table(rows, values))
    assert (profiles.nsc.neighbours["neighbour_moa"] == "").any()
    shuffled = profiles.treatments.sample(frac=1, random_state=0).reset_index(drop=True)
    assert_interval_is_score(replace(profiles, treatments=shuffled))


def test_wells_are_drawn_with_replacement_within_their_treatment_alone():
    counts = [1, 2, 3, 3, 6]
    treatment = np.repeat(np.arange(5), counts)
    values = np.eye(len(treatment))
    replicates, rng = Replicates(values, treatment, "mean"), np.random.default_rng(0)
    drawn = np.array([replicates.profiles(rng) for _ in range(2000)])
    times = drawn * np.array(counts)[:, None]
    np.testing.assert_allclose(times, times.round(), atol=1e-9)
    np.testing.assert_allclose(times.sum(axis=2), np.broadcast_to(counts, (2000, 5)))
    outside = treatment[None, :] != np.arange(5)[:, None]
    assert not drawn[:, outside].any()
    # A well is drawn as a binomial of n draws with chance 1 / n.
    own = ~outside
    shares = np.repeat(1 - 1 / np.array(counts), counts)
    np.testing.assert_allclose(times.mean(axis=0)[own], 1.0, atol=0.1)
    np.testing.assert_allclose(times.var(axis=0)[own], shares, atol=0.1)


@pytest.mark.parametrize("batches", ["joined", "week1"])
def test_intervals_are_those_of_profiles_drawn_and_scored_one_by_one(batches):
    wells = in_all_weeks(planted(0, noise=4.0))
    profiles = corrected(wells, batches=batches)
    found = well_intervals(profiles).summary
    rng = np.random.default_rng(5)
    drawn = []
    keys = ["Metadata_Compound", "Metadata_Concentration"]
    if batches == "week1":  # NSCB draws from the wells of the first week
        alone = (wells["Metadata_Compound"] == "alone") & (wells["Metadata_Batch"] != "Week1")
        wells_of = [wells, wells[~alone]]
    else:
        wells_of = [wells, wells]
    for _ in range(60):
        scores = []
        for name, table_of in zip(("nsc", "nscb"), wells_of, strict=True):
            treated = table_of[table_of["Metadata_Compound"] != "DMSO"]
            again = treated.groupby(keys).sample(frac=1, replace=True, random_state=rng)
            # A resample may miss the weeks of a treatment, which are those of all its wells.
            profile = treatment_profiles(again, features=profiles.features)
            profile["Metadata_Batch"] = profiles.treatments["Metadata_Batch"]
            scores.append(_score(name, profile, profiles, batches))
        drawn.append(scores)
    mean = np.mean(drawn, axis=0)
    np.testing.assert_allclose([found["mean"][name] for name in ("nsc", "nscb")], mean, atol=0.04)
    scores = np.array([profiles.nsc.accuracy, profiles.nscb.accuracy])
    ends = np.quantile(drawn, [0.025, 0.975], axis=0).T + (scores - np.mean(drawn, axis=0))[:, None]
    ends = np.clip(ends, 0, 1)
    np.testing.assert_allclose([found["nsc"], found["nscb"]], ends, atol=0.1)
    json.dumps(found, allow_nan=False)


def _score(name, treatments, profiles, batches):
    if name == "nsc":
        return moa.not_same_compound(treatments, features=profiles.features).accuracy
    return moa.not_same_compound_or_batch(
        treatments, batches=batches, features=profiles.features
    ).accuracy


def test_a_score_that_is_undefined_has_no_interval_and_the_other_has():
    wells = planted(0).assign(Metadata_Batch="Week1")
    found = well_intervals(corrected(wells)).summary
    assert found["nscb"] is None
    assert found["mean"]["nscb"] is None
    assert len(found["nsc"]) == 2


def test_what_has_no_interval_says_why():
    wells = planted()
    keys = ["Metadata_Compound", "Metadata_Concentration"]
    single = corrected(wells.drop_duplicates(keys))
    assert well_intervals(single).summary == {"undefined": "no treatment has two wells"}
    nothing = corrected(wells.assign(Metadata_MoA=wells["Metadata_Compound"]))
    assert "of its MoA" in well_intervals(nothing).summary["undefined"]
    rows = [("P", "B", f"c{index}", 1.0, f"m{index % 5}") for index in range(MOST_TREATMENTS + 1)]
    many = corrected(table(rows, np.random.default_rng(0).normal(size=(len(rows), 2))))
    assert "3001 treatments" in well_intervals(many).summary["undefined"]
