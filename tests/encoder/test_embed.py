"""Embedding a dataset: every cell once, in order; resumed equals uninterrupted."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from etils import epath
from support.tiny_dataset import CELLS, metadata, name_channels, random_images, write_dataset
from support.tiny_run import get_config
from support.two_processes import finish, start_two

from cellclr_jax import devices
from cellclr_jax.encoder import embed_dataset
from cellclr_jax.encoder.apply import restore
from cellclr_jax.encoder.embed_dataset import (
    Parts,
    cell_metadata,
    choose_dataset,
    embed_run,
    wells_of,
)
from cellclr_jax.encoder.load import make_cell_encoder
from cellclr_jax.encoder.preprocessing import preprocess
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import locked
from cellclr_jax.profiling.evaluation import evaluate
from cellclr_jax.profiling.protocol import Protocol
from cellclr_jax.profiling.tables import read_profiles
from cellclr_jax.run_folder import describe_dataset, write_config
from cellclr_jax.training.checkpoints import Checkpoints

ROOT = Path(__file__).parents[2]
CHUNK = 20
PARTS = [f"part-{number:05d}" for number in range(3)]


@pytest.fixture(scope="module")
def plates(tmp_path_factory):
    """A data folder with one dataset, which has plates, wells and compounds."""
    folder = tmp_path_factory.mktemp("plates")
    name_channels(write_dataset(folder, random_images(), columns=metadata()))
    return folder


@pytest.fixture(scope="module")
def workdir(plates, tmp_path_factory):
    """A run on it with weights other than the initial ones of its seed."""
    config = get_config()
    config.update(data_dir=str(plates), dataset="single_cells/all", image_size=8)
    folder = epath.Path(tmp_path_factory.mktemp("run"))
    write_config(config, folder)
    encoding = make_cell_encoder(config)
    weights = jax.jit(encoding.init_variables)(jax.random.key(config.seed + 1))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(7, dict(weights), describe_dataset(encoding.cells), validation_loss=1.0)
    return folder


@pytest.fixture(scope="module")
def embedded(workdir, plates, tmp_path_factory):
    """An uninterrupted embedding."""
    out = tmp_path_factory.mktemp("embedding") / "out"
    embed_run(workdir, out=out, data_dir=plates, chunk_cells=CHUNK)
    return out


def cells_of(out):
    """The cells of all parts."""
    parts = sorted((out / "cells").glob("*.parquet"))
    return pd.concat([pd.read_parquet(path) for path in parts], ignore_index=True)


def features_of(table):
    return [name for name in table if name.startswith("cellclr_")]


def contents(out):
    """Every file's bytes."""
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def test_every_cell_is_embedded_once_in_order_as_if_embedded_separately(embedded, workdir, plates):
    assert sorted(path.stem for path in (embedded / "cells").iterdir()) == PARTS
    lengths = [len(pd.read_parquet(embedded / "cells" / f"{part}.parquet")) for part in PARTS]
    assert lengths == [20, 20, 17]
    table = cells_of(embedded)
    assert table["Metadata_CellId"].tolist() == [f"cell {i}" for i in range(CELLS)]
    assert table["Metadata_Compound"].tolist() == metadata()["compound"].tolist()
    assert table["Metadata_Label"].tolist() == ["bright" if i % 2 else "" for i in range(CELLS)]
    assert "Metadata_X" not in table  # positions are unknown
    features = features_of(table)
    assert set(table.dtypes[features]) == {np.dtype(np.float32)}
    assert list(table)[-len(features) :] == features == [f"cellclr_{i:04d}" for i in range(8)]
    config = get_config()
    config.update(json.loads((workdir / "config.json").read_text()))
    encoding = make_cell_encoder(config)

    _, variables, _ = restore(epath.Path(workdir), "last", encoding, devices.make_mesh())
    trained = jax.device_get(variables["trained"])

    @jax.jit
    def embed_one(cell):
        image = preprocess(cell, encoding.preprocessing)
        return encoding.model.apply(trained, image, method="embed", mutable=[])[0][0]

    for row in (0, 19, 20, 41, CELLS - 1):
        single = embed_one(encoding.cells.read(np.array([row])))
        np.testing.assert_allclose(table[features].loc[row], single, rtol=1e-4, atol=1e-5)


