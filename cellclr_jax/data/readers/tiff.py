"""Reads TIFFs by their metadata: images, axes, reduced copies, OME file sets.

A TIFF may hold several images, reduced copies of an image, the planes of a z axis, or only some
channels of an image that is spread over several files. Metadata or a flag decide between these; any
other file is refused with the axes and counts that were found.
"""

import contextlib
import io
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from cellclr_jax.console import listed
from cellclr_jax.data.readers.find_files import ImageFile, check_regular, read_member
from cellclr_jax.data.readers.formats import PALETTE, Selection, Stored, check_bytes
from cellclr_jax.errors import BadData

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

_INVERTED, _RGB, _PALETTE = 0, 2, 3
# ExtraSamples of associated and unassociated alpha.
_ALPHA = (1, 2)
# tifffile's letters for unnamed axes: pages ('I') and axes of an array ('Q').
_UNNAMED = "IQ"
_EXPECTED = (["X", "Y"], ["C", "X", "Y"])
# Limits on OME-XML: planes of an image, bytes of a companion file.
_MOST_PLANES, _MOST_XML = 100_000, 64 << 20


class _Plan(NamedTuple):
    """The pages of a file to read.

    Attributes:
      pages: to read and stack.
      shape, axes: of the stack: Y, X, at most one axis of channels (C), Z if its maximum is taken.
      alpha: whether the last channel is opacity.
      note: the file's axes, the plane that is taken, what is skipped.
    """

    pages: Sequence[Any]
    shape: tuple[int, ...]
    axes: str
    alpha: bool
    note: str


class OmeImage(NamedTuple):
    """An image of an OME file set: sizes of T, Z and C, and (file, page) of planes (t, z, c)."""

    sizes: tuple[int, int, int]
    planes: dict[tuple[int, ...], tuple[str, int]]


def read(
    file: ImageFile, selection: Selection, most: int, *, pixels: bool = True
) -> tuple[Stored, np.ndarray]:
    """Reads the description of an image and, optionally, its pixels.

    Args:
      file: a TIFF, or one in a zip.
      selection: how pages and the z axis are taken.
      most: limit on the bytes of the image.
      pixels: whether to read pixels.

    Returns:
      The description, and [H, W] or [H, W, C]; without `pixels` an empty array.

    Raises:
      BadData: the file does not hold exactly one complete image.
      Any exception of tifffile for a damaged file.
    """
    with _planned(file, selection, most) as plan:
        shape = tuple(plan.shape[plan.axes.index(axis)] for axis in "YXC" if axis in plan.axes)
        stored = Stored(shape, plan.pages[0].dtype, (2,), plan.alpha, plan.note)
        if not pixels:
            return stored, np.empty(0)
        # Several processes read at once: threads for the strips of a page would not help.
        planes = [np.asarray(page.asarray(maxworkers=1)) for page in plan.pages]
    image, axes = np.stack(planes).reshape(plan.shape), plan.axes
    if "Z" in axes:
        image, axes = image.max(axis=axes.index("Z")), axes.replace("Z", "")
    return stored, image.transpose([axes.index(axis) for axis in "YXC" if axis in axes])


def count_images(file: ImageFile) -> int:
    """Counts the images of a file, each unnamed page as one; 1 if it cannot be read."""
    with contextlib.suppress(Exception), _opened(file, 0) as opened:
        images = ome_images(file, opened)
        return len(_led(images, file) if images else _cells(_full_images(opened))) or 1
    return 1


def set_files(file: ImageFile) -> tuple[str, ...] | None:
    """Finds the other files of an OME file set.

    Args:
      file: a TIFF, not in a zip.

    Returns:
      Their paths; () for a file outside a set or an unreadable one; None if another file of the set
      stands for the images of this one.
    """
    with contextlib.suppress(Exception), _opened(file, 0) as opened:
        images = ome_images(file, opened)
        led = _led(images, file)
        if images and not led:
            return None
        names = {name for image in led for name, _ in image.planes.values()}
        return tuple(str(Path(file.path).with_name(name)) for name in sorted(names))
    return ()


@contextlib.contextmanager
def _opened(file: ImageFile, most: int) -> Iterator["TiffFile"]:
    """Opens a TIFF, or one in a zip of at most `most` unpacked bytes."""
    import tifffile

    # tifffile also logs errors of a damaged file, which become one BadData here.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    source: str | io.BytesIO = file.path
    if file.member:
        check_bytes(file.member_bytes, most)
        source = io.BytesIO(read_member(file))
    else:
        check_regular(file.path)
    with tifffile.TiffFile(source) as opened:
        yield opened


