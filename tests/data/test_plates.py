"""Plates of any lab: every layout gives the same fields, and each fault is named."""

import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr
from support.tiny_release import PLATES, disc_field, write_release

from cellclr_jax.data.building.extraction import CropSettings, extract_field
from cellclr_jax.data.sources import open_source
from cellclr_jax.data.sources.plates import describe
from cellclr_jax.data.sources.source import Request
from cellclr_jax.errors import BadData, BadUse

PATTERN = "{plate}/{well}_s{site}_w{channel:[0-9]}*.tif"
STAINS = {"dna": "1", "tubulin": "2", "actin": "4"}
CHANNELS = tuple(f"{name}={number}" for name, number in STAINS.items())


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release"), plates=PLATES[:1], sites=2)


@pytest.fixture
def copy(release, tmp_path):
    """A copy of the plate that a test may damage."""
    return shutil.copytree(release / "Week1", tmp_path / "Week1") / PLATES[0]


def _open(*inputs, channels=(), z="", **options):
    options = {"images": "", "root": None, "level": 0, "nuclei": "", "platemap": None} | options
    return open_source("plates", Request(inputs=inputs, channels=channels, z=z, options=options))


def _listing(release):
    """One row for each file: path, plate, well, site and channel."""
    rows = []
    for path in sorted(release.glob("Week*/*/*.tif")):
        well, site, rest = path.name.split("_")
        stain = next(name for name, number in STAINS.items() if rest.startswith(f"w{number}"))
        rows.append((path, path.parent.name, well, int(site[1:]), stain))
    return pd.DataFrame(rows, columns=["path", "plate", "well", "site", "channel"])


def _as_pattern(release, _):
    return {"images": f"{release}/Week1/{PATTERN}", "channels": CHANNELS}


def _as_tall(release, folder):
    _listing(release).to_csv(folder / "tall.csv", index=False)
    return {"images": str(folder / "tall.csv"), "channels": tuple(STAINS)}


def _as_load_data(release, folder):
    listing = _listing(release)
    rows = []
    for (plate, well, site), group in listing.groupby(["plate", "well", "site"]):
        row = {"Metadata_Plate": plate, "Metadata_Well": well.lower(), "Metadata_Site": site}
        for path, stain in zip(group["path"], group["channel"], strict=True):
            row[f"FileName_Orig{stain}"] = path.name
            row[f"PathName_Orig{stain}"] = f"/elsewhere/{plate}"
        rows.append(row)
    pd.DataFrame(rows).to_csv(folder / "load_data.csv.gz", index=False)
    images = str(folder / "load_data.csv.gz")
    return {"images": images, "root": str(release / "Week1"), "channels": tuple(STAINS)}


def _as_zarr(release, folder, *, version):
    """Writes an OME-Zarr plate, version 0.4 or 0.5."""
    path = folder / f"{PLATES[0]}.zarr"
    wrap = (lambda metadata: {"ome": metadata}) if version == 3 else (lambda metadata: metadata)
    plate = zarr.open_group(str(path), mode="w", zarr_format=version)
    listing = _listing(release)
    wells = [f"{well[0]}/{int(well[1:])}" for well in listing["well"].unique()]
    plate.attrs.update(wrap({"plate": {"wells": [{"path": well} for well in wells]}}))
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "unit": "micrometer"} for n in "yx")]
    scale = [{"type": "scale", "scale": [1, 0.5, 0.5]}]
    for well, group in listing.groupby("well"):
        place = plate.create_group(f"{well[0]}/{int(well[1:])}")
        place.attrs.update(wrap({"well": {"images": [{"path": "1"}, {"path": "2"}]}}))
        for site, files in group.groupby("site"):
            image = place.create_group(str(site))
            datasets = [{"path": "0", "coordinateTransformations": scale}]
            labels = [{"label": stain} for stain in files["channel"]]
            image.attrs.update(
                wrap(
                    {
                        "multiscales": [{"axes": axes, "datasets": datasets}],
                        "omero": {"channels": labels},
                    }
                )
            )
            pixels = np.stack([tifffile.imread(path) for path in files["path"]])
            array = image.create_array(
                "0", shape=pixels.shape, chunks=(1, 100, 100), dtype=pixels.dtype
            )
            array[:] = pixels
    return {"input": path, "channels": tuple(STAINS)}


