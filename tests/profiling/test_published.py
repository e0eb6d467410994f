"""Published scores are compared only with scores on BBBC021."""

from cellclr_jax.profiling.published import is_bbbc021


def test_bbbc021_is_known_by_its_compounds(shared):
    table = (shared / "data" / "bbbc021" / "BBBC021_v1_moa.csv").read_text().splitlines()[1:]
    compounds = {line.split(",")[0].strip('"') for line in table} - {"DMSO"}
    assert is_bbbc021(compounds)
    assert not is_bbbc021({f"sim-{name}" for name in compounds})
    assert not is_bbbc021(["taxol", "aspirin", "ibuprofen"])
    assert not is_bbbc021([])
