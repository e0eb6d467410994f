"""A TIFF is read by its metadata on images, axes and files; ambiguous ones are refused."""

import re
import zipfile

import numpy as np
import pytest
import tifffile

from cellclr_jax.data.readers import read_cell, read_planes
from cellclr_jax.data.readers.find_files import ImageFile, find_tiffs
from cellclr_jax.data.sources.image_folders import folder_fields
from cellclr_jax.data.sources.source import Request
from cellclr_jax.errors import BadData

SIDE = 24
RNG = np.random.default_rng(0)
FULL = RNG.integers(1, 60000, (SIDE, SIDE, 3)).astype(np.uint16)
PLANES = RNG.integers(1, 60000, (5, SIDE, SIDE)).astype(np.uint16)
SMALL = FULL[::4, ::4]


def cells(folder, channels=0, **request):
    """The images of a folder by cell."""
    source = folder_fields(Request((folder,), channels=tuple("abcdefgh"[:channels]), **request))
    return {
        cell: field.read(number)
        for field in source.fields
        for number, cell in enumerate(field.cells)
    }


def write(path, *pages):
    """Writes (pixels, options) one after the other, without any description of axes."""
    with tifffile.TiffWriter(path) as file:
        for pixels, options in pages:
            file.write(pixels, metadata=None, **options)


RGB, REDUCED = {"photometric": "rgb"}, {"photometric": "rgb", "subfiletype": 1}
# SubfileType, which NewSubfileType replaced.
OLD = {"photometric": "rgb", "extratags": [(255, "H", 1, 2, True)]}


@pytest.mark.parametrize(
    "pages",
    [
        [(SMALL, REDUCED), (FULL, RGB)],
        [(FULL, RGB), (SMALL, REDUCED)],
        [(SMALL, OLD), (FULL, RGB)],
        [(SMALL, {**REDUCED, "subifds": 1}), (FULL, {**RGB, "subfiletype": 0})],
        [(FULL, {**RGB, "subifds": 1}), (FULL[::2, ::2], REDUCED)],
    ],
)
def test_reduced_copies_are_passed_over(tmp_path, pages):
    write(tmp_path / "a.tif", *pages)
    source = folder_fields(Request((tmp_path,)))
    assert source.planes == "YXS; reduced copies skipped"
    np.testing.assert_array_equal(source.fields[0].read(0), FULL)


def test_images_of_two_sizes_are_refused_if_none_is_marked_reduced(tmp_path):
    write(tmp_path / "a.tif", (SMALL, RGB), (FULL, RGB))
    with pytest.raises(BadData, match=r"2 images in one file \(YXS 6x6x3, YXS 24x24x3\); --pages"):
        cells(tmp_path)


def blank_tag(path, name, entry, page=0):
    """Overwrites one entry of a tag's values by 0."""
    with tifffile.TiffFile(path) as file:
        tag = file.pages[page].tags[name]
    width = {3: 2, 4: 4, 16: 8}[tag.dtype]
    content = bytearray(path.read_bytes())
    place = tag.valueoffset + entry * width
    content[place : place + width] = bytes(width)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("options", "tag", "page", "message"),
    [
        ({"rowsperstrip": 8, "compression": "zlib"}, "StripOffsets", 0, "1 of its 3 strips"),
        ({"rowsperstrip": 8, "bigtiff": True}, "StripByteCounts", 0, "1 of its 3 strips"),
        ({"tile": (16, 16), "compression": "zlib"}, "TileOffsets", 0, "1 of its 4 tiles"),
        ({"rowsperstrip": 8, "compression": "zlib"}, "StripOffsets", 1, "1 of its 3 strips"),
    ],
)
def test_strips_that_were_never_written_are_an_error(tmp_path, options, tag, page, message):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, PLANES[:2], photometric="minisblack", metadata={"axes": "CYX"}, **options
    )
    file = ImageFile("a", str(path))
    read_cell(file, channels=2, layout="stacked", dtype="uint16")
    blank_tag(path, tag, 1, page)
    with pytest.raises(BadData, match=rf"a\.tif: {message} were never written, .* number 2"):
        read_cell(file, channels=2, layout="stacked", dtype="uint16")