def test_wells_are_means_of_cells_and_treatments_medians_of_wells(embedded):
    cells, wells = cells_of(embedded), pd.read_parquet(embedded / "wells.parquet")
    treatments = pd.read_parquet(embedded / "treatments.parquet")
    features = features_of(cells)
    assert len(wells) == 8
    assert wells["Metadata_CellCount"].sum() == CELLS - 1  # one is in no well
    for _, well in wells.iterrows():
        rows = cells[
            (cells["Metadata_Plate"] == well["Metadata_Plate"])
            & (cells["Metadata_Well"] == well["Metadata_Well"])
        ]
        assert well["Metadata_CellCount"] == len(rows)
        assert {well["Metadata_Compound"]} == set(rows["Metadata_Compound"])
        mean = np.zeros(len(features))
        for _, row in rows.iterrows():
            mean += row[features].to_numpy(np.float64) / len(rows)
        np.testing.assert_allclose(well[features].to_numpy(np.float64), mean, rtol=1e-12)
    assert treatments["Metadata_Compound"].tolist() == ["007", "DMSO", "NA", "a", "b", "c", "d"]
    for _, treatment in treatments.iterrows():
        rows = wells[wells["Metadata_Compound"] == treatment["Metadata_Compound"]]
        median = [np.median(rows[name]) for name in features]
        np.testing.assert_allclose(treatment[features].to_numpy(np.float64), median, rtol=1e-12)
    assert evaluate(read_profiles(embedded / "wells.parquet").table, Protocol())


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(
    embedded, workdir, plates, tmp_path, monkeypatch, capsys
):
    """Stops when the second part is written to a temporary file, which a killed process leaves."""
    out, replace = tmp_path / "out", Path.replace

    def kill(path, target):
        if "part-00001" in target.name:
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        patch.setattr(Path, "unlink", lambda *args, **kwargs: None)
        with pytest.raises(KeyboardInterrupt):
            embed_run(workdir, out=out, data_dir=plates, chunk_cells=CHUNK)
    left = sorted(path.name for path in (out / "cells").iterdir())
    assert left[1:] == ["part-00000.parquet"]
    assert left[0].startswith(".part-00001.parquet.")
    first = (out / "cells" / "part-00000.parquet").stat().st_mtime_ns
    assert json.loads((out / "embedding.json").read_text())["finished"] is False
    embed_run(workdir, out=out, data_dir=plates, chunk_cells=CHUNK)
    assert "1 of 3 parts exist" in capsys.readouterr().err
    assert (out / "cells" / "part-00000.parquet").stat().st_mtime_ns == first
    assert contents(out) == contents(embedded)


def test_a_damaged_part_is_named(embedded, workdir, plates, tmp_path):
    out = shutil.copytree(embedded, tmp_path / "out")
    (out / "wells.parquet").unlink()
    cut = out / "cells" / "part-00001.parquet"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(BadData, match=r"part-00001\.parquet: cannot be read .*; remove it and run"):
        embed_run(workdir, out=out, data_dir=plates, chunk_cells=CHUNK)


def test_other_settings_are_refused_and_named(embedded, workdir, plates, tmp_path):
    out = shutil.copytree(embedded, tmp_path / "out")
    before = contents(out)
    for settings, words in (
        ({"chunk_cells": 30}, "chunk_cells: was 20, now 30"),
        ({"formats": ["csv"]}, r"formats: was \['parquet'\], now \['csv', 'parquet'\]"),
    ):
        with pytest.raises(BadUse, match=f"{words}.*: take another --out, or --overwrite"):
            embed_run(workdir, out=out, data_dir=plates, **{"chunk_cells": CHUNK, **settings})
    other = shutil.copytree(workdir, tmp_path / "run")
    config = json.loads((other / "config.json").read_text())
    config["normalization"] |= {"method": "fixed", "low": [0.0] * 3, "high": [9.0] * 3}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadUse, match=r"normalization\.method: was 'zscore', now 'fixed'"):
        embed_run(other, out=out, data_dir=plates, chunk_cells=CHUNK)
    relabelled = shutil.copytree(plates, tmp_path / "data")
    table = next(relabelled.rglob("cells.parquet"))
    pd.read_parquet(table).assign(label="x").to_parquet(table)
    with pytest.raises(BadUse, match="metadata: "):
        embed_run(workdir, out=out, data_dir=relabelled, chunk_cells=CHUNK)
    assert contents(out) == before


