"""Profile tables of any origin read alike, and what is no feature never becomes one."""

import gzip

import numpy as np
import pandas as pd
import pytest

from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling import feature_columns, tables


def plain(count=12):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "plate": [f"Week{1 + i % 2}_9" for i in range(count)],
            "well": [f"B{i:02d}" for i in range(count)],
            "compound": ["DMSO" if i % 3 == 0 else f"c{i % 4}" for i in range(count)],
            "concentration": [0.0 if i % 3 == 0 else 0.3 for i in range(count)],
            "moa": ["DMSO" if i % 3 == 0 else f"m{i % 2}" for i in range(count)],
        }
    )
    features = pd.DataFrame(
        rng.normal(size=(count, 4)), columns=["Cells_A", "Nuclei_B", "x1", "x2"]
    )
    return pd.concat([table, features], axis=1)


def save(table, path):
    table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("style", ["{}", "Metadata_{}", "Image_Metadata_{}", "METADATA_{}"])
def test_every_format_and_style_of_names_reads_alike(tmp_path, suffix, style):
    table = plain()
    names = ["plate", "well", "compound", "concentration", "moa"]
    path = save(table.rename(columns={n: style.format(n) for n in names}), tmp_path / f"t{suffix}")
    found = tables.read_profiles(path)
    assert found.features == ["Cells_A", "Nuclei_B", "x1", "x2"]
    assert list(found.table.columns[:6]) == [
        f"Metadata_{n}" for n in ("Plate", "Well", "Batch", "Compound", "Concentration", "MoA")
    ]
    assert found.table["Metadata_Batch"].tolist()[:2] == ["Week1", "Week2"]
    np.testing.assert_allclose(found.table["x1"], table["x1"], rtol=1e-14)
    assert found.left_out == {}


@pytest.mark.parametrize(
    "name",
    ["compound_id", "ImageNumber", "TableNumber", "Unnamed: 0", "cell count 2", "dose_uM", "row",
     "Location_Center_X", "MoA_label", "Image_Count_Nuclei", "plate_index"],
)  # fmt: skip
def test_numeric_columns_that_say_which_row_it_is_are_left_out(name):
    table = plain().assign(**{name: np.arange(12.0)})
    assert name in feature_columns.split_columns(table).left_out


@pytest.mark.parametrize("key", ["compound", "moa", "plate"])
def test_codes_are_caught_whatever_their_name(key):
    table = plain(24)
    table["plate"] = [f"Week{1 + i % 5}_9" for i in range(24)]
    table["moa"] = "m" + table["compound"].str[-1]
    codes = pd.factorize(table[key])[0] * 7 + 3.0
    found = feature_columns.split_columns(table.assign(z=codes, same=table["concentration"]))
    assert found.left_out["z"].startswith("stands one to one for the")
    assert found.left_out["same"] == "equals the concentration"
    assert found.features == ["Cells_A", "Nuclei_B", "x1", "x2"]


def test_cellprofiler_measurements_stay_whatever_their_name_says():
    names = ["Cells_AreaShape_Center_X", "Nuclei_Number_Object_Number", "Cytoplasm_Parent_Cells"]
    table = plain().assign(**dict.fromkeys(names, 1.5))
    assert set(names) <= set(feature_columns.split_columns(table).features)


def test_beside_own_embeddings_nothing_else_is_a_feature():
    found = feature_columns.split_columns(plain().assign(cellclr_0000=1.5, cellclr_0001=2.5))
    assert found.features == ["cellclr_0000", "cellclr_0001"]
    assert set(found.left_out) == {"Cells_A", "Nuclei_B", "x1", "x2"}


def test_two_names_for_one_thing_must_agree():
    table = plain()
    same = feature_columns.canonical_metadata(table.assign(Metadata_Well=table["well"]))
    assert list(same.columns).count("Metadata_Well") == 1
    with pytest.raises(BadData, match="well, Metadata_Well mean the same and differ"):
        feature_columns.canonical_metadata(table.assign(Metadata_Well="B02"))


def test_names_that_pandas_would_take_for_missing_stay_text(tmp_path):
    table = plain().assign(plate="007_1", cellcount=9)
    table.loc[1, "compound"] = "NA"
    found = tables.read_profiles(save(table, tmp_path / "t.csv")).table
    assert found["Metadata_CellCount"].tolist() == [9] * len(table)  # numbers, not text
    assert found["Metadata_Compound"][1] == "NA"
    assert found["Metadata_Plate"][0] == "007_1"


def test_controls_are_one_compound_however_they_are_written(tmp_path):
    table = plain()
    table.loc[0, "compound"] = "dmso"
    table["concentration"] = table["concentration"].astype(object).mask(table["moa"] == "DMSO", "")
    found = tables.read_profiles(save(table, tmp_path / "t.csv")).table
    assert (found["Metadata_Compound"] == "DMSO").sum() == 4
    assert found["Metadata_Concentration"][0] == 0


