"""Centres of DeepProfiler and CellProfiler are assigned to their fields; errors name the line."""

import pytest

from cellclr_jax.data.readers.find_files import ImageFile
from cellclr_jax.data.sources.source import FieldFiles
from cellclr_jax.data.tables.nuclei import read_centers
from cellclr_jax.errors import BadData

PLACES = [("P1", "B02", 1), ("P1", "B02", 2), ("P1", "C11", 1), ("P2", "B02", 1)]
# (x, y) of each field's nuclei, as the programs write them.
NUCLEI = [[(10.5, 20.25), (0, 511)], [(3, 4)], [(100, 7.5), (7.5, 100), (1, 2)], [(8, 9)]]
CENTERS = [tuple((float(y), float(x)) for x, y in nuclei) for nuclei in NUCLEI]


def name_of(plate, well, site, channel="w1"):
    return f"{well}_s{site}_{channel}_{plate}.tif"


def field_of(plate, well, site):
    files = tuple(
        ImageFile(name_of(plate, well, site, channel), f"/images/{channel}.tif")
        for channel in ("w1", "w2")
    )
    return FieldFiles(
        f"{plate}/{well}/s{site}", {"plate": plate, "well": well, "site": site, "moa": "x"}, files
    )


@pytest.fixture
def fields():
    return [field_of(*place) for place in PLACES]


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([",".join(map(str, row)) for row in rows] + [""]))
    return path


def write_locations(root, site="{}", well="{}"):
    for (plate, place, number), nuclei in zip(PLACES, NUCLEI, strict=True):
        write(
            root / plate / f"{well.format(place)}-{site.format(number)}-Nuclei.csv",
            ("Nuclei_Location_Center_X", "Nuclei_Location_Center_Y"),
            *nuclei,
        )
    return root


def cellprofiler_rows(key, prefix="", nuclei=NUCLEI):
    """Header and rows; `key` gives (column, value) pairs of a field's number from 0."""
    header = [*dict(key(0)), "ObjectNumber", f"{prefix}Location_Center_X"]
    rows = [[*header, f"{prefix}Location_Center_Y", "AreaShape_Area"]]
    for number, centers in enumerate(nuclei):
        for index, (x, y) in enumerate(centers, start=1):
            rows.append([*dict(key(number)).values(), index, x, y, 99])
    return rows


def by_place(number, prefix=""):
    names = ("Metadata_Plate", "Metadata_Well", "Metadata_Site")
    return [(prefix + name, value) for name, value in zip(names, PLACES[number], strict=True)]


def by_number(number):
    return [("ImageNumber", number + 1)]


def by_file(number, column="FileName_DNA"):
    return [(column, name_of(*PLACES[number]))]


def write_images(path, key, numbers=range(4)):
    header = ["ImageNumber", *dict(key(0)), "Count_Nuclei"]
    rows = [[number + 1, *dict(key(number)).values(), 5] for number in numbers]
    return write(path, header, *rows)


def centers_of(read):
    filled, problems, notes = read
    assert problems == notes == []
    return [field.centers for field in filled]


@pytest.mark.parametrize("folder", [".", "locations", "inputs/locations"])
def test_deepprofilers_locations_are_read(tmp_path, fields, folder):
    write_locations(tmp_path / folder)
    assert centers_of(read_centers(tmp_path, fields)) == CENTERS
    assert centers_of(read_centers(tmp_path / folder, fields)) == CENTERS
    filled, _, _ = read_centers(tmp_path, fields)
    assert [field.name for field in filled] == [field.name for field in fields]
    assert filled[0].files == fields[0].files
    assert fields[0].centers is None


@pytest.mark.parametrize(("site", "well"), [("f0{}", "{}"), ("s{}", "{}"), ("{}.0", "{}")])
def test_sites_and_wells_match_in_any_notation(tmp_path, fields, site, well):
    write_locations(tmp_path, site, well)
    (tmp_path / "P1" / "notes.txt").write_text("x")
    write(tmp_path / "P1" / "D03-1-Nuclei.csv", ("a",), ("of a well that is not asked for",))
    assert centers_of(read_centers(tmp_path, fields)) == CENTERS
    short = [field_of("P1", "b2", 1)]
    assert centers_of(read_centers(tmp_path, short)) == CENTERS[:1]


