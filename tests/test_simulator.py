"""The simulated release: its layout, its truth, its mechanisms, and that it repeats exactly."""

import csv
import hashlib
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import tifffile
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label, regionprops

from cellclr_jax.cli import BadUse
from cellclr_jax.data import simulator
from cellclr_jax.data.simulation import release_files
from cellclr_jax.data.simulation.camera import Optics, expose
from cellclr_jax.data.simulation.painter import PaintedField, paint_field
from cellclr_jax.data.simulation.phenotypes import (
    MOA_PHENOTYPES,
    ONE_WEEK_MOAS,
    UNTREATED,
    dose_effect,
    towards,
)
from cellclr_jax.data.simulation.plate_layout import (
    CONCENTRATIONS,
    SimulatorSettings,
    field_streams,
    plate_wells,
    treatments,
)
from cellclr_jax.data.simulation.population import Population
from cellclr_jax.data.simulation.shapes import INTERPHASE, MITOTIC
from cellclr_jax.data.simulation.textures import texture_bank
from cellclr_jax.data.simulator import simulate_release

SHARED = Path(os.environ.get("CELLCLR_SHARED", Path(__file__).parents[2] / "shared"))
REAL = SHARED / "data" / "bbbc021"
IMAGE_COLUMNS = (
    "TableNumber,ImageNumber,Image_FileName_DAPI,Image_PathName_DAPI,Image_FileName_Tubulin,"
    "Image_PathName_Tubulin,Image_FileName_Actin,Image_PathName_Actin,Image_Metadata_Plate_DAPI,"
    "Image_Metadata_Well_DAPI,Replicate,Image_Metadata_Compound,Image_Metadata_Concentration"
)
SMALL = SimulatorSettings(weeks=2, plates_per_week=1, doses=1, dmso_wells=2, height=160, width=192)


