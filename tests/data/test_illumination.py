"""The illumination of a plate is estimated from its fields, and fields are corrected for it."""

import dataclasses
import functools
import zipfile

import numpy as np
import pytest
from scipy import ndimage
from support.painted_cells import field_of

from cellclr_jax.data import illumination
from cellclr_jax.data.illumination import (
    Illumination,
    block_means,
    estimate_light,
    fit_plate,
    relative_light,
)
from cellclr_jax.data.sources.source import Field
from cellclr_jax.errors import BadData
from cellclr_jax.simulation.camera import Optics, expose

CHANNELS = ("dna", "tubulin", "actin")
SIDE, FIELDS = 512, 40
UNEVEN = {"vignette": 0.4, "tilt": (0.3, -0.2)}


@pytest.fixture(scope="module")
def painted():
    return [field_of(None, seed, SIDE).image for seed in range(FIELDS)]


def light_of(vignette=0.0, tilt=(0.0, 0.0)):
    """[H, W], mean 1: the light that `Optics` describes."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    light = 1 + 0.5 * tilt[0] * x + 0.5 * tilt[1] * y - 0.5 * vignette * (x**2 + y**2)
    return light / light.mean()


@pytest.fixture(scope="module")
def plate(painted):
    """Makes fields [H, W, C] of unequal brightness; `glow` is background under the same light."""

    @functools.lru_cache(maxsize=4)
    def make(vignette, tilt, glow):
        fields = []
        for seed, image in enumerate(painted):
            rng = np.random.default_rng(seed)
            optics = Optics(gain=tuple(rng.lognormal(0, 0.3, 3)), vignette=vignette, tilt=tilt)
            fields.append(expose(rng, image + np.float32(glow), optics).transpose(1, 2, 0))
        return tuple(fields)

    # Calls with and without default values share a cache entry.
    return lambda vignette=0.0, tilt=(0.0, 0.0), glow=0: make(vignette, tilt, glow)


def fitted(fields, channels=CHANNELS, method="regression"):
    blocks = [block_means(field) for field in fields]
    return estimate_light(blocks, fields[0].shape[:2], channels, method)


def full(light):
    """[H, W, C]: the gain of every pixel, from a corrected field 30,000 above the offset."""
    flat = light.offset + 30_000 + np.zeros((*light.shape, len(light.channels)))
    return 30_000 / (light.apply(flat.astype(np.uint16)) - light.offset)


def unevenness(values):
    """Relative RMS of [H, W, ...] in percent."""
    return 100 * values.std(axis=(0, 1)) / values.mean(axis=(0, 1))


def smoothed_median(fields):
    """Median over fields, then a large Gaussian, at full resolution, as CellProfiler does."""
    median = np.median(fields, axis=0)
    planes = [
        ndimage.gaussian_filter(median[..., channel], SIDE / 10, mode="nearest")
        for channel in range(median.shape[-1])
    ]
    return np.stack(planes, axis=-1)


@pytest.mark.parametrize("glow", [0, 400])
def test_regression_estimates_known_light_better_than_the_median(plate, glow):
    fields, truth = plate(**UNEVEN, glow=glow), light_of(**UNEVEN)[..., None]
    assert unevenness(truth) > 15
    left = unevenness(truth / full(fitted(fields)))
    assert (left < 4).all()
    assert (left < 0.5 * unevenness(truth / full(fitted(fields, method="median")))).all()


def test_the_median_of_blocks_is_close_to_that_of_full_resolution(plate):
    fields = plate(**UNEVEN, glow=400)
    light = fitted(fields, method="median")
    assert (light.offset == 0).all()
    expected = block_means(smoothed_median(fields).astype(np.float32).round().astype(np.uint16))
    expected = expected / expected.mean(axis=(0, 1))
    # Where cells are dense, a median of block means differs a little from a mean of medians.
    np.testing.assert_allclose(light.gain, expected, rtol=0.06)


def test_correction_restores_the_evenly_lit_field(plate):
    # The light affects cells and background; the camera adds its offset.
    uneven, even = plate(**UNEVEN, glow=400), plate(glow=400)
    light = fitted(uneven)
    # The simulated light is 1 in the middle of the field, not on average.
    y, x = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    mean = (1 - 0.5 * UNEVEN["vignette"] * (x**2 + y**2)).mean()
    before, after = [], []
    for lit, ideal in zip(uneven, even, strict=True):
        target = light.offset + mean * (block_means(ideal) - light.offset)
        before.append(block_means(lit) - target)
        after.append(block_means(light.apply(lit)) - target)
    before, after = (np.sqrt(np.square(errors).mean(axis=(0, 1, 2))) for errors in (before, after))
    assert (after < 0.4 * before).all()


def test_a_flat_plate_stays_flat(plate):
    assert (unevenness(full(fitted(plate()))) < 2.5).all()


def test_the_order_of_the_fields_does_not_matter(plate):
    fields = plate(**UNEVEN)[:12]
    shuffled = [fields[i] for i in np.random.default_rng(0).permutation(len(fields))]
    digest = fitted(fields).digest()
    assert fitted(shuffled).digest() == digest
    assert fitted(fields[1:]).digest() != digest


@pytest.fixture(scope="module")
def good(plate):
    """The light of a plate without a fault."""
    return full(fitted(plate(**UNEVEN, glow=400)))


@pytest.mark.parametrize("what", ["saturated", "half saturated", "black", "empty", "dusty"])
def test_a_few_bad_fields_do_not_change_it(plate, good, what):
    fields = list(plate(**UNEVEN, glow=400))
    rng = np.random.default_rng(0)
    empty = 700 + 400 * light_of(**UNEVEN)[..., None] + rng.normal(0, 40, fields[0].shape)
    for number in (3, 17, 30):
        field = fields[number] = fields[number].copy()
        if what == "dusty":
            row, column = rng.integers(0, SIDE - 60, 2)
            field[row : row + 60, column : column + 60] = 60_000
        elif what == "half saturated":
            field[:, : SIDE // 2] = 65_520
        else:
            field[:] = {"saturated": 65_520, "black": 0, "empty": empty}[what]
    assert (unevenness(full(fitted(fields)) / good) < 3).all()


def test_empty_or_single_fields_give_even_light(plate):
    light = light_of(**UNEVEN)[..., None]
    rng = np.random.default_rng(0)
    empty = [700 + 400 * light + rng.normal(0, 40, (SIDE, SIDE, 3)) for _ in range(12)]
    np.testing.assert_array_equal(fitted([field.astype(np.uint16) for field in empty]).gain, 1)
    one = fitted(plate(**UNEVEN)[:1])
    np.testing.assert_array_equal(one.gain, 1)
    assert one.fields == 1
    tiny = fitted([np.full((1, 5, 3), 9, np.uint16)] * 3)
    np.testing.assert_array_equal(tiny.apply(np.full((1, 5, 3), 7, np.uint16)), 7)


def test_no_pixel_is_amplified_without_bound(plate):
    fields = plate()
    dark = np.ones((SIDE, SIDE, 1))
    dark[: SIDE // 3] = 0.05
    lit = [(700 + (field - 700.0) * dark).clip(0).astype(np.uint16) for field in fields]
    gain = fitted(lit).gain
    assert gain.min() >= np.float32(1 / 3)
    assert gain[:4].max() < 0.8 < gain[-4:].min()


def naive_light(blocks):
    """`relative_light` as one regression with an intercept for each field."""
    height, width = blocks.shape[1:]
    grid = [(r / (height - 1), c / (width - 1)) for r in range(height) for c in range(width)]
    columns = [(i, j) for i in range(5) for j in range(5) if 0 < i + j <= 4]
    powers = np.array([[r**i * c**j for i, j in columns] for r, c in grid])
    rises = [block.ravel() - np.percentile(block, 5) for block in blocks.astype(np.float64)]
    usual = np.percentile([np.percentile(rise, 98) for rise in rises], 75)
    rises = [rise for rise in rises if 0.3 * usual <= np.percentile(rise, 98) <= 5 * usual]
    light = np.ones(height * width)
    for _ in range(4):
        cells = []
        for rise in rises:
            even = rise / light
            places = np.flatnonzero(even > 0.5 * np.percentile(even, 98))
            logs = np.log(even[places]) - np.median(np.log(even[places]))
            cells.append((places[logs < 1], logs[logs < 1]))
        most = np.median([len(places) for places, _ in cells])
        rows, values, weights = [], [], []
        for number, (places, logs) in enumerate(cells):
            own = np.zeros((len(places), len(cells)))
            own[:, number] = 1
            rows.append(np.concatenate([own, powers[places]], axis=1))
            values.append(logs)
            weights.append(np.full(len(places), min(1, most / len(places))))
        root = np.sqrt(np.concatenate(weights))
        solved = np.linalg.lstsq(
            root[:, None] * np.concatenate(rows), root * np.concatenate(values), rcond=None
        )
        light *= np.exp(powers @ solved[0][len(cells) :])
    return light.reshape(height, width) / light.mean()


def test_regression_equals_a_naive_one(plate, monkeypatch):
    monkeypatch.setattr("cellclr_jax.data.illumination._CAUTION", 0.0)
    blocks = np.stack([block_means(field) for field in plate(**UNEVEN)[:12]])
    for channel in range(3):
        np.testing.assert_allclose(
            relative_light(blocks[..., channel]), naive_light(blocks[..., channel]), rtol=1e-5
        )


@pytest.mark.parametrize("shape", [(64, 64), (37, 16), (2000, 90)])
def test_blocks_have_the_mean_of_the_field(shape):
    field = np.random.default_rng(0).integers(0, 65536, (*shape, 2)).astype(np.uint16)
    blocks = block_means(field)
    assert max(blocks.shape[:2]) <= 80
    edges = [
        np.linspace(0, n, b + 1).astype(int) for n, b in zip(shape, blocks.shape, strict=False)
    ]
    for i, j in ((0, 0), (blocks.shape[0] - 1, blocks.shape[1] - 1)):
        rows, columns = (slice(*edge[k : k + 2]) for edge, k in zip(edges, (i, j), strict=True))
        np.testing.assert_allclose(blocks[i, j], field[rows, columns].mean(axis=(0, 1)), rtol=1e-6)


def some_light(height=40, width=52):
    rng = np.random.default_rng(0)
    return Illumination(
        gain=rng.uniform(0.5, 1.5, (5, 4, 2)).astype(np.float32),
        offset=np.array([100, 3000], np.float32),
        shape=(height, width),
        channels=("dna", "actin"),
        fields=12,
    )


def test_apply_equals_its_formula_rounded_and_clipped():
    light = some_light()
    field = np.random.default_rng(1).integers(0, 65536, (40, 52, 2)).astype(np.uint16)
    gain = ndimage.zoom(light.gain, (8, 13, 1), order=1, mode="nearest", grid_mode=True)
    exact = light.offset + (field - light.offset.astype(np.float64)) / gain
    corrected = light.apply(field)
    assert corrected.dtype == np.uint16
    assert (exact < 0).any()
    assert (exact > 65535).any()
    assert abs(corrected - exact.clip(0, 65535))[field < 65535].max() < 0.51
    with pytest.raises(
        BadData, match=r"\(40, 52, 3\), the illumination was fitted to \(40, 52, 2\)"
    ):
        light.apply(np.zeros((40, 52, 3), np.uint16))


@pytest.mark.parametrize("ceiling", [65535, 4095])
def test_saturated_pixels_stay_saturated(ceiling):
    field = np.random.default_rng(1).integers(0, ceiling, (40, 52, 2)).astype(np.uint16)
    field[5:15, 3:40] = ceiling
    corrected = some_light().apply(field)
    np.testing.assert_array_equal(corrected[5:15, 3:40], ceiling)
    assert (corrected[20:] != field[20:]).any()


def test_a_saved_file_is_loaded_unchanged(tmp_path):
    light, path = some_light(), tmp_path / "illumination" / "Week1_22123.npz"
    light.save(path)
    again = Illumination.load(path)
    assert again.digest() == light.digest()
    assert (again.shape, again.channels, again.fields) == (light.shape, light.channels, 12)
    np.testing.assert_array_equal(again.gain, light.gain)
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    first = path.read_bytes()
    light.save(path)
    assert path.read_bytes() == first


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "light.npz"
    with pytest.raises(BadData, match=r"light\.npz: not a readable illumination"):
        Illumination.load(path)
    some_light().save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"NUMPY") + 140] ^= 1  # a pixel of the first array
    for content in (b"", b"PK", whole[:200], whole[:-40], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(BadData, match=r"light\.npz: not a readable illumination"):
            Illumination.load(path)


def test_a_file_that_unpacks_to_too_many_bytes_is_refused_unread(tmp_path):
    path = tmp_path / "light.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("gain.npy", bytes(20 << 20))
    with pytest.raises(BadData, match="unpacks to 20,971,520 bytes"):
        Illumination.load(path)


@dataclasses.dataclass(frozen=True)
class Painted(Field):
    """A field in memory; None cannot be read."""

    pixels: np.ndarray | None

    def read(self):
        if self.pixels is None:
            raise BadData("broken")
        return self.pixels

    def fingerprint(self):
        return self.name


def painted_fields(pixels):
    return [Painted(f"P1/B{n:02d}/s1", {"plate": "P1"}, one) for n, one in enumerate(pixels)]


def test_a_plate_is_fitted_from_the_fields_that_can_be_read(plate):
    pixels = plate(**UNEVEN)[:12]
    fields = painted_fields(None if n in (2, 5) else one for n, one in enumerate(pixels))
    light = fit_plate(fields, CHANNELS)
    assert light.fields == 10
    readable = [field for number, field in enumerate(pixels) if number not in (2, 5)]
    assert light.digest() == fitted(readable).digest()


def test_a_plate_without_a_readable_field_is_named():
    with pytest.raises(BadData, match="plate 'P1': none of its 3 fields can be read"):
        fit_plate(painted_fields([None] * 3), CHANNELS)
    with pytest.raises(BadData, match="none of its 0 fields"):
        fit_plate([], CHANNELS)


def test_fields_of_another_shape_than_most_are_left_out(plate):
    pixels = plate(**UNEVEN)[:6]
    light = fit_plate(painted_fields([pixels[0][:-8], *pixels[1:]]), CHANNELS)
    assert light.shape == (SIDE, SIDE)
    assert light.digest() == fitted(pixels[1:]).digest()


def test_at_most_a_fixed_number_of_fields_is_read(monkeypatch):
    monkeypatch.setattr(illumination, "MOST_FIELDS", 4)
    fields = painted_fields(np.full((16, 16, 3), n, np.uint16) for n in range(10))
    assert fit_plate(fields, CHANNELS).fields == 4
