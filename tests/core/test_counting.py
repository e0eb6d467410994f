"""Counts of plates, wells and treatments of a dataset."""

import numpy as np
import pandas as pd

from cellclr_jax.data.building.manifest import count_kinds


def test_controls_in_any_spelling_are_no_treatment() -> None:
    cells = pd.DataFrame(
        {
            "plate": ["a", "a", "b", "b"],
            "well": ["A1", "A1", "A1", "B2"],
            "compound": ["DMSO", "dmso", "taxol", "taxol"],
            "concentration": [0.0, np.nan, 1.0, np.nan],
        }
    )
    assert count_kinds(cells) == {"plate": 2, "well": 3, "treatment": 2}
    labelled = cells[["well", "compound"]].assign(label=["x", "", "x", "x"])
    assert count_kinds(labelled) == {"label": 1}
