import pickle
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from tiny_release import PLATES, file_name, write_csv, write_release

from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.data.image_files import ImageFile, read_crop, read_field
from cellclr_jax.data.sources import Request, open_source

MISSING = Path("Week1", "Week1_101", file_name("C03", 1, "w2", "Week1_101"))


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "release")


def zip_plates(release, out, *, folder=True):
    """Each plate as it is downloaded: a zip with <plate>/<file>, and the tables beside it."""
    out.mkdir()
    for plate in PLATES:
        with zipfile.ZipFile(out / f"BBBC021_v1_images_{plate}.zip", "w") as archive:
            for file in sorted((release / plate.split("_")[0] / plate).iterdir()):
                archive.write(file, f"{plate}/{file.name}" if folder else file.name)
                archive.writestr(f"__MACOSX/{plate}/._{file.name}", b"note")
    for name in ("BBBC021_v1_image.csv", "BBBC021_v1_moa.csv"):
        (out / name).write_bytes((release / name).read_bytes())
    return out


def write_crops(release, folder, count=3, shape=(24, 24, 3)):
    """Crops <stem>_<n>.npy of the first wells of the first plate."""
    folder.mkdir()
    for well in ("B02", "C03"):
        stem = file_name(well, 1, "w1", PLATES[0]).removesuffix(".tif")
        for number in range(count):
            crop = np.full(shape, number, np.uint16)
            np.save(folder / f"{stem}_{number * 5}.npy", crop)
    return folder


def test_fields_come_in_order_with_their_metadata(release):
    source = open_source("raw", Request((release,)))
    assert [field.name for field in source.fields] == [
        f"{plate}/{well}/s1" for plate in PLATES for well in ("B02", "C03", "D04")
    ]
    field = source.fields[1]
    assert (field.batch, field.compound, field.concentration) == ("Week1", "taxol", 0.3)
    assert field.moa == "Microtubule stabilizers"
    assert source.channels == ("dna", "tubulin", "actin")
    assert pickle.loads(pickle.dumps(field)) == field


def test_all_wells_are_there_when_asked_for(release):
    source = open_source("raw", Request((release,), annotated=False))
    assert len(source.fields) == 8
    assert {field.moa for field in source.fields if field.compound == "unknown"} == {""}


@pytest.mark.parametrize("folder", [True, False])
def test_a_zip_is_read_as_the_folder_it_holds(release, tmp_path, folder):
    zips = zip_plates(release, tmp_path / "zips", folder=folder)
    loose = open_source("raw", Request((release,))).fields
    zipped = open_source("raw", Request((zips,))).fields
    one = open_source("raw", Request((zips / f"BBBC021_v1_images_{PLATES[1]}.zip",)))
    assert [field.name for field in zipped] == [field.name for field in loose]
    assert one.absent_plates == [PLATES[0]]
    for first, second in zip(loose, zipped, strict=True):
        np.testing.assert_array_equal(read_field(first.files), read_field(second.files))


@pytest.mark.parametrize("name", ["../out.tif", "/etc/out.tif", "a/../../out.tif", "C:\\out.tif"])
def test_a_zip_entry_that_leads_out_is_refused(release, name):
    with zipfile.ZipFile(release / "bad.zip", "w") as archive:
        archive.writestr(name, b"")
    with pytest.raises(BadData, match=r"bad\.zip: entry .* leads out"):
        open_source("raw", Request((release,)))


def test_a_broken_zip_is_named(release):
    (release / "half.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(BadData, match=r"half\.zip: not a readable zip"):
        open_source("raw", Request((release,)))


def test_several_roots_are_joined(release):
    roots = (release / "Week1", release / "Week2" / PLATES[1])
    tables = {name: release / f"BBBC021_v1_{name}.csv" for name in ("image", "moa")}
    request = Request(roots, image_csv=tables["image"], moa_csv=tables["moa"])
    assert len(open_source("raw", request).fields) == 6


def test_a_plate_without_files_is_absent_and_a_gap_is_not(release):
    for file in (release / "Week2" / PLATES[1]).iterdir():
        file.unlink()
    (release / MISSING).unlink()
    source = open_source("raw", Request((release,)))
    assert source.absent_plates == [PLATES[1]]
    assert [field.absent for field in source.fields] == [
        "",
        f"no file Week1/Week1_101/{MISSING.name}",
        "",
    ]
    with pytest.raises(BadData, match=MISSING.name):
        read_field(source.fields[1].files)


def test_plates_can_be_chosen(release):
    source = open_source("raw", Request((release,), plates=(PLATES[1],)))
    assert {field.plate for field in source.fields} == {PLATES[1]}
    with pytest.raises(BadUse, match="Week9_1"):
        open_source("raw", Request((release,), plates=("Week9_1",)))


def test_channels_come_as_declared(release):
    source = open_source("raw", Request((release,), channels=("actin", "dna")))
    names = [file.name.split("_")[2][:2] for file in source.fields[0].files]
    assert names == ["w4", "w1"]
    for wrong in (("tubulin", "actin"), ("dna", "er")):
        with pytest.raises(BadUse, match="dna among them"):
            open_source("raw", Request((release,), channels=wrong))


def test_tables_that_do_not_belong_together_are_refused(release):
    moa = release / "BBBC021_v1_moa.csv"
    write_csv(moa, ["compound", "concentration", "moa"], [("aspirin", 1, "pain")])
    with pytest.raises(BadData, match=r"image\.csv and .*moa\.csv: none of the 8 rows"):
        open_source("raw", Request((release,)))
    moa.unlink()
    with pytest.raises(BadUse, match="--config=all"):
        open_source("raw", Request((release,)))
    assert len(open_source("raw", Request((release,), annotated=False)).fields) == 8


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(()), "--input=DIR"),
        (Request((Path("nowhere"),)), "nowhere: no such folder"),
        (Request((Path(__file__).parent / "bench",)), r"no BBBC021_v1_image\.csv"),
    ],
)
def test_a_wrong_input_is_named(request_, message):
    with pytest.raises(BadUse, match=message):
        open_source("raw", request_)


