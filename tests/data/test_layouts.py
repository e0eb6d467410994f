"""Layouts of plates become one image table, whatever wrote them."""

import numpy as np
import pandas as pd
import pytest
import tifffile

from cellclr_jax.data.sources.layouts import compile_pattern, plate_folder, read_layout
from cellclr_jax.errors import BadData, BadUse


def _files(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, np.zeros((4, 4), np.uint16))


def _keys(table, *columns):
    return sorted(table.images[list(columns)].itertuples(index=False, name=None))


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        (
            "{plate}/{well}_s{site}_w{channel}*.tif",
            "P 1#/A01_s2_w3abc.tif",
            ("P 1#", "A01", "2", "3"),
        ),
        (
            "{plate}/{well}_s{site}_w{channel:[0-9]}*.tif",
            "P1/A01_s2_w3abc.tif",
            ("P1", "A01", "2", "3"),
        ),
        (
            "{plate}/{well}-T0-S{site}-C*_{channel}.tif",
            "plate7/B03-T0-S2-C1_cy5.tif",
            ("plate7", "B03", "2", "cy5"),
        ),
        (
            "Channel{channel}-*-{row}-{column}.tif",
            "sbs/Channel1-06-A-06.tif",
            ("sbs", "A06", "", "1"),
        ),
        ("imagexpress", "P2/TimePoint_1/x_B02_s1_w1ABC-D.TIF", ("P2", "B02", "1", "1")),
        ("phenix", "P3/Images/r01c02f03p01-ch4sk1fk1fl1.tiff", ("P3", "r01c02", "03", "4")),
        ("cellvoyager", "P4/AS_D08_T0001F002L01A01Z01C03.tif", ("P4", "D08", "002", "03")),
        ("cytation", "P5/B7_01_1_3_DAPI_001.tif", ("P5", "B7", "3", "DAPI")),
    ],
)
def test_file_names_give_plate_well_site_and_channel(tmp_path, pattern, name, expected):
    _files(tmp_path, [name, "notes.tif"])
    table = read_layout(pattern, [tmp_path])
    assert _keys(table, "plate", "well", "site", "channel") == [expected]
    assert "1 file" in table.left_out[0]
    assert "notes.tif" in table.left_out[0]


def test_the_folders_before_the_first_brace_are_the_root(tmp_path):
    _files(tmp_path, ["a/P1/A01_w1.tif", "b/P1/A01_w1.tif", "a/P1/A01_w1_thumb.tif"])
    table = read_layout(f"{tmp_path}/a/{{plate}}/{{well}}_w{{channel}}.tif", [])
    assert _keys(table, "path") == [(f"{tmp_path}/a/P1/A01_w1.tif",)]
    assert table.left_out == ["1 thumbnail"]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("{well}.tif", "channel"),
        ("{channel}_{row}.tif", "column"),
        ("{well}_{channel}_{dye}.tif", "dye"),
        ("{well}_{well}_{channel}", "twice"),
        ("{well}_{channel:[}", "character set"),
    ],
)
def test_a_wrong_pattern_is_refused(pattern, reason):
    with pytest.raises(BadUse, match=reason):
        compile_pattern(pattern)


def test_a_pattern_that_matches_nothing_names_files(tmp_path):
    _files(tmp_path, ["A01-w1.tif"])
    with pytest.raises(BadData, match=r"none of 1 file.*A01-w1\.tif"):
        read_layout("{well}_{channel}.tif", [tmp_path])


def test_inner_folders_are_no_plates():
    assert plate_folder("/x/P1/Images/a.tif") == "P1"
    assert plate_folder("/x/P1/TimePoint_1/a.tif") == "P1"