@contextlib.contextmanager
def _planned(file: ImageFile, selection: Selection, most: int) -> Iterator[_Plan]:
    """Decides which pages of a file to read, and keeps its files open."""
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(_opened(file, most))
        images = [] if selection.own_pages else ome_images(file, opened)
        if selection.own_pages and _is_of_set(opened):
            pages: Any = opened.pages
            own = [page for page in pages if not page.is_reduced]
            plan = _plan_of_stack(*_stacked(own), selection)
        elif images:
            plan = _plan_of_set(images, file, selection, stack)
        else:
            plan = _plan_of_file(opened, selection, file.number)
        check_bytes(sum(page.nbytes for page in plan.pages), most)
        for page in plan.pages:
            _check_page(page, most)
        yield plan


def _check_page(page: Any, most: int) -> None:
    """Raises BadData for a page that is too large, incomplete, or not brightness."""
    key = page.keyframe
    if key.photometric == _INVERTED:
        # Unknown: did its writer invert the numbers or only their meaning?
        raise BadData("its highest number is black (WhiteIsZero); save it as BlackIsZero")
    # A palette of ImageJ only sets the display colours; the numbers are brightness.
    if key.photometric == _PALETTE and not (key.parent.is_imagej or _is_grey_ramp(key)):
        raise BadData(PALETTE)
    # A tile may be larger than its image and is unpacked completely.
    check_bytes(math.prod(key.chunks) * key.dtype.itemsize, most)
    kind, chunks = "tiles" if key.is_tiled else "strips", math.prod(key.chunked)
    places = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    unwritten = [number for number, place in enumerate(places, 1) if not all(place)]
    if len(places) != 1:  # a contiguous page may be listed as one strip
        unwritten += range(len(places) + 1, chunks + 1)
    if unwritten:
        raise BadData(
            f"{len(unwritten)} of its {chunks} {kind} were never written, the first is number "
            f"{unwritten[0]}; write the file again from its source"
        )
    if any(offset + size > page.parent.filehandle.size for offset, size in places):
        raise BadData(f"it is truncated: it ends before the last of its {kind}")


def _is_grey_ramp(page: Any) -> bool:
    """Whether a page's palette shows each number as that grey, so that it changes nothing."""
    colors = np.asarray(page.colormap) >> (16 - page.bitspersample)
    return bool((colors == np.arange(colors.shape[1])).all())


def _full_images(opened: "TiffFile") -> list["TiffPageSeries"]:
    """Lists the images in a file, without reduced copies and transparency masks."""
    series = [one for one in opened.series if math.prod(one.shape)]
    if not series:
        raise BadData("no image in it")
    full = [one for one in series if not (one.keyframe.is_reduced or one.keyframe.is_mask)]
    return full or series[:1]


def _plan_of_file(opened: "TiffFile", selection: Selection, number: int) -> _Plan:
    """Plans the reading of image `number` of a file that is not part of an OME file set."""
    images = _full_images(opened)
    reduced = len(opened.series) - len(images) + sum(len(one.levels) - 1 for one in images)
    note = "reduced copies skipped" if reduced else ""
    series, page = _cells(images)[number] if selection.pages == "cells" else (images[0], None)
    if len(images) == 1 or selection.pages == "cells":
        pages = list(series)
        return _plan_of_stack(pages, series.shape, series.axes, selection, note, page)
    if len({(one.shape, one.dtype) for one in images}) == 1 and series.axes == "YX":
        return _plan_of_stack(*_stacked([one[0] for one in images]), selection, note)
    sizes = ", ".join(dict.fromkeys(_axes(one.axes, one.shape) for one in images))
    raise BadData(f"{len(images)} images in one file ({sizes}); --pages=cells takes each as one")


def _cells(images: Sequence["TiffPageSeries"]) -> list[tuple["TiffPageSeries", int | None]]:
    """(image, None) for each image, (image, page) for each page of an unnamed axis."""
    return [
        (one, page)
        for one in images
        for page in (range(len(one)) if one.axes in ("IYX", "QYX", "IYXS", "QYXS") else [None])
    ]


def _stacked(pages: Sequence[Any]) -> tuple[Sequence[Any], tuple[int, ...], str]:
    """Pages of one shape, with the shape and the axes of their stack."""
    shape, axes = pages[0].shape, pages[0].axes
    return (pages, shape, axes) if len(pages) == 1 else (pages, (len(pages), *shape), f"I{axes}")


