"""DeepProfiler's exports: names, classes, tiles, and wrong input."""

import imagecodecs
import numpy as np
import pandas as pd
import pytest

from cellclr_jax.data.sources.deepprofiler import deepprofiler_fields
from cellclr_jax.data.sources.source import Request
from cellclr_jax.errors import BadData, BadUse

CHANNELS = ("DNA", "RNA", "ER", "AGP", "Mito")
WELLS = (("P2", "A01", "DMSO"), ("P1", "B02", "taxol"))
SIZE = 16
DEPTH = len(CHANNELS)


def crop(number):
    """[S, S, C] uint8, each cell and channel another."""
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (SIZE, SIZE, DEPTH)).astype(np.uint8)


def write_export(root, *, dtype=np.uint8, cells=3, wells=WELLS, name=None):
    """Writes cells as its `export-sc` names, unfolds and lists them."""
    classes = sorted({label for _, _, label in wells})
    rows = []
    for plate, well, label in wells:
        for number in range(cells):
            center = {
                "Nuclei_Location_Center_X": 40.5 + number,
                "Nuclei_Location_Center_Y": 30.25 * (number + 1),
            }
            target = classes.index(label)
            key = f"{plate}/{well}/3"
            x, y = center.values()
            image_name = f"{key}/{target}@{x}x{y}.png"
            if name is not None:
                image_name = name(plate, well, image_name)
            rows.append(
                {
                    **center,
                    "Key": key,
                    "Target": target,
                    "Class_Name": label,
                    "Image_Name": image_name,
                }
            )
            tiles = np.reshape(crop(len(rows)), (SIZE, -1), order="F").astype(dtype)
            (root / image_name).parent.mkdir(parents=True, exist_ok=True)
            (root / image_name).write_bytes(imagecodecs.png_encode(np.ascontiguousarray(tiles)))
    save(root, pd.DataFrame(rows))
    return root


def save(root, table):
    table.to_csv(root / "sc-metadata.csv", index=False)


def load(root):
    return pd.read_csv(root / "sc-metadata.csv")


@pytest.fixture
def export(tmp_path):
    return write_export(tmp_path / "export")


def test_an_export_is_read_as_it_was_written(export):
    source = deepprofiler_fields(Request((export,), channels=CHANNELS))
    assert source.columns == ("plate", "well", "site", "label")
    assert (source.channels, source.crop_size) == (CHANNELS, None)
    assert source.dtype == "uint8"
    assert source.tables == {"cell table": str(export / "sc-metadata.csv")}
    assert (source.problems, source.absent_plates, source.left_out) == ([], [], [])
    assert [(field.name, len(field.cells)) for field in source.fields] == [
        ("P1/B02/s3/taxol", 3),
        ("P2/A01/s3/DMSO", 3),
    ]
    first = source.fields[1]
    assert dict(first.metadata) == {"plate": "P2", "well": "A01", "site": 3, "label": "DMSO"}
    assert first.cells[0] == "P2/A01/3/0@40.5x30.25"
    # Row before column, as everywhere.
    assert first.centers == ((30.25, 40.5), (60.5, 41.5), (90.75, 42.5))
    for number in range(3):
        np.testing.assert_array_equal(first.read(number), crop(number + 1))


def test_columns_are_taken_before_names(export):
    table = load(export)
    table["Metadata_Plate"] = "X" + table["Key"].str[:2]
    table["Metadata_Well"] = "H12"
    table["Compound"] = table["Class_Name"]
    table["Metadata_Concentration"] = np.where(table["Class_Name"] == "taxol", 0.3, 0)
    table["moa"] = "some"
    save(export, table)
    source = deepprofiler_fields(Request((export,)))
    assert source.channels == tuple(f"channel_{number}" for number in range(1, 6))
    assert dict(source.fields[0].metadata) == {
        "plate": "XP1",
        "well": "H12",
        "site": 3,
        "compound": "taxol",
        "concentration": 0.3,
        "moa": "some",
        "label": "taxol",
    }


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        (lambda p, w, n: f"{p}-{w}-3@{n.split('@')[1]}", ("plate", "well", "site", "label")),
        (lambda p, w, n: f"set/{n}", ("plate", "well", "site", "label")),
        (lambda p, w, n: f"{p}{n.split('@')[1]}", ("label",)),
    ],
    ids=["flat", "deeper", "nothing"],
)
def test_places_are_read_from_names(tmp_path, name, columns):
    source = deepprofiler_fields(Request((write_export(tmp_path / "export", name=name),)))
    assert source.columns == columns
    if "plate" in columns:
        assert (source.fields[0].plate, source.fields[0].metadata["site"]) == ("P1", 3)


