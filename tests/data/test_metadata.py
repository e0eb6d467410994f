"""The metadata tables: all notations are read alike, and errors name file and line."""

import numpy as np
import pytest

from cellclr_jax.data.names import Names
from cellclr_jax.data.tables import bbbc021
from cellclr_jax.errors import BadData, BadUse

IMAGE_HEADER = (
    "TableNumber,ImageNumber,Image_FileName_DAPI,Image_PathName_DAPI,Image_FileName_Tubulin,"
    "Image_PathName_Tubulin,Image_FileName_Actin,Image_PathName_Actin,"
    "Image_Metadata_Plate_DAPI,Image_Metadata_Well_DAPI,Replicate,Image_Metadata_Compound,"
    "Image_Metadata_Concentration"
)
LINE_ENDS = {"lf": "\n", "crlf": "\r\n", "cr": "\r"}


def image_row(
    site=1, plate="Week1_22123", well="B02", compound="DMSO", concentration="0", replicate="1"
):
    files = ",".join(f"{well}_s{site}_w{w}AB.tif,Week1/{plate}" for w in (1, 2, 4))
    return f'1,2,{files},{plate},{well},{replicate},"{compound}",{concentration}'


def write(path, lines, end="\n"):
    path.write_bytes(end.join([*lines, ""]).encode())
    return path


@pytest.mark.parametrize("end", LINE_ENDS.values(), ids=LINE_ENDS.keys())
def test_image_csv_reads_alike_with_every_line_end(tmp_path, end):
    lines = [
        IMAGE_HEADER,
        image_row(1),
        image_row(2, well="C03", compound="2,3-x/'y'", concentration="0.300000"),
    ]
    images = bbbc021.read_image_csv(write(tmp_path / "image.csv", lines, end))
    assert images["compound"].tolist() == ["DMSO", "2,3-x/'y'"]
    assert images["concentration"].tolist() == [0.0, 0.3]
    assert images["site"].tolist() == [1, 2]
    assert images["batch"].tolist() == ["Week1", "Week1"]
    assert images["row"].tolist() == [2, 3]
    assert images["dna_file"].tolist()[1] == "Week1/Week1_22123/C03_s2_w1AB.tif"
    assert images["actin_file"].tolist()[0] == "Week1/Week1_22123/B02_s1_w4AB.tif"


@pytest.mark.parametrize("end", LINE_ENDS.values(), ids=LINE_ENDS.keys())
@pytest.mark.parametrize(("number", "quote"), [("3.000000", ""), ("3e0", '"'), (" 3 ", '"')])
def test_moa_csv_reads_alike_however_it_is_written(tmp_path, end, number, quote):
    lines = [
        f"{quote}compound{quote},concentration,{quote}moa{quote}",
        f"{quote}PP-2{quote},{number},{quote}Epithelial{quote}",
    ]
    moa = bbbc021.read_moa_csv(write(tmp_path / "moa.csv", lines, end))
    assert moa.to_dict("records") == [
        {"compound": "PP-2", "concentration": 3.0, "moa": "Epithelial", "row": 2}
    ]


def test_blank_lines_byte_order_mark_and_header_case_are_understood(tmp_path):
    path = tmp_path / "moa.csv"
    path.write_bytes(b"\xef\xbb\xbfCompound,CONCENTRATION,MoA,\n\nNA,1,None,\n,,,\n")
    moa = bbbc021.read_moa_csv(path, Names(exact=True))
    assert (moa["compound"][0], moa["moa"][0], moa["row"][0]) == ("NA", "None", 3)
    path.write_text("Compound;CONCENTRATION;MoA\na;0,5;m\n")
    with pytest.raises(BadData, match=r"moa\.csv, line 1: .* separated by semicolons"):
        bbbc021.read_moa_csv(path)


def test_tables_read_together_have_one_spelling_of_each_name(tmp_path):
    lines = [
        IMAGE_HEADER,
        image_row(compound="PP-2"),
        image_row(2, well="b2", compound="pp\u20112"),
    ]
    lines += [image_row(well="C03", compound="x", concentration="NA")]
    lines += [image_row(well="C04", compound="dmso", concentration="")]
    lines += [image_row(well="C05", compound="unknown", plate="week1_22123")]
    names = Names()
    images = bbbc021.read_image_csv(write(tmp_path / "image.csv", lines), names)
    assert images["compound"].tolist() == ["PP-2", "PP-2", "x", "dmso", ""]
    assert images["well"].tolist() == ["B02", "B02", "C03", "C04", "C05"]
    assert set(images["plate"]) == {"Week1_22123"}
    np.testing.assert_array_equal(images["concentration"], [0, 0, np.nan, 0, 0])
    treatments = ["pp-2,0,M", "PP-2,0,m", "X,,N", "DMSO,0,-"]
    lines = ["compound,concentration,moa", *treatments]
    moa = bbbc021.read_moa_csv(write(tmp_path / "moa.csv", lines), names)
    assert bbbc021.annotate(images, moa)["moa"].tolist() == ["M", "M", "N", "", ""]
    assert len(names.notes) == 7


def test_concentrations_that_went_through_float32_still_join(tmp_path):
    lines = [IMAGE_HEADER, image_row(compound="a", concentration="0.300000012")]
    lines += [image_row(well="C03", compound="a", concentration="0.03")]
    lines += [image_row(well="D04", compound="b", concentration="0.3")]
    images = bbbc021.read_image_csv(write(tmp_path / "image.csv", lines))
    moa = bbbc021.read_moa_csv(
        write(tmp_path / "moa.csv", ["compound,concentration,moa", "a,0.3,M"])
    )
    assert bbbc021.annotate(images, moa)["moa"].tolist() == ["M", "", ""]


