"""Activity and consistency equal loops over pairs, and p has the right level."""

import functools
import itertools
from math import comb

import numpy as np
import pandas as pd
import pytest
from support.corrected_wells import corrected, planted, table

pytest.importorskip("copairs")

from cellclr_jax.profiling.measures import activity as module
from cellclr_jax.profiling.measures.activity import activity, consistency


def average_precision(positives, negatives):
    """Of similarities, none equal."""
    ranked = sorted([(s, True) for s in positives] + [(s, False) for s in negatives])[::-1]
    hits = [place for place, (_, positive) in enumerate(ranked, 1) if positive]
    return np.mean([(count + 1) / place for count, place in enumerate(hits)])


@functools.cache
def expected_precision(positives, negatives):
    """Of a random ranking, by all rankings."""
    total = positives + negatives
    return np.mean(
        [
            np.mean([(count + 1) / (place + 1) for count, place in enumerate(places)])
            for places in itertools.combinations(range(total), positives)
        ]
    )


def cosine(first, second):
    return first @ second / np.linalg.norm(first) / np.linalg.norm(second)


def naive_activity(wells):
    """Mean average precision of each treatment, well by well."""
    values = wells.filter(regex="^f").to_numpy()
    keys = wells[["Metadata_Compound", "Metadata_Concentration"]].apply(tuple, axis=1).tolist()
    plates = wells["Metadata_Plate"].tolist()
    control = [key[0] == "DMSO" for key in keys]
    found = {}
    for well, key in enumerate(keys):
        others = [i for i in range(len(keys)) if keys[i] == key and i != well]
        if control[well] or not others:
            continue
        against = [i for i in range(len(keys)) if control[i] and plates[i] == plates[well]]
        against = against or [i for i in range(len(keys)) if control[i]]
        similar = {i: cosine(values[well], values[i]) for i in others + against}
        precision = average_precision([similar[i] for i in others], [similar[i] for i in against])
        chance = expected_precision(len(others), len(against))
        found.setdefault(key, []).append((precision, (precision - chance) / (1 - chance)))
    return {key: np.mean(values, axis=0) for key, values in found.items()}


def as_dict(found):
    keys = zip(found["compound"], found["concentration"], strict=True)
    return dict(zip(keys, found[["mean_average_precision", "normalized"]].to_numpy(), strict=True))


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        np.testing.assert_allclose(found[key], values, atol=1e-5, err_msg=str(key))


@pytest.mark.parametrize("seed", [0, 1])
def test_activity_is_that_of_loops_over_wells(seed):
    wells = planted(seed, noise=6.0)
    wells = wells.sample(frac=1, random_state=seed).reset_index(drop=True)
    found = activity(corrected(wells))
    wanted = naive_activity(wells)
    assert_same(as_dict(found.table), wanted)
    assert found.summary["treatments"] == len(wanted)
    assert found.summary["without_replicates"] == 1
    assert found.summary["plates_without_controls"] == 0
    mean = np.mean([value for value, _ in wanted.values()])
    np.testing.assert_allclose(found.summary["mean_average_precision"], mean, atol=1e-5)


@pytest.mark.parametrize("kept", [2, 0])
def test_wells_of_a_plate_without_controls_are_ranked_against_all_controls(kept):
    """`kept` plates have controls; with none, they have a plate of their own."""
    wells = planted(3, noise=6.0, weeks=2)
    is_control = wells["Metadata_Compound"] == "DMSO"
    plates = sorted(set(wells["Metadata_Plate"]))
    if kept:
        wells = wells[~is_control | wells["Metadata_Plate"].isin(plates[:kept])]
    else:
        wells.loc[is_control, "Metadata_Plate"] = "controls"
    wells = wells.reset_index(drop=True)
    found = activity(corrected(wells))
    assert_same(as_dict(found.table), naive_activity(wells))
    treated = set(wells["Metadata_Plate"][wells["Metadata_Compound"] != "DMSO"])
    assert found.summary["plates_without_controls"] == len(treated - set(plates[:kept])) > 0
    assert "or all where it has none" in found.summary["negatives"]


def test_p_is_that_of_all_rankings_and_q_that_of_benjamini_and_hochberg():
    found = activity(corrected(planted(0, noise=8.0, replicates=(3,), controls=6))).table
    found = found[found["wells"] == 3]
    rankings = itertools.combinations(range(1, 9), 2)
    null = np.array([(1 / first + 2 / second) / 2 for first, second in rankings])
    assert found["p"].nunique() > 5
    for value, p in zip(found["mean_average_precision"], found["p"], strict=True):
        # copairs counts in float32: a value that rankings have lies on either side.
        low, high = (np.mean(null > value + error) for error in (1e-6, -1e-6))
        assert low - 0.02 < p < high + 0.02
    found = activity(corrected(planted(0, noise=8.0))).table
    order = np.argsort(found["p"].to_numpy())
    scaled = found["p"].to_numpy()[order] * len(found) / np.arange(1, len(found) + 1)
    wanted = np.minimum.accumulate(scaled[::-1])[::-1]
    np.testing.assert_allclose(found["q"].to_numpy()[order], wanted, rtol=1e-6)
    assert (found["active"] == (found["q"] < 0.05)).all()


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_an_encoder_that_gives_all_wells_one_profile_retrieves_by_chance(value):
    """copairs itself ranks positives first among ties: every score would be perfect."""
    wells = planted(0, replicates=(3,), controls=8)
    features = list(wells.filter(regex="^f"))
    wells[features] = value
    profiles = corrected(wells)
    for measure, share in ((activity, "active"), (consistency, "consistent")):
        found = measure(profiles)
        assert found.summary["mean_average_precision"] < 0.6
        assert found.summary[share] <= 1