def test_an_embedding_with_other_settings_is_overwritten_on_request(
    embedded, workdir, plates, tmp_path
):
    out = shutil.copytree(embedded, tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    record = json.loads((out / "embedding.json").read_text())
    for old in ({"files": []}, {"settings": {"step": 7}}, {**record, "settings": "none"}):
        (out / "embedding.json").write_text(json.dumps(old))
        with pytest.raises(BadUse, match=r"of another version of this program.*or --overwrite"):
            embed_run(workdir, out=out, data_dir=plates)
    again = {"out": out, "data_dir": plates, "formats": ["csv"], "chunk_cells": 40}
    embed_run(workdir, **again, overwrite=True)
    assert sorted(path.name for path in (out / "cells").iterdir()) == [
        f"part-{number:05d}.{kind}" for number in range(2) for kind in ("csv", "parquet")
    ]
    pd.testing.assert_frame_equal(cells_of(out), cells_of(embedded), rtol=1e-4, atol=1e-5)
    assert (out / "notes.txt").read_text() == "mine"
    # Missing files of a finished embedding are written again.
    before = contents(out)
    for name in ("cells/part-00001.csv", "cells/part-00000.parquet", "wells.csv"):
        (out / name).unlink()
    embed_run(workdir, **again)
    assert contents(out) == before


def test_a_folder_in_use_or_with_other_files_is_refused(workdir, plates, tmp_path):
    with (
        locked(tmp_path / "out", ".embedding", "embedding into it"),
        pytest.raises(BadUse, match="another process is embedding into it"),
    ):
        embed_run(workdir, out=tmp_path / "out", data_dir=plates)
    (tmp_path / "out" / "wells.csv").write_text("mine")
    with pytest.raises(BadUse, match=r"wells\.csv exists, but no embedding\.json"):
        embed_run(workdir, out=tmp_path / "out", data_dir=plates, overwrite=True)
    (tmp_path / "out" / "wells.csv").unlink()
    (tmp_path / "out" / "embedding.json").write_text("{")
    with pytest.raises(BadData, match="not a readable record of an embedding"):
        embed_run(workdir, out=tmp_path / "out", data_dir=plates)


def test_every_format_holds_the_same(embedded, workdir, plates, tmp_path):
    anndata = pytest.importorskip("anndata")
    formats = ("csv", "h5ad")
    embed_run(workdir, out=tmp_path, data_dir=plates, chunk_cells=CHUNK, formats=formats)
    for name in (*(f"cells/{part}" for part in PARTS), "wells", "treatments"):
        table = pd.read_parquet(embedded / f"{name}.parquet")
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / f"{name}.parquet"), table)
        features = features_of(table)
        found = anndata.read_h5ad(tmp_path / f"{name}.h5ad")
        np.testing.assert_array_equal(found.X, table[features])
        csv = pd.read_csv(tmp_path / f"{name}.csv")
        np.testing.assert_allclose(csv[features], table[features], rtol=1e-6)


def test_cells_of_another_dataset_have_no_wells_and_differences_are_noted(
    workdir, plates, tmp_path, capsys
):
    images = np.repeat(np.repeat(random_images(np.uint8, seed=1), 2, axis=1), 2, axis=2)
    name_channels(write_dataset(tmp_path, images, name="own/few"))
    embed_run(workdir, out=tmp_path / "out", data_dir=tmp_path)
    printed = capsys.readouterr().err
    assert "not the dataset that the run was trained on" in printed
    assert "crops of 24 pixels are resized to the encoder's 8" in printed
    assert "dtype: was 'uint16', now 'uint8'; side: was 12, now 24" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        ".embedding", "cells", "embedding.json"
    }  # fmt: skip
    table = cells_of(tmp_path / "out")
    assert [name for name in table if name.startswith("Metadata_")] == ["Metadata_CellId"]
    assert len(table) == CELLS
    record = json.loads((tmp_path / "out" / "embedding.json").read_text())
    assert record["counts"] == {"cells": CELLS}
    name_channels(next(tmp_path.rglob("own/few/1.0.0")), ("dna", "actin", "tubulin"))
    with pytest.raises(BadUse, match="channels dna, tubulin, actin"):
        embed_run(workdir, out=tmp_path / "other", data_dir=tmp_path)


def test_the_dataset_is_the_named_the_runs_or_the_only_one(tmp_path):
    with pytest.raises(BadUse, match="Build it from"):
        choose_dataset(tmp_path, "all", None)
    write_dataset(tmp_path, random_images(), name="b/one")
    assert choose_dataset(tmp_path, "all", None) == "b/one"
    write_dataset(tmp_path, random_images(), name="b/two")
    with pytest.raises(BadUse, match=r"--dataset one of b/one, b/two"):
        choose_dataset(tmp_path, "all", None)
    assert choose_dataset(tmp_path, "b/two", None) == "b/two"
    assert choose_dataset(tmp_path, "b/two", "b/one") == "b/one"


