import numpy as np
import pytest
from scipy import ndimage
from skimage import measure
from skimage.morphology import h_maxima
from support.nuclei_scores import SMALLEST, Score, compare, hand_drawn_fields
from support.painted_cells import field_of
from support.tiny_release import CENTERS, disc_field

from cellclr_jax.data import segmentation
from cellclr_jax.data.segmentation import segment_nuclei
from cellclr_jax.simulation.camera import Optics, expose
from cellclr_jax.simulation.phenotypes import UNTREATED
from cellclr_jax.simulation.population import Population


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def drawn(shared):
    """Name, image and true labels of the twelve real fields."""
    fields = hand_drawn_fields(shared / "data" / "nuclei")
    if not fields:
        pytest.skip(f"no real nuclei in {shared}/data/nuclei (CELLCLR_SHARED)")
    assert len(fields) == 12
    return fields


def centers_of(labels):
    return np.array(ndimage.center_of_mass(labels > 0, labels, range(1, labels.max() + 1)))


def ellipses(rng, shapes, *, height=160, width=200, level=3000, blur=1.0):
    """[H, W] float32: ellipses (row, column, half axes, share of `level`), the last on top."""
    rows, columns = np.mgrid[:height, :width]
    image = np.zeros((height, width))
    for row, column, half_height, half_width, share in shapes:
        inside = ((rows - row) / half_height) ** 2 + ((columns - column) / half_width) ** 2 <= 1
        image[inside] = share * level
    image = ndimage.gaussian_filter(image, blur) + rng.normal(500, 15, image.shape)
    return image.astype(np.float32)


def test_nuclei_are_found_at_their_positions(rng):
    labels = segment_nuclei(disc_field(rng))
    assert labels.dtype == np.int32
    assert labels.shape == (160, 200)
    assert labels.max() == len(CENTERS)
    # Each is numbered by its first pixel, from the top.
    np.testing.assert_allclose(centers_of(labels)[:4], CENTERS[:4], atol=1.0)
    area = np.bincount(labels.ravel())[1:5]
    assert (abs(area / (np.pi * 9**2) - 1) < 0.15).all()


def test_touching_nuclei_are_separated(rng):
    labels = segment_nuclei(disc_field(rng, [(60, 40), (60, 66), (84, 76)], radius=14))
    assert labels.max() == 3


def test_a_bright_and_a_dim_nucleus_in_touch_are_separated_without_a_neck(rng):
    # Side by side, as broad as each other, so that the outline of both has no neck.
    image = np.zeros((120, 160))
    image[40:70, 40:70], image[40:70, 70:100] = 3000, 1500
    image = ndimage.gaussian_filter(image, 1) + rng.normal(500, 15, image.shape)
    labels = segment_nuclei(image.astype(np.float32))
    assert labels.max() == 2
    assert labels[55, 55] != labels[55, 85]


def test_a_dark_line_separates_and_a_dark_spot_does_not(rng):
    image = np.zeros((120, 220))
    image[40:70, 30:90] = image[40:70, 130:190] = 3000
    image[40:70, 59:61] = 1200  # from rim to rim
    image[50:60, 155:165] = 1200  # a nucleolus
    image = ndimage.gaussian_filter(image, 1) + rng.normal(500, 15, image.shape)
    labels = segment_nuclei(image.astype(np.float32))
    assert labels.max() == 3
    assert labels[55, 45] != labels[55, 75]
    assert labels[55, 140] == labels[55, 180] == labels[55, 160] != 0


def test_long_nuclei_stay_whole(rng):
    image = ellipses(rng, [(40, 60, 10, 40, 1.0), (110, 60, 16, 30, 1.0), (80, 150, 35, 9, 1.0)])
    assert segment_nuclei(image).max() == 3


def test_a_larger_notch_gives_fewer_nuclei(rng):
    image = ellipses(rng, [(80, 70, 16, 20, 1.0), (80, 100, 16, 20, 1.0)])
    counts = [segment_nuclei(image, notch=notch).max() for notch in (1.0, 1.4, 4.0, 8.0, 16.0)]
    assert counts[0] == counts[1] == 2
    assert counts[-1] == 1
    assert counts == sorted(counts, reverse=True)


def test_rings_are_filled_and_gaps_between_nuclei_are_not(rng):
    ring = ellipses(rng, [(60, 60, 16, 16, 1.0), (60, 60, 6, 6, 0.0)])
    labels = segment_nuclei(ring)
    assert labels.max() == 1
    assert labels[60, 60] == 1
    # Six nuclei round an empty middle, each in touch with two others.
    angles = np.arange(6) * np.pi / 3
    places = np.stack([80 + 28 * np.sin(angles), 100 + 28 * np.cos(angles)], axis=1)
    labels = segment_nuclei(ellipses(rng, [(y, x, 15, 15, 1.0) for y, x in places]))
    assert labels.max() == 6
    assert labels[80, 100] == 0


