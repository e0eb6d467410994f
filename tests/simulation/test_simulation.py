"""Layout and imaging of simulated plates, and their similarity to real ones."""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage, stats
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label, regionprops
from support.painted_cells import field_of

from cellclr_jax.errors import BadUse
from cellclr_jax.simulation.camera import Optics, expose
from cellclr_jax.simulation.painter import PaintedField, paint_field
from cellclr_jax.simulation.phenotypes import MOA_PHENOTYPES, ONE_WEEK_MOAS
from cellclr_jax.simulation.plate_layout import (
    CONCENTRATIONS,
    SimulatorSettings,
    Well,
    field_streams,
    plate_wells,
    treatments,
)
from cellclr_jax.simulation.population import OUT_OF_FOCUS_SHARE
from cellclr_jax.simulation.textures import texture_bank

SHARED = Path(os.environ.get("CELLCLR_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "bbbc021"


def imaged(settings: SimulatorSettings, well: Well) -> tuple[PaintedField, np.ndarray]:
    """The first field of a well: ground truth, and the image [3, H, W] uint16."""
    cells, camera, _ = field_streams(settings, well, 1)
    size = {"height": settings.height, "width": settings.width}
    field = paint_field(cells, well.population, texture_bank(settings.seed), **size)
    return field, expose(camera, field.image, well.optics)


def test_nuclei_out_of_focus_are_blurred_and_few() -> None:
    sharpness, in_focus = [], []
    for seed in range(3):
        field = field_of(None, seed, size=1024)
        edges = ndimage.gaussian_gradient_magnitude(field.image[0], 0.7)
        numbers = np.arange(1, len(field.centres) + 1)
        steepest = ndimage.labeled_comprehension(
            edges, field.labels, numbers, lambda v: np.percentile(v, 90), float, 0
        )
        sharpness.append(steepest / ndimage.mean(field.image[0], field.labels, numbers))
        in_focus.append(field.in_focus)
    sharp, focus = np.concatenate(sharpness), np.concatenate(in_focus)
    assert (~focus).mean() == pytest.approx(OUT_OF_FOCUS_SHARE, abs=0.03)
    assert np.median(sharp[~focus]) < 0.75 * np.median(sharp[focus])


def test_each_mechanism_has_compounds_and_doses() -> None:
    every = treatments(SimulatorSettings())
    assert len({(t.compound, t.concentration) for t in every}) == len(every)
    assert Counter(t.moa for t in every) == dict.fromkeys(MOA_PHENOTYPES, 4)
    for low, high in zip(every[::2], every[1::2], strict=True):
        assert low.compound == high.compound
        assert low.compound.startswith("sim-")
        assert low.concentration < high.concentration in CONCENTRATIONS
        assert 0 < low.population.responding < high.population.responding


@pytest.mark.parametrize("weeks", [2, 3, 5])
def test_compounds_of_a_mechanism_lie_in_different_weeks_but_for_two(weeks: int) -> None:
    found = defaultdict(set)
    for treatment in treatments(SimulatorSettings(weeks=weeks)):
        found[treatment.moa].add(treatment.week)
    assert {moa for moa, in_weeks in found.items() if len(in_weeks) == 1} == set(ONE_WEEK_MOAS)


def test_each_treatment_is_on_every_plate_of_its_week_and_control_on_all() -> None:
    settings = SimulatorSettings(positive_control_wells=1)
    wells = plate_wells(settings)
    replicates = defaultdict(list)
    for well in wells:
        replicates[well.treatment.compound, well.treatment.concentration].append(well.plate)
    assert len({well.plate for well in wells}) == 9
    assert len({(well.plate, well.well) for well in wells}) == len(wells)
    for (compound, _), plates in replicates.items():
        if compound == "DMSO":
            assert len(plates) == 9 * settings.dmso_wells
        elif len(plates) > 3:
            assert compound == "sim-stabilizer-1"
            assert set(plates) == {well.plate for well in wells}
        else:
            assert len(set(plates)) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"weeks": 1},
        {"doses": 99},
        {"compression": "jpeg"},
        {"effect": float("inf")},
        {"density": float("nan")},
        {"height": 8},
    ],
)
def test_bad_settings_are_bad_use(wrong: dict) -> None:
    with pytest.raises(BadUse, match=next(iter(wrong))):
        SimulatorSettings(**wrong)