@pytest.mark.parametrize(
    ("drop", "add", "label"),
    [
        (["Class_Name"], {"Treatment": "t1"}, "t1"),
        (["Class_Name"], {}, "1"),
        (["Class_Name", "Target"], {}, None),
    ],
)
def test_the_class_may_have_another_column_name(export, drop, add, label):
    save(export, load(export).drop(columns=drop).assign(**add))
    source = deepprofiler_fields(Request((export,)))
    assert source.fields[0].metadata.get("label") == label


def test_the_number_of_tiles_has_to_be_the_declared_one(export):
    with pytest.raises(
        BadUse, match=r"have 5 channels \(a mask .* may be the last\), --channels=a,b names 2"
    ):
        deepprofiler_fields(Request((export,), channels=("a", "b")))


def test_a_cell_that_was_drawn_twice_counts_once(export):
    table = load(export)
    save(export, pd.concat([table, table.iloc[:2]]))
    source = deepprofiler_fields(Request((export,)))
    assert sum(len(field.cells) for field in source.fields) == 6
    assert source.problems == []
    save(export, pd.concat([table, table.iloc[:1].assign(Class_Name="taxol")]))
    with pytest.raises(BadData, match=r"line 8: image 'P2/.*' is also on line 2"):
        deepprofiler_fields(Request((export,)))


def test_several_exports_come_together(tmp_path):
    one = write_export(tmp_path / "one", wells=WELLS[:1])
    two = write_export(tmp_path / "two", wells=WELLS[1:])
    source = deepprofiler_fields(Request((one, two)))
    assert [field.plate for field in source.fields] == ["P1", "P2"]
    assert source.fields[0].cells[0].startswith("two/P1/")
    assert source.tables == {
        "cell table 1": str(one / "sc-metadata.csv"),
        "cell table 2": str(two / "sc-metadata.csv"),
    }
    centers = [f"Nuclei_Location_Center_{axis}" for axis in "XY"]
    save(two, load(two).drop(columns=centers).assign(Key="", Metadata_Plate="P2"))
    save(two, load(two).assign(Metadata_Well="A01", Class_Name="DMSO"))
    mixed = deepprofiler_fields(Request((one, two))).fields
    assert [(len(field.cells), field.centers) for field in mixed] == [(6, None)]
    save(two, load(two).drop(columns=["Metadata_Plate", "Metadata_Well"]))
    only_p1 = deepprofiler_fields(Request((one, two), plates=("P1",)))
    assert [field.plate for field in only_p1.fields] == ["P1"]
    with pytest.raises(BadUse, match=r"--plates=P7: .*one.*, .*two.* has no plate P7"):
        deepprofiler_fields(Request((one, two), plates=("P7",)))
    save(two, load(two).assign(moa="some"))
    with pytest.raises(BadData, match=r"one.* and .*two.*: moa is only in one of them"):
        deepprofiler_fields(Request((one, two)))


def test_a_folder_that_is_no_export_is_named(tmp_path, export):
    (export / "sc-metadata.csv").rename(tmp_path / "elsewhere.csv")
    with pytest.raises(BadUse, match=r"export: no sc-metadata\.csv in it"):
        deepprofiler_fields(Request((export,)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadUse, match=r"empty: no image \(\.png\) in it"):
        deepprofiler_fields(Request((tmp_path / "empty",)))


def test_a_centre_may_be_unknown(export):
    table = load(export)
    save(export, table.drop(columns="Nuclei_Location_Center_X"))
    assert deepprofiler_fields(Request((export,))).fields[0].centers is None
    save(export, table.assign(Nuclei_Location_Center_X=[np.nan, 1, 2, 3, 4, -5]))
    first, second = deepprofiler_fields(Request((export,))).fields
    assert first.centers == ((30.25, 3), (60.5, 4), (90.75, -5))
    assert np.isnan(second.centers[0][1])
    save(export, load(export).assign(Nuclei_Location_Center_X="left"))
    with pytest.raises(BadData, match=r"sc-metadata\.csv, line 2: x 'left': a number"):
        deepprofiler_fields(Request((export,)))
