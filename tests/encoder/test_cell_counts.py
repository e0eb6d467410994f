"""Cell counts as profiles: the nearest by cosine is the nearest by ratio."""

import numpy as np
import pandas as pd

from cellclr_jax.encoder.baselines import FEATURES, count_profiles


def wells(counts, compounds=None, plates=None):
    return pd.DataFrame(
        {
            "Metadata_Plate": plates or "p",
            "Metadata_Compound": compounds or [f"c{i}" for i in range(len(counts))],
            "Metadata_CellCount": counts,
            "cellclr_0000": 1.0,
        }
    )


def test_the_nearest_by_cosine_is_the_nearest_by_ratio():
    counts = np.random.default_rng(0).integers(1, 2000, size=60)
    profiles = count_profiles(wells(counts), "DMSO")[FEATURES].to_numpy()
    np.testing.assert_allclose(np.linalg.norm(profiles, axis=1), 1)
    cosines, apart = profiles @ profiles.T, np.abs(np.subtract.outer(*[np.log(counts)] * 2))
    for query in range(60):
        others = [i for i in range(60) if i != query]
        nearest = max(others, key=lambda i: cosines[query, i])
        assert apart[query, nearest] == min(apart[query, i] for i in others)


def test_counts_are_relative_to_the_controls_if_all_plates_have_some():
    compounds, plates = ["DMSO", "a", "DMSO", "a"], ["p", "p", "q", "q"]
    found = count_profiles(wells([100, 50, 400, 200], compounds, plates), "dmso")[FEATURES]
    np.testing.assert_allclose(found.iloc[1], found.iloc[3])
    lacking = count_profiles(wells([100, 50, 400, 200], ["DMSO", "a", "b", "a"], plates), "DMSO")
    assert lacking[FEATURES].iloc[1].ne(lacking[FEATURES].iloc[3]).all()


def test_equal_counts_have_equal_profiles_and_other_features_are_dropped():
    found = count_profiles(wells([7, 7]), "DMSO")
    assert list(found) == [
        "Metadata_Plate",
        "Metadata_Compound",
        "Metadata_CellCount",
        *FEATURES,
    ]
    np.testing.assert_array_equal(found[FEATURES].iloc[0], found[FEATURES].iloc[1])