@pytest.mark.parametrize(
    ("compound", "concentration", "there"),
    [
        ("taxolx", "0.3", " at any concentration"),
        ("taxol", "3", r" \(its concentrations there are 0\.3, 1\)"),
    ],
)
def test_a_treatment_that_was_not_imaged_is_named(tmp_path, compound, concentration, there):
    lines = [IMAGE_HEADER, image_row(compound="taxol", concentration="1")]
    lines += [image_row(well="C03", compound="taxol", concentration="0.300000012")]
    images = bbbc021.read_image_csv(write(tmp_path / "image.csv", lines))
    known = ["compound,concentration,moa", "taxol,0.3,M"]
    moa = bbbc021.read_moa_csv(write(tmp_path / "moa.csv", known))
    bbbc021.require_imaged(moa, images, "moa.csv", "image.csv")
    lines = [*known, "", f"{compound},{concentration},M"]
    moa = bbbc021.read_moa_csv(write(tmp_path / "moa.csv", lines))
    message = rf"^moa\.csv, line 4: compound '{compound}' at {concentration} is on no row of image"
    with pytest.raises(BadData, match=message + r"\.csv" + there):
        bbbc021.require_imaged(moa, images, "moa.csv", "image.csv")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([image_row(concentration="-1")], r"image.csv, line 2: concentration '-1'"),
        ([image_row(), image_row(2, concentration="1 uM")], r"line 3: concentration '1 uM'"),
        ([image_row(well="NA")], r"line 2: the well is empty"),
        ([image_row(), image_row(well="b2")], r"line 3: .*site 1 is also on line 2"),
        ([image_row(replicate="x")], r"line 2: replicate 'x'"),
        ([image_row(site="x")], r"line 2: no site in the file name"),
        ([image_row(plate="22123")], r"line 2: plate '22123' has no batch in its name"),
        ([image_row(), image_row()], r"line 3: .*site 1 is also on line 2"),
        ([image_row(), image_row(2, compound="taxol")], r"line 3: well B02 .* 'taxol' at 0"),
        ([image_row() + ",more"], r"line 2: 14 values, the header has 13"),
        (
            [image_row(), image_row(well="C03").replace("C03_s1_w1", "B02_s1_w1")],
            r"line 3: dna file Week1/Week1_22123/B02_s1_w1AB.tif is also on line 2",
        ),
        ([image_row(), image_row(2, compound="ta\nxol")], r"line 3: a line break inside quotes"),
        ([image_row() + ',"'], r"line 2: unexpected end of data"),
        ([], r"a header and no rows"),
    ],
)
def test_image_csv_errors_name_the_line(tmp_path, rows, message):
    path = write(tmp_path / "image.csv", [IMAGE_HEADER, *rows])
    with pytest.raises(BadData, match=message):
        bbbc021.read_image_csv(path)


def test_missing_column_is_named(tmp_path):
    header = IMAGE_HEADER.replace("Image_Metadata_Compound", "Drug")
    path = write(tmp_path / "image.csv", [header, image_row()])
    with pytest.raises(BadData, match="no column 'compound'"):
        bbbc021.read_image_csv(path)


def test_own_batch_and_site_columns_come_first(tmp_path):
    header = IMAGE_HEADER + ",Metadata_Batch,Metadata_Site"
    path = write(tmp_path / "image.csv", [header, image_row("x", plate="P1") + ",run 7,3"])
    images = bbbc021.read_image_csv(path)
    assert (images["batch"][0], images["site"][0]) == ("run 7", 3)


def test_treatment_listed_twice_in_the_moa_file_is_an_error(tmp_path):
    path = write(tmp_path / "moa.csv", ["compound,concentration,moa", "a,3,M", "a,3.0,N"])
    with pytest.raises(BadData, match=r"line 3: .* concentration 3\.0 is also on line 2"):
        bbbc021.read_moa_csv(path)


def test_missing_file_is_bad_use_and_an_empty_one_bad_data(tmp_path):
    with pytest.raises(BadUse, match="no such file"):
        bbbc021.read_moa_csv(tmp_path / "none.csv")
    (tmp_path / "moa.csv").write_bytes(b"")
    with pytest.raises(BadData, match="the file is empty"):
        bbbc021.read_moa_csv(tmp_path / "moa.csv")
    (tmp_path / "moa.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadData, match="not a UTF-8 text file"):
        bbbc021.read_moa_csv(tmp_path / "moa.csv")


def test_real_tables_hold_the_annotated_subset(shared):
    folder = shared / "data" / "bbbc021"
    images = bbbc021.read_image_csv(folder / "BBBC021_v1_image.csv")
    moa = bbbc021.read_moa_csv(folder / "BBBC021_v1_moa.csv")
    annotated = bbbc021.annotate(images, moa)
    bbbc021.require_imaged(moa, images, "moa.csv", "image.csv")
    assert len(annotated) == 13_200
    assert annotated["plate"].nunique() == 55
    assert annotated["batch"].nunique() == 10
    fields = annotated[annotated["moa"] != ""]
    wells = fields.drop_duplicates(["plate", "well"])
    treated = wells[wells["compound"] != "DMSO"]
    treatments = treated.drop_duplicates(["compound", "concentration"])
    assert (len(fields), len(wells), len(treated), len(treatments)) == (3848, 962, 632, 103)
    assert (treated["compound"].nunique(), treated["moa"].nunique()) == (38, 12)
    taxol = treated[(treated["compound"] == "taxol") & (treated["concentration"] == 0.3)]
    assert len(taxol) == 333
