"""Quality measures of fields, and detection of outliers."""

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from support.painted_cells import field_of

from cellclr_jax.data.quality.measures import (
    camera_ceiling,
    columns_of,
    focus_score,
    measure_images,
)
from cellclr_jax.data.quality.outliers import find_outliers, find_outlying_plates
from cellclr_jax.data.readers import read_planes
from cellclr_jax.data.readers.find_files import ImageFile
from cellclr_jax.simulation.camera import Optics, expose
from cellclr_jax.simulation.phenotypes import UNTREATED
from cellclr_jax.simulation.population import Population

CHANNELS = ("dna", "tubulin", "actin")


@pytest.fixture(scope="module")
def painted():
    """Light of a simulated field of cells [3, H, W], without a camera."""
    return field_of(None, size=512).image


def photograph(light, seed=0, **optics):
    """[H, W, C] uint16."""
    digits = expose(np.random.default_rng(seed), light, Optics(**optics))
    return np.moveaxis(digits, 0, -1)


def saturated_share(image):
    return np.mean(image >= camera_ceiling(image))


def focus_of(image):
    return np.array([measure_images(image[None], CHANNELS)[f"focus_{c}"] for c in CHANNELS])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (200, 129)])
def test_intensities_equal_numpy(dtype, shape):
    rng = np.random.default_rng(0)
    image = np.minimum(rng.gamma(2, 40, (*shape, 2)), np.iinfo(dtype).max).astype(dtype)
    found = measure_images(image[None], ("a", "b"))
    assert list(found) == columns_of(("a", "b"))
    for channel, name in enumerate("ab"):
        values = image[..., channel].astype(float)
        assert found[f"mean_{name}"] == pytest.approx(values.mean(), rel=1e-12)
        assert found[f"p50_{name}"] == pytest.approx(np.percentile(values, 50), rel=1e-12)
        assert found[f"p99_{name}"] == pytest.approx(np.percentile(values, 99), rel=1e-12)


def test_crops_are_measured_as_one_field():
    crops = np.random.default_rng(0).integers(0, 4000, (9, 32, 32, 3), np.uint16)
    found = measure_images(crops, CHANNELS)
    as_field = measure_images((crops.reshape(-1, 32, 3))[None], CHANNELS)
    for measure in ("mean", "p50", "p99", "saturated"):
        for channel in CHANNELS:
            assert found[f"{measure}_{channel}"] == as_field[f"{measure}_{channel}"]
    assert measure_images(crops[::-1], CHANNELS) == pytest.approx(found, nan_ok=True)


def test_portions_have_no_effect(monkeypatch):
    crops = np.random.default_rng(0).gamma(2, 400, (20, 48, 48, 1)).astype(np.uint16)
    crops = ndimage.uniform_filter(crops, (0, 3, 3, 0))
    whole = measure_images(crops, ("dna",))
    monkeypatch.setattr("cellclr_jax.data.quality.measures._PORTION", 3 * 48 * 48)
    assert measure_images(crops, ("dna",)) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(
    ("image", "channels"),
    [
        (np.zeros((4, 4), np.uint16), ("a",)),
        (np.zeros((4, 4, 2), np.uint16), ("a",)),
        (np.zeros((0, 4, 1), np.uint16), ("a",)),
        (np.zeros((4, 4, 1), np.float32), ("a",)),
    ],
)
def test_wrong_shapes_and_types_are_refused(image, channels):
    with pytest.raises(ValueError, match="expected"):
        measure_images(image[None], channels)


@pytest.mark.parametrize("ceiling", [255, 4095, 4095 * 16, 16383 * 4, 50_000])
def test_saturated_pixels_of_any_camera_are_counted(ceiling):
    rng = np.random.default_rng(0)
    step = 16 if ceiling == 4095 * 16 else 4 if ceiling == 16383 * 4 else 1
    light = rng.gamma(3, ceiling / 8, (300, 300)) // step * step
    image = np.minimum(light, ceiling).astype(np.uint8 if ceiling == 255 else np.uint16)
    assert saturated_share(image) == np.mean(light >= ceiling) > 0.005


def test_images_below_the_limit_are_not_saturated(painted):
    rng = np.random.default_rng(0)
    assert saturated_share(np.full((50, 50), 700, np.uint16)) == 0
    assert saturated_share(np.zeros((50, 50), np.uint16)) == 0
    assert saturated_share(rng.poisson(3, (500, 500)).astype(np.uint16)) == 0
    assert saturated_share(rng.integers(0, 2, (50, 50), np.uint8)) == 0
    hot = rng.normal(1000, 30, (500, 500)).astype(np.uint16)
    hot[3, 3] = 60_000
    assert saturated_share(hot) == 0
    dim = photograph(painted, gain=(0.5,) * 3)
    assert [saturated_share(dim[..., channel]) for channel in range(3)] == [0, 0, 0]


