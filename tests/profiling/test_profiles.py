"""Profiles of wells and treatments equal plain loops."""

import numpy as np
import pandas as pd
import pytest

from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling import profiles

FEATURES = profiles.feature_names(3)


def cells(seed=0, count=200):
    """Cells in random order over 2 plates x 3 wells x 2 sites, unevenly."""
    rng = np.random.default_rng(seed)
    plate, well, site = (
        rng.integers(2, size=count),
        rng.integers(3, size=count),
        rng.integers(2, size=count),
    )
    table = pd.DataFrame(
        {
            "Metadata_Plate": [f"Week{p + 1}_9" for p in plate],
            "Metadata_Well": [f"B0{w + 2}" for w in well],
            "Metadata_Site": site + 1,
            "Metadata_Batch": [f"Week{p + 1}" for p in plate],
            "Metadata_Compound": [f"c{w}" for w in well],
            "Metadata_Concentration": 1.0 + well,
            "Metadata_MoA": [f"m{w}" for w in well],
        }
    )
    values = pd.DataFrame(rng.normal(size=(count, 3)), columns=FEATURES)
    return pd.concat([table, values], axis=1)


def naive_wells(table, through):
    found = {}
    for (plate, well), rows in table.groupby(["Metadata_Plate", "Metadata_Well"]):
        values = rows[FEATURES].to_numpy()
        if through == "site":
            sites = rows["Metadata_Site"].to_numpy()
            values = np.array([values[sites == s].mean(axis=0) for s in sorted(set(sites))])
        found[plate, well] = values.mean(axis=0), len(rows)
    return found


@pytest.mark.parametrize("through", profiles.AGGREGATES)
def test_wells_equal_the_naive_mean(through):
    table = cells()
    wells = profiles.aggregate_wells(table, through=through)
    naive = naive_wells(table, through)
    assert len(wells) == len(naive) == 6
    for row in wells.to_dict("records"):
        mean, count = naive[row["Metadata_Plate"], row["Metadata_Well"]]
        np.testing.assert_allclose([row[f] for f in FEATURES], mean, rtol=1e-12)
        assert row["Metadata_CellCount"] == count
    assert "Metadata_Site" not in wells


@pytest.mark.parametrize("through", profiles.AGGREGATES)
def test_streamed_sites_give_the_same_wells_as_all_cells_at_once(through):
    table = cells()
    keys = ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]
    sites = table.drop(columns=FEATURES).drop_duplicates(keys).reset_index(drop=True)
    position = {tuple(row): index for index, row in enumerate(sites[keys].to_numpy())}
    index = np.array([position[tuple(row)] for row in table[keys].to_numpy()])
    accumulator = profiles.WellAccumulator(sites, FEATURES)
    values = table[FEATURES].to_numpy()
    for start in range(0, len(table), 64):
        part = slice(start, start + 64)
        # A padded last minibatch: rows of nonsense under a negative index.
        padding = 64 - len(values[part])
        accumulator.add(
            np.concatenate([values[part], np.full((padding, 3), np.nan)]),
            np.concatenate([index[part], np.full(padding, -1)]),
        )
    found = profiles.aggregate_wells(accumulator.table(), through=through)
    wanted = profiles.aggregate_wells(table, through=through)
    pd.testing.assert_frame_equal(found, wanted, check_like=True)


def test_rows_without_cells_are_left_out_and_sums_are_float64():
    rows = pd.DataFrame({"Metadata_Plate": ["P", "P"], "Metadata_Well": ["B02", "B03"]})
    accumulator = profiles.WellAccumulator(rows, ["f_0"])
    for _ in range(3):
        accumulator.add(np.array([[16777216.0], [1.0]], np.float32), np.array([1, 1]))
    table = accumulator.table()
    assert table["Metadata_Well"].tolist() == ["B03"]
    assert table["f_0"][0] == 16777217 / 2
    assert table["Metadata_CellCount"][0] == 6


def test_means_without_cells_or_of_nan_are_errors():
    rows = pd.DataFrame({"Metadata_Plate": ["P"], "Metadata_Well": ["B02"]})
    accumulator = profiles.WellAccumulator(rows, ["f_0"])
    with pytest.raises(BadData, match="no cells"):
        accumulator.table()
    accumulator.add(np.array([[np.nan]]), np.zeros(1, int))
    with pytest.raises(BadData, match="plate P, well B02"):
        accumulator.table()


