"""Folders of single-cell images of any origin: labels, tables, ids, and wrong input."""

import os
import unicodedata
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from cellclr_jax.data.readers import read_cell
from cellclr_jax.data.sources import single_cells
from cellclr_jax.data.sources.image_folders import folder_fields
from cellclr_jax.data.sources.source import Request
from cellclr_jax.errors import BadData, BadUse

TABLE = """path,cell_type,plate_id,Metadata_Well,Site,compound,dose
control/a.png,round,P2,A01,1,DMSO,0
control/b.png,round,P2,A01,1,DMSO,0
drug/c.png,flat,P1,B02,2.0,taxol,0.3
drug/d.png,flat,P1,B02,2,taxol,0.300000012
"""
COLUMNS = {
    "file": "path",
    "label": "cell_type",
    "plate": "Plate_ID",
    "concentration": "dose",
}


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.ascontiguousarray(image)
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(image))
    elif path.suffix == ".npy":
        np.save(path, image)
    else:
        tifffile.imwrite(path, image, photometric="minisblack")


def picture(value=0, shape=(12, 10, 3), dtype=np.uint8):
    return np.full(shape, value, dtype)


@pytest.fixture
def folder(tmp_path):
    """Two classes of two images; the pixels are the number of the image."""
    root = tmp_path / "cells"
    for value, name in enumerate(("control/a", "control/b", "drug/c", "drug/d")):
        save(root / f"{name}.png", picture(value))
    return root


@pytest.fixture
def table(folder):
    path = folder.parent / "labels.csv"
    path.write_text(TABLE)
    return path


def tabled(folder, table, columns=COLUMNS, **request):
    chosen = [f"{what}={column}" for what, column in columns.items()]
    options = {"labels_csv": str(table), "label_columns": chosen}
    return folder_fields(Request((folder,), options=options, **request))


def cells(source):
    """Metadata and first pixel by cell."""
    return {
        cell: (
            dict(field.metadata),
            int(field.read(number)[0, 0, 0]),
        )
        for field in source.fields
        for number, cell in enumerate(field.cells)
    }


def test_a_subfolder_is_a_label(folder):
    source = folder_fields(Request((folder,)))
    assert source.columns == ("label",)
    assert source.channels == ("channel_1", "channel_2", "channel_3")
    assert (source.crop_size, source.dtype) == (None, "uint8")
    assert (source.tables, source.problems, source.absent_plates) == ({}, [], [])
    assert [field.name for field in source.fields] == ["control", "drug"]
    assert cells(source) == {
        "control/a": ({"label": "control"}, 0),
        "control/b": ({"label": "control"}, 1),
        "drug/c": ({"label": "drug"}, 2),
        "drug/d": ({"label": "drug"}, 3),
    }


def test_two_files_of_one_name_keep_their_suffix(folder):
    save(folder / "drug" / "c.npy", picture(8))
    found = cells(folder_fields(Request((folder,))))
    assert found["drug/c.png"][1] == 2
    assert found["drug/c.npy"][1] == 8
    assert "control/a.png" in found


def test_several_inputs_have_the_shortest_distinct_prefixes(tmp_path):
    for value, name in enumerate(("one/images", "two/images", "three")):
        save(tmp_path / name / "x" / "a.png", picture(value))
    pair = (tmp_path / "one" / "images", tmp_path / "two" / "images")
    found = cells(folder_fields(Request(pair)))
    assert found == {
        "one/images/x/a": ({"label": "x"}, 0),
        "two/images/x/a": ({"label": "x"}, 1),
    }
    found = cells(folder_fields(Request((tmp_path / "two" / "images", tmp_path / "three"))))
    assert found == {"images/x/a": ({"label": "x"}, 1), "three/x/a": ({"label": "x"}, 2)}
    for twice in ((tmp_path, tmp_path / "three"), (tmp_path, tmp_path)):
        with pytest.raises(BadUse, match=r"--input: .* overlap; name each folder once"):
            folder_fields(Request(twice))


