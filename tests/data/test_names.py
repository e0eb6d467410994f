"""Spellings of a name are equal, and words for 'missing' are not names."""

import numpy as np
import pandas as pd
import pytest

from cellclr_jax.data import names
from cellclr_jax.data.columns import control_spelling, is_control, plain_name


@pytest.mark.parametrize(
    "spelling",
    ["pp-2 A", "PP-2 a", " PP\u20112\u00a0A", "pp\u22122  A", "pp\u20132\tA", "\ufeffP\u200bP-2 A",
     "\uff30\uff30-2 A", "PP\u00ad-2 A"],
)  # fmt: skip
def test_spellings_of_one_name_fold_alike(spelling):
    assert names.fold(spelling) == "pp-2 a"


def test_other_names_stay_apart():
    others = ["AZ-A", "AZ A", "AZA", "007", "7", "caf\u00e9", "cafe", "5-FU", "5-F", "alpha"]
    assert len(set(map(names.fold, others))) == len(others)
    assert names.fold("cafe\u0301") == names.fold("CAF\u00c9")
    assert names.fold("\u00b5M") == names.fold("\u03bcM")  # micro and mu


def test_words_for_missing():
    words = ["", " ", "NA", "NaN", "nan", "-nan", "None", "null", "n/a", "N.A.", "#N/A", "<NA>",
             "-", "\u2014", "unknown", "UNKNOWN", "(none)", "?", "NaT"]  # fmt: skip
    assert [word for word in words if not names.is_missing(word)] == []
    real = ["Na", "0", "nano", "DMSO", "unknown kinase", "none of these", "-1", "NA-1"]
    assert [word for word in real if names.is_missing(word)] == ["Na"]


@pytest.mark.parametrize(
    ("name", "position"),
    [("A01", (0, 0)), ("a1", (0, 0)), ("A001", (0, 0)), ("r01c01", (0, 0)), ("R1C1", (0, 0)),
     ("B 03", (1, 2)), ("h-12", (7, 11)), ("AA01", (26, 0)), ("AF48", (31, 47)), ("P24", (15, 23)),
     ("row 2 col 3", (1, 2)), ("AG01", None), ("A49", None), ("A00", None), ("r33c01", None),
     ("1-1", None), ("A01.a1", None), ("row 1", None), ("", None)],
)  # fmt: skip
def test_wells_are_compared_by_row_and_column(name, position):
    assert names.well_position(name) == position
    assert (names.well_key(name) == names.well_key("A1")) == (position == (0, 0))


def naive(values):
    """Each name as its commonest spelling, of equally common ones the first."""
    texts = ["" if value is None or value != value else str(value).strip() for value in values]
    found = []
    for text in texts:
        same = [t for t in texts if names.fold(t) == names.fold(text)]
        found.append("" if names.is_missing(text) else max(same, key=same.count))
    return found


def test_merging_equals_the_naive_loop():
    rng = np.random.default_rng(0)
    pool = ["Taxol", "taxol", "TAXOL ", "PP-2", "pp\u20112", "NA", None, np.nan, 7, "7", "x"]
    for _ in range(20):
        values = pd.Series([pool[i] for i in rng.integers(len(pool), size=30)], dtype=object)
        assert names.Names().merge("compound", values).tolist() == naive(values)
    assert names.Names().merge("compound", pd.Series([], dtype=object)).tolist() == []


def test_later_tables_follow_the_first_and_columns_stay_apart():
    shared = names.Names(known=["none"])
    assert shared.merge("compound", ["a", "A", "A"]).tolist() == ["A"] * 3
    assert shared.merge("compound", ["a", "a", "None"]).tolist() == ["A", "A", "None"]
    assert shared.merge("moa", ["a", "-"]).tolist() == ["a", ""]
    assert shared.notes == [
        "compound: spellings merged: 'a' = 'A' (--exact_names keeps the names as they are)",
        "moa: 1 of 2 values mean 'missing': '-' (--exact_names keeps the names as they are)",
    ]


def test_exact_names_are_only_stripped():
    exact = names.Names(exact=True)
    assert exact.merge("well", ["A1", " A01", "NA", None]).tolist() == ["A1", "A01", "NA", ""]
    assert exact.notes == []


def test_a_distinct_name_is_folded_once(monkeypatch):
    seen = []
    monkeypatch.setattr(names, "is_missing", lambda text: seen.append(text) or False)
    names.Names().merge("moa", ["a", "b"] * 1000)
    assert sorted(seen) == ["a", "b"]


def test_controls_and_columns_are_found_in_any_spelling():
    compounds = pd.Series(["dmso", "Dmso ", None, "x", "dmso"], index=[5, 3, 2, 1, 0])
    assert is_control(compounds).tolist() == [True, True, False, False, True]
    assert is_control(compounds).index.tolist() == [5, 3, 2, 1, 0]
    assert control_spelling(compounds, "DMSO") == "dmso"
    assert control_spelling(compounds, "taxol") == "taxol"
    columns = ["Plate_ID", "metadata_plateid", "PlateID", "Image_Metadata_Plate ID"]
    assert set(map(plain_name, columns)) == {"plateid"}
