"""Pictures of crops: which cells, how bright, how large."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.report_samples import Images, make_cells, make_wells

from cellclr_jax.data.minibatches import Cells
from cellclr_jax.pages.crop_strips import choose, treatment_pictures


def test_crops_show_every_plate_then_every_well_before_a_second_cell():
    wells = pd.DataFrame(
        [(p, w, "W", "c", 1.0, "m") for p in "PQR" for w in ("1", "2")],
        columns=["plate", "well", "batch", "compound", "concentration", "moa"],
    )
    cells = make_cells(wells, each=5)
    strip = treatment_pictures(cells, "DMSO").tiles["c", 1.0]
    assert strip.crops == 8
    assert {p.split()[0] for p in strip.places} == {"P", "Q", "R"}
    assert len(set(strip.places)) == 6
    keys = ("plate", ["plate", "well"])
    places = np.stack([cells.table.groupby(key).ngroup() for key in keys], axis=1)
    three = choose(places, np.arange(30), 3, key=("c", 1.0))
    assert set(cells.table["plate"].iloc[three]) == {"P", "Q", "R"}


def test_crops_do_not_depend_on_other_treatments_and_come_again():
    cells = make_cells(make_wells())
    first = treatment_pictures(cells, "dmso")
    assert first == treatment_pictures(cells, "dmso")
    table = cells.table
    kept = table["compound"].isin(["DMSO", "c1"]).to_numpy()
    fewer = Cells(
        Path(),
        Images(cells.images.pixels[kept]),
        table[kept].reset_index(drop=True),
        cells.manifest,
    )
    assert (
        treatment_pictures(fewer, "DMSO").tiles["c1", 1.0].places == first.tiles["c1", 1.0].places
    )
    assert len(first.tiles) == 24
    assert first.controls.crops == 8
    assert "control crops" in first.scale


def grey(strip):
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(strip.picture)).convert("L")).astype(int)


def test_one_brightness_for_all_pictures_told_by_the_controls():
    cells = make_cells(make_wells(), channels=("dna",))
    treated = (cells.table["compound"] != "DMSO").to_numpy()
    cells.images.pixels[treated] = 2000
    cells.images.pixels[(cells.table["compound"] == "c1").to_numpy()] = 1000
    cells.images.pixels[(cells.table["compound"] == "c2").to_numpy()] = 60_000
    found = treatment_pictures(cells, "DMSO")
    dim, usual, bright = (
        grey(found.tiles[name, 1.0])[:, 4:20].mean() for name in ("c1", "c0", "c2")
    )
    assert usual == pytest.approx(255 * 0.5**0.75, abs=6)
    assert dim == pytest.approx(255 * 0.25**0.75, abs=6)
    assert bright > 250
    before = found.controls
    cells.images.pixels[treated] = 0
    assert treatment_pictures(cells, "DMSO").controls == before


def test_many_treatments_have_smaller_pictures_within_the_budget():
    cells = make_cells(make_wells(moas=2), each=3, side=96)
    found = treatment_pictures(cells, "DMSO", budget_bytes=150_000)
    assert len(found.tiles) == 12
    assert bytes_in_page(found) <= 150_000
    assert found.side < 96
    assert treatment_pictures(cells, "DMSO").side == 96
    few = treatment_pictures(cells, "DMSO", budget_bytes=25_000)
    assert 2 < len(few.tiles) < 12
    assert few.controls is not None
    assert bytes_in_page(few) <= 25_000


def bytes_in_page(pictures):
    return sum(len(s.picture) for s in [*pictures.tiles.values(), pictures.controls]) * 4 / 3


def test_cells_without_treatments_or_controls_have_what_they_have():
    cells = make_cells(make_wells())
    bare = Cells(Path(), cells.images, cells.table[["plate", "well"]], cells.manifest)
    assert treatment_pictures(bare, "DMSO").tiles == {}
    alone = make_cells(make_wells().query("compound != 'DMSO'"))
    found = treatment_pictures(alone, "DMSO")
    assert found.controls is None
    assert len(found.tiles) == 24
    assert "crops of all treatments" in found.scale
    unnamed = Cells(Path(), cells.images, cells.table[["compound"]], cells.manifest)
    assert treatment_pictures(unnamed, "DMSO").tiles["c1", 0.0].places == [""] * 8