@pytest.mark.parametrize("offset", [10.0, 1e5])
def test_a_common_offset_of_all_profiles_hides_no_effect(offset):
    wells = planted(0, noise=0.3)
    features = [name for name in wells if not name.startswith("Metadata_")]
    moved = wells.assign(**{name: wells[name] + offset for name in features})
    exact = [precision for precision, _ in naive_activity(moved).values()]
    found = activity(corrected(moved)).table
    np.testing.assert_allclose(
        found["mean_average_precision"].mean(),
        np.mean(exact),
        atol=0.02,
    )


def test_treatments_with_too_few_controls_are_counted():
    """Two wells among six controls have the nearest of 13 pairs by chance once in 13 times."""
    found = activity(corrected(planted(0, replicates=(2,), controls=6)))
    pairs = found.table["wells"] == 2
    np.testing.assert_allclose(found.table["perfect_by_chance"][pairs], 1 / 13)
    assert found.summary["too_few_controls"] == pairs.sum() > 10
    found = activity(corrected(planted(0, replicates=(3,), controls=6)))
    triples = found.table["wells"] == 3
    np.testing.assert_allclose(found.table["perfect_by_chance"][triples], 1 / comb(21, 3))
    assert found.summary["too_few_controls"] == 0


def test_activity_does_not_depend_on_what_was_computed_before(tmp_path, monkeypatch):
    """copairs keeps null distributions in the home folder by default."""
    monkeypatch.setenv("HOME", str(tmp_path))
    wells = planted(0, noise=4.0)
    first = activity(corrected(wells)).table
    activity(corrected(planted(1, noise=4.0)))
    pd.testing.assert_frame_equal(activity(corrected(wells)).table, first)
    assert not list(tmp_path.iterdir())


def test_the_reason_is_given_if_activity_is_undefined():
    wells = planted()
    treated = wells[wells["Metadata_Compound"] != "DMSO"]
    assert activity(corrected(treated)).summary == {
        "undefined": "no control wells (DMSO): --control names them"
    }
    single = wells[
        ~wells.duplicated(["Metadata_Compound", "Metadata_Concentration"])
        | (wells["Metadata_Compound"] == "DMSO")
    ]
    assert activity(corrected(single)).summary == {"undefined": "no treatment has two wells"}


@pytest.mark.parametrize("seed", [0, 1])
def test_consistency_is_that_of_loops_over_treatments(seed):
    profiles = corrected(planted(seed, noise=6.0))
    treatments = profiles.treatments
    values = treatments[profiles.features].to_numpy()
    moas, compounds = (treatments[f"Metadata_{name}"].tolist() for name in ("MoA", "Compound"))
    wanted = {}
    for row, moa in enumerate(moas):
        others = [i for i in range(len(moas)) if compounds[i] != compounds[row]]
        similar = {i: cosine(values[row], values[i]) for i in others}
        same = [similar[i] for i in others if moas[i] == moa]
        differing = [similar[i] for i in others if moas[i] != moa]
        wanted.setdefault(moa, []).append(average_precision(same, differing))
    found = consistency(profiles)
    np.testing.assert_allclose(
        found.table.set_index("moa")["mean_average_precision"],
        [np.mean(wanted[moa]) for moa in sorted(wanted)],
        atol=1e-5,
    )
    assert found.table["treatments"].sum() == len(treatments)
    assert found.table["compounds"].sum() == len(set(compounds))


def profiles_without_signal(seed, doses=(1, 2, 3, 5)):
    """24 compounds of 8 mechanisms that have nothing in common; doses of a compound are alike."""
    rng = np.random.default_rng(seed)
    moas, rows, values = rng.permutation(24) % 8, [], []
    for compound, moa in enumerate(moas):
        base = rng.normal(size=10)
        for dose in range(rng.choice(doses)):
            rows.append(("P", "B", f"c{compound}", dose + 1.0, f"m{moa}"))
            values.append(0.9 * base + 0.43 * rng.normal(size=10))
    return corrected(table(rows, np.array(values)))