def ome(own, *images):
    """OME-XML of images given as (planes (c, z, file) in order, sizes (C, Z))."""
    text = ""
    for number, (planes, (c, z)) in enumerate(images):
        text += f'<Image ID="Image:{number}"><Pixels DimensionOrder="XYCZT" SizeX="{SIDE}"'
        text += f' SizeY="{SIDE}" SizeC="{c}" SizeZ="{z}" SizeT="1" Type="uint16">'
        for channel, depth, file in planes:
            text += f'<TiffData FirstC="{channel}" FirstZ="{depth}" IFD="0" PlaneCount="1">'
            text += f'<UUID FileName="{file}">urn:{file}</UUID></TiffData>'
        text += "</Pixels></Image>"
    return f'<OME xmlns="http://www.openmicroscopy.org/x" UUID="urn:{own}">{text}</OME>'


def write_set(folder, stem, *, z=False):
    """Three files, each a channel (or a plane) of one image."""
    names = [f"{stem}_{number}.ome.tif" for number in range(3)]
    planes = [(0, n, name) if z else (n, 0, name) for n, name in enumerate(names)]
    for number, name in enumerate(names):
        description = ome(name, (planes, (1, 3) if z else (3, 1)))
        write(folder / name, (PLANES[number], {"description": description}))


def test_the_files_of_a_set_are_one_cell(tmp_path):
    for stem in "ab":
        write_set(tmp_path, stem)
    assert list(cells(tmp_path)) == ["a_0.ome", "b_0.ome"]
    source = folder_fields(Request((tmp_path,)))
    np.testing.assert_array_equal(source.fields[0].read(1), np.moveaxis(PLANES[:3], 0, 2))
    assert source.left_out == ["4 files read as channels of others (OME file sets)"]
    # A plate's file is one channel, whatever set it belongs to.
    planes = read_planes((ImageFile("b", str(tmp_path / "b_1.ome.tif")),))
    np.testing.assert_array_equal(planes[..., 0], PLANES[1])
    with zipfile.ZipFile(tmp_path / "plate.zip", "w") as archive:
        archive.write(tmp_path / "b_2.ome.tif", "b_2.ome.tif")
    ((_, member),) = find_tiffs(tmp_path / "plate.zip")
    np.testing.assert_array_equal(read_planes((member,))[..., 0], PLANES[2])
    before = source.fields[0].fingerprint()
    (tmp_path / "a_2.ome.tif").unlink()
    assert folder_fields(Request((tmp_path,))).fields[0].fingerprint() != before
    with pytest.raises(BadData, match=r"a_0\.ome\.tif: its OME .* lacks channel 3 \(a_2\.ome"):
        cells(tmp_path)


def test_a_companion_describes_a_set_and_each_file_may_be_an_image_of_its_own(tmp_path):
    write_set(tmp_path, "a")
    described = (tmp_path / "a_0.ome.tif").read_bytes()
    binary = '<BinaryOnly MetadataFile="a_0.ome.tif" UUID="urn:a_0.ome.tif"/>'
    for number in (1, 2):
        text = ome(f"a_{number}.ome.tif").replace("</OME>", f"{binary}</OME>")
        write(tmp_path / f"a_{number}.ome.tif", (PLANES[number], {"description": text}))
    np.testing.assert_array_equal(cells(tmp_path)["a_0.ome"], np.moveaxis(PLANES[:3], 0, 2))
    (tmp_path / "a_0.ome.tif").unlink()
    with pytest.raises(BadData, match=r"a_0\.ome\.tif, which describes its OME .* is missing"):
        cells(tmp_path)
    (tmp_path / "a_0.ome.tif").write_bytes(described)
    names = [f"a_{number}.ome.tif" for number in range(3)]
    for number, name in enumerate(names):
        text = ome(name, *(([(0, 0, one)], (1, 1)) for one in names))
        write(tmp_path / name, (PLANES[number], {"description": text}))
    found = cells(tmp_path)
    assert len(found) == 3
    np.testing.assert_array_equal(found["a_2.ome"][..., 0], PLANES[2])


