"""Tables for other programs: all values and names can be read back."""

import importlib.util

import numpy as np
import pandas as pd
import pytest

from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling import exports
from cellclr_jax.profiling.exports import write_table

# Some program mistakes each for something else: a missing value, a number, markup, a separator.
ODD = ["NA", "007", "<x>", "a,b", 'a "x"', "Ω-µM/é", "two\nlines", "nan", "1e5", "TRUE", "None"]
HARD = [0.1, 1 / 3, 1e-300, -1.7976931348623157e308, 5e-324, 123456789.12345679, 0.0, -0.0]


def wells(count=24, dtype=np.float64, seed=0):
    """Wells of compounds of odd names; features of all magnitudes, before the metadata."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, 3)) * 10.0 ** rng.integers(-30, 30, (count, 3))
    if dtype == np.float64:
        values[: len(HARD), 0] = HARD[:count]
    features = pd.DataFrame(values.astype(dtype), columns=[f"cellclr_{i:04d}" for i in range(3)])
    metadata = {
        "Metadata_Plate": [f"{i % 2:03d}" for i in range(count)],
        "Metadata_Well": [f"B{i:02d}" for i in range(count)],
        "Metadata_Batch": "Week1",
        "Metadata_Compound": [ODD[i % len(ODD)] for i in range(count)],
        "Metadata_Concentration": rng.normal(size=count) ** 2,
        "Metadata_MoA": [None if i % 3 else ODD[i % len(ODD)] for i in range(count)],
        "Metadata_CellCount": rng.integers(1, 99, count),
    }
    return pd.concat([features, pd.DataFrame(metadata)], axis=1)


def in_order(table):
    """Moves metadata to the front, in the order of written tables."""
    return table[sorted(table, key=lambda name: not name.startswith("Metadata_"))]


PANDAS_2 = pd.__version__.startswith("2.")
# Later versions read exactly by default.
EXACT = {"float_precision": "round_trip"} if PANDAS_2 else {}


@pytest.fixture(params=["object", "str"] if PANDAS_2 else ["str"])
def text_type(request):
    """Text as pandas 2 and as pandas 3 hold it."""
    if not PANDAS_2:
        yield
        return
    with pd.option_context("future.infer_string", request.param == "str"):
        yield


@pytest.mark.usefixtures("text_type")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parquet_gives_back_every_value_and_type(tmp_path, dtype):
    table = wells(dtype=dtype)
    assert write_table(table, tmp_path / "a.b") == [tmp_path / "a.b.parquet"]
    found = pd.read_parquet(tmp_path / "a.b.parquet")
    pd.testing.assert_frame_equal(found, in_order(table), check_exact=True)


@pytest.mark.usefixtures("text_type")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_csv_gives_back_every_number_to_the_bit(tmp_path, dtype):
    table = in_order(wells(dtype=dtype))
    (path,) = write_table(table, tmp_path / "wells", ["csv"])
    texts = {name: str for name in table if not pd.api.types.is_numeric_dtype(table[name])}
    found = pd.read_csv(path, dtype=texts, keep_default_na=False, **EXACT)
    assert list(found) == list(table)
    for name in table:
        if name in texts:
            assert found[name].tolist() == table[name].fillna("").tolist()
        else:
            np.testing.assert_array_equal(
                found[name].to_numpy(table[name].dtype).view(np.uint8),
                table[name].to_numpy().view(np.uint8),
            )


@pytest.mark.usefixtures("text_type")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_anndata_has_features_as_x_and_metadata_as_obs(tmp_path, dtype):
    anndata = pytest.importorskip("anndata")
    table = wells(dtype=dtype)
    (path,) = write_table(table, tmp_path / "wells", ["h5ad"])
    found = anndata.read_h5ad(path)
    assert found.X.dtype == dtype
    assert found.var_names.tolist() == ["cellclr_0000", "cellclr_0001", "cellclr_0002"]
    np.testing.assert_array_equal(found.X, table[found.var_names])
    assert found.obs["Metadata_Compound"].dtype == "category"
    assert found.obs["Metadata_Compound"].astype(str).tolist() == (
        table["Metadata_Compound"].tolist()
    )
    missing = table["Metadata_MoA"].isna().tolist()
    assert any(missing)
    assert found.obs["Metadata_MoA"].isna().tolist() == missing
    for name in ("Metadata_CellCount", "Metadata_Concentration"):
        assert found.obs[name].dtype == table[name].dtype
        np.testing.assert_array_equal(found.obs[name], table[name])
    assert found.obs_names.tolist() == [str(i) for i in range(len(table))]


def test_metadata_of_mixed_types_are_written_in_every_format(tmp_path):
    anndata = pytest.importorskip("anndata")
    table = wells(4).assign(
        Metadata_Mixed=[1, "a", None, 2.5],
        Metadata_Nothing=None,
        Metadata_Whole=pd.array([1, None, 3, 4], dtype="Int64"),
        Metadata_Bool=[True, False, True, True],
        Metadata_Day=pd.to_datetime(["2020-01-01"] * 4),
        Metadata_Kind=pd.Categorical(["b", "a", None, "b"]),
    )
    write_table(table, tmp_path / "t", ["csv", "h5ad", "parquet"])
    parquet = pd.read_parquet(tmp_path / "t.parquet")
    obs = anndata.read_h5ad(tmp_path / "t.h5ad").obs
    for found in (parquet, obs):
        assert found["Metadata_Mixed"].astype(object).where(
            found["Metadata_Mixed"].notna(), None
        ).tolist() == ["1", "a", None, "2.5"]
        assert found["Metadata_Nothing"].isna().all()
        assert found["Metadata_Whole"].tolist() == [1, pd.NA, 3, 4]
        assert found["Metadata_Bool"].tolist() == [True, False, True, True]
        assert found["Metadata_Kind"].tolist()[:2] == ["b", "a"]
    csv = pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False)
    assert csv["Metadata_Mixed"].tolist() == ["1", "a", "", "2.5"]
    assert table["Metadata_Mixed"].tolist() == [1, "a", None, 2.5]  # the input does not change


def test_unavailable_formats_are_errors_before_anything_is_written(tmp_path, monkeypatch):
    for formats in (["xls"], [], ["parquet", "CSV"]):
        with pytest.raises(BadUse, match="parquet, csv, h5ad"):
            write_table(wells(), tmp_path / "wells", formats)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        exports.util, "find_spec", lambda name: None if name == "anndata" else find(name)
    )
    with pytest.raises(BadUse, match=r"pip install 'cellclr_jax\[anndata\]'"):
        write_table(wells(), tmp_path / "wells", ["parquet", "h5ad"])
    assert list(tmp_path.iterdir()) == []


def test_repeated_and_text_columns_are_errors(tmp_path):
    table = wells()
    twice = pd.concat([table, table[["cellclr_0001"]]], axis=1)
    with pytest.raises(BadData, match="two columns 'cellclr_0001'"):
        write_table(twice, tmp_path / "wells")
    with pytest.raises(BadData, match="'note' is neither numeric"):
        write_table(table.assign(note="x"), tmp_path / "wells")