def test_an_embedding_that_is_not_finite_names_its_cell(tmp_path):
    table = cell_metadata(pd.DataFrame({"cell_id": list("abcde"), "x": np.nan, "y": np.nan}))
    parts = Parts(tmp_path, table, 3, ("parquet",))
    (tmp_path / "cells").mkdir()
    values = np.ones((5, 2), np.float32)
    values[4, 1] = np.inf
    parts.add(np.arange(2), {"trained": values[:2]})
    parts.add(np.arange(2, 3), {"trained": values[2:3]})
    assert parts.missing().tolist() == [False, True]
    with pytest.raises(BadData, match="cell 'e' holds NaN or an infinite value"):
        parts.add(np.arange(3, 5), {"trained": values[3:]})
    assert parts.missing().tolist() == [False, True]


def test_contradictions_are_reported_before_embedding(workdir, plates, tmp_path, monkeypatch):
    data_dir = shutil.copytree(plates, tmp_path / "data")
    path = next(data_dir.rglob("cells.parquet"))
    table = pd.read_parquet(path)
    table.loc[8, "compound"] = "other"
    table.to_parquet(path)
    monkeypatch.setattr("cellclr_jax.encoder.embed_dataset.visit", None)  # would be called
    with pytest.raises(BadData, match=r"plate Week1_1, well B00 .*'DMSO' and 'other'"):
        embed_run(workdir, out=tmp_path / "out", data_dir=data_dir)


def test_wells_need_no_compound_and_treatments_no_batch():
    cells = pd.DataFrame(metadata()).assign(cell_id=[f"c{i}" for i in range(CELLS)], x=1.0, y=2.0)
    bare = cell_metadata(cells[["cell_id", "plate", "well", "x", "y"]])
    assert list(bare)[-2:] == ["Metadata_X", "Metadata_Y"]
    wells, index = wells_of(bare)
    assert list(wells) == ["Metadata_Plate", "Metadata_Well", "Metadata_CellCount"]
    assert (index == -1).tolist() == [i == 3 for i in range(CELLS)]
    assert embed_dataset.treatments_of(wells, []) is None
    wells, _ = wells_of(cell_metadata(cells.drop(columns=["batch", "moa", "concentration"])))
    treatments = embed_dataset.treatments_of(wells, [])
    assert treatments["Metadata_Concentration"].isna().tolist() == [True] * 7
    assert wells_of(cell_metadata(cells[["cell_id", "x", "y"]])) is None
    assert wells_of(cell_metadata(cells.assign(well=None))) is None


@pytest.mark.slow
def test_two_processes_write_the_same_as_one(embedded, workdir, plates, tmp_path):
    out = tmp_path / "out"
    flags = [f"--workdir={workdir}", f"--data_dir={plates}", f"--chunk_cells={CHUNK}"]
    finish(start_two("-m", "cellclr_jax.embed", *flags, f"--out={out}"))
    for name in (*(f"cells/{part}" for part in PARTS), "wells", "treatments"):
        two, one = (pd.read_parquet(folder / f"{name}.parquet") for folder in (out, embedded))
        pd.testing.assert_frame_equal(two, one, rtol=1e-4, atol=1e-5)


def test_wrong_arguments_are_named(workdir, tmp_path):
    failed = subprocess.run(
        [sys.executable, "-m", "cellclr_jax.embed", f"--workdir={workdir}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert failed.returncode == 2, failed.stderr
    assert "--out=DIR was expected" in failed.stderr
    assert failed.stderr.count("\n") == 1
    for settings, words in (
        ({"out": tmp_path, "formats": ["xls"]}, "parquet, csv, h5ad"),
        ({"out": "gs://bucket/x"}, "no folder of this machine"),
        ({"out": tmp_path / "o", "step": "7777"}, "there are"),
    ):
        with pytest.raises(BadUse, match=words):
            embed_run(workdir, **settings)


@pytest.mark.parametrize("binary", ["embed", "eval", "convert"])
def test_help_loads_no_heavy_libraries(binary):
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['{binary}', '--help']\n"
        f"try:\n    runpy.run_module('cellclr_jax.{binary}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "heavy = {'jax', 'numpy', 'pandas', 'flax', 'torch', 'sklearn', 'matplotlib'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--workdir" in done.stdout
    assert "heavy: []" in done.stdout
