"""Makes small tables of well profiles with known scores, for the tests of measures."""

import numpy as np
import pandas as pd

from cellclr_jax.profiling import moa
from cellclr_jax.profiling.measures.measure import CorrectedProfiles
from cellclr_jax.profiling.profiles import in_first_batch, treatment_profiles
from cellclr_jax.profiling.protocol import Protocol

NAMES = ["Plate", "Well", "Batch", "Compound", "Concentration", "MoA"]
ONE_WELL = "a compound with one well"


def table(rows, values):
    """Joins rows of (plate, batch, compound, concentration, moa) and their features [N, D]."""
    rows = [(row[0], f"W{index:03d}", *row[1:]) for index, row in enumerate(rows)]
    metadata = pd.DataFrame(rows, columns=[f"Metadata_{name}" for name in NAMES])
    values = pd.DataFrame(values, columns=[f"f{index}" for index in range(np.shape(values)[1])])
    return pd.concat([metadata, values], axis=1)


def corrected(wells, **settings):
    """Computes treatment profiles, NSC and NSCB of wells: the input of measures."""
    protocol = Protocol(**settings)
    features = [name for name in wells if not name.startswith("Metadata_")]
    treated = wells[wells["Metadata_Compound"] != protocol.control]
    options = {"statistic": protocol.statistic, "features": features}
    treatments = treatment_profiles(treated, **options)
    for_nscb = treatments
    if protocol.batches == "week1":
        for_nscb = treatment_profiles(treated[in_first_batch(treated)], **options)
    nsc = moa.not_same_compound(treatments, features=features)
    nscb = moa.not_same_compound_or_batch(
        for_nscb, batches=protocol.batches, left_out=protocol.left_out, features=features
    )
    return CorrectedProfiles(wells, treatments, features, nsc, nscb, protocol)


def planted(seed=0, *, noise=1.0, replicates=(2, 3, 3, 5), weeks=3, controls=4, dims=8, moas=4):
    """Makes two plates per week; profiles of treatments are the direction of their MoA plus noise.

    Compounds have two doses. Compound c0 is in every week; `ONE_WELL` has a single well.
    """
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(moas, dims))
    rows, values = [], []
    for plate in range(2 * weeks):
        week = f"Week{plate // 2 + 1}"
        for _ in range(controls):
            rows.append((f"{week}_{plate}", week, "DMSO", 0.0, "DMSO"))
            values.append(rng.normal(size=dims))
        for compound in range(plate % 2, 3 * moas, 2):
            mechanism = compound % moas
            if (compound + mechanism) % weeks != plate // 2 and compound:
                continue
            for dose in (0.1, 3.0):
                for _ in range(replicates[compound % len(replicates)]):
                    rows.append((f"{week}_{plate}", week, f"c{compound}", dose, f"m{mechanism}"))
                    values.append(2 * directions[mechanism] + noise * rng.normal(size=dims))
    rows.append(("Week1_0", "Week1", ONE_WELL, 1.0, "m0"))
    values.append(rng.normal(size=dims))
    return table(rows, values)
