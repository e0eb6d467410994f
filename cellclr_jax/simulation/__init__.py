"""Simulated plates in BBBC021's own layout, with the truth about every nucleus.

    summary = simulate_release(Path("release"), SimulatorSettings(seed=0))

writes, under `release/`,

    BBBC021_v1_image.csv, BBBC021_v1_moa.csv             metadata with BBBC021's columns
    Week1/Week1_90001/B02_s1_w1<GUID>.tif                16-bit fields: w1 DNA, w2 tubulin, w4 actin
    ground_truth/Week1_90001/B02_s1.npz                  labels, centres and cell states of a field
    simulation.json                                      settings; number of cells once finished

so that everything that reads the real screen reads this one too. The pictures are drawn, compounds
are named `sim-...`, and no score on them says anything about a drug.
"""

from cellclr_jax.simulation.plate_layout import SimulatorSettings
from cellclr_jax.simulation.release import simulate_release

__all__ = ["SimulatorSettings", "simulate_release"]