def test_an_unknown_source_lists_those_that_exist():
    with pytest.raises(BadUse, match="'plates': one of raw, crops, simulated"):
        open_source("plates", Request(()))


def test_a_crop_gets_its_plate_from_the_table(release):
    crops = write_crops(release, release / "crops")
    source = open_source("crops", Request((crops,)))
    assert source.crop_size == 24
    assert source.channels == ("dna", "actin", "tubulin")
    assert [field.name for field in source.fields] == ["Week1_101/B02/s1", "Week1_101/C03/s1"]
    assert source.fields[1].numbers == (0, 5, 10)
    assert [read_crop(file)[0, 0, 0] for file in source.fields[1].files] == [0, 1, 2]
    taxol = open_source("crops", Request((crops,), plates=(PLATES[0],))).fields[1]
    assert (taxol.compound, taxol.moa) == ("taxol", "Microtubule stabilizers")


def test_crops_without_a_row_are_a_named_problem(release):
    crops = write_crops(release, release / "crops")
    np.save(crops / "stray_s1_w1XYZ_3.npy", np.zeros((24, 24, 3), np.uint16))
    source = open_source("crops", Request((crops,)))
    ((what, reason),) = source.problems
    assert what == "stray_s1_w1XYZ_*.npy"
    assert "stray_s1_w1XYZ.tif" in reason


def test_a_dna_file_on_two_lines_is_refused(release):
    crops = write_crops(release, release / "crops")
    path = release / "BBBC021_v1_image.csv"
    table = pd.read_csv(path, dtype=str)
    table.loc[6, "Image_FileName_DAPI"] = table.loc[0, "Image_FileName_DAPI"]
    table.to_csv(path, index=False)
    with pytest.raises(BadData, match=r"line 8: the DNA file .* also on line 2"):
        open_source("crops", Request((crops,)))


def test_wrong_crops_are_named(release, tmp_path):
    crops = write_crops(release, release / "crops")
    with pytest.raises(BadUse, match="has 3 channels, --channels=dna,actin names 2"):
        open_source("crops", Request((crops,), channels=("dna", "actin")))
    (crops / "nonumber.npy").write_bytes(b"")
    with pytest.raises(BadData, match=r"nonumber\.npy: a name <stem>_<number>"):
        open_source("crops", Request((crops,)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadUse, match="no crop"):
        open_source("crops", Request((tmp_path / "empty",)))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((24, 24, 3), np.float32), r"float32 \(24, 24, 3\), uint16 \(S, S, C\)"),
        (np.zeros((24, 20, 3), np.uint16), r"uint16 \(24, 20, 3\)"),
        (np.zeros((24, 24), np.uint16), r"uint16 \(24, 24\)"),
        (np.array([{"a": 1}], object), "allow_pickle"),
    ],
)
def test_a_crop_of_another_kind_is_refused(tmp_path, array, message):
    np.save(tmp_path / "a_1.npy", array)
    with pytest.raises(BadData, match=message):
        read_crop(ImageFile("a_1.npy", str(tmp_path / "a_1.npy")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable TIFF"),
        (b"II*\x00 broken", "not a readable TIFF"),
        ("truncated", "not a readable TIFF"),
        (np.zeros((160, 200), np.uint8), r"uint8 \(160, 200\), uint16 \(H, W\)"),
        (np.zeros((2, 160, 200), np.uint16), r"uint16 \(2, 160, 200\)"),
        (np.zeros((160, 100), np.uint16), r"\(160, 100\) pixels, .* has \(160, 200\)"),
    ],
)
def test_a_broken_image_is_named(release, content, message):
    path = release / MISSING
    if isinstance(content, str):
        content = path.read_bytes()[:20000]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        tifffile.imwrite(path, content)
    field = open_source("raw", Request((release,))).fields[1]
    with pytest.raises(BadData, match=rf"{MISSING.name}: {message}"):
        read_field(field.files)