def test_consistencys_p_is_that_of_all_sets_of_as_many_compounds():
    found = consistency(profiles_without_signal(3)).table.set_index("moa")
    treatments = profiles_without_signal(3).treatments
    features = [name for name in treatments if name.startswith("f")]
    compounds = treatments["Metadata_Compound"].to_numpy()
    values = treatments[features].to_numpy()
    similar = [[cosine(first, second) for second in values] for first in values]
    rows = {name: np.flatnonzero(compounds == name) for name in dict.fromkeys(compounds)}

    def gain(names):
        """Mean normalized average precision of a set of compounds."""
        members = np.concatenate([rows[name] for name in names])
        gains = []
        for row in members:
            others = np.flatnonzero(compounds != compounds[row])
            order = others[np.argsort([-similar[row][other] for other in others])]
            hits = np.flatnonzero(np.isin(order, members))
            precision = np.mean((np.arange(len(hits)) + 1) / (hits + 1))
            chance = random_precision(len(hits), len(order))
            gains.append((precision - chance) / (1 - chance))
        return np.mean(gains)

    rng = np.random.default_rng(1)
    null = np.array([gain(rng.choice(list(rows), 3, replace=False)) for _ in range(150)])
    for moa in found.index[:4]:
        own = gain(dict.fromkeys(compounds[treatments["Metadata_MoA"] == moa]))
        np.testing.assert_allclose(found["normalized"][moa], own, atol=1e-4)
        assert abs(np.mean(null >= own) - found["p"][moa]) < 0.13


def random_precision(positives, total):
    """Expected average precision of a random ranking (checked by `expected_precision`)."""
    harmonic = np.sum(1 / np.arange(1, total + 1))
    return ((positives - 1) / (total - 1) * (total - harmonic) + harmonic) / total


def few_draws(monkeypatch):
    """Simulations need no finer p."""
    monkeypatch.setattr(module, "EXCHANGES", 200)
    monkeypatch.setattr(module, "NULL_SIZE", 1_000)


def test_mechanisms_without_an_effect_are_rarely_consistent(monkeypatch):
    np.testing.assert_allclose(random_precision(3, 8), expected_precision(3, 5))
    few_draws(monkeypatch)
    tables = [consistency(profiles_without_signal(seed)).table for seed in range(6)]
    found = pd.concat(tables)
    assert np.mean(found["p"] <= 0.1) < 0.2
    assert np.mean(found["copairs_p"] <= 0.1) > 0.2  # which takes doses for independent


@pytest.mark.slow
@pytest.mark.parametrize("doses", [(1, 2, 3, 5), (3,)])
def test_consistency_rejects_chance_as_often_as_it_says(monkeypatch, doses):
    few_draws(monkeypatch)
    tables = [consistency(profiles_without_signal(seed, doses)).table for seed in range(150)]
    found = pd.concat(tables)
    ours, theirs = (np.mean(found[name] <= 0.05) for name in ("p", "copairs_p"))
    print(f"{doses} doses: {ours:.3f}, copairs {theirs:.3f}")
    assert 0.03 < ours < 0.07


def test_a_mechanism_of_one_compound_is_left_out_and_counted_yet_ranked_against():
    rng = np.random.default_rng(0)
    rows = [("P", "B", f"c{i}", 1.0, moa) for i, moa in enumerate("aaabbbx")]
    values = np.repeat(np.eye(4)[[0, 1, 2]], [3, 3, 1], axis=0) + 0.01 * rng.normal(size=(7, 4))
    found = consistency(corrected(table(rows, values)))
    assert found.table["moa"].tolist() == ["a", "b"]
    assert found.summary["of_a_single_compound"] == 1
    assert found.summary["mean_average_precision"] == 1.0
    # The lone one amid `a` costs precision.
    values[6] = values[0]
    assert consistency(corrected(table(rows, values))).summary["mean_average_precision"] < 1.0


def test_the_reason_is_given_if_consistency_is_undefined():
    rows = [("P", "B", f"c{i}", 1.0, moa) for i, moa in enumerate("abc")]
    values = np.random.default_rng(0).normal(size=(3, 4))
    assert consistency(corrected(table(rows, values))).summary == {
        "undefined": "no MoA has two compounds"
    }
    rows = [("P", "B", f"c{i}", 1.0, "a") for i in range(3)]
    assert "one MoA" in consistency(corrected(table(rows, values))).summary["undefined"]


def test_too_many_pairs_are_undefined():
    rng = np.random.default_rng(0)
    rows = [("P", "B", "a", 1.0, "m")] * 4500 + [("P", "B", "DMSO", 0.0, "DMSO")] * 2
    rows += [("P", "B", name, 1.0, "m") for name in "bc"]
    profiles = corrected(table(rows, rng.normal(size=(len(rows), 2))))
    pairs = 4500 * 4499 // 2 + 4500 * 2
    assert activity(profiles).summary["undefined"].startswith(f"{pairs} pairs of wells")
    rows = [("P", "B", f"c{index}", 1.0, f"m{index % 5}") for index in range(4500)]
    profiles = corrected(table(rows, rng.normal(size=(len(rows), 2))))
    assert "pairs of treatments" in consistency(profiles).summary["undefined"]