def _as_zarr_04(release, folder):
    return _as_zarr(release, folder, version=2)


def _as_zarr_05(release, folder):
    return _as_zarr(release, folder, version=3)


@pytest.mark.parametrize("layout", [_as_pattern, _as_tall, _as_load_data, _as_zarr_04, _as_zarr_05])
def test_every_layout_gives_the_cells_of_the_release(release, tmp_path, layout):
    written = layout(release, tmp_path)
    found = _open(*([written.pop("input")] if "input" in written else []), **written)
    raw = open_source("raw", Request(inputs=(release,), annotated=False))
    assert found.channels == raw.channels
    assert found.nuclei == "dna"
    key = [(field.plate, field.metadata["well"], field.metadata["site"]) for field in raw.fields]
    assert [
        (field.plate, field.metadata["well"], field.metadata["site"]) for field in found.fields
    ] == key
    settings = CropSettings(32, raw.channels, ("plate",), nuclei="dna", min_area=60)
    for mine, theirs in zip(found.fields[:3], raw.fields[:3], strict=True):
        cells = extract_field(mine, settings).images
        assert len(cells) > 0
        np.testing.assert_array_equal(cells, extract_field(theirs, settings).images)


def test_a_plate_map_gives_compounds_and_doses(release, tmp_path):
    table = pd.DataFrame(
        {
            "well_position": ["b2", "C03", "D-04"],
            "pert_iname": ["DMSO", "taxol", "NA"],
            "dose": ["", "0.3", "1"],
            "gene": ["", "TUBB", ""],
        }
    )
    table.to_csv(tmp_path / "map.tsv", sep="\t", index=False)
    found = _open(
        release / "Week1", images=PATTERN, channels=CHANNELS, platemap=tmp_path / "map.tsv"
    )
    by_well = {field.metadata["well"]: field.metadata for field in found.fields}
    assert (by_well["B02"]["compound"], by_well["B02"]["concentration"]) == ("DMSO", 0.0)
    assert (by_well["C03"]["compound"], by_well["C03"]["concentration"]) == ("taxol", 0.3)
    assert (by_well["D04"]["compound"], by_well["D04"]["concentration"]) == ("", 1.0)
    assert any("1 well on no row" in note and "E05" in note for note in found.notes)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("well,compound\nH11,x\n", "none of its wells"),
        ("well,compound\nB02,x\nb2,y\n", "line 3: well B02 occurs twice"),
        ("compound\nx\n", "no column of wells"),
    ],
)
def test_a_plate_map_that_does_not_fit_is_refused(release, tmp_path, rows, reason):
    (tmp_path / "map.csv").write_text(rows)
    with pytest.raises(BadData, match=reason):
        _open(release / "Week1", images=PATTERN, channels=CHANNELS, platemap=tmp_path / "map.csv")


def test_faults_of_single_fields_are_named(copy):
    files = sorted(copy.glob("*.tif"))
    by_name = {path.name[:9]: path for path in files}
    by_name["B02_s1_w2"].unlink()
    shutil.copy(by_name["C03_s1_w4"], copy / "C03_s1_w4again.tif")
    by_name["D04_s1_w1"].write_bytes(by_name["D04_s1_w1"].read_bytes()[:300])
    tifffile.imwrite(by_name["E05_s1_w1"], disc_field(np.random.default_rng(0))[:50])
    shutil.move(by_name["E05_s2_w1"], copy / "e5_s2_w1x.tif")
    (copy / "Thumbs.db").write_bytes(b"x")
    (copy / "._C03_s1_w1.tif").write_bytes(b"x")
    shutil.copy(files[0], copy / "B02_s1_w1_thumb.tif")
    odd = shutil.move(copy, copy.with_name("P 1 #2"))
    found = _open(odd.parent, images=PATTERN, channels=CHANNELS)
    assert {field.plate for field in found.fields} == {"P 1 #2"}
    by_place = {(f.metadata["well"], f.metadata["site"]): f for f in found.fields}
    assert len(by_place) == 8
    assert "no image of channel 2" in by_place["B02", 1].absent
    assert "two images of channel 4" in by_place["C03", 1].absent
    with pytest.raises(BadData, match="D04_s1_w1"):
        by_place["D04", 1].read()
    with pytest.raises(BadData, match="another channel has"):
        by_place["E05", 1].read()
    assert by_place["E05", 2].read().shape[2] == 3
    assert found.left_out == ["2 thumbnails"]
    text = describe(found)
    assert "2 incomplete fields" in text
    assert "4 wells, 8 fields" in text