def test_a_link_is_followed_and_no_cell_appears_twice(folder):
    (folder / "control").rename(folder.parent / "store")
    (folder / "control").symlink_to(folder.parent / "store")
    (folder / "back").symlink_to(folder)
    (folder / "drug" / "also").symlink_to(folder.parent / "store")
    found = cells(folder_fields(Request((folder,))))
    assert sorted(found) == ["control/a", "control/b", "drug/c", "drug/d"]


def test_groups_are_bounded_and_have_distinct_names(folder, monkeypatch):
    monkeypatch.setattr(single_cells, "_GROUP", 3)
    for number in range(7):
        save(folder / "many" / f"{number}.png", picture(number))
    fields = folder_fields(Request((folder / "many", folder / "control"))).fields
    assert [len(field.cells) for field in fields] == [3, 3, 3]
    fields = folder_fields(Request((folder,))).fields
    assert [field.name for field in fields] == ["control", "drug", "many", "many/2", "many/3"]
    assert len({cell for field in fields for cell in field.cells}) == 11


def test_columns_of_a_table_are_the_metadata(folder, table):
    source = tabled(folder, table)
    assert source.columns == ("plate", "well", "site", "compound", "concentration", "label")
    assert source.tables == {"label table": str(table)}
    assert source.problems == []
    # The plates' order, not the table's; 0.3 and its float32 are one concentration.
    assert [(field.name, field.cells) for field in source.fields] == [
        ("P1/B02/s2/flat", ("drug/c", "drug/d")),
        ("P2/A01/s1/round", ("control/a", "control/b")),
    ]
    assert source.fields[0].metadata == {
        "plate": "P1",
        "well": "B02",
        "site": 2,
        "compound": "taxol",
        "concentration": 0.3,
        "label": "flat",
    }
    assert cells(source)["drug/d"][1] == 3


@pytest.mark.parametrize("header", ["FileName,Class", "image,Metadata_Label"])
def test_usual_names_need_no_mapping(folder, table, header):
    table.write_text(header + "\ndrug/c.png,x\ndrug/d.png,z\n")
    found = cells(tabled(folder, table, {}))
    assert found == {"drug/c": ({"label": "x"}, 2), "drug/d": ({"label": "z"}, 3)}


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("", "drug/c.png"),
        ("", "cells/drug/c.png"),
        ("cells/drug", "c.png"),
        ("far", "drug\\c.png"),
        ("far", "./drug//c.png"),
        ("far", "c.png"),
    ],
)
def test_a_file_is_named_by_any_of_its_paths(folder, tmp_path, place, name):
    (tmp_path / place).mkdir(exist_ok=True)
    table = tmp_path / place / "labels.csv"
    table.write_text(f"file,label\n{name},x\n")
    source = tabled(folder, table, {})
    assert cells(source) == {"drug/c": ({"label": "x"}, 2)}
    assert source.problems == [
        ("control/a.png, control/b.png, drug/d.png", f"no row of {table} (3 images)")
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../cells/drug/c.png", "leads out of the images' folder"),
        ("..\\c.png", "leads out of the images' folder"),
        ("/etc/c.png", "is an absolute path outside the input"),
        ("C:\\c.png", "is an absolute path outside the input"),
        ("\\\\host\\c.png", "is an absolute path outside the input"),
    ],
)
def test_a_path_that_leads_out_is_refused(folder, table, name, message):
    table.write_text(f"file,label\ncontrol/a.png,x\n{name},x\n")
    with pytest.raises(BadData, match=rf"labels\.csv, line 3: .* {message}"):
        tabled(folder, table, {})


