"""Images of single cells are read unchanged from every format; unusable files are named."""

import os
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile

from cellclr_jax.data import readers
from cellclr_jax.data.readers import cell_shape, read_cell, read_planes
from cellclr_jax.data.readers.find_files import ImageFile
from cellclr_jax.data.readers.formats import Selection
from cellclr_jax.errors import BadData


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def noise(rng, shape, dtype):
    return rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def save_png(path, image):
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(np.squeeze(image))))


def save_pages(path, image):
    tifffile.imwrite(path, np.moveaxis(image, 2, 0), photometric="minisblack")


def save_planes(path, image):
    with tifffile.TiffWriter(path) as tiff:
        for plane in np.moveaxis(image, 2, 0):
            tiff.write(plane)


def save_imagej(path, image):
    tifffile.imwrite(path, np.moveaxis(image, 2, 0), imagej=True, metadata={"axes": "CYX"})


def save_contiguous(path, image):
    planar = "contig" if image.shape[2] > 1 else None
    tifffile.imwrite(path, image, photometric="minisblack", planarconfig=planar)


def save_rgba(path, image):
    tifffile.imwrite(path, image, photometric="rgb")


def save_grey_and_alpha(path, image):
    tifffile.imwrite(
        path, image, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]
    )


def save_numpy_first(path, image):
    np.save(path, np.moveaxis(image, 2, 0)[None])


def save_numpy_swapped(path, image):
    np.save(path, image.astype(image.dtype.newbyteorder(">")))


PAGES = Selection(pages="channels")
WAYS = [
    (save_pages, ".tif"),
    (save_planes, ".tiff"),
    (save_imagej, ".TIF"),
    (save_contiguous, ".tif"),
    (np.save, ".npy"),
    (save_numpy_first, ".npy"),
    (save_numpy_swapped, ".npy"),
]
CASES = [(save, suffix, channels) for save, suffix in WAYS for channels in (1, 3, 5)]
CASES += [(save_png, ".png", channels) for channels in (1, 3)]


def written(folder, save, suffix, image):
    path = folder / f"cell{suffix}"
    save(path, image)
    return ImageFile("cell", str(path))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(("save", "suffix", "channels"), CASES)
def test_an_image_is_read_as_it_was_written(tmp_path, rng, save, suffix, channels, dtype):
    image = noise(rng, (40, 31, channels), dtype)
    file = written(tmp_path, save, suffix, image)
    back = read_cell(file, channels=channels, layout="stacked", dtype=dtype)
    assert back.dtype == np.dtype(dtype)
    assert back.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(back, image)
    for declared in (0, channels):
        shape = cell_shape(file, layout="stacked", channels=declared, selection=PAGES)
        assert shape[:4] == (40, 31, channels, dtype)


def test_declared_channels_decide_the_axis(tmp_path, rng):
    small = noise(rng, (5, 40, 3), "uint8")
    file = written(tmp_path, np.save, ".npy", small)
    assert cell_shape(file, layout="stacked")[:3] == (5, 40, 3)
    assert cell_shape(file, layout="stacked", channels=5)[:3] == (40, 3, 5)
    back = read_cell(file, channels=5, layout="stacked", dtype="uint8")
    np.testing.assert_array_equal(back, np.moveaxis(small, 0, 2))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(
    ("save", "suffix", "channels"),
    [
        (save_png, ".png", 1),
        (save_png, ".png", 3),
        (save_rgba, ".tif", 3),
        (save_grey_and_alpha, ".tif", 1),
    ],
)
def test_an_alpha_channel_is_no_channel_unless_it_is_counted(
    tmp_path, rng, save, suffix, channels, dtype
):
    image = noise(rng, (20, 24, channels + 1), dtype)
    file = written(tmp_path, save, suffix, image)
    assert cell_shape(file, layout="stacked")[:5] == (20, 24, channels, dtype, True)
    assert cell_shape(file, layout="stacked", channels=channels + 1)[2] == channels + 1
    for count in (channels, channels + 1):
        back = read_cell(file, channels=count, layout="stacked", dtype=dtype)
        np.testing.assert_array_equal(back, image[..., :count])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_tiles_from_left_to_right_are_channels(tmp_path, rng, channels, dtype):
    image = noise(rng, (24, 24, channels), dtype)
    # How DeepProfiler unfolds a crop.
    tiles = np.reshape(image, (24, -1), order="F")
    np.testing.assert_array_equal(tiles, np.concatenate(list(np.moveaxis(image, 2, 0)), axis=1))
    file = written(tmp_path, save_png, ".png", tiles)
    assert cell_shape(file, layout="side_by_side")[:4] == (24, 24, channels, dtype)
    back = read_cell(file, channels=channels, layout="side_by_side", dtype=dtype)
    assert back.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(back, image)


