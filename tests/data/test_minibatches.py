"""Minibatches: each cell once per epoch, shares of processes, resuming."""

from dataclasses import replace

import numpy as np
import pytest
from support.tiny_dataset import random_images, write_dataset

from cellclr_jax.data import minibatches as pipeline
from cellclr_jax.encoder.preprocessing import plate_percentiles
from cellclr_jax.errors import BadUse


@pytest.fixture(scope="module")
def cells(data_dir):
    opened = pipeline.open_cells(data_dir, "annotated")
    return replace(opened, per_cell={"row": np.arange(len(opened.table))})


def minibatches(cells, rows, **settings):
    defaults = {"minibatch_size": 8, "epochs": 2, "seed": 0}
    return list(pipeline.training_minibatches(cells, rows, **(defaults | settings)))


@pytest.mark.parametrize("access", ["shards", "mapped"])
def test_cells_without_metadata_are_read_as_they_are_stored(tmp_path, access):
    images = random_images(np.uint8, channels=2)
    write_dataset(tmp_path, images)
    cells = pipeline.open_cells(tmp_path, "single_cells/all", access)
    assert cells.image_dtype == np.uint8
    found = cells.read(np.array([40, 3, 11]))["image"]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, images[[40, 3, 11]])
    low, high = plate_percentiles(cells, low=5, high=95, per_plate=10_000)
    np.testing.assert_allclose(low, np.tile(np.percentile(images, 5, (0, 1, 2)), (len(low), 1)))
    np.testing.assert_allclose(high, np.tile(np.percentile(images, 95, (0, 1, 2)), (len(low), 1)))


def test_an_epoch_reads_the_cells_of_its_rows(cells):
    rows = np.arange(3, 43)
    found = minibatches(cells, rows)
    assert len(found) == 10
    for epoch in (found[:5], found[5:]):
        seen = np.concatenate([minibatch["row"] for minibatch in epoch])
        assert sorted(seen) == list(rows)
    minibatch = found[0]
    assert minibatch["image"].dtype == np.uint16
    for image, row in zip(minibatch["image"], minibatch["row"], strict=True):
        np.testing.assert_array_equal(image, cells.images.read([int(row)])[0])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_minibatches_of_one(cells, count):
    rows = np.arange(40)
    whole = minibatches(cells, rows)
    parts = [minibatches(cells, rows, process=(i, count)) for i in range(count)]
    for number, minibatch in enumerate(whole):
        joined = np.concatenate([part[number]["row"] for part in parts])
        np.testing.assert_array_equal(joined, minibatch["row"])


def test_an_iterator_resumes_from_its_state(cells):
    def fresh():
        return iter(
            pipeline.training_minibatches(cells, np.arange(40), minibatch_size=8, epochs=2, seed=0)
        )

    first = fresh()
    for _ in range(3):
        next(first)
    second = fresh()
    second.set_state(first.get_state())
    for _ in range(7):
        np.testing.assert_array_equal(next(first)["row"], next(second)["row"])


@pytest.mark.parametrize("count", [1, 2])
def test_sequential_minibatches_visit_each_row_once_and_fill_the_last(cells, count):
    rows = np.arange(5, 24)
    parts = [
        list(pipeline.sequential_minibatches(cells, rows, minibatch_size=8, process=(i, count)))
        for i in range(count)
    ]
    seen = np.concatenate([real for real, _ in parts[0]])
    np.testing.assert_array_equal(seen, rows)
    for number in range(3):
        local = np.concatenate([part[number][1]["row"] for part in parts])
        assert len(local) == 8
        real = parts[0][number][0]
        np.testing.assert_array_equal(local[: len(real)], real)


@pytest.mark.parametrize(
    "settings", [{"minibatch_size": 41}, {"minibatch_size": 1}, {"process": (0, 3)}]
)
def test_minibatches_that_do_not_fit_are_refused(cells, settings):
    with pytest.raises(BadUse, match="minibatch"):
        minibatches(cells, np.arange(40), **settings)


def test_plate_percentiles_are_those_of_the_plates_cells(cells):
    low, high = plate_percentiles(cells, low=10, high=90, per_plate=10_000)
    plates = cells.table["plate"].to_numpy()
    for plate in np.unique(plates):
        members = np.flatnonzero(plates == plate)
        images = cells.read(members)["image"]
        np.testing.assert_allclose(
            low[members[0]], np.percentile(images, 10, axis=(0, 1, 2)), rtol=1e-6
        )
        assert (low[members] == low[members[0]]).all()
        assert (high[members] > low[members]).all()
