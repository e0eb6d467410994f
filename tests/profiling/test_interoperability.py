"""Tables exchanged with pycytominer give the same scores and profiles."""

import numpy as np
import pandas as pd
import pytest

from cellclr_jax.profiling import profiles
from cellclr_jax.profiling.evaluation import Protocol, evaluate
from cellclr_jax.profiling.exports import write_table
from cellclr_jax.profiling.tables import read_profiles

pycytominer = pytest.importorskip("pycytominer")

TREATMENT = ["Metadata_Compound", "Metadata_Concentration"]


def planted(seed=0, moas=4, weeks=3, dims=12, noise=0.5):
    """Wells whose profile is a mix of their MoA's direction, their week's, and noise."""
    rng = np.random.default_rng(seed)
    directions, shifts = rng.normal(size=(moas, dims)), rng.normal(size=(weeks, dims))
    rows, values = [], []
    for week in range(weeks):
        wells = [("DMSO", 0.0, "DMSO", np.zeros(dims)) for _ in range(8)]
        for kind in range(moas):
            for compound in range(2):
                dose = 10.0 ** -(week % 2)
                wells += [(f"c{kind}{compound}", dose, f"m{kind}", directions[kind])] * 3
        for number, (compound, dose, moa, direction) in enumerate(wells):
            plate = f"Week{week + 1}_{number % 2}"
            rows.append((plate, f"B{number:02d}", f"Week{week + 1}", compound, dose, moa))
            values.append(7 + 3 * (direction + shifts[week] + noise * rng.normal(size=dims)))
    names = ("Plate", "Well", "Batch", "Compound", "Concentration", "MoA")
    metadata = pd.DataFrame(rows, columns=[f"Metadata_{name}" for name in names])
    features = pd.DataFrame(values, columns=profiles.feature_names(dims))
    return pd.concat([metadata, features], axis=1)


@pytest.fixture(scope="module", params=["planted", "real"])
def wells(request):
    """Well profiles of this package's form: made up, and those of Ljosa et al. (2013)."""
    if request.param == "planted":
        return planted()
    folder = request.getfixturevalue("shared") / "data" / "bbbc021"
    read = read_profiles(
        folder / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz",
        image_csv=folder / "BBBC021_v1_image.csv",
        moa_csv=folder / "BBBC021_v1_moa.csv",
    )
    return read.table


def features_of(table):
    return [name for name in table if not name.startswith("Metadata_")]


def scores_of(found):
    """Lists scores by correction and kind."""
    return {
        (name, kind): getattr(scores, kind)
        for name, scores in found.scores.items()
        for kind in ("nsc", "nscb")
    }


def test_standardised_by_pycytominer_the_scores_are_ours(wells, tmp_path):
    (path,) = write_table(wells, tmp_path / "wells", ["csv"])
    # Features whose controls are constant are left out by the one and divided by 1 by the other.
    controls = wells[wells["Metadata_Compound"] == "DMSO"]
    features = [name for name in features_of(wells) if controls[name].std() > 0]
    normalized = pycytominer.normalize(
        pd.read_csv(path),
        features=features,
        meta_features=[name for name in wells if name.startswith("Metadata_")],
        samples="Metadata_Compound == 'DMSO'",
        method="standardize",
    )
    back = tmp_path / "normalized.csv"
    normalized.to_csv(back, index=False)
    kept = wells[[name for name in wells if name.startswith("Metadata_") or name in features]]
    found = scores_of(evaluate(read_profiles(back).table, Protocol()))
    wanted = scores_of(evaluate(kept, Protocol(standardize="controls")))
    assert found["none", "nsc"].total > 5
    for (correction, kind), score in wanted.items():
        ours, theirs = score.neighbours, found[correction, kind].neighbours
        if correction == "none":
            pd.testing.assert_frame_equal(theirs, ours, rtol=1e-6)
        # Medians of whitened wells depend on the axes, and where there are fewer controls than
        # features, the axes along which no control varies are determined only by rounding.
        same = (theirs.drop(columns="similarity") == ours.drop(columns="similarity")).all(axis=1)
        assert len(theirs) == len(ours) > 5
        assert same.mean() > 0.97
        np.testing.assert_allclose(theirs["similarity"], ours["similarity"], atol=0.01)
    plain = scores_of(evaluate(kept, Protocol()))["none", "nsc"]
    assert not plain.neighbours.equals(wanted["none", "nsc"].neighbours)


def test_pycytominers_treatments_are_ours(wells):
    features = features_of(wells)
    ours = profiles.treatment_profiles(wells, features=features)
    for found in (
        pycytominer.aggregate(wells, strata=TREATMENT, features=features, operation="median"),
        pycytominer.consensus(
            wells, replicate_columns=TREATMENT, features=features, operation="median"
        ),
    ):
        found = found.sort_values(TREATMENT, ignore_index=True)
        assert len(found) == len(ours) > 10
        assert found["Metadata_Compound"].tolist() == ours["Metadata_Compound"].tolist()
        for name in ("Metadata_Concentration", *features):
            np.testing.assert_allclose(found[name], ours[name], rtol=1e-12)


def test_pycytominers_wells_of_exported_cells_are_ours(tmp_path):
    wells = planted()
    rng = np.random.default_rng(1)
    cells = wells.loc[wells.index.repeat(rng.integers(1, 5, len(wells)))].reset_index(drop=True)
    features = features_of(wells)
    cells[features] += rng.normal(size=(len(cells), len(features)))
    cells.insert(0, "Metadata_CellId", [f"cell {i}" for i in range(len(cells))])
    (path,) = write_table(cells.astype(dict.fromkeys(features, np.float32)), tmp_path / "cells")
    read = pd.read_parquet(path)
    found = pycytominer.aggregate(read, features=features, operation="mean")
    ours = profiles.aggregate_wells(read, features=features)
    assert found["Metadata_Well"].tolist() == ours["Metadata_Well"].tolist()
    np.testing.assert_allclose(found[features], ours[features], rtol=1e-4, atol=1e-5)
