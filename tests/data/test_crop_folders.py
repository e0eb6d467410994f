"""Folders of crops: each crop is matched with its row; a damaged one is lost without the others."""

import re
import unicodedata

import numpy as np
import pandas as pd
import pytest
from support.tiny_release import PLATES, write_crops, write_release

from cellclr_jax.data.building.extraction import CropSettings, extract_field
from cellclr_jax.data.sources import open_source
from cellclr_jax.data.sources.bbbc021_plates import RELEASE_COLUMNS
from cellclr_jax.data.sources.source import Request
from cellclr_jax.errors import BadData, BadUse


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "release")


def test_a_crop_gets_its_plate_from_the_table(release):
    crops = write_crops(release, release / "crops")
    source = open_source("crops", Request((crops,)))
    assert source.crop_size == 24
    assert source.channels == ("dna", "actin", "tubulin")
    assert [field.name for field in source.fields] == ["Week1_101/B02/s1", "Week1_101/C03/s1"]
    assert source.fields[1].cells == tuple(f"Week1_101/C03/s1/{n}" for n in (0, 5, 10))
    assert [source.fields[1].read(n)[0, 0, 0] for n in range(3)] == [0, 1, 2]
    taxol = open_source("crops", Request((crops,), plates=(PLATES[0],))).fields[1]
    assert (taxol.metadata["compound"], taxol.metadata["moa"]) == (
        "taxol",
        "Microtubule stabilizers",
    )


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


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_match_in_any_unicode_form(tmp_path, forms):
    names, table = (unicodedata.normalize(form, "Zellé_") for form in forms)
    release = write_release(tmp_path / "release", prefix=table)
    crops = write_crops(release, release / "crops")
    for file in [*crops.iterdir()]:
        file.rename(crops / f"{names}{file.name}")
    for file in (release / "Week1" / PLATES[0]).iterdir():
        file.rename(file.with_name(file.name.replace(table, names)))
    for source, folder, count in (("crops", crops, 2), ("raw", release, 6)):
        fields = open_source(source, Request((folder,))).fields
        assert [field.absent for field in fields] == [""] * count


@pytest.mark.parametrize("damage", ["shape", "broken"])
def test_the_first_crop_does_not_decide_the_shape(release, damage):
    crops = write_crops(release, release / "crops")
    first = min(crops.iterdir())
    if damage == "shape":
        np.save(first, np.zeros((20, 20, 3), np.uint16))
        message = "20x20 pixels, 24x24 were expected"
    else:
        first.write_bytes(b"")
        message = "not a readable .npy array"
    source = open_source("crops", Request((crops,)))
    assert source.crop_size == 24
    settings = CropSettings(24, source.channels, RELEASE_COLUMNS)
    cells = [extract_field(field, settings) for field in source.fields]
    assert re.fullmatch(rf"{first}: {message}.*", cells[0].problem)
    # The others of its field are kept.
    assert [len(one.rows) for one in cells] == [2, 3]
    assert cells[0].lost == pytest.approx(1 / 3)


def test_wrong_crops_are_named(release, tmp_path):
    crops = write_crops(release, release / "crops")
    with pytest.raises(BadUse, match="have 3 channels, --channels=dna,actin names 2"):
        open_source("crops", Request((crops,), channels=("dna", "actin")))
    (crops / "nonumber.npy").write_bytes(b"")
    with pytest.raises(BadData, match=r"nonumber\.npy: a name <stem>_<number>"):
        open_source("crops", Request((crops,)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadUse, match="no crop"):
        open_source("crops", Request((tmp_path / "empty",)))