def _plan_of_stack(
    pages: Sequence[Any],
    shape: tuple[int, ...],
    axes: str,
    selection: Selection,
    note: str = "",
    page: int | None = None,
) -> _Plan:
    """Decides the meaning of each axis of an image.

    Args:
      pages: of the image, in the order of its leading axes.
      shape, axes: of their stack.
      selection: how pages and the z axis are taken.
      note: description of the file.
      page: the entry of the first axis that is taken; None: all.

    Raises:
      BadData: an axis has no meaning.
    """
    if lacking := sum(page is None for page in pages):
        raise BadData(f"{lacking} of the {len(pages)} planes that it describes are not in it")
    key = pages[0].keyframe
    found, taken, lead = _axes(axes, shape), axes, len(shape) - len(key.shape)
    if page is not None:
        pages, shape, axes, lead = pages[page : page + 1], shape[1:], axes[1:], lead - 1
    if axes.endswith("Q") and shape[-1] == 1:  # of an array [H, W, 1]
        shape, axes, lead = shape[:-1], axes[:-1], lead - 1
    if lead < 0 or shape[lead:] != key.shape:  # an array whose last axes are not a page
        axes, lead = {2: "YX", 3: "QYX"}.get(len(shape), axes), 0
    numbers: Any = np.arange(len(pages)).reshape(shape[:lead] or -1)
    if len(axes) == 3 and axes[0] in _UNNAMED:
        axes = _named(axes, shape, selection)
    if "Z" in axes[:lead]:
        place, depth = axes.index("Z"), shape[axes.index("Z")]
        if selection.z == "max":
            taken += f", maximum of {depth} planes"
        else:
            plane = _plane(selection.z, depth, found)
            numbers, taken = numbers.take(plane - 1, place), f"{taken}, plane {plane} of {depth}"
            axes, shape = axes.replace("Z", ""), (*shape[:place], *shape[place + 1 :])
    elif "Z" not in axes and selection.z not in ("", "1", "max"):
        raise BadData(f"axes {found}: no z axis, of which --z={selection.z} takes a plane")
    axes = axes.replace("S", "C")
    _check_axes(axes, found, selection)
    used = [pages[number] for number in numbers.ravel()]
    alpha = "S" in key.axes and _has_alpha(key)
    return _Plan(used, shape, axes, alpha, "; ".join(filter(None, (taken, note))))


def _check_axes(axes: str, found: str, selection: Selection) -> None:
    """Raises BadData for axes other than height, width, channels, and Z if its maximum is taken."""
    if sorted(axes.replace("Z", "") if selection.z == "max" else axes) in _EXPECTED:
        return
    hint = "save one entry of each other axis"
    if axes[0] in _UNNAMED and not selection.own_pages:
        hint = "--pages=cells takes each page as one"
    raise BadData(
        f"axes {found}: height, width and channels (Y, X, C or S) were expected, and Z with --z; "
        f"{hint}"
    )


def _named(axes: str, shape: tuple[int, ...], selection: Selection) -> str:
    """Names the axes of a stack [N, H, W], or of an array [H, W, C], whose first has no name."""
    if axes[0] == "Q" and shape[2] == selection.channels != shape[0]:
        return "YXC"
    if selection.pages == "channels" or shape[0] == selection.channels:
        return "CYX"
    hint = "--pages=channels or --pages=cells decides what they are"
    raise BadData(
        f"{shape[0]} pages of {shape[1]}x{shape[2]} pixels on an axis without a name; "
        + ("a file of one plane was expected" if selection.own_pages else hint)
    )


def _plane(z: str, depth: int, found: str) -> int:
    """Returns the number, from 1, of the plane that --z selects; BadData if it is not valid."""
    if not z:
        raise BadData(f"axes {found}: --z=1 to --z={depth} takes a plane, --z=max the maximum")
    if not 1 <= int(z) <= depth:
        raise BadData(f"axes {found}: --z={z} of {depth} planes")
    return int(z)


def _has_alpha(page: Any) -> bool:
    """Whether the last sample of a pixel is opacity: by ExtraSamples, or as the fourth of RGB."""
    if page.extrasamples:
        return page.extrasamples[-1] in _ALPHA
    return bool(page.photometric == _RGB and page.samplesperpixel == 4)


def _axes(axes: str, shape: Sequence[int]) -> str:
    """Formats axes and their lengths, such as 'CYX 3x48x48'."""
    return f"{axes} {'x'.join(map(str, shape))}"


def _is_of_set(opened: "TiffFile") -> bool:
    """Whether a file's OME metadata describe planes in several files, or lie in another file."""
    text = (opened.ome_metadata or "") if opened.is_ome else ""
    return "BinaryOnly" in text or len(set(re.findall('FileName="([^"]*)"', text))) > 1


