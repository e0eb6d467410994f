"""Strips of crops: choice of cells, brightness, size."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.report_samples import Images, make_cells, make_wells

from cellclr_jax.data.minibatches import Cells
from cellclr_jax.pages.crop_strips import UNKNOWN_DOSE, choose, treatment_pictures


def test_every_plate_and_well_is_shown_before_a_second_cell():
    wells = pd.DataFrame(
        [(p, w, "W", "c", 1.0, "m") for p in "PQR" for w in ("1", "2")],
        columns=["plate", "well", "batch", "compound", "concentration", "moa"],
    )
    cells = make_cells(wells, each=5)
    strip = treatment_pictures(cells, "DMSO").strips["c", 1.0]
    assert strip.crops == 8
    assert {p.split()[0] for p in strip.wells} == {"P", "Q", "R"}
    assert len(set(strip.wells)) == 6
    keys = ("plate", ["plate", "well"])
    places = np.stack([cells.table.groupby(key).ngroup() for key in keys], axis=1)
    three = choose(places, np.arange(30), 3, key=("c", 1.0))
    assert set(cells.table["plate"].iloc[three]) == {"P", "Q", "R"}


def test_crops_are_reproducible_and_independent_of_other_treatments():
    cells = make_cells(make_wells())
    first = treatment_pictures(cells, "dmso")
    assert first == treatment_pictures(cells, "dmso")
    table = cells.table
    some = table["compound"].isin(["DMSO", "c1"]).to_numpy()
    fewer = Cells(
        Path(),
        Images(cells.images.pixels[some]),
        table[some].reset_index(drop=True),
        cells.manifest,
    )
    assert (
        treatment_pictures(fewer, "DMSO").strips["c1", 1.0].wells == first.strips["c1", 1.0].wells
    )
    assert len(first.strips) == 24
    assert first.controls.crops == 8
    assert "control crops" in first.scale


def grey(strip):
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(strip.image)).convert("L")).astype(int)


def test_controls_decide_the_brightness_of_all_strips():
    cells = make_cells(make_wells(), channels=("dna",))
    treated = (cells.table["compound"] != "DMSO").to_numpy()
    cells.images.pixels[treated] = 2000
    cells.images.pixels[(cells.table["compound"] == "c1").to_numpy()] = 1000
    cells.images.pixels[(cells.table["compound"] == "c2").to_numpy()] = 60_000
    found = treatment_pictures(cells, "DMSO")
    dim, usual, bright = (
        grey(found.strips[name, 1.0])[:, 4:20].mean() for name in ("c1", "c0", "c2")
    )
    assert usual == pytest.approx(255 * 0.5**0.75, abs=6)
    assert dim == pytest.approx(255 * 0.25**0.75, abs=6)
    assert bright > 250
    before = found.controls
    cells.images.pixels[treated] = 0
    assert treatment_pictures(cells, "DMSO").controls == before


def test_strips_shrink_to_the_budget():
    cells = make_cells(make_wells(moas=2), each=2, side=96)
    found = treatment_pictures(cells, "DMSO", budget_bytes=150_000)
    assert len(found.strips) == 12
    assert bytes_in_page(found) <= 150_000
    assert found.side < 96
    assert treatment_pictures(cells, "DMSO").side == 96
    few = treatment_pictures(cells, "DMSO", budget_bytes=25_000)
    assert 2 < len(few.strips) < 12
    assert few.controls is not None
    assert bytes_in_page(few) <= 25_000


def bytes_in_page(pictures):
    return sum(len(s.image) for s in [*pictures.strips.values(), pictures.controls]) * 4 / 3


def test_missing_treatments_controls_and_plates():
    cells = make_cells(make_wells())
    bare = Cells(Path(), cells.images, cells.table[["plate", "well"]], cells.manifest)
    assert treatment_pictures(bare, "DMSO").strips == {}
    treated = make_cells(make_wells().query("compound != 'DMSO'"))
    found = treatment_pictures(treated, "DMSO")
    assert found.controls is None
    assert len(found.strips) == 24
    assert "crops of all treatments" in found.scale
    unnamed = Cells(Path(), cells.images, cells.table[["compound"]], cells.manifest)
    assert treatment_pictures(unnamed, "DMSO").strips["c1", UNKNOWN_DOSE].wells == [""] * 8
    doses = cells.table.loc[cells.table["compound"] == "c1", ["compound"]].copy()
    doses["concentration"] = np.where(np.arange(len(doses)) % 2, np.nan, 0.0)
    mixed = Cells(Path(), cells.images, doses, cells.manifest)
    assert set(treatment_pictures(mixed, "DMSO").strips) == {("c1", 0.0), ("c1", UNKNOWN_DOSE)}
