"""Profile tables of all origins give the same result; identifying columns are never features."""

import gzip

import numpy as np
import pandas as pd
import pytest

from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling import Protocol, evaluate, feature_columns, tables


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
def test_numeric_columns_that_identify_rows_are_left_out(name):
    table = plain().assign(**{name: np.arange(12.0)})
    assert name in feature_columns.split_columns(table).left_out


@pytest.mark.parametrize("key", ["compound", "moa", "plate"])
def test_columns_that_encode_metadata_are_left_out(key):
    table = plain(24)
    table["plate"] = [f"Week{1 + i % 5}_9" for i in range(24)]
    table["moa"] = "m" + table["compound"].str[-1]
    codes = pd.factorize(table[key])[0] * 7 + 3.0
    found = feature_columns.split_columns(table.assign(z=codes, same=table["concentration"]))
    assert found.left_out["z"].startswith("stands one to one for the")
    assert found.left_out["same"] == "equals the concentration"
    assert found.features == ["Cells_A", "Nuclei_B", "x1", "x2"]


def test_cellprofiler_measurements_stay_and_numbers_and_places_of_objects_do_not():
    measured = ["Cells_AreaShape_EulerNumber", "Nuclei_Neighbors_NumberOfNeighbors_3"]
    measured += ["Nuclei_AreaShape_BoundingBoxArea", "Cells_Intensity_IntegratedIntensity_Target"]
    others = ["Cells_AreaShape_Center_X", "Nuclei_Number_Object_Number", "Cytoplasm_Parent_Cells"]
    others += ["Nuclei_Children_Cells_Count", "Cells_Neighbors_FirstClosestObjectNumber_3"]
    others += ["Nuclei_Location_MaxIntensity_X_DNA", "Mito_AreaShape_BoundingBoxMaximum_Y"]
    table = plain().assign(**dict.fromkeys([*measured, *others], 1.5))
    found = feature_columns.split_columns(table)
    assert set(measured) <= set(found.features)
    assert set(others) == set(found.left_out)


def test_with_embeddings_nothing_else_is_a_feature():
    found = feature_columns.split_columns(plain().assign(cellclr_0000=1.5, cellclr_0001=2.5))
    assert found.features == ["cellclr_0000", "cellclr_0001"]
    assert set(found.left_out) == {"Cells_A", "Nuclei_B", "x1", "x2"}


def test_columns_of_the_same_meaning_must_agree():
    table = plain()
    same = feature_columns.canonical_metadata(table.assign(Metadata_Well=table["well"]))
    assert list(same.columns).count("Metadata_Well") == 1
    with pytest.raises(BadData, match="well, Metadata_Well have the same meaning and differ"):
        feature_columns.canonical_metadata(table.assign(Metadata_Well="B02"))


def test_exact_names_stay_text_but_for_controls(tmp_path):
    table = plain().assign(plate="007_1", cellcount=9)
    table.loc[1, "compound"] = "NA"
    table.loc[0, "compound"] = "dmso"
    table.loc[2, "well"] = "b1"
    path = save(table, tmp_path / "t.csv")
    found = tables.read_profiles(path, exact_names=True)
    assert found.table["Metadata_CellCount"].tolist() == [9] * len(table)  # numbers, not text
    assert found.table["Metadata_Compound"].tolist()[:2] == ["DMSO", "NA"]
    assert found.table["Metadata_Plate"][0] == "007_1"
    assert found.table["Metadata_Well"].nunique() == 12
    assert found.notes == []
    with pytest.raises(BadData, match="well B01 of plate 007_1 is listed twice"):
        evaluate(tables.read_profiles(path))


def test_spellings_are_merged_and_missing_values_counted(tmp_path):
    table = plain(24).rename(columns={"plate": "Assay_Plate_Barcode"})
    path = save(table, tmp_path / "plain.csv")
    wanted = tables.read_profiles(path).table
    table.loc[3, ["compound", "moa"]] = ["dmso ", "Dmso"]
    table.loc[1, ["compound", "moa"]] = ["C1", "M1"]
    table.loc[0, "well"], table.loc[1, "well"] = "b-0", "r02c01"
    table["concentration"] = table["concentration"].astype(object).mask(table["moa"] == "DMSO", "-")
    found = tables.read_profiles(save(table, tmp_path / "t.csv"), control="dmso")
    assert found.control == "DMSO"
    pd.testing.assert_frame_equal(
        found.table.drop(columns="Metadata_Well"), wanted.drop(columns="Metadata_Well")
    )
    assert [note.split(":")[0] for note in found.notes] == ["compound", "moa"]
    table.loc[[1, 4], "concentration"] = ["n/a", "NaN"]
    table.loc[5, "moa"], table.loc[7, "compound"] = "unknown", "none"
    found = tables.read_profiles(save(table, tmp_path / "t.csv"))
    assert np.flatnonzero(found.table["Metadata_Concentration"].isna()).tolist() == [1, 4]
    assert "concentration: missing in 2 of 24 rows" in found.notes
    assert "compound: missing in 1 of 24 rows" in found.notes
    assert any(note.startswith("moa: 1 of 24 values mean 'missing'") for note in found.notes)
    evaluation = evaluate(found, Protocol(corrections=("none",)))
    assert len(evaluation.wells) == 22
    # Those of a compound are one treatment.
    assert evaluation.treatments["Metadata_Concentration"].isna().sum() == 2


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