def test_a_field_without_locations_is_a_problem_and_an_empty_table_is_none(tmp_path, fields):
    write_locations(tmp_path)
    (tmp_path / "P1" / "B02-2-Nuclei.csv").unlink()
    (tmp_path / "P2" / "B02-1-Nuclei.csv").unlink()
    (tmp_path / "P2").rmdir()
    write(tmp_path / "P1" / "C11-1-Nuclei.csv", ("nuclei_location_center_y", "LOCATION_CENTER_X"))
    with pytest.raises(BadData, match=r"C11-1-Nuclei\.csv, line 1: no columns Location_Center_X"):
        read_centers(tmp_path, fields)
    write(tmp_path / "P1" / "C11-1-Nuclei.csv", ("location_center_y", "LOCATION_CENTER_X"))
    filled, problems, _ = read_centers(tmp_path, fields)
    assert [(field.name, field.centers) for field in filled] == [
        ("P1/B02/s1", CENTERS[0]),
        ("P1/C11/s1", ()),
    ]
    assert problems == [
        ("P1/B02/s2", f"nothing of it in {tmp_path}"),
        ("P2/B02/s1", f"nothing of it in {tmp_path}"),
    ]


def test_two_tables_of_one_field_are_refused(tmp_path, fields):
    write_locations(tmp_path)
    write_locations(tmp_path, "f{}")
    with pytest.raises(BadData, match=r"B02-f1-Nuclei\.csv: the same field as B02-1-Nuclei\.csv"):
        read_centers(tmp_path, fields)


@pytest.mark.parametrize("plate", ["../secret", "/etc"])
def test_a_plates_name_leads_nowhere(tmp_path, plate):
    write_locations(tmp_path / "locations")
    write_locations(tmp_path / "secret")
    with pytest.raises(BadData, match="none of the 1 fields"):
        read_centers(tmp_path / "locations", [field_of(plate, "B02", 1)])


@pytest.mark.parametrize(
    ("prefix", "key"),
    [
        ("", by_place),
        ("Nuclei_", lambda number: by_place(number, "Image_")),
        ("nucleus_", lambda number: [(name.upper(), value) for name, value in by_place(number)]),
        ("DNAObjects_", by_file),
        ("", lambda number: by_file(number, "Image_FileName_DAPI")),
        ("", lambda number: [("FileName_Actin", f"C:\\in\\{name_of(*PLACES[number], 'w2')}")]),
    ],
)
def test_a_cellprofiler_table_is_read(tmp_path, fields, key, prefix):
    path = write(tmp_path / "objects.csv", *cellprofiler_rows(key, prefix))
    assert centers_of(read_centers(path, fields)) == CENTERS


@pytest.mark.parametrize("key", [by_place, by_file])
@pytest.mark.parametrize(
    ("table", "images", "others"),
    [
        ("Nuclei.csv", "Image.csv", []),
        ("MyExpt_Nuclei.csv", "MyExpt_Image.csv", ["Other_Image.csv", "Image.csv"]),
        ("nuclei.csv", "run7_image.csv", []),
    ],
)
def test_image_numbers_are_looked_up_in_the_exports_image_table(
    tmp_path, fields, key, table, images, others
):
    path = write(tmp_path / table, *cellprofiler_rows(by_number))
    write_images(tmp_path / images, key)
    for other in others:
        write(tmp_path / other, ("ImageNumber", "Metadata_Plate"))
    assert centers_of(read_centers(path, fields)) == CENTERS


def test_a_listed_field_without_nuclei_is_empty_and_an_unlisted_one_a_problem(tmp_path, fields):
    path = write(tmp_path / "Nuclei.csv", *cellprofiler_rows(by_number, nuclei=NUCLEI[:1]))
    write_images(tmp_path / "Image.csv", by_place, range(3))
    filled, problems, _ = read_centers(path, fields)
    assert [field.centers for field in filled] == [CENTERS[0], (), ()]
    assert problems == [("P2/B02/s1", f"nothing of it in {path}")]


def test_image_numbers_start_again_with_each_table_number(tmp_path, fields):
    rows = cellprofiler_rows(lambda n: [("TableNumber", n), ("ImageNumber", 1)])
    path = write(tmp_path / "Nuclei.csv", *rows)
    header = ["TableNumber", "ImageNumber", *dict(by_place(0))]
    write(tmp_path / "Image.csv", header, *[[n, 1, *PLACES[n]] for n in range(4)])
    assert centers_of(read_centers(path, fields)) == CENTERS