def test_an_absolute_path_within_an_input_is_as_good(folder, table, tmp_path, monkeypatch):
    table.write_text(f"file,label\n{folder}/drug/c.png,x\n{folder}/drug/gone.png,x\n")
    source = tabled(folder, table, {})
    assert cells(source) == {"drug/c": ({"label": "x"}, 2)}
    assert source.problems[1] == (f"{folder}/drug/gone.png", f"{table}, line 3: no such image")
    # The input by another name than the table's.
    (tmp_path / "link").symlink_to(folder)
    assert list(cells(tabled(tmp_path / "link", table, {}))) == ["drug/c"]
    monkeypatch.chdir(tmp_path)
    assert list(cells(tabled(Path("cells"), table, {}))) == ["drug/c"]
    # A folder whose name begins as the input's is another one.
    table.write_text(f"file,label\n{folder}_2/drug/c.png,x\n")
    with pytest.raises(BadData, match="absolute path outside the input"):
        tabled(folder, table, {})


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_match_in_any_unicode_form(folder, table, forms):
    name, text = (unicodedata.normalize(form, "drug/Zelle_é.png") for form in forms)
    (folder / "drug" / "c.png").rename(folder / name)
    table.write_text(f"file,label\n{text},x\n")
    assert cells(tabled(folder, table, {})) == {name.removesuffix(".png"): ({"label": "x"}, 2)}


def test_a_bare_name_that_two_images_have_is_refused(folder, table):
    save(folder / "drug" / "a.png", picture())
    table.write_text("file,label\na.png,x\n")
    with pytest.raises(BadData, match=r"line 2: 'a\.png' may be any of several images"):
        tabled(folder, table, {})


def test_rows_and_files_without_each_other_are_problems(folder, table, monkeypatch):
    monkeypatch.setattr(single_cells, "_GROUP", 2)
    rows = [f"drug/{number}.png,x" for number in range(3)]
    table.write_text("\n".join(["file,label", "drug/c.png,x", *rows]))
    source = tabled(folder, table, {})
    assert list(cells(source)) == ["drug/c"]
    # In groups, so that a million can be reported; each image and row counts as one cell.
    assert source.lost == 3 + 3
    assert source.problems == [
        ("control/a.png, control/b.png", f"no row of {table} (2 images)"),
        ("drug/d.png", f"no row of {table}"),
        ("drug/0.png, drug/1.png", f"{table}, line 3, 4: no such image (2 rows)"),
        ("drug/2.png", f"{table}, line 5: no such image"),
    ]
    table.write_text("file,label\ncell_1.png,x\ncell_2.png,x\n")
    with pytest.raises(
        BadData, match=r"none of its 2 rows names an image in .*'cell_1\.png', the images are"
    ):
        tabled(folder, table, {})


def test_a_plate_without_an_image_is_absent(folder, table):
    table.write_text(TABLE + "more/e.png,flat,P3,A01,1,taxol,1\ndrug/x.png,flat,P1,A01,1,taxol,1\n")
    source = tabled(folder, table)
    assert source.absent_plates == ["P3"]
    assert [what for what, _ in source.problems] == ["drug/x.png"]
    with pytest.raises(BadUse, match="--plates=P1,P3: no image of P3 in"):
        tabled(folder, table, plates=("P1", "P3"))


def test_only_requested_plates_are_read(folder, table):
    source = tabled(folder, table, plates=("P1",))
    assert sorted(cells(source)) == ["drug/c", "drug/d"]
    assert (source.problems, source.absent_plates) == ([], [])
    with pytest.raises(BadUse, match=r"--plates=P9: .*labels\.csv has no plate P9"):
        tabled(folder, table, plates=("P9",))
    with pytest.raises(BadUse, match="--plates=P1: folders do not name plates"):
        folder_fields(Request((folder,), plates=("P1",)))
    table.write_text("file,label\ndrug/c.png,x\n")
    with pytest.raises(BadUse, match="has no column of plates"):
        tabled(folder, table, {}, plates=("P1",))