def test_images_that_are_no_tiles_are_refused(tmp_path, rng):
    odd = written(tmp_path, save_png, ".png", noise(rng, (24, 60), "uint8"))
    with pytest.raises(BadData, match=r"uint8 \(24, 60\), grey square tiles"):
        cell_shape(odd, layout="side_by_side")
    with pytest.raises(BadData, match=r"uint8 \(24, 60\), grey square tiles"):
        read_cell(odd, channels=3, layout="side_by_side", dtype="uint8")
    colored = written(tmp_path, save_png, ".png", noise(rng, (24, 72, 3), "uint8"))
    with pytest.raises(BadData, match="grey square tiles"):
        cell_shape(colored, layout="side_by_side")
    with pytest.raises(BadData, match="grey square tiles"):
        read_cell(colored, channels=3, layout="side_by_side", dtype="uint8")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((24, 24, 3), np.float32), r"float32 \(24, 24, 3\), uint8 or uint16 \[H, W\]"),
        (np.zeros((2, 3, 24, 24), np.uint8), r"uint8 \(2, 3, 24, 24\)"),
        (np.zeros((0, 24), np.uint8), r"uint8 \(0, 24\)"),
        (np.array([{"a": 1}], object), "not a readable .npy array|object"),
        (np.zeros((24, 24, 20), np.uint8), r"\(24, 24, 20\), at most 16 channels"),
    ],
)
def test_an_array_of_another_kind_is_refused(tmp_path, array, message):
    file = written(tmp_path, np.save, ".npy", array)
    with pytest.raises(BadData, match=rf"cell\.npy: .*{message}"):
        cell_shape(file, layout="stacked")
    with pytest.raises(BadData, match=r"cell\.npy: "):
        read_cell(file, channels=3, layout="stacked", dtype="uint8")


def test_a_pipe_is_refused(tmp_path):
    for suffix in (".png", ".tif", ".npy"):
        os.mkfifo(tmp_path / f"cell{suffix}")
        file = ImageFile("cell", str(tmp_path / f"cell{suffix}"))
        for read in (
            lambda file=file: cell_shape(file, layout="stacked"),
            lambda file=file: read_cell(file, channels=1, layout="stacked", dtype="uint8"),
        ):
            with pytest.raises(BadData, match=rf"cell\{suffix}: .*it is not a regular file"):
                read()


def test_another_number_of_channels_or_type_is_refused(tmp_path, rng):
    file = written(tmp_path, np.save, ".npy", noise(rng, (24, 24, 3), "uint8"))
    for channels, dtype in ((2, "uint8"), (1, "uint8"), (3, "uint16")):
        with pytest.raises(
            BadData, match=rf"uint8 \(24, 24, 3\), {dtype} of {channels} channels was expected"
        ):
            read_cell(file, channels=channels, layout="stacked", dtype=dtype)


def chunk(name, content):
    checksum = zlib.crc32(name + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + name + content + checksum


def png(width, height, depth, color, *chunks):
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(8, 8, 8, 3), "a palette; save it as grey or RGB"),
        (png(8, 8, 1, 0), "1 bits a channel, 8 or 16 were expected"),
        (png(60000, 60000, 8, 0), "unpacks to 3,600,000,000 bytes"),
        (png(8, 8, 8, 0, chunk(b"tRNS", b"\0\7")), r"transparent \(tRNS\); save it without"),
        (png(8, 8, 8, 2, chunk(b"gAMA", bytes(4)), chunk(b"tRNS", bytes(6))), "transparent"),
        (png(8, 8, 8, 0, *[chunk(b"tEXt", b"")] * 1001), "more than 1,000 chunks"),
        (png(8, 8, 8, 0, chunk(b"acTL", bytes(8))), "an animation of several images"),
        (b"GIF89a", "does not start with the header of a PNG"),
        (png(8, 8, 8, 0).replace(b"\0\0\0\x08\x08", b"\0\0\0\x08\x10"), "checksum of its header"),
    ],
)
def test_a_png_that_is_no_image_of_a_cell_is_refused_undecoded(
    tmp_path, monkeypatch, content, message
):
    monkeypatch.setattr(imagecodecs, "png_decode", lambda _: pytest.fail("it was decoded"))
    path = tmp_path / "cell.png"
    path.write_bytes(content)
    file = ImageFile("cell", str(path))
    with pytest.raises(BadData, match=rf"cell\.png: not a readable PNG \(.*{message}"):
        cell_shape(file, layout="stacked")
    with pytest.raises(BadData, match=rf"cell\.png: not a readable PNG \(.*{message}"):
        read_cell(file, channels=1, layout="stacked", dtype="uint8")


