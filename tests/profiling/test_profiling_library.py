"""Profiling as a library: what the README shows, on somebody else's table."""

import subprocess
import sys

import numpy as np
import pandas as pd

from cellclr_jax import profiling


def somebody_elses_profiles():
    """CellProfiler's names, a compound's number among the columns, lower-case metadata."""
    rng = np.random.default_rng(0)
    rows = []
    for plate in range(4):
        rows += [(f"Week{plate}_1", f"A{i}", "dmso", 0.0, "") for i in range(6)]
        rows += [(f"Week{plate}_1", f"B{i}", f"c{i}{plate}", 1.0, f"m{i % 3}") for i in range(6)]
    table = pd.DataFrame(rows, columns=["plate", "well", "Compound", "concentration", "moa"])
    kinds = table["moa"].map({"": 0, "m0": 1, "m1": 2, "m2": 3}).to_numpy()
    values = rng.normal(size=(5, 4))[kinds] * 4 + rng.normal(size=(len(table), 4))
    names = ["Cells_AreaShape_Area", "Nuclei_Texture_1", "Nuclei_Intensity", "Cells_Radial"]
    table[names] = values
    return table.assign(compound_id=pd.factorize(table["Compound"])[0])


def test_five_lines_score_a_table():
    found = profiling.evaluate(
        somebody_elses_profiles(), profiling.Protocol(standardize="controls")
    )
    table = found.summary()
    assert list(table["correction"]) == ["none", "whitening", "tvn"]
    assert table["nsc"].iloc[0] == found.scores["none"].nsc.accuracy > 0.9
    assert table["nsc_total"].tolist() == [24, 24, 24]
    assert any("compound_id" in note for note in found.notes)


def test_measures_are_data_frames_too():
    found = profiling.evaluate(somebody_elses_profiles(), measures=["mechanisms", "k_nearest"])
    measures = found.scores["tvn"].measures
    assert list(measures) == ["mechanisms", "k_nearest"]
    assert isinstance(measures["mechanisms"].table, pd.DataFrame)
    assert set(measures) <= set(profiling.MEASURES)


def test_the_library_loads_no_jax_and_nothing_that_draws():
    script = (
        "import sys, cellclr_jax.profiling\n"
        "print([m for m in ('jax', 'plotly', 'matplotlib', 'copairs') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