def test_metadata_comes_from_image_and_moa_tables(tmp_path):
    table = plain()
    table["moa"] = table["compound"].map(lambda c: f"m{c}")
    paths = write_metadata(tmp_path, table)
    bare = save(table.drop(columns=["compound", "concentration", "moa"]), tmp_path / "t.csv")
    full = save(table, tmp_path / "full.csv")
    wanted = tables.read_profiles(full).table
    found = tables.read_profiles(bare, **paths).table.drop(columns="Metadata_Replicate")
    pd.testing.assert_frame_equal(found, wanted)
    contradicting = save(table.assign(compound="c9"), tmp_path / "other.csv")
    with pytest.raises(BadData, match="row 1: Metadata_Compound is 'c9', but 'DMSO'"):
        tables.read_profiles(contradicting, **paths)
    unknown = save(table.drop(columns=["compound", "moa"]).assign(well="Z9"), tmp_path / "z.csv")
    with pytest.raises(BadData, match="well 'Z9' of plate 'Week1_9' is not in"):
        tables.read_profiles(unknown, **paths)


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
        ({"plate": ["", *["p"] * 11]}, "row 1: the plate is empty"),
        ({"well": ["B02", "NA", *["c"] * 10]}, "row 2: the well is empty"),
        ({"x2": np.arange(12.0), "X2": np.arange(12.0)}, "features 'x2' and 'X2' are the same"),
        ({"concentration": [0, -1, *[1] * 10]}, "row 2: concentration '-1'"),
        ({"concentration": [0, "a", *[1] * 10]}, "row 2: concentration 'a'"),
    ],
)
def test_invalid_values_are_errors_with_their_row(tmp_path, change, message):
    path = save(plain().assign(**change), tmp_path / "t.csv")
    with pytest.raises(BadData, match=f"t.csv: {message}"):
        tables.read_profiles(path)


def test_invalid_files_are_errors(tmp_path):
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
    with pytest.raises(BadData, match=f"two columns '{name}'"):
        tables.canonical_table(twice)
    twice.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(BadData, match=f"t.csv: there are two columns '{name}'"):
        tables.read_profiles(tmp_path / "t.csv")


@pytest.mark.parametrize("index", [["plate", "well"], ["Metadata_Plate"], ["moa", "concentration"]])
def test_metadata_in_the_index_is_found(tmp_path, index):
    table = plain().rename(
        columns=dict(zip(["plate"], index, strict=False)) if "_" in index[0] else {}
    )
    wanted = tables.canonical_table(table).table
    indexed = table.set_index(index)
    pd.testing.assert_frame_equal(tables.canonical_table(indexed).table, wanted)
    found = tables.read_profiles(save(indexed, tmp_path / "t.parquet")).table
    pd.testing.assert_frame_equal(found, wanted)


def test_wells_without_plates_are_unique(tmp_path):
    table = plain().drop(columns="plate")
    assert set(tables.canonical_table(table).table["Metadata_Plate"]) == {""}
    with pytest.raises(BadData, match="names no plates"):
        evaluate(table, Protocol(standardize="plates"))
    twice = pd.concat([table, table.assign(well=table["well"].str.lower())])
    message = "row 13: well 'B00' is repeated, and no column names plates: .*barcode"
    with pytest.raises(BadData, match=message):
        tables.canonical_table(twice)


def test_blank_rows_of_spreadsheets_are_ignored_and_other_separators_are_errors(tmp_path):
    path = save(plain(), tmp_path / "t.csv")
    wanted = tables.read_profiles(path).table
    header, *rows = path.read_text().splitlines()
    lines = [header + ",,", *[row + ",," for row in rows], "," * 10, "," * 10]
    path.write_text("\n".join(lines))
    pd.testing.assert_frame_equal(tables.read_profiles(path).table, wanted)
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        path.write_text("\n".join([header, *rows]).replace(",", separator))
        with pytest.raises(BadData, match=f"t.csv, line 1: .* separated by {name}"):
            tables.read_profiles(path)
