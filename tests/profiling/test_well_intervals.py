"""Intervals over wells: without resampling they equal the score, under every rule of `moa`."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.corrected_wells import ONE_WELL, corrected, planted, table

from cellclr_jax.profiling.measures import uncertainty
from cellclr_jax.profiling.measures.uncertainty import MOST_TREATMENTS, Replicates, well_intervals
from cellclr_jax.profiling.moa import BATCH_RULES


def in_all_weeks(wells):
    """Gives the treatment with one well a well in each week, like a positive control."""
    one_well = wells["Metadata_Compound"] == ONE_WELL
    values = np.random.default_rng(1).normal(size=(3, 8))
    more = [("Week1_0", f"Week{week}", ONE_WELL, 1.0, "m0") for week in (1, 2, 3)]
    return pd.concat([wells[~one_well], table(more, values)], ignore_index=True)


@pytest.fixture
def each_well_once(monkeypatch):
    """Makes every resample draw every well once."""
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
@pytest.mark.usefixtures("each_well_once")
def test_without_resampling_the_interval_is_the_score(statistic, batches, left_out):
    wells = in_all_weeks(planted(0, noise=7.0)).sample(frac=1, random_state=0)
    assert_interval_is_score(
        corrected(wells, statistic=statistic, batches=batches, left_out=left_out)
    )


@pytest.mark.usefixtures("each_well_once")
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


def test_wells_are_drawn_with_replacement_within_their_treatment():
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


def test_intervals_are_quantiles_shifted_to_the_score(monkeypatch):
    profiles = corrected(planted(0, noise=4.0))
    drawn = {"nsc": np.linspace(0.2, 0.6, 101), "nscb": np.linspace(0.5, 1.0, 101)}
    monkeypatch.setattr(uncertainty, "_resampled", lambda *args: drawn)
    found = well_intervals(profiles).summary
    for name, score in (("nsc", profiles.nsc), ("nscb", profiles.nscb)):
        shift = score.accuracy - drawn[name].mean()
        ends = np.quantile(drawn[name], [0.025, 0.975]) + shift
        np.testing.assert_allclose(found[name], np.clip(ends, 0, 1))
        np.testing.assert_allclose(found["mean"][name], drawn[name].mean())
    json.dumps(found, allow_nan=False)


def test_a_score_that_is_undefined_has_no_interval_and_the_other_has():
    wells = planted(0).assign(Metadata_Batch="Week1")
    found = well_intervals(corrected(wells)).summary
    assert found["nscb"] is None
    assert found["mean"]["nscb"] is None
    assert len(found["nsc"]) == 2


def test_the_reason_is_given_if_the_interval_is_undefined():
    wells = planted()
    keys = ["Metadata_Compound", "Metadata_Concentration"]
    single = corrected(wells.drop_duplicates(keys))
    assert well_intervals(single).summary == {"undefined": "no treatment has two wells"}
    nothing = corrected(wells.assign(Metadata_MoA=wells["Metadata_Compound"]))
    assert "of its MoA" in well_intervals(nothing).summary["undefined"]
    rows = [("P", "B", f"c{index}", 1.0, f"m{index % 5}") for index in range(MOST_TREATMENTS + 1)]
    many = corrected(table(rows, np.random.default_rng(0).normal(size=(len(rows), 2))))
    assert "3001 treatments" in well_intervals(many).summary["undefined"]