def test_white_is_saturated():
    image = np.zeros((10, 10), np.uint8)
    image[0, 0] = 255
    assert saturated_share(image) == 0.01
    assert saturated_share(np.full((10, 10), 65535, np.uint16)) == 1


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_focus_decreases_with_blur_at_any_noise(painted, noise):
    blurs = (0.5, 0.8, 1.2, 1.6, 2.0, 3.0, 4.0)
    scores = [focus_of(photograph(painted, focus=(b,) * 3, noise=noise)) for b in blurs]
    assert (np.diff(scores, axis=0) < 0).all()
    assert (scores[-1] < 0.35 * scores[1]).all()


@pytest.mark.parametrize(
    "optics",
    [
        {"gain": (0.4,) * 3},
        {"gain": (2.0,) * 3},
        {"offset": (100.0,) * 3},
        {"offset": (5000.0,) * 3},
        {"noise": 3.0},
        {"vignette": 0.4, "tilt": (0.3, -0.3)},
    ],
)
def test_focus_is_independent_of_gain_offset_noise_and_illumination(painted, optics):
    usual = focus_of(photograph(painted))
    np.testing.assert_allclose(focus_of(photograph(painted, seed=1, **optics)), usual, rtol=0.06)


@pytest.mark.parametrize("density", [0.3, 2.0])
def test_focus_depends_little_on_the_number_of_cells(painted, density):
    other = field_of(Population(UNTREATED, UNTREATED, 0.0, density=density), size=768).image
    ratio = focus_of(photograph(other)) / focus_of(photograph(painted))
    assert ratio.max() < 1.2
    assert ratio.min() > 0.8


def test_a_bright_fibre_has_little_effect_on_focus(painted):
    with_fibre = photograph(painted, focus=(3.0,) * 3)
    with_fibre[200:204, 150:300] = 60_000
    assert (focus_of(with_fibre) < 0.6 * focus_of(photograph(painted))).all()


def test_images_without_structure_have_no_focus_score():
    rng = np.random.default_rng(0)
    assert np.isnan(focus_score(rng.normal(700, 36, (1, 512, 512)).astype(np.uint16)))
    assert np.isnan(focus_score(np.full((1, 512, 512), 700, np.uint16)))
    assert np.isnan(focus_score(rng.integers(0, 4000, (5, 23, 23), np.uint16)))


@pytest.mark.parametrize("side", [24, 25, 127])
def test_images_of_any_size_have_a_focus_score(side):
    blobs = ndimage.gaussian_filter(np.random.default_rng(0).random((6, side, side)), (0, 2, 2))
    image = (60_000 * blobs).astype(np.uint16)
    assert focus_score(image) > 0


def test_focus_of_real_nuclei_decreases_with_blur(shared):
    files = sorted((shared / "data" / "nuclei").glob("*.tif"))[:2]
    for file in files:
        image = read_planes((ImageFile(file.name, str(file)),)).astype(np.float32)
        rng = np.random.default_rng(0)
        scores = [measure_images((image.astype(np.uint16))[None], ("dna",))["focus_dna"]]
        for sigma in (0.8, 1.2, 2.0, 3.0):
            blurred = ndimage.gaussian_filter(image, (sigma, sigma, 0))
            blurred += rng.normal(0, 12, blurred.shape)
            score = measure_images((blurred.clip(0).astype(np.uint16))[None], ("dna",))["focus_dna"]
            scores.append(score)
        assert (np.diff(scores) < 0).all()