def ome_images(file: ImageFile, opened: "TiffFile") -> list[OmeImage]:
    """Lists the images of the OME file set that a TIFF belongs to.

    Args:
      file: the TIFF.
      opened: the same file.

    Returns:
      The images; empty if the file's metadata describe only planes in the file itself.

    Raises:
      BadData: the set's metadata are missing or damaged.
    """
    if not opened.is_ome:
        return []
    path = Path(file.path)
    root, home = ElementTree.fromstring(opened.ome_metadata or ""), path.name
    # The UUID identifies a file that was renamed.
    names = {root.get("UUID", home): path.name}
    binary = root.find("{*}BinaryOnly")
    if binary is not None:
        home = Path(binary.get("MetadataFile", "")).name
        root = ElementTree.fromstring(_companion(path.with_name(home)))
    images = [_ome_image(pixels, home, names) for pixels in root.iterfind(".//{*}Pixels")]
    files = {name for image in images for name, _ in image.planes.values()}
    return images if len(files) > 1 or binary is not None else []


def _companion(path: Path) -> str:
    """Reads the OME-XML of the file that describes a set; BadData if it is missing."""
    if not path.is_file():
        raise BadData(f"{path.name}, which describes its OME file set, is missing")
    if path.suffix.lower() in (".tif", ".tiff"):
        with _opened(ImageFile(path.name, str(path)), 0) as opened:
            return opened.ome_metadata or ""
    check_bytes(path.stat().st_size, _MOST_XML)
    return path.read_text(encoding="utf-8")


def _ome_image(pixels: ElementTree.Element, home: str, names: Mapping[str, str]) -> OmeImage:
    """Reads an image from its element `Pixels`.

    Args:
      pixels: the element.
      home: the file of planes without a file name.
      names: actual names of files by UUID.
    """
    order = pixels.get("DimensionOrder", "XYCZT")[2:]
    size = {axis: int(pixels.get(f"Size{axis}", 1)) for axis in "TZC"}
    channel = pixels.find("{*}Channel")
    size["C"] //= 1 if channel is None else int(channel.get("SamplesPerPixel", 1))
    shape = [size[axis] for axis in order]
    total = math.prod(shape)
    if not 1 <= total <= _MOST_PLANES:
        raise BadData(f"its OME metadata claim {total:,} planes")
    planes = {}
    for data in pixels.iterfind("{*}TiffData"):
        uuid, page = data.find("{*}UUID"), int(data.get("IFD", 0))
        name = home
        if uuid is not None:
            name = names.get(uuid.text or "") or Path(uuid.get("FileName", home)).name
        start = np.ravel_multi_index(
            [int(data.get(f"First{axis}", 0)) for axis in order], shape, order="F"
        )
        count = int(data.get("PlaneCount", 1 if data.attrib else total))
        for step in range(min(count, total - int(start))):
            at = dict(zip(order, np.unravel_index(start + step, shape, order="F"), strict=True))
            planes[tuple(int(at[axis]) for axis in "TZC")] = (name, page + step)
    return OmeImage((size["T"], size["Z"], size["C"]), planes)


def _led(images: Sequence[OmeImage], file: ImageFile) -> list[OmeImage]:
    """Lists the images that are read from a file: those of which it is the first existing file."""
    path = Path(file.path)
    led = []
    for image in images:
        names = dict.fromkeys(name for name, _ in image.planes.values())
        if path.name in names:
            first = next(name for name in names if path.with_name(name).is_file())
            led += [image] * (first == path.name)
    return led


def _plan_of_set(
    images: Sequence[OmeImage], file: ImageFile, selection: Selection, stack: contextlib.ExitStack
) -> _Plan:
    """Plans the reading of an image of a file set; the stack closes the files that this opens."""
    led = _led(images, file)
    if not led:
        raise BadData("its image is read from another file of its OME file set")
    if len(led) > 1 and selection.pages != "cells":
        raise BadData(f"{len(led)} images in its OME file set; --pages=cells takes each as one")
    image = led[file.number]
    path = Path(file.path)
    places = list(np.ndindex(image.sizes))
    lacking = []
    for place in places:
        name = image.planes.get(place, ("", 0))[0]
        if not (name and path.with_name(name).is_file()):
            lacking.append(f"channel {place[2] + 1} ({name or 'in no file'})")
    if lacking:
        raise BadData(f"its OME file set lacks {listed(lacking)} of {image.sizes[2]}")
    files = {
        name: stack.enter_context(_opened(ImageFile(name, str(path.with_name(name))), 0))
        for name in dict.fromkeys(image.planes[place][0] for place in places)
    }
    pages = [files[name].pages[page] for name, page in (image.planes[place] for place in places)]
    if len({(page.shape, page.dtype) for page in pages}) > 1:
        raise BadData("the planes of its OME file set differ in size or type")
    named = [(axis, size) for axis, size in zip("TZC", image.sizes, strict=True) if size > 1]
    axes, shape = "".join(axis for axis, _ in named), tuple(size for _, size in named)
    note = f"{len(files)} files of an OME set" if len(files) > 1 else ""
    return _plan_of_stack(pages, (*shape, *pages[0].shape), axes + pages[0].axes, selection, note)