def test_a_file_that_unpacks_to_another_shape_is_refused(tmp_path, monkeypatch):
    file = written(tmp_path, save_png, ".png", np.zeros((8, 8), np.uint8))
    # As decoded from a chunk that the header does not announce.
    monkeypatch.setattr(imagecodecs, "png_decode", lambda _: np.zeros((8, 8, 2), np.uint8))
    with pytest.raises(BadData, match=r"uint8 \(8, 8, 2\) in it, its header says uint8 \(8, 8\)"):
        read_cell(file, channels=1, layout="stacked", dtype="uint8")


def test_an_image_that_unpacks_to_too_many_bytes_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_MOST_CELL_BYTES", 10_000)
    image = np.zeros((100, 101), np.uint8)
    for suffix, save in ((".npy", np.save), (".tif", tifffile.imwrite), (".png", save_png)):
        file = written(tmp_path, save, suffix, image)
        with pytest.raises(BadData, match="unpacks to 10,100 bytes, more than the 10,000 allowed"):
            read_cell(file, channels=1, layout="stacked", dtype="uint8")


def test_a_tile_larger_than_its_image_is_refused_unread(tmp_path):
    path = tmp_path / "cell.tif"
    tifffile.imwrite(path, np.zeros((32, 32), np.uint8), tile=(16, 16), compression="zlib")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        places = [tiff.pages[0].tags[name].valueoffset for name in ("TileWidth", "TileLength")]
    for place in places:
        content[place : place + 4] = struct.pack("<I", 65520)
    path.write_bytes(content)
    with pytest.raises(BadData, match=r"cell\.tif: .* unpacks to 4,292,870,400 bytes"):
        read_cell(ImageFile("cell", str(path)), channels=1, layout="stacked", dtype="uint8")


def test_a_palette_is_refused_but_imagejs(tmp_path, rng):
    image = noise(rng, (20, 24), "uint8")
    colors = noise(rng, (3, 256), "uint16")
    path = tmp_path / "cell.tif"
    file = ImageFile("cell", str(path))
    tifffile.imwrite(path, image, photometric="palette", colormap=colors)
    with pytest.raises(BadData, match="a palette; save it as grey or RGB"):
        cell_shape(file, layout="stacked")
    # ImageJ stores brightness, with colours for display.
    description = "ImageJ=1.54f\nmin=0.0\nmax=255.0\n"
    tifffile.imwrite(
        path, image, photometric="palette", colormap=colors, description=description, metadata=None
    )
    back = read_cell(file, channels=1, layout="stacked", dtype="uint8")
    np.testing.assert_array_equal(back[..., 0], image)


def error_of(file):
    """The error message for a file of three channels; '' if it can be read."""
    try:
        cell_shape(file, layout="stacked")
        image = read_cell(file, channels=3, layout="stacked", dtype="uint16")
    except BadData as error:
        return str(error)
    assert image.dtype == np.uint16
    assert image.shape[2] == 3
    return ""


@pytest.mark.parametrize(
    ("save", "suffix"), [(save_png, ".png"), (save_pages, ".tif"), (np.save, ".npy")]
)
def test_any_damage_is_named_or_harmless(tmp_path, rng, save, suffix):
    image = noise(rng, (24, 24, 3), "uint16")
    path = tmp_path / f"cell{suffix}"
    save(path, image)
    whole = path.read_bytes()
    file = ImageFile("cell", str(path))
    named = 0
    for _ in range(150):
        content = bytearray(whole)
        for place in rng.integers(0, min(len(whole), rng.choice([64, 400, len(whole)])), 3):
            content[place] = rng.integers(256)
        path.write_bytes(content[: rng.choice([len(content), len(content) - 9, 90, 8, 0])])
        message = error_of(file)
        assert not message or message.startswith(f"{path}: ")
        named += bool(message)
    assert named > 50


def test_inverted_numbers_are_refused(tmp_path, rng):
    path = tmp_path / "cell.tif"
    tifffile.imwrite(path, noise(rng, (20, 24), "uint16"), photometric="miniswhite")
    with pytest.raises(BadData, match="its highest number is black"):
        cell_shape(ImageFile("cell", str(path)), layout="stacked")
    with pytest.raises(BadData, match="its highest number is black"):
        read_planes((ImageFile("field", str(path)),))