def plate_of(count=60, seed=0, plate="P1"):
    """A table of fields with random measures."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"field": [f"{plate}/{i}" for i in range(count)], "plate": plate})
    table["cells"] = rng.poisson(85, count)
    table["problem"] = ""
    for name in columns_of(CHANNELS):
        table[name] = np.exp(rng.normal(0, 0.1, count)) * (
            1e-4 if name.startswith("saturated") else 2 if name.startswith("focus") else 1000
        )
    return table


def test_random_fields_are_no_outliers():
    table = pd.concat([plate_of(seed=i, plate=f"P{i}") for i in range(20)], ignore_index=True)
    assert len(find_outliers(table, CHANNELS)) == 0
    assert len(find_outlying_plates(table, CHANNELS)) == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"focus_dna": 0.3}, "out of focus in dna"),
        ({"focus_dna": 0.0, "focus_actin": 0.4}, "out of focus in dna, actin"),
        ({"focus_tubulin": np.nan}, "nothing to focus on in tubulin"),
        ({"saturated_actin": 0.041}, "4.1 % saturated in actin"),
        ({"cells": 0}, "no cells"),
        ({"cells": 12}, "cell count 12, its plate's median 85"),
        ({"cells": 400}, "cell count 400, its plate's median 85"),
        ({"mean_dna": 9000.0}, "dna bright: mean 9,000, its plate's median 1,002"),
        ({"p99_actin": 50.0}, "actin dark: 99th percentile 50, its plate's median 1,000"),
        ({"p50_actin": 0.0}, "actin dark: median pixel 0, its plate's median 1,000"),
    ],
)
def test_planted_faults_are_found_with_their_reason(changes, reason):
    table = plate_of()
    table.loc[7, list(changes)] = list(changes.values())
    found = find_outliers(table, CHANNELS)
    assert found["field"].tolist() == ["P1/7"]
    words = found["reason"].iloc[0]
    # The median of the plate is random.
    assert (
        words.rsplit(" ", 1)[0] == reason.rsplit(" ", 1)[0]
        if "median" in reason
        else words == reason
    )
    assert found["score"].iloc[0] >= 5


def test_sharp_and_unsaturated_fields_are_no_outliers():
    table = plate_of()
    table.loc[7, ["focus_dna", "saturated_dna"]] = 9.0, 0.0
    assert len(find_outliers(table, CHANNELS)) == 0


def test_scores_are_robust_z_scores_of_logarithms():
    table = plate_of()
    table.loc[7, "mean_dna"] = 9000.0
    logs = np.log(table["mean_dna"].to_numpy())
    deviation = np.median(np.abs(logs - np.median(logs))) * 1.4826
    expected = (logs[7] - np.median(logs)) / max(deviation, 0.1)
    assert find_outliers(table, CHANNELS)["score"].iloc[0] == pytest.approx(expected)


def test_fields_are_compared_within_their_plate():
    bright = plate_of(seed=1, plate="P2")
    bright[[f"mean_{c}" for c in CHANNELS]] *= 10
    dim = plate_of()
    assert len(find_outliers(pd.concat([dim, bright], ignore_index=True), CHANNELS)) == 0
    dim.loc[3, "mean_dna"] = 10_000
    found = find_outliers(pd.concat([dim, bright], ignore_index=True), CHANNELS)
    assert found.index.tolist() == [3]


def test_fields_of_small_plates_are_compared_with_all():
    small = plate_of(3, seed=1, plate="P2")
    small.loc[1, "focus_dna"] = 0.2
    found = find_outliers(pd.concat([plate_of(), small], ignore_index=True), CHANNELS)
    assert found["field"].tolist() == ["P2/1"]
    assert len(find_outliers(small, CHANNELS)) == 0
    small.loc[2, "cells"] = 0
    assert find_outliers(small, CHANNELS)["reason"].tolist() == ["no cells"]


def test_outliers_are_sorted_whatever_the_order_of_fields():
    table = plate_of()
    table.loc[3, "focus_dna"] = 0.5
    table.loc[5, "focus_dna"] = 0.2
    table.loc[9, "cells"] = 0
    found = find_outliers(table, CHANNELS)
    assert found["field"].tolist() == ["P1/9", "P1/5", "P1/3"]
    shuffled = table.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(find_outliers(shuffled, CHANNELS), found)


def test_excluded_fields_and_missing_measures_are_ignored():
    table = plate_of()
    table.loc[3, ["problem", "cells", "focus_dna"]] = "no file", 0, np.nan
    assert len(find_outliers(table, CHANNELS)) == 0
    bare = table[["field", "cells", "problem"]]
    assert len(find_outliers(bare, CHANNELS)) == 0
    assert len(find_outliers(bare.head(0), CHANNELS)) == 0
    assert list(find_outliers(bare.head(0), CHANNELS)) == [*bare, "reason", "score"]


def test_outlier_plates_are_found():
    plates = [plate_of(seed=i, plate=f"P{i}") for i in range(10)]
    plates[4]["focus_tubulin"] /= 4
    table = pd.concat(plates, ignore_index=True)
    assert len(find_outliers(table, CHANNELS)) == 0
    found = find_outlying_plates(table, CHANNELS)
    assert found["plate"].tolist() == ["P4"]
    assert found["reason"].tolist() == ["out of focus in tubulin"]
    assert len(find_outlying_plates(table.drop(columns="plate"), CHANNELS)) == 0
