"""Simulated plates in BBBC021's layout, with ground truth for every nucleus.

    cells = simulate_release(Path("release"), SimulatorSettings(seed=0))

writes, under `release/`,

    BBBC021_v1_image.csv, BBBC021_v1_moa.csv             metadata with BBBC021's columns
    Week1/Week1_90001/B02_s1_w1<GUID>.tif                16-bit fields: w1 DNA, w2 tubulin, w4 actin
    ground_truth/Week1_90001/B02_s1.npz                  labels, centres and cell states of a field
    simulation.json                                      settings; number of cells once finished

Code that reads the real screen also reads this one. The images are synthetic, compounds are named
`sim-...`, and scores on them have no meaning for real drugs.
"""

from cellclr_jax.simulation.plate_layout import SimulatorSettings
from cellclr_jax.simulation.release import simulate_release

__all__ = ["SimulatorSettings", "simulate_release"]