def _z_stack(folder, planes=3):
    for z in range(1, planes + 1):
        tifffile.imwrite(folder / f"A01_dapi_z{z}.tif", np.full((40, 50), z, np.uint8))
    return {"images": "{well}_{channel}_z{z}.tif"}


@pytest.mark.parametrize(("z", "value"), [("max", 3), ("2", 2)])
def test_one_plane_or_the_maximum_is_taken(tmp_path, z, value):
    found = _open(tmp_path, z=z, **_z_stack(tmp_path))
    image = found.fields[0].read()
    assert (image == value).all()
    assert (image.dtype, found.dtype) == (np.uint8, "uint8")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "choose one by --z"),
        ({"z": "7"}, "the plates have the planes 1, 2, 3"),
        ({"z": "1", "channels": ("er",)}, "the plates have dapi"),
        ({"z": "1", "nuclei": "er"}, "no such channel"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, change, reason):
    with pytest.raises(BadUse, match=reason):
        _open(tmp_path, **{**_z_stack(tmp_path), **change})


def test_one_time_point_is_chosen(tmp_path):
    for time in (1, 2):
        tifffile.imwrite(tmp_path / f"A01_dapi_t00{time}.tif", np.full((40, 50), time, np.uint8))
    flags = {"images": "{well}_{channel}_t{time}.tif"}
    with pytest.raises(BadUse, match="2 time points"):
        _open(tmp_path, **flags)
    (field,) = _open(tmp_path, time="2", **flags).fields
    assert (field.read() == 2).all()


def test_a_well_with_two_treatments_is_refused(release, tmp_path):
    table = _listing(release).assign(compound=["x", *["y"] * 23])
    table.to_csv(tmp_path / "tall.csv", index=False)
    with pytest.raises(BadData, match="well B02 of plate Week1_101 has"):
        _open(images=str(tmp_path / "tall.csv"))


def test_without_a_plate_the_folder_is_the_plate(release, tmp_path):
    _listing(release).drop(columns="plate").to_csv(tmp_path / "tall.csv", index=False)
    found = _open(images=str(tmp_path / "tall.csv"))
    assert {field.plate for field in found.fields} == {PLATES[0]}
    assert any("no column" in note for note in found.notes)


def test_an_image_of_two_fields_is_refused(release, tmp_path):
    listing = _listing(release)
    listing.loc[3, "path"] = listing.loc[0, "path"]
    listing.to_csv(tmp_path / "tall.csv", index=False)
    with pytest.raises(BadData, match=r"two images, .*\(line 2\) and .*\(line 5\)"):
        _open(images=str(tmp_path / "tall.csv"))


def test_a_name_for_two_channels_is_refused(release):
    with pytest.raises(BadUse, match="a name of its own"):
        _open(release / "Week1", images=PATTERN, channels=("dna=1", "dna=2"))


def test_swapped_channels_of_an_array_are_other_contents(release, tmp_path):
    written = _as_zarr(release, tmp_path, version=3)
    contents = [
        _open(written["input"], channels=channels).fields[0].contents()
        for channels in (("dna", "actin"), ("dna=actin", "actin=dna"))
    ]
    assert contents[0] != contents[1]


def test_the_channel_of_nuclei_is_never_guessed(release):
    with pytest.raises(BadUse, match="which of 1, 2, 4 shows nuclei"):
        _open(release / "Week1", images=PATTERN)


def test_a_grey_palette_is_read_and_a_coloured_one_refused(tmp_path):
    ramp = np.arange(256, dtype=np.uint16) * 257
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colours = {"a01": np.stack([ramp] * 3), "a02": np.stack([ramp, ramp, ramp[::-1]])}
    for well, colormap in colours.items():
        path = tmp_path / f"{well}_dna.tif"
        tifffile.imwrite(path, image, photometric="palette", colormap=colormap)
    found = _open(tmp_path, images="{well}_{channel}.tif")
    np.testing.assert_array_equal(found.fields[0].read()[..., 0], image)
    with pytest.raises(BadData, match="palette"):
        found.fields[1].read()
