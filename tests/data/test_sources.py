import dataclasses
import pickle
import re
from pathlib import Path

import pytest
from support.tiny_release import PLATES, file_name, write_crops, write_csv, write_release

from cellclr_jax.data.building.extraction import CropSettings, extract_field
from cellclr_jax.data.sources import open_source
from cellclr_jax.data.sources.bbbc021_plates import RELEASE_COLUMNS
from cellclr_jax.data.sources.source import Field, Request
from cellclr_jax.data.tables.bbbc021 import CHANNELS
from cellclr_jax.errors import BadData, BadUse

MISSING = Path("Week1", "Week1_101", file_name("C03", 1, "w2", "Week1_101"))


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "release")


def test_fields_come_in_order_with_their_metadata(release):
    source = open_source("raw", Request((release,)))
    assert [field.name for field in source.fields] == [
        f"{plate}/{well}/s1" for plate in PLATES for well in ("B02", "C03", "D04")
    ]
    field = source.fields[1]
    assert field.metadata == {
        "plate": PLATES[0], "well": "C03", "site": 1, "batch": "Week1", "compound": "taxol",
        "concentration": 0.3, "moa": "Microtubule stabilizers", "replicate": 1,
    }  # fmt: skip
    assert tuple(field.metadata) == source.columns
    assert source.channels == ("dna", "tubulin", "actin")
    assert pickle.loads(pickle.dumps(field)) == field


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
        source.fields[1].read()


def test_of_two_copies_the_one_the_table_names_is_taken(release):
    copy = release / "AAA" / PLATES[0] / MISSING.name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"II*\0")
    field = open_source("raw", Request((release,))).fields[1]
    assert str(release / MISSING) in [file.path for file in field.files]
    other = release / "BBB" / PLATES[0] / MISSING.name
    other.parent.mkdir(parents=True)
    (release / MISSING).rename(other)
    with pytest.raises(BadData, match=r"two files of one channel: .*AAA.* and .*BBB.*; keep one"):
        open_source("raw", Request((release,)))


def test_files_on_no_row_are_reported(release):
    (release / MISSING).with_name("B02_s1_w9.tif").write_bytes(b"")
    (left_out,) = open_source("raw", Request((release,))).left_out
    assert re.match(r"1 TIFF on no row of .*image\.csv \(.*B02_s1_w9\.tif", left_out)


def test_plates_can_be_chosen(release):
    source = open_source("raw", Request((release,), plates=(PLATES[1],)))
    assert {field.plate for field in source.fields} == {PLATES[1]}
    with pytest.raises(BadUse, match="Week9_1"):
        open_source("raw", Request((release,), plates=("Week9_1",)))


@pytest.mark.parametrize("plates", [PLATES, PLATES[1:]])
def test_a_chosen_plate_without_files_is_refused(release, plates):
    crops = write_crops(release, release / "crops")
    for file in (release / "Week2" / PLATES[1]).iterdir():
        file.unlink()
    for source, folder in (("raw", release), ("crops", crops)):
        with pytest.raises(BadUse, match=rf"--plates={PLATES[1]}: no file of it in {folder}"):
            open_source(source, Request((folder,), plates=plates))


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


@dataclasses.dataclass(frozen=True)
class Failing(Field):
    """A field whose reading raises."""

    error: Exception

    def read(self):
        raise self.error

    def fingerprint(self):
        return ""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (KeyError("x"), RuntimeError, r"field P1/B02/s1: KeyError: 'x'"),
        (MemoryError(), BadData, r"field P1/B02/s1 does not fit .* --workers"),
    ],
)
def test_an_unexpected_exception_names_the_field(error, kind, message):
    field = Failing("P1/B02/s1", {}, error)
    with pytest.raises(kind, match=message):
        extract_field(field, CropSettings(24, CHANNELS, RELEASE_COLUMNS))