def write_metadata(folder, table):
    header = ",".join(
        [f"Image_{part}Name_{c}" for c in ("DAPI", "Tubulin", "Actin") for part in ("File", "Path")]
    )
    lines = [
        f"{r.well}_s1_w1.tif,d,b.tif,d,c.tif,d,{r.plate},{r.well},{r.compound},{r.concentration}"
        for r in table.itertuples()
    ]
    named = "Image_Metadata_Plate_DAPI,Image_Metadata_Well_DAPI"
    named += ",Image_Metadata_Compound,Image_Metadata_Concentration"
    (folder / "image.csv").write_text("\n".join([f"{header},{named}", *lines]))
    moas = table.drop_duplicates(["compound", "concentration"])
    moas[["compound", "concentration", "moa"]].to_csv(folder / "moa.csv", index=False)
    return {"image_csv": folder / "image.csv", "moa_csv": folder / "moa.csv"}


def test_metadata_comes_from_the_tables_beside_it(tmp_path):
    table = plain()
    table["moa"] = table["compound"].map(lambda c: f"m{c}")
    beside = write_metadata(tmp_path, table)
    bare = save(table.drop(columns=["compound", "concentration", "moa"]), tmp_path / "t.csv")
    full = save(table, tmp_path / "full.csv")
    wanted = tables.read_profiles(full).table
    found = tables.read_profiles(bare, **beside).table.drop(columns="Metadata_Replicate")
    pd.testing.assert_frame_equal(found, wanted)
    contradicting = save(table.assign(compound="c9"), tmp_path / "other.csv")
    with pytest.raises(BadData, match="row 1: Metadata_Compound is 'c9' here and 'DMSO'"):
        tables.read_profiles(contradicting, **beside)
    unknown = save(table.drop(columns=["compound", "moa"]).assign(well="Z9"), tmp_path / "z.csv")
    with pytest.raises(BadData, match="well 'Z9' of plate 'Week1_9' is not in"):
        tables.read_profiles(unknown, **beside)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x1": [np.nan, *range(11)]},
            "feature 'x1' is missing or not finite in row 1 .*; 1 such values",
        ),
        ({"Cells_A": [np.inf] * 12}, "feature 'Cells_A' is missing or not finite in row 1"),
        ({"Cells_A": ["1"] * 11 + ["x"]}, "feature 'Cells_A': row 12 holds 'x', not a number"),
        ({"x1": ["1.5"] * 11 + ["#REF"]}, "feature 'x1': row 12 holds '#REF', not a number"),
        ({"compound": ["", *["c"] * 11]}, "row 1: the compound is empty"),
        ({"concentration": [0, -1, *[1] * 10]}, "row 2: concentration '-1'"),
        ({"concentration": [0, "a", *[1] * 10]}, "row 2: concentration 'a'"),
    ],
)
def test_cells_that_cannot_be_used_are_named(tmp_path, change, message):
    path = save(plain().assign(**change), tmp_path / "t.csv")
    with pytest.raises(BadData, match=f"t.csv: {message}"):
        tables.read_profiles(path)


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(BadUse, match="no such file"):
        tables.read_profiles(tmp_path / "t.csv")
    (tmp_path / "t.xlsx").write_text("")
    with pytest.raises(BadUse, match=r"\.csv, \.csv\.gz, \.parquet"):
        tables.read_profiles(tmp_path / "t.xlsx")
    whole = save(plain(200), tmp_path / "t.csv.gz").read_bytes()
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.csv.gz").write_text("no gzip")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "latin.csv").write_bytes("plate,µ\n1,é".encode("latin-1"))
    (tmp_path / "bad.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2")[:-9] + b"\0" * 9)
    for name in (
        "cut.csv.gz",
        "text.csv.gz",
        "empty.csv",
        "cut.parquet",
        "latin.csv",
        "bad.csv.gz",
    ):
        with pytest.raises(BadData, match=f"{name}: cannot be read"):
            tables.read_profiles(tmp_path / name)
    with pytest.raises(BadData, match="no column 'moa'"):
        tables.read_profiles(save(plain().drop(columns="moa"), tmp_path / "t.csv"))
    with pytest.raises(BadData, match="no column 'compound'"):
        tables.read_profiles(save(plain().drop(columns="compound"), tmp_path / "t.csv"))
    with pytest.raises(BadData, match="the table has no rows"):
        tables.read_profiles(save(plain(0), tmp_path / "t.csv"))
    with pytest.raises(BadData, match="no feature columns"):
        tables.read_profiles(save(plain().iloc[:, :5], tmp_path / "t.csv"))


def test_missing_values_of_any_type_and_repeated_features_are_named(tmp_path):
    table = plain()
    name = "Nuclei_B"
    missing = table.assign(**{name: table[name].astype("Float64").mask(table.index == 1)})
    missing.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(BadData, match=f"feature '{name}' is missing or not finite in row 2 "):
        tables.read_profiles(tmp_path / "t.parquet")
    twice = pd.concat([table, table[[name]]], axis=1)
    with pytest.raises(BadData, match=f"feature '{name}' is there twice"):
        tables.canonical_table(twice)