def test_several_images_or_pages_need_a_flag(tmp_path):
    folders = {name: tmp_path / name for name in ("pages", "series", "rgb")}
    for folder in folders.values():
        folder.mkdir()
    write(folders["pages"] / "a.tif", *[(plane, {}) for plane in PLANES])
    write(folders["rgb"] / "a.tif", (FULL, RGB), (FULL[::-1], RGB))
    with tifffile.TiffWriter(folders["series"] / "a.ome.tif", ome=True) as file:
        for start in (0, 2):
            file.write(PLANES[start : start + 2], metadata={"axes": "CYX"})
    for name, message in (
        ("pages", "5 pages of 24x24 pixels on an axis without a name; --pages=channels or"),
        ("series", r"2 images in one file (CYX 2x24x24); --pages=cells"),
        ("rgb", "axes IYXS 2x24x24x3: .* --pages=cells"),
    ):
        pattern = message if "*" in message else re.escape(message)
        with pytest.raises(BadData, match=pattern):
            cells(folders[name])
    stacked = np.moveaxis(PLANES, 0, 2)
    np.testing.assert_array_equal(cells(folders["pages"], pages="channels")["a"], stacked)
    # Channel names, as many as pages, have the same effect.
    np.testing.assert_array_equal(cells(folders["pages"], channels=5)["a"], stacked)
    found = cells(folders["pages"], pages="cells")
    assert list(found) == [f"a/{number}" for number in range(1, 6)]
    np.testing.assert_array_equal(found["a/4"][..., 0], PLANES[3])
    found = cells(folders["series"], pages="cells")
    np.testing.assert_array_equal(found["a.ome/2"], np.moveaxis(PLANES[2:4], 0, 2))
    np.testing.assert_array_equal(cells(folders["rgb"], pages="cells")["a/2"], FULL[::-1])


@pytest.mark.parametrize("kind", ["imagej", "ome", "shaped", "set"])
def test_a_plane_of_a_z_axis_is_named(tmp_path, kind):
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif")
    if kind == "set":
        write_set(tmp_path, "a", z=True)
    else:
        how = {"imagej": kind == "imagej", "ome": kind == "ome", "photometric": "minisblack"}
        tifffile.imwrite(path, PLANES[:3], metadata={"axes": "ZYX"}, **how)
    with pytest.raises(BadData, match=r"axes ZYX 3x24x24: --z=1 to --z=3 takes a plane"):
        cells(tmp_path)
    for z, expected in (("2", PLANES[1]), ("max", PLANES[:3].max(axis=0))):
        (image,) = cells(tmp_path, z=z).values()
        np.testing.assert_array_equal(image[..., 0], expected)
    with pytest.raises(BadData, match="--z=4 of 3 planes"):
        cells(tmp_path, z="4")
    if kind == "imagej":
        file = (ImageFile("a", str(path)),)
        np.testing.assert_array_equal(read_planes(file, z="3")[..., 0], PLANES[2])
        with pytest.raises(BadData, match="axes ZYX"):
            read_planes(file)


def test_described_but_missing_planes_are_an_error(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, PLANES[:2], metadata={"axes": "CYX"}, ome=True)
    path.write_bytes(path.read_bytes().replace(b'SizeC="2"', b'SizeC="3"'))
    with pytest.raises(BadData, match=r"a\.ome\.tif: 1 of the 3 planes .* are not in it"):
        cells(tmp_path)


def test_a_time_axis_is_refused_and_z_needs_a_z_axis(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PLANES, imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(BadData, match=r"axes TYX 5x24x24: height, width and channels"):
        cells(tmp_path)
    tifffile.imwrite(tmp_path / "a.tif", PLANES[0])
    with pytest.raises(BadData, match=r"no z axis, of which --z=2 takes a plane"):
        cells(tmp_path, z="2")