@pytest.mark.parametrize("statistic", profiles.STATISTICS)
def test_treatments_equal_the_naive_statistic(statistic):
    rng = np.random.default_rng(1)
    wells = profiles.aggregate_wells(cells())
    wells = pd.concat([wells] * 3, ignore_index=True)
    wells[FEATURES] = rng.normal(size=(len(wells), 3))
    found = profiles.treatment_profiles(wells, statistic=statistic)
    assert found["Metadata_Compound"].tolist() == ["c0", "c1", "c2"]
    for row in found.to_dict("records"):
        mine = wells[wells["Metadata_Compound"] == row["Metadata_Compound"]]
        ordered = np.sort(mine[FEATURES].to_numpy(), axis=0)
        wanted = ordered.mean(axis=0) if statistic == "mean" else (ordered[2] + ordered[3]) / 2
        np.testing.assert_allclose([row[f] for f in FEATURES], wanted)
        assert row["Metadata_Batch"] == "Week1|Week2"
        assert row["Metadata_WellCount"] == 6
        assert row["Metadata_CellCount"] == mine["Metadata_CellCount"].sum()
    with pytest.raises(BadUse, match="median, mean"):
        profiles.treatment_profiles(wells, statistic="mode")


def test_doses_that_differ_by_rounding_are_one_treatment_and_two_moas_an_error():
    wells = profiles.aggregate_wells(cells())
    wells["Metadata_Concentration"] *= np.where(wells["Metadata_Batch"] == "Week1", 1, 1 + 1e-8)
    assert len(profiles.treatment_profiles(wells)) == 3
    wells.loc[0, "Metadata_MoA"] = "other"
    with pytest.raises(BadData, match="'c0' at 1 µM has two MoAs, 'other' and 'm0'"):
        profiles.treatment_profiles(wells)


def test_the_first_batch_is_week2_before_week10():
    wells = profiles.aggregate_wells(cells())
    wells["Metadata_Batch"] = wells["Metadata_Batch"].map({"Week1": "Week10", "Week2": "Week2"})
    kept = wells[profiles.in_first_batch(wells)]
    assert len(kept) == 3
    assert set(kept["Metadata_Batch"]) == {"Week2"}


@pytest.mark.parametrize("column", ["Compound", "Concentration", "MoA", "Batch"])
def test_a_well_with_two_values_is_an_error_with_both(column):
    table = cells()
    profiles.check_wells(table)
    name, other = f"Metadata_{column}", 7.5 if column == "Concentration" else "other"
    plate, well = table.loc[5, ["Metadata_Plate", "Metadata_Well"]]
    value = table[name].tolist()[5]
    table.loc[5, name] = other
    with pytest.raises(BadData) as error:
        profiles.check_wells(table)
    words = (f"plate {plate}, well {well} has", name, repr(value), repr(other))
    assert all(word in str(error.value) for word in words)
    assert "site" not in str(error.value)


def test_sites_without_cells_and_wells_without_names():
    table = cells()
    empty = table.iloc[[0]].assign(Metadata_Site="empty", Metadata_CellCount=0)
    counted = pd.concat([table.assign(Metadata_CellCount=1), empty], ignore_index=True)
    for through in ("well", "site"):
        wanted = profiles.aggregate_wells(table.assign(Metadata_CellCount=1), through=through)
        found = profiles.aggregate_wells(counted, through=through)
        pd.testing.assert_frame_equal(found, wanted)
    nameless = table.assign(Metadata_Plate=table["Metadata_Plate"].where(table.index != 3))
    with pytest.raises(BadData, match="row 4: Metadata_Plate is missing"):
        profiles.aggregate_wells(nameless)


def test_treatments_of_no_known_batch_or_concentration():
    wells = profiles.aggregate_wells(cells())
    unknown = profiles.treatment_profiles(wells.assign(Metadata_Batch=np.nan))
    assert set(unknown["Metadata_Batch"]) == {""}
    doses = wells["Metadata_Concentration"].where(wells["Metadata_Batch"] == "Week1")
    found = profiles.treatment_profiles(wells.assign(Metadata_Concentration=doses))
    assert found["Metadata_WellCount"].tolist() == [1] * 6
    assert found["Metadata_Concentration"].isna().tolist() == [False, True] * 3
    with pytest.raises(BadData, match="row 1 has no compound"):
        profiles.treatment_profiles(wells.assign(Metadata_Compound=np.nan))
