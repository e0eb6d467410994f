"""Published rows say where they come from, and stand beside scores on BBBC021 alone."""

from cellclr_jax.profiling.published import is_bbbc021, published_scores


def test_every_row_names_its_source():
    rows = published_scores()
    assert len(rows) == 9
    assert all(row["source"] and row["method"] and row["kind"] for row in rows)
    paper = next(row for row in rows if "Perakis" in row["method"])
    assert (paper["nsc"], paper["nscb"], paper["drop"]) == ("96", "95", "1")


def test_bbbc021_is_known_by_its_compounds(shared):
    table = (shared / "data" / "bbbc021" / "BBBC021_v1_moa.csv").read_text().splitlines()[1:]
    compounds = {line.split(",")[0].strip('"') for line in table} - {"DMSO"}
    assert is_bbbc021(compounds)
    assert not is_bbbc021({f"sim-{name}" for name in compounds})
    assert not is_bbbc021(["taxol", "aspirin", "ibuprofen"])
    assert not is_bbbc021([])
