"""Numbers of things, and the words for them."""

import numpy as np
import pandas as pd

from cellclr_jax.console import plural
from cellclr_jax.data.building.manifest import count_kinds


def test_one_is_singular_and_thousands_are_parted() -> None:
    assert [plural(n, "field") for n in (0, 1, 2_000)] == ["0 fields", "1 field", "2,000 fields"]


def test_controls_are_no_treatment_however_they_are_spelled() -> None:
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
