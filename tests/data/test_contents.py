"""What a source holds is told apart by names, sizes and tables, and by no path."""

import pytest
from support.tiny_release import PLATES, file_name, write_release, zip_plates

from cellclr_jax.data.building.manifest import (
    contents_differences,
    describe_contents,
    is_extension,
)
from cellclr_jax.data.sources import Request, open_source

FILE = ("Week1", PLATES[0], file_name("C03", 1, "w2", PLATES[0]))


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "release")


def held(folder, **request):
    return describe_contents(open_source("raw", Request((folder,), **request)))


def test_the_same_content_elsewhere_or_zipped_is_the_same(release, tmp_path):
    first = held(release)
    assert first[PLATES[0]]["files"] == 9
    assert contents_differences(first, held(zip_plates(release, tmp_path / "zips"))) == []
    release.rename(tmp_path / "moved")
    assert contents_differences(first, held(tmp_path / "moved")) == []


def change(release, what):
    """Changes a table, a file's size, or takes a file or a plate away."""
    if what == "moa":
        path = release / "BBBC021_v1_moa.csv"
        path.write_text(path.read_text().replace("Epithelial", "Other"))
    elif what == "size":
        path = release.joinpath(*FILE)
        path.write_bytes(path.read_bytes() + b" ")
    elif what == "gap":
        release.joinpath(*FILE).unlink()
    else:
        for file in (release / "Week2" / PLATES[1]).iterdir():
            file.unlink()


OTHER = f"plate {PLATES[0]} has other files or metadata ({{}} files, were {{}})"


@pytest.mark.parametrize(
    ("what", "there", "back"),
    [
        ("moa", OTHER.format(9, 9), OTHER.format(9, 9)),
        ("size", OTHER.format(9, 9), OTHER.format(9, 9)),
        ("gap", OTHER.format(8, 9), OTHER.format(9, 8)),
        ("plate", f"1 plate fewer: {PLATES[1]}", f"1 plate more: {PLATES[1]}"),
    ],
)
def test_what_differs_is_said(release, what, there, back):
    before = held(release)
    change(release, what)
    after = held(release)
    assert contents_differences(before, after)[:1] == [there]
    assert contents_differences(after, before)[:1] == [back]
    assert is_extension(before, after) == (back.startswith("1 plate fewer"))
    assert is_extension(after, before) == (back.startswith("1 plate more"))


def test_long_lists_of_plates_are_cut():
    plates = {f"Week1_{n}": {"files": 1, "digest": "a"} for n in range(9)}
    other = {name: {"files": 1, "digest": "b"} for name in plates}
    first = {"Week0_0": plates["Week1_0"]}
    assert contents_differences(first, {**first, **plates}) == [
        "9 plates more: Week1_0, Week1_1, Week1_2, Week1_3, Week1_4, …"
    ]
    assert contents_differences(plates, other)[5:] == ["so have 4 other plates"]
    assert contents_differences({}, plates) == ["what it was built from is not in its manifest"]