def combined(key, fill):
    """Nuclei and cells side by side; the field with the fewest nuclei has more cells."""
    keys = dict(key(0))
    objects = ["Image"] * len(keys) + ["Nuclei"] * 3 + ["Cells"] * 2
    names = [*keys, "ObjectNumber"] + ["Location_Center_X", "Location_Center_Y"] * 2
    rows = [objects, names]
    for number, nuclei in enumerate(NUCLEI):
        for index in range(3):
            center = nuclei[index] if index < len(nuclei) else (fill, fill)
            rows.append([*dict(key(number)).values(), index + 1, *center, 50 + index, 60 + index])
    return rows


@pytest.mark.parametrize("fill", ["", "NaN"])
def test_a_table_of_several_objects_has_a_header_of_two_rows(tmp_path, fields, fill):
    whole = combined(lambda number: by_number(number) + by_place(number), fill)
    path = write(tmp_path / "Nuclei.csv", *whole)
    assert centers_of(read_centers(path, fields)) == CENTERS
    path = write(tmp_path / "Nuclei.csv", *combined(by_number, fill))
    write_images(tmp_path / "Image.csv", by_file)
    assert centers_of(read_centers(path, fields)) == CENTERS


def test_the_same_file_name_on_two_plates_needs_the_plate(tmp_path):
    fields = [
        FieldFiles(
            f"{plate}/a",
            {"plate": plate, "well": "A01", "site": 1},
            (ImageFile("r01c01.tif", f"/{plate}"),),
        )
        for plate in ("P1", "P2")
    ]
    header = ["FileName_DNA", "Location_Center_X", "Location_Center_Y"]
    path = write(tmp_path / "Nuclei.csv", header, ["r01c01.tif", 1, 2])
    with pytest.raises(BadData, match=r"line 2: 2 fields have a file 'r01c01\.tif'"):
        read_centers(path, fields)
    rows = [["r01c01.tif", 1, 2, "P1"], ["r01c01.tif", 3, 4, "P2"], ["r01c01.tif", 5, 6, "P3"]]
    path = write(tmp_path / "Nuclei.csv", [*header, "Metadata_Plate"], *rows)
    assert centers_of(read_centers(path, fields)) == [((2.0, 1.0),), ((4.0, 3.0),)]
    # Another plate's image of that name is no image of this one.
    assert centers_of(read_centers(path, fields[:1])) == [((2.0, 1.0),)]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ("a", "1", r"line 4: x 'a': a number of at least 0"),
        ("1", "-0.5", r"line 4: y '-0\.5'"),
        ("", "1", r"line 4: x ''"),
        ("inf", "1", r"line 4: x 'inf'"),
        ("10.5", "20.25", r"line 4: repeats the centre of line 2"),
    ],
)
def test_a_bad_coordinate_is_named_with_its_line(tmp_path, fields, x, y, message):
    rows = cellprofiler_rows(by_place)
    rows.insert(3, [*PLACES[0], 3, x, y, 99])
    path = write(tmp_path / "Nuclei.csv", *rows)
    with pytest.raises(BadData, match=rf"Nuclei\.csv, {message}"):
        read_centers(path, fields)
    root = write_locations(tmp_path)
    header = ("Nuclei_Location_Center_X", "Nuclei_Location_Center_Y")
    write(root / "P1" / "B02-1-Nuclei.csv", header, *NUCLEI[0], (x, y))
    with pytest.raises(BadData, match=rf"B02-1-Nuclei\.csv, {message}"):
        read_centers(root, fields)


def test_a_nucleus_without_a_centre_is_left_out_and_counted(tmp_path, fields):
    rows = cellprofiler_rows(by_place)
    rows[1:1] = [[*PLACES[0], 3, missing, missing, 99] for missing in ("nan", "", "n/a")]
    path = write(tmp_path / "Nuclei.csv", *rows)
    filled, problems, notes = read_centers(path, fields)
    assert ([field.centers for field in filled], problems) == (CENTERS, [])
    assert notes == [f"nuclei without a centre, left out: 3, first {path}, line 2"]
    write(path, *rows[:4])
    with pytest.raises(BadData, match=r"none of its 3 nuclei has a centre, .*csv, line 2 first"):
        read_centers(path, fields)


