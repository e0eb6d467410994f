"""Validation cells and a share of the controls are chosen by a hash of each cell's id."""

import numpy as np
import pandas as pd
import pytest

from cellclr_jax.data.splits import hashed_share, training_rows
from cellclr_jax.errors import BadUse

IDS = np.array([f"Week1_101/B02/s1/{n}" for n in range(20_000)])


def test_the_choice_of_a_cell_is_independent_of_other_cells():
    mask = hashed_share(IDS, 0.1, "validation_fraction")
    assert mask.dtype == bool
    assert abs(mask.mean() - 0.1) < 0.01
    shuffled = np.random.default_rng(0).permutation(len(IDS))[:500]
    again = hashed_share(IDS[shuffled], 0.1, "validation_fraction")
    np.testing.assert_array_equal(again, mask[shuffled])
    assert (hashed_share(IDS, 0.2, "validation_fraction") >= mask).all()
    assert not hashed_share(IDS, 0, "validation_fraction").any()
    assert hashed_share(IDS, 1, "validation_fraction").all()
    assert hashed_share([], 0.5, "validation_fraction").shape == (0,)
    with pytest.raises(BadUse, match=r"config\.validation_fraction is 1\.5: .* from 0 to 1"):
        hashed_share(IDS, 1.5, "validation_fraction")


def rows(control_fraction, validation_fraction=0.2):
    compound = np.where(np.arange(len(IDS)) % 2, "DMSO", "taxol")
    table = pd.DataFrame({"cell_id": IDS, "compound": compound})
    found = training_rows(
        table,
        validation_fraction=validation_fraction,
        control_fraction=control_fraction,
        control="DMSO",
    )
    return compound, *found


@pytest.mark.parametrize("share", [0, 0.05, 0.5, 1])
def test_a_share_of_the_controls_takes_part_and_every_treated_cell(share):
    compound, train, validation = rows(share)
    both = np.concatenate([train, validation])
    assert len(set(both)) == len(both)
    assert (compound[both] == "taxol").sum() == (compound == "taxol").sum()
    assert (compound[both] == "DMSO").mean() == pytest.approx(share / (1 + share), abs=0.01)
    # The choice of controls does not depend on the choice of validation cells.
    held_out = (compound[validation] == "DMSO").sum()
    assert held_out == pytest.approx(0.2 * share * len(IDS) / 2, abs=100)


def test_fewer_controls_are_some_of_more():
    few, more = set(rows(0.1)[1]), set(rows(0.3)[1])
    assert few < more


def test_cells_without_compounds_have_no_controls_to_leave_out():
    table = pd.DataFrame({"cell_id": IDS[:50]})
    shares = {"validation_fraction": 0.1, "control": "DMSO"}
    train, validation = training_rows(table, **shares, control_fraction=1.0)
    assert len(train) + len(validation) == 50
    for fraction, message in ((0.5, "no cell has the controls'"), (-3, "control_fraction is -3")):
        with pytest.raises(BadUse, match=message):
            training_rows(table, **shares, control_fraction=fraction)


def test_no_training_cells_are_refused():
    with pytest.raises(BadUse, match="leave no cell to train on"):
        rows(1, validation_fraction=1.0)


def test_controls_match_in_any_spelling_and_missing_controls_are_refused():
    table = pd.DataFrame({"cell_id": IDS[:4], "compound": ["dmso", "Dmso ", None, "x"]})
    shares = {"validation_fraction": 0.0, "control_fraction": 0.0}
    train, _ = training_rows(table, **shares, control="DMSO")
    assert train.tolist() == [2, 3]
    with pytest.raises(BadUse, match=r"the controls' compound 'water': .*--config\.control"):
        training_rows(table, **shares, control="water")