def test_too_many_treatments_for_a_plate_are_bad_use() -> None:
    with pytest.raises(BadUse, match="a plate has 60"):
        plate_wells(SimulatorSettings(compounds_per_moa=6, doses=4))


def test_wells_have_equal_imaging_only_without_nuisance() -> None:
    for strength, alike in ((0.0, True), (1.0, False)):
        wells = plate_wells(SimulatorSettings(nuisance=strength))
        assert (len({well.optics for well in wells}) == 1) == alike


def test_weeks_differ_in_gain_blur_background_light_and_density() -> None:
    settings = SimulatorSettings(weeks=6, plates_per_week=20, dmso_wells=30)
    dmso = [well for well in plate_wells(settings) if well.treatment.moa == "DMSO"]
    weeks = [[well for well in dmso if well.week == week] for week in range(1, 7)]

    def differ(value: Callable[[Well], float]) -> bool:
        """Whether weeks differ in an analysis of variance."""
        return stats.f_oneway(*([value(well) for well in wells] for wells in weeks)).pvalue < 1e-4

    for channel in range(3):
        assert differ(lambda well, channel=channel: np.log(well.optics.gain[channel]))
        assert differ(lambda well, channel=channel: well.optics.focus[channel])
        assert differ(lambda well, channel=channel: well.optics.offset[channel])
    assert differ(lambda well: np.log(well.population.density))
    assert [len({well.optics.vignette for well in wells}) for wells in weeks] == [1] * 6
    assert len({wells[0].optics.vignette for wells in weeks}) == 6
    assert not differ(lambda well: np.log(well.optics.noise)), "noise differs only between wells"


def test_camera_has_twelve_bits_and_the_expected_noise() -> None:
    flat = np.full((3, 96, 96), 2000, np.float32)
    digits = expose(np.random.default_rng(0), flat, Optics(vignette=0.0))
    assert digits.dtype == np.uint16
    assert not (digits % 16).any()
    assert 30 < digits[0].std() < 80
    bright = expose(np.random.default_rng(0), flat * 1000, Optics())
    assert bright.max() == 4095 * 16


@pytest.mark.skipif(not (REAL / "crops").is_dir(), reason=f"no real crops in {REAL}/crops")
def test_simulated_dmso_resembles_real_crops() -> None:
    with (REAL / "BBBC021_v1_image.csv").open(newline="") as file:
        dmso = {
            Path(row["Image_FileName_DAPI"]).stem
            for row in csv.DictReader(file)
            if row["Image_Metadata_Compound"] == "DMSO"
        }
    paths = [p for p in sorted((REAL / "crops").glob("*.npy")) if p.stem.rsplit("_", 1)[0] in dmso]
    real = np.stack([np.load(path) for path in paths[::4]])[..., [0, 2, 1]]
    ours = []
    wells = [w for w in plate_wells(SimulatorSettings()) if w.treatment.compound == "DMSO"]
    for well in wells[::12]:  # one on every other plate
        field, image = imaged(SimulatorSettings(), well)
        for x, y in np.rint(field.centres).astype(int):
            if 34 <= x < 1280 - 34 and 34 <= y < 1024 - 34:
                ours.append(image[:, y - 34 : y + 34, x - 34 : x + 34].transpose(1, 2, 0))
    simulated = np.stack(ours)
    # The darkest and the brightest pixels vary between the few wells of both sets.
    for channel in range(3):
        for percentile, tolerance in ((1, 0.20), (50, 0.10), (99, 0.15), (99.9, 0.25)):
            expected = np.percentile(real[..., channel], percentile)
            got = np.percentile(simulated[..., channel], percentile)
            assert got == pytest.approx(expected, rel=tolerance), (channel, percentile)
    (area, count), (our_area, our_count) = nuclei(real), nuclei(simulated)
    assert our_area == pytest.approx(area, rel=0.10)
    assert our_count == pytest.approx(count, rel=0.15)


def nuclei(crops: np.ndarray) -> tuple[float, float]:
    """Median area of the central nucleus and mean number of objects a crop, as Otsu finds them."""
    found, numbers = [], []
    for crop in crops[:: max(1, len(crops) // 150), ..., 0]:
        smooth = gaussian(crop.astype(np.float32), 1, preserve_range=True)
        labels = label(smooth > threshold_otsu(smooth))
        regions = [region for region in regionprops(labels) if region.area > 60]
        numbers.append(len(regions))
        found += [region.area for region in regions if region.label == labels[34, 34]]
    return float(np.median(found)), float(np.mean(numbers))