def digest(folder: Path) -> dict[str, str]:
    """The hash of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def field_of(moa: str | None, seed: int = 0, size: int = 640) -> PaintedField:
    """A field in which every cell shows the full phenotype of a mechanism (None: untreated)."""
    kind = UNTREATED if moa is None else MOA_PHENOTYPES[moa]
    population = Population(UNTREATED, kind, 0.0 if moa is None else 1.0)
    rng = np.random.default_rng(seed)
    return paint_field(rng, population, texture_bank(0), height=size, width=size)


def areas(field: PaintedField, state: int = INTERPHASE) -> np.ndarray:
    """Areas of the nuclei in one state."""
    sizes = np.bincount(field.labels.ravel(), minlength=len(field.centres) + 1)[1:]
    return sizes[field.state == state]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "release"
    summary = simulate_release(folder, SMALL, workers=1, progress=False)
    assert not summary.reused
    assert summary.fields == summary.wells == 28
    assert summary.treatments == 24
    return folder


def rows_of(release: Path) -> list[dict[str, str]]:
    with (release / "BBBC021_v1_image.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_layout_and_columns_are_those_of_bbbc021(release: Path) -> None:
    header = (release / "BBBC021_v1_image.csv").read_text().splitlines()[0]
    assert header == IMAGE_COLUMNS
    rows = rows_of(release)
    assert len(rows) == 28
    for row in rows:
        for channel, code in (("DAPI", "w1"), ("Tubulin", "w2"), ("Actin", "w4")):
            name, folder = row[f"Image_FileName_{channel}"], row[f"Image_PathName_{channel}"]
            assert name.startswith(f"{row['Image_Metadata_Well_DAPI']}_s1_{code}")
            assert folder == f"{folder.split('/')[0]}/{row['Image_Metadata_Plate_DAPI']}"
            image = tifffile.imread(release / folder / name)
            assert image.shape == (160, 192)
            assert image.dtype == np.uint16
    names = [row[f"Image_FileName_{c}"] for row in rows for c in ("DAPI", "Tubulin", "Actin")]
    assert len(set(names)) == len(names)


def test_header_is_the_real_files_header() -> None:
    if not REAL.is_dir():
        pytest.skip(f"no real BBBC021 metadata in {REAL}: set CELLCLR_SHARED")
    for name, ours in (("BBBC021_v1_image.csv", IMAGE_COLUMNS),):
        assert (REAL / name).read_text().splitlines()[0].strip() == ours
    with (REAL / "BBBC021_v1_moa.csv").open(newline="") as file:
        assert {row["moa"] for row in csv.DictReader(file)} == {"DMSO", *MOA_PHENOTYPES}


def test_every_row_has_a_mechanism_and_every_plate_dmso(release: Path) -> None:
    with (release / "BBBC021_v1_moa.csv").open(newline="") as file:
        moa = {(r["compound"], float(r["concentration"])): r["moa"] for r in csv.DictReader(file)}
    assert set(moa.values()) == {"DMSO", *MOA_PHENOTYPES}
    dmso = defaultdict(int)
    for row in rows_of(release):
        key = row["Image_Metadata_Compound"], float(row["Image_Metadata_Concentration"])
        assert key in moa
        dmso[row["Image_Metadata_Plate_DAPI"]] += key == ("DMSO", 0.0)
    assert dict(dmso) == {"Week1_90001": 2, "Week2_90002": 2}


def test_same_bytes_with_one_and_two_workers(release: Path, tmp_path: Path) -> None:
    simulate_release(tmp_path / "two", SMALL, workers=2, progress=False)
    assert digest(tmp_path / "two") == digest(release)


def test_another_seed_gives_other_pictures_and_names() -> None:
    pair = [SMALL, SimulatorSettings(seed=1, weeks=2, plates_per_week=1, height=160, width=192)]
    wells = [plate_wells(settings)[0] for settings in pair]
    names = [release_files.file_names(s, w, 1) for s, w in zip(pair, wells, strict=True)]
    assert not set(names[0]) & set(names[1])
    draws = [field_streams(s, w, 1)[0].random() for s, w in zip(pair, wells, strict=True)]
    assert draws[0] != draws[1]


def test_truth_lies_on_the_painted_nuclei(release: Path) -> None:
    contrast = []
    for row in rows_of(release)[::4]:
        image = tifffile.imread(release / row["Image_PathName_DAPI"] / row["Image_FileName_DAPI"])
        name = f"{row['Image_Metadata_Well_DAPI']}_s1.npz"
        truth = np.load(release / "ground_truth" / row["Image_Metadata_Plate_DAPI"] / name)
        labels, count = truth["labels"], len(truth["x"])
        assert labels.shape == image.shape
        assert set(np.unique(labels)) == set(range(count + 1))
        at = labels[np.rint(truth["y"]).astype(int), np.rint(truth["x"]).astype(int)]
        assert at.tolist() == list(range(1, count + 1))
        assert len(truth["state"]) == len(truth["responds"]) == len(truth["in_focus"]) == count
        if count:
            contrast.append(image[labels > 0].mean() / image[labels == 0].mean())
    assert min(contrast) > 1.3


def test_labels_follow_the_outline_of_sharp_nuclei() -> None:
    field = field_of(None)
    sharp = expose(np.random.default_rng(0), field.image, Optics())[0]
    found = sharp > threshold_otsu(sharp)
    both = (found & (field.labels > 0)).sum() / (found | (field.labels > 0)).sum()
    assert both > 0.85


def test_each_mechanism_has_compounds_and_doses() -> None:
    every = treatments(SimulatorSettings())
    assert len(every) == len({(t.compound, t.concentration) for t in every}) == 48
    for moa in MOA_PHENOTYPES:
        compounds = defaultdict(list)
        for treatment in every:
            if treatment.moa == moa:
                compounds[treatment.compound].append(treatment)
        assert len(compounds) >= 2
        for doses in compounds.values():
            assert len(doses) == 2
            assert doses[0].concentration < doses[1].concentration
            assert doses[0].concentration in CONCENTRATIONS
            assert 0 < doses[0].population.responding < doses[1].population.responding
            assert doses[0].compound.startswith("sim-")


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
        {"plates_per_week": 0},
        {"compounds_per_moa": 1},
        {"doses": 99},
        {"compression": "jpeg"},
        {"nuisance": -0.1},
        {"nuisance": float("nan")},
        {"height": 8},
    ],
)
def test_bad_settings_are_bad_use(wrong: dict) -> None:
    with pytest.raises(BadUse, match=next(iter(wrong))):
        SimulatorSettings(**wrong)


def test_too_many_treatments_for_a_plate_are_bad_use() -> None:
    with pytest.raises(BadUse, match="a plate has 60"):
        plate_wells(SimulatorSettings(compounds_per_moa=6, doses=4))


def test_finished_release_is_reused_and_other_settings_refused(release: Path) -> None:
    assert simulate_release(release, SMALL, progress=False).reused
    with pytest.raises(BadUse, match="seed=0"):
        simulate_release(release, SimulatorSettings(seed=7), progress=False)


def test_interrupted_release_is_not_taken_for_finished_and_is_carried_on(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted = []

    def fails_at_third(job: tuple) -> int:
        if len(painted) == 2:
            raise KeyboardInterrupt
        painted.append(job)
        return PAINT(job)

    with monkeypatch.context() as patch:
        patch.setattr(simulator, "_paint_job", fails_at_third)
        with pytest.raises(KeyboardInterrupt):
            simulate_release(tmp_path / "cut", SMALL, workers=1, progress=False)
    assert not (tmp_path / "cut" / "simulation.json").exists()
    assert not (tmp_path / "cut" / "BBBC021_v1_image.csv").exists()
    with pytest.raises(BadUse, match="other settings"):
        simulate_release(tmp_path / "cut", SimulatorSettings(seed=7), progress=False)
    assert not simulate_release(tmp_path / "cut", SMALL, workers=1, progress=False).reused
    assert digest(tmp_path / "cut") == digest(release)


PAINT = simulator._paint_job


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadUse, match="no simulated release"):
        simulate_release(tmp_path, SMALL, progress=False)


def test_low_dose_moves_cells_less_than_high_dose() -> None:
    (low, few), (high, many) = dose_effect(0, 2), dose_effect(1, 2)
    assert low < high == 1.0
    assert few < many
    full = MOA_PHENOTYPES["DNA damage"]
    between = towards(full, low).nucleus_area
    assert UNTREATED.nucleus_area < between < full.nucleus_area
    assert towards(full, 0.0) == UNTREATED


def test_mechanisms_look_as_published() -> None:
    control = field_of(None)
    normal = np.median(areas(control))
    assert np.median(areas(field_of("Aurora kinase inhibitors"))) > 1.6 * normal
    assert np.median(areas(field_of("DNA damage"))) > 1.5 * normal
    assert np.median(areas(field_of("Protein synthesis"))) < 0.8 * normal
    assert len(field_of("DNA damage").centres) < 0.75 * len(control.centres)
    eg5 = field_of("Eg5 inhibitors")
    assert (eg5.state == MITOTIC).mean() > 0.5 > 5 * (control.state == MITOTIC).mean()


def test_ring_of_dna_is_dark_in_the_middle() -> None:
    field = field_of("Eg5 inhibitors")
    middles, rings = [], []
    whole = areas(field, MITOTIC) > 400
    for x, y in np.rint(field.centres[field.state == MITOTIC][whole]).astype(int):
        patch = field.image[0, max(0, y - 10) : y + 11, max(0, x - 10) : x + 11]
        if patch.shape == (21, 21):
            middles.append(patch[9:12, 9:12].mean())
            rings.append(np.median([patch[10, 0], patch[10, 20], patch[0, 10], patch[20, 10]]))
    assert np.median(middles) < 0.5 * np.median(rings)


def test_nuisance_zero_images_all_wells_alike_and_one_does_not() -> None:
    for strength, alike in ((0.0, True), (1.0, False)):
        wells = plate_wells(SimulatorSettings(nuisance=strength))
        assert (len({well.optics for well in wells}) == 1) == alike


def test_camera_keeps_to_twelve_bits_and_to_its_noise() -> None:
    flat = np.full((3, 96, 96), 2000, np.float32)
    digits = expose(np.random.default_rng(0), flat, Optics(vignette=0.0))
    assert digits.dtype == np.uint16
    assert not (digits % 16).any()
    assert 30 < digits[0].std() < 80
    bright = expose(np.random.default_rng(0), flat * 1000, Optics())
    assert bright.max() == 4095 * 16


@pytest.mark.skipif(not (REAL / "crops").is_dir(), reason=f"no real crops in {REAL}/crops")
def test_dmso_is_calibrated_on_real_crops() -> None:
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
    for well in wells[::12]:
        cells, camera, _ = field_streams(SimulatorSettings(), well, 1)
        field = paint_field(cells, well.population, texture_bank(0))
        image = expose(camera, field.image, well.optics).transpose(1, 2, 0)
        for x, y in np.rint(field.centres).astype(int):
            if 34 <= x < 1280 - 34 and 34 <= y < 1024 - 34:
                ours.append(image[y - 34 : y + 34, x - 34 : x + 34])
    simulated = np.stack(ours)
    # The plates of a screen differ by tens of per cent among themselves, and so do these wells.
    for channel in range(3):
        for percentile, tolerance in ((1, 0.35), (50, 0.35), (99, 0.40), (99.9, 0.50)):
            wanted = np.percentile(real[..., channel], percentile)
            got = np.percentile(simulated[..., channel], percentile)
            assert got == pytest.approx(wanted, rel=tolerance), (channel, percentile)
    (area, count), (our_area, our_count) = nuclei(real), nuclei(simulated)
    assert our_area == pytest.approx(area, rel=0.25)
    assert our_count == pytest.approx(count, rel=0.30)


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