def test_labels_are_the_same_for_a_scaled_image_and_on_every_call(rng):
    image = disc_field(rng, [(60, 40), (60, 66), (84, 76)], radius=14)
    labels = segment_nuclei(image)
    np.testing.assert_array_equal(segment_nuclei(image), labels)
    # A power of two, which rounds no value differently.
    np.testing.assert_array_equal(segment_nuclei(image.astype(np.float32) / 2**20), labels)
    np.testing.assert_array_equal(segment_nuclei(image.astype(np.uint32) * 2**10), labels)


def test_uneven_light_does_not_matter(rng):
    centers = [(60 + 90 * row, 70 + 95 * column) for row in range(4) for column in range(5)]
    slope = np.linspace(0, 3000, 500).astype(np.uint16)
    image = disc_field(rng, centers, height=400, width=500, level=2000) + slope
    assert segment_nuclei(image).max() == len(centers)


@pytest.mark.parametrize("shape", [(1, 1), (161, 203)])
@pytest.mark.parametrize("kind", ["zeros", "constant", "noise"])
def test_fields_without_nuclei_stay_empty(rng, shape, kind):
    image = {
        "zeros": np.zeros(shape, np.uint16),
        "constant": np.full(shape, 777.3, np.float32),
        "noise": rng.normal(500, 20, shape).astype(np.uint16),
    }[kind]
    labels = segment_nuclei(image)
    assert labels.shape == shape
    assert labels.dtype == np.int32
    assert labels.max() == 0


def test_a_bright_speck_is_no_nucleus_and_hides_none(rng):
    empty = disc_field(rng, [])
    empty[50:53, 50:53] = 65535
    assert segment_nuclei(empty).max() == 0
    image = disc_field(rng)
    image[5:8, 90:93] = 65535
    assert segment_nuclei(image).max() == len(CENTERS)


def test_size_rules_drop_debris(rng):
    image = disc_field(rng, [(40, 40), (40, 110)], radius=9)
    image += disc_field(rng, [(110, 60)], radius=4) + disc_field(rng, [(110, 140)], radius=20)
    assert segment_nuclei(image).max() == 3
    assert segment_nuclei(image, min_area=20).max() == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(bad):
    image = np.ones((40, 40), np.float32)
    image[3, 4] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        segment_nuclei(image)


def test_basins_are_the_peaks_of_at_least_the_prominence(rng):
    height = ndimage.gaussian_filter(rng.normal(0, 1, (80, 100)), 3).astype(np.float32)
    height = (height - height.min()) / np.ptp(height)
    everywhere = np.ones(height.shape, bool)
    for notch in (0.02, 0.1, 0.3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(segmentation, "_DEPTH_SIGMA", 0.0)
            basins = segmentation._basins(height, np.zeros_like(height), everywhere, notch)
        peaks, count = ndimage.label(h_maxima(height, notch), np.ones((3, 3)))
        assert len(np.unique(basins)) == count > 1
        assert len(np.unique(basins[peaks > 0])) == count


def test_each_label_is_one_region_and_they_are_in_order(drawn):
    for _, image, _ in drawn[:2]:
        labels = segment_nuclei(image)
        _, first, area = np.unique(labels, return_index=True, return_counts=True)
        assert (np.diff(first[1:]) > 0).all()
        assert area[1:].min() >= SMALLEST
        assert measure.label(labels, connectivity=1).max() == labels.max()


def test_real_nuclei_are_found_and_outlined_as_by_hand(drawn):
    every, large = Score(), Score()
    for _, image, truth in drawn:
        labels = segment_nuclei(image)
        assert truth.any() or not labels.any()
        every += compare(truth, labels)
        large += compare(truth, labels, SMALLEST)
    # Otsu's threshold and a distance watershed reach 0.89, 0.84 and, without fragments, 0.93.
    assert every.f1_half > 0.93
    assert every.f1_most > 0.915
    assert large.f1_half > 0.97
    assert large.f1_most > 0.955
    assert large.recall > 0.968
    assert large.precision > 0.99


@pytest.mark.parametrize("blur", [0.8, 3.5])
@pytest.mark.parametrize("density", [1.0, 3.0])
def test_painted_nuclei_are_found_in_focus_and_out_of_focus(density, blur):
    field = field_of(Population(UNTREATED, UNTREATED, 0.0, density=density), seed=3)
    image = expose(np.random.default_rng(3), field.image, Optics(focus=(blur, blur, blur)))[0]
    truth = measure.label(field.labels, connectivity=1)
    score = compare(truth, segment_nuclei(image), SMALLEST)
    assert score.true > 20 * density
    assert score.recall > 0.97
    assert score.precision > 0.97
    assert score.f1_most > 0.93