@pytest.fixture
def wide():
    """A LoadData table of two wells and two channels; the second well lacks one image."""
    return pd.DataFrame(
        {
            "Image_FileName_OrigDNA": ["a1.tif", "a2.tif"],
            "Image_PathName_OrigDNA": ["/other/machine/P1", "/other/machine/P1"],
            "FileName_ER": ["b1.tif", ""],
            "PathName_ER": ["/other/machine/P1"] * 2,
            "FileName_IllumDNA": ["i.npy"] * 2,
            "FileName_NucleiOutlines": ["o.png"] * 2,
            "Metadata_Plate": ["P1"] * 2,
            "Metadata_Well": ["A01", "a2"],
            "Metadata_Site": [1, 1],
            "Metadata_Gene": ["TP53", "none"],
        }
    )


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet", ".tsv"])
def test_load_data_in_any_format(tmp_path, wide, suffix):
    _files(tmp_path, ["images/P1/a1.tif", "images/P1/a2.tif", "images/P1/b1.tif"])
    path = tmp_path / f"load_data{suffix}"
    if suffix == ".parquet":
        wide.to_parquet(path)
    else:
        wide.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    table = read_layout(str(path), [], tmp_path / "images")
    assert _keys(table, "well", "channel", "path") == [
        ("A01", "DNA", f"{tmp_path}/images/P1/a1.tif"),
        ("A01", "ER", f"{tmp_path}/images/P1/b1.tif"),
        ("a2", "DNA", f"{tmp_path}/images/P1/a2.tif"),
    ]
    assert table.metadata["Metadata_Gene"].tolist() == ["TP53", "none"]
    assert table.images["line"].tolist() == [2, 3, 2]


def test_a_tall_table_equals_a_wide_one(tmp_path, wide):
    rows = [
        ("P1/a1.tif", "DNA", "P1", "A01", 1),
        ("P1/a2.tif", "DNA", "P1", "a2", 1),
        ("P1/b1.tif", "ER", "P1", "A01", 1),
    ]
    tall = pd.DataFrame(rows, columns=["path", "channel", "plate", "well", "site"])
    tall.to_csv(tmp_path / "tall.csv", index=False)
    wide.assign(
        Image_PathName_OrigDNA=str(tmp_path / "P1"), PathName_ER=str(tmp_path / "P1")
    ).to_csv(tmp_path / "wide.csv", index=False)
    both = [read_layout(str(tmp_path / name), []) for name in ("tall.csv", "wide.csv")]
    columns = ("plate", "well", "site", "channel", "z", "path")
    assert _keys(both[0], *columns) == _keys(both[1], *columns)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.drop(columns="Metadata_Well"), "no column of wells"),
        (lambda t: t[["Metadata_Plate", "Metadata_Well"]], "FileName_<channel>"),
        (lambda t: t.assign(FileName_DNA="x.tif"), "mean the same"),
        (lambda t: t.assign(Image_PathName_OrigDNA="../../etc"), "'..'"),
    ],
)
def test_a_table_without_wells_or_images_is_refused(tmp_path, wide, change, reason):
    change(wide).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(BadData, match=reason.replace(".", r"\.")):
        read_layout(str(tmp_path / "t.csv"), [], tmp_path)


_INDEX = """<?xml version="1.0"?><EvaluationInputData xmlns="http://www.perkinelmer.com/PEHH/HarmonyV5">
<Plates><Plate><PlateID>B1</PlateID><Name>B1</Name></Plate></Plates>
<Maps><Map><Entry ChannelID="2"><ChannelName>DAPI</ChannelName></Entry></Map></Maps><Images>
<Image><URL>a.tiff</URL><Row>1</Row><Col>2</Col><FieldID>3</FieldID><PlaneID>1</PlaneID>
<ChannelID>1</ChannelID><ChannelName>ER</ChannelName><ImageResolutionX>6E-07</ImageResolutionX></Image>
<Image><URL>{url}</URL><Row>1</Row><Col>2</Col><FieldID>3</FieldID><PlaneID>1</PlaneID>
<ChannelID>2</ChannelID><ImageResolutionX>6E-07</ImageResolutionX></Image></Images></EvaluationInputData>"""


def test_the_index_of_an_opera_plate(tmp_path):
    (tmp_path / "Index.idx.xml").write_text(_INDEX.replace("{url}", "b.tiff"))
    table = read_layout("", [tmp_path])
    assert _keys(table, "plate", "well", "site", "channel", "z") == [
        ("B1", "r1c2", "3", "DAPI", 1),
        ("B1", "r1c2", "3", "ER", 1),
    ]
    assert table.pixel_size == pytest.approx(0.6)


@pytest.mark.parametrize("text", [_INDEX.replace("{url}", "../b.tiff"), _INDEX[:300], "<a/>"])
def test_a_damaged_or_hostile_index_is_refused(tmp_path, text):
    (tmp_path / "Index.xml").write_text(text)
    with pytest.raises(BadData, match=r"Index\.xml"):
        read_layout("", [tmp_path / "Index.xml"])