def test_empty_columns_are_left_out(folder, table):
    table.write_text(
        "file,compound,concentration,site,replicate\ndrug/c.png,taxol,0.3,2,1\ndrug/d.png,DMSO,,,\n"
    )
    found = cells(tabled(folder, table, {}))
    assert found["drug/c"][0] == {
        "site": 2,
        "compound": "taxol",
        "concentration": 0.3,
        "replicate": 1,
    }
    assert found["drug/d"][0] == {
        "site": 0,
        "compound": "DMSO",
        "concentration": 0.0,
        "replicate": 0,
    }


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"label": "kind"},
            "--label_columns=label=kind: .*labels.csv has no such column; it has path",
        ),
        ({"colour": "path"}, "--label_columns=colour=path: <what>=<column> .* one of file, plate"),
    ],
)
def test_a_missing_column_is_named(folder, table, columns, message):
    with pytest.raises(BadUse, match=message):
        tabled(folder, table, columns)


def test_most_images_decide_and_the_others_are_named_when_they_are_read(folder):
    save(folder / "control" / "a.png", picture(shape=(12, 10)))
    (folder / "drug" / "d.png").write_bytes(b"no PNG")
    source = folder_fields(Request((folder,)))
    assert len(source.channels) == 3
    files = {file.name: file for field in source.fields for file in field.files}
    with pytest.raises(BadData, match=r"a\.png: uint8 \(12, 10\), uint8 of 3 channels"):
        read_cell(files["control/a.png"], channels=3, layout="stacked", dtype="uint8")
    with pytest.raises(BadData, match=r"d\.png: not a readable PNG"):
        read_cell(files["drug/d.png"], channels=3, layout="stacked", dtype="uint8")


def test_images_of_two_types_are_refused_and_one_of_each_is_named(folder):
    save(folder / "drug" / "d.png", picture(dtype=np.uint16))
    with pytest.raises(
        BadData, match=r"images of uint16 \(.*drug/d\.png\) and uint8 \(.*control/a\.png\)"
    ):
        folder_fields(Request((folder,)))


def test_the_error_for_a_folder_without_an_image_lists_its_files(tmp_path, folder):
    (tmp_path / "other").mkdir()
    for name in ("a.jpg", "b.JPG", "c.txt"):
        (tmp_path / "other" / name).write_text("")
    with pytest.raises(BadUse, match=r"other: no image .*; left out: .*2 \.jpg, 1 \.txt"):
        folder_fields(Request((tmp_path / "other",)))
    with pytest.raises(BadUse, match=r"a\.jpg: a folder of images was expected"):
        folder_fields(Request((tmp_path / "other" / "a.jpg",)))
    with pytest.raises(BadUse, match="gone: no such folder"):
        folder_fields(Request((tmp_path / "gone",)))
    with pytest.raises(BadUse, match="--input"):
        folder_fields(Request(()))
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(BadData, match=r"none of 4 images can be used: .*a\.png: not a readable"):
        folder_fields(Request((folder,)))


def test_thumbnails_are_left_out_and_counted(folder):
    small = ("drug/c_thumb.png", "drug/c_w1_thumb0A3F.png", "Thumbs/c.png", "thumbnail-1.tif")
    kept = ("drug/Thumbergia.png", "drug/outhumb.png")
    for name in (*small, *kept):
        save(folder / name, picture(shape=(4, 4, 3)))
    source = folder_fields(Request((folder,)))
    assert {f"{cell}.png" for field in source.fields for cell in field.cells} >= set(kept)
    assert sum(len(field.cells) for field in source.fields) == 4 + len(kept)
    assert source.left_out[0].startswith("4 thumbnails (thumbnail-1.tif, Thumbs/c.png, drug/c_")


def test_a_name_that_is_not_utf8_is_refused(folder):
    try:
        save(Path(os.fsdecode(os.fsencode(folder) + b"/drug/\xff.png")), picture())
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    with pytest.raises(BadData, match="the name is not UTF-8"):
        folder_fields(Request((folder,)))
