"""Profiling as a library: the README's example on a table with other column names."""

import pandas as pd
from support.corrected_wells import planted

from cellclr_jax import profiling


def profiles_with_other_names():
    """CellProfiler's names, a compound's number among the columns, lower-case metadata."""
    table = planted().rename(columns=lambda name: name.removeprefix("Metadata_").lower())
    table = table.rename(columns={f"f{number}": f"Cells_Texture_{number}" for number in range(8)})
    return table.assign(compound_id=pd.factorize(table["compound"])[0])


def test_a_table_is_scored_in_a_few_lines():
    found = profiling.evaluate(
        profiles_with_other_names(),
        profiling.Protocol(standardize="controls"),
        measures=["mechanisms"],
    )
    table = found.summary()
    assert list(table["correction"]) == ["none", "whitening", "tvn"]
    assert table["nsc"].iloc[0] == found.scores["none"].nsc.accuracy > 0.9
    assert any("compound_id" in note for note in found.notes)
    assert isinstance(found.scores["tvn"].measures["mechanisms"].table, pd.DataFrame)


def test_every_name_of_the_library_is_found():
    assert all(getattr(profiling, name) for name in profiling.__all__)