@pytest.mark.parametrize(
    ("place", "files"),
    [
        (("P1", "B02", 2), [0]),
        (("P1", "C11", 1), [0]),
        (("P1", "B02", 9), [0]),  # of no field that is asked for
        (("P1", "", ""), [0, 1]),
        (("", "", 2), [0]),
    ],
)
def test_a_row_that_contradicts_itself_about_its_field_is_named(tmp_path, fields, place, files):
    images = [name_of(*PLACES[number]) for number in files]
    header = [*dict(by_place(0)), *[f"FileName_{n}" for n in files], *CENTER]
    good = [*PLACES[0], *images[:1] * len(files), 1, 2]
    path = write(tmp_path / "Nuclei.csv", header, good, [*place, *images, 3, 4])
    with pytest.raises(BadData, match=r"Nuclei\.csv, line 3: the row is of .* its file 'B02_s"):
        read_centers(path, fields)


CENTER = ["Location_Center_X", "Location_Center_Y"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (["Metadata_Plate", "Metadata_Well", *CENTER], "no column for a row's field: columns"),
        (CENTER, r"no column for .*; the header has location_center_x, location_center_y"),
        ([*dict(by_place(0)), CENTER[0]], "no columns Location_Center_X"),
        (
            [*dict(by_place(0)), "Mean_Nuclei_" + CENTER[0], "Mean_Nuclei_" + CENTER[1]],
            "no columns",
        ),
        (
            [
                *dict(by_place(0)),
                *[f"{name}_{axis}" for name in ("Cells", "Dust") for axis in CENTER],
            ],
            r"centres of several objects \(cells, dust\), those of nuclei were expected",
        ),
    ],
)
def test_a_header_without_field_or_centre_is_an_error(tmp_path, fields, header, message):
    path = write(tmp_path / "Nuclei.csv", header, ["1"] * len(header))
    with pytest.raises(BadData, match=rf"Nuclei\.csv, line 1: .*{message}"):
        read_centers(path, fields)


def test_of_several_objects_and_kinds_the_nuclei_and_their_location_count(tmp_path, fields):
    names = ["Cells_Location_Center_X", "Cells_Location_Center_Y"]
    names += ["Nuclei_AreaShape_Center_X", "Nuclei_AreaShape_Center_Y"]
    names += ["Nuclei_Location_Center_X", "Nuclei_Location_Center_Y"]
    names += ["Nuclei_Location_CenterMassIntensity_X_DNA", "Mean_Nuclei_Location_Center_X"]
    row = [*PLACES[0], 1, 2, 3, 4, 5, 6, 7, 8]
    path = write(tmp_path / "a.csv", [*dict(by_place(0)), *names], row)
    assert centers_of(read_centers(path, fields[:1])) == [((6.0, 5.0),)]
    path = write(tmp_path / "a.csv", [*dict(by_place(0)), *names[:4]], row[:7])
    assert centers_of(read_centers(path, fields[:1])) == [((4.0, 3.0),)]


def test_tables_that_do_not_belong_together_are_named(tmp_path, fields):
    path = write(tmp_path / "Nuclei.csv", *cellprofiler_rows(by_number))
    with pytest.raises(BadData, match=r"no table \*Image\.csv of its export next to it"):
        read_centers(path, fields)
    images = tmp_path / "Image.csv"
    write_images(images, by_place, range(2))
    with pytest.raises(BadData, match=r"Nuclei\.csv, line 5: ImageNumber '3' is not in .*Image"):
        read_centers(path, fields)
    write_images(images, by_place, [0, 1, 2, 3, 0])
    with pytest.raises(BadData, match=r"Image\.csv, line 6: repeats ImageNumber 1"):
        read_centers(path, fields)
    write(images, ["ImageNumber", *dict(by_place(0))], *[[n, *PLACES[0]] for n in (1, 2)])
    with pytest.raises(BadData, match=r"Image\.csv, line 3: repeats the field of line 2"):
        read_centers(path, fields)
    write(images, ["ImageNumber", "Count_Nuclei"], [1, 2])
    with pytest.raises(BadData, match=r"Nuclei\.csv and .*Image\.csv: no column for a row's field"):
        read_centers(path, fields)
    write(tmp_path / "A_Image.csv", ["ImageNumber"])
    images.rename(tmp_path / "B_Image.csv")
    with pytest.raises(BadData, match=r"no table \*Image\.csv of its export"):
        read_centers(path, fields)
