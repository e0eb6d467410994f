"""What a manifest tells about a dataset."""

import pandas as pd

from cellclr_jax.data.building.manifest import differences, summarize


def test_differences_name_nested_settings_one_by_one() -> None:
    built = {"crop_size": 96, "simulation": {"seed": 0, "weeks": 3}, "plates": ["a", "b"]}
    wanted = {"crop_size": 64, "simulation": {"seed": 1, "weeks": 3}, "plates": ("a", "b")}
    assert differences(built, wanted) == ["crop_size is 96, not 64", "simulation.seed is 0, not 1"]
    assert differences(built, built) == []


def test_a_group_of_settings_that_only_one_has_differs() -> None:
    assert differences({}, {"simulation": {"seed": 1}}) == ["simulation.seed is None, not 1"]
    assert differences({"cut": 3}, {"cut": {"size": 3}}) == [
        "cut is 3, not None",
        "cut.size is None, not 3",
    ]


def test_a_summary_counts_one_as_one() -> None:
    cells = pd.DataFrame(
        {"plate": ["a"], "well": ["A1"], "compound": ["x"], "concentration": [3.0]}
    )
    counts = {"cells": 1, "fields": 1, "fields_without_cells": 0, "fields_skipped": 0}
    manifest = {
        "counts": counts | {"treatments": 1}, "settings": {"border": "drop"},
        "origin": {}, "skipped": [],
    }  # fmt: skip
    first, second, *_ = summarize(manifest, cells).splitlines()
    assert first == "1 cell: 1 plate, 1 well, 1 treatment"
    assert second == "1 field: 0 without cells, 0 skipped"
    manifest["settings"] = {}
    assert "\n1 group of images: " in summarize(manifest, cells)
