"""Measures time and memory of an evaluation: NSC, NSCB, whitening and TVN.

  python tests/bench/evaluation_speed.py --profiles=FILE --image_csv=F --moa_csv=F
  python tests/bench/evaluation_speed.py [--wells=100000] [--features=2048]

Prints a row of Markdown: seconds after imports and reading (the median of several rounds of a small
table, the first of a large one), and the process's peak memory, including the table. A simulated
screen has controls in every tenth well, three wells a treatment, four doses a compound, 200
mechanisms and 2,160 wells a batch; its table takes wells * features * 8 bytes.
"""

import argparse
import resource
import statistics
import time

import numpy as np
import pandas as pd

from cellclr_jax.profiling import Protocol, evaluate, read_profiles

ROUNDS = 7
# Smaller tables are evaluated several times.
SMALL = 5_000_000
MECHANISMS, DOSES, REPLICATES, PLATE, PLATES = 200, 4, 3, 360, 6


def screen(wells: int, features: int) -> pd.DataFrame:
    """Makes a table of wells: noise plus a weak profile of each mechanism."""
    rng = np.random.default_rng(0)
    number = np.arange(wells)
    control = number % 10 == 0
    treatment = np.zeros(wells, int)
    treatment[~control] = rng.permutation(np.count_nonzero(~control)) // REPLICATES
    compound = treatment // DOSES
    mechanism = compound % MECHANISMS
    values = rng.normal(size=(wells, features))
    signal = 0.15 * rng.normal(size=(MECHANISMS, features))
    for start in range(0, wells, 4096):
        rows = slice(start, start + 4096)
        values[rows] += signal[mechanism[rows]] * ~control[rows, None]
    plate = number // PLATE
    table = pd.DataFrame(values, columns=[f"cellclr_{i:04d}" for i in range(features)], copy=False)
    metadata = {
        "Metadata_Plate": [f"plate{p}" for p in plate],
        "Metadata_Well": [f"well{n % PLATE}" for n in number],
        "Metadata_Batch": [f"batch{p // PLATES}" for p in plate],
        "Metadata_Compound": np.where(control, "DMSO", np.char.add("c", compound.astype(str))),
        "Metadata_Concentration": np.where(control, 0.0, 1.0 + treatment % DOSES),
        "Metadata_MoA": np.where(control, "", np.char.add("m", mechanism.astype(str))),
    }
    for place, (name, column) in enumerate(metadata.items()):
        table.insert(place, name, column)
    return table


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    for name in ("profiles", "image_csv", "moa_csv"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--wells", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=2048)
    given = parser.parse_args()
    if given.profiles:
        paths = {"image_csv": given.image_csv, "moa_csv": given.moa_csv}
        table = read_profiles(given.profiles, **paths).table
    else:
        table = screen(given.wells, given.features)
    taken = []
    for _ in range(ROUNDS if table.size < SMALL else 1):
        start = time.perf_counter()
        found = evaluate(table, Protocol(standardize="controls" if given.profiles else "none"))
        taken.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    data = found.data
    print("| wells | features | treatments | seconds | GiB | NSC, by correction |")
    print("|---|---|---|---|---|---|")
    scores = ", ".join(f"{s.nsc.correct}/{s.nsc.total}" for s in found.scores.values())
    print(
        f"| {data['wells']:,} | {data['features']:,} | {data['treatments']:,} "
        f"| {statistics.median(taken):.3g} | {peak:.1f} | {scores} |"
    )


if __name__ == "__main__":
    main()
