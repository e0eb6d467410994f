"""The manifest's record of the input, and the summary of a build."""

import pandas as pd
from support.tiny_release import PLATES, write_release, zip_plates

from cellclr_jax.data.building.manifest import (
    contents_differences,
    describe_contents,
    summarize,
)
from cellclr_jax.data.sources import open_source
from cellclr_jax.data.sources.source import Request


def test_a_summary_counts_one_as_one() -> None:
    cells = pd.DataFrame(
        {"plate": ["a"], "well": ["A1"], "compound": ["x"], "concentration": [3.0]}
    )
    counts = {"cells": 1, "fields": 1, "fields_without_cells": 0, "fields_skipped": 0}
    manifest = {
        "counts": counts | {"treatments": 1}, "settings": {"source": "raw"},
        "image": {
            "channels": ["dna"], "dtype": "uint8", "planes": "one plane", "blank": {"dna": 1},
            "sizes": {"height": [40, 48], "width": [50, 50]}, "repeated": 0,
        },
        "origin": {"left_out": []}, "skipped": [],
    }  # fmt: skip
    assert summarize(manifest, cells).splitlines()[:5] == [
        "1 cell: 1 plate, 1 well, 1 treatment",
        "1 field: 0 without cells, 0 skipped",
        "1 channel: dna; uint8, 40x50 to 48x50 pixels; planes: one plane",
        "note: of 1 crop, blank (one value): 1 in dna",
        "left out: no file",
    ]
    manifest["settings"] = {"source": "folder"}
    assert "\n1 group of images: " in summarize(manifest, cells)


def test_copies_and_zips_of_an_input_have_the_same_contents(tmp_path):
    def contents(folder):
        return describe_contents(open_source("raw", Request((folder,))))

    release = write_release(tmp_path / "release")
    first = contents(release)
    assert first[PLATES[0]]["files"] == 9
    assert contents_differences(first, contents(zip_plates(release, tmp_path / "zips"))) == []
    release.rename(tmp_path / "moved")
    assert contents_differences(first, contents(tmp_path / "moved")) == []
