"""Phenotypes as data: the parameters of a simulated cell, and the effects of mechanisms on them.

The parameters describe shape, texture and arrangement. Brightness of a well is a nuisance, which
`plate_layout` draws. Each of the twelve mechanisms of action (MoA) of BBBC021 has a
phenotype, given by its differences from an untreated cell, after the published descriptions (Caie
et al., Mol. Cancer Ther. 9:1913, 2010; Ljosa et al., J. Biomol. Screen. 18:1321, 2013).
"""

from dataclasses import dataclass, fields

import numpy as np

# Strength of a dose: shift of a responding cell from untreated (0) to the full phenotype (1), and
# share of responding cells, for the lowest and the highest dose. Other doses are evenly spaced.
LOWEST_SHIFT, HIGHEST_SHIFT = 0.70, 1.0
LOWEST_RESPONDING, HIGHEST_RESPONDING = 0.42, 0.75


@dataclass(frozen=True)
class Phenotype:
    """The parameters of one cell and its neighbourhood; the defaults are an untreated MCF-7 cell.

    Lengths are pixels (at 20x, about 0.65 um each), areas square pixels; weights are relative
    brightnesses of a structure within its channel. Shares of cells are at least 0; a share above 1,
    possible for a strong compound, acts as 1.
    """

    # Nucleus.
    nucleus_area: float = 1000.0
    nucleus_aspect: float = 1.25
    nucleus_irregularity: float = 0.022
    lobe_depth: float = 0.0  # relative amplitude of the outline's lobes
    fragments: float = 0.0  # mean number of nuclear pieces beyond the first
    chromatin_contrast: float = 0.12
    chromatin_coarseness: float = 0.35  # 0: fine grains, 1: coarse patches
    nucleoli: float = 2.5  # mean number
    nucleolus_radius: float = 2.6
    nucleolus_depth: float = 0.22
    # Cell body.
    cell_radius: float = 45.0
    cell_aspect: float = 1.2
    cell_irregularity: float = 0.09
    protrusions: float = 0.0  # mean number
    protrusion_length: float = 0.0
    # Tubulin.
    tubulin_diffuse: float = 0.55
    tubulin_network: float = 0.62
    tubulin_bundles: float = 0.0
    tubulin_parallel: float = 0.0
    perinuclear: float = 0.30
    aggresome: float = 0.0
    # Actin.
    actin_diffuse: float = 0.55
    actin_mesh: float = 0.30
    stress_fibres: float = 0.05
    cortex: float = 0.35  # along free edges
    junctions: float = 0.30  # along borders with other cells
    actin_patches: float = 1.2  # mean number of bright spots
    patch_radius: float = 3.5
    # Population.
    mitotic: float = 0.03
    monoaster: float = 0.0  # share of the mitotic cells with a single aster and a ring of DNA
    scattered: float = 0.0  # share of the mitotic cells with scattered chromosomes
    apoptotic: float = 0.01
    rounded: float = 0.0
    density: float = 1.0  # cells relative to an untreated field
    spacing: float = 53.0  # distance that neighbouring nuclei keep


UNTREATED = Phenotype()


def dose_effect(dose: int, doses: int) -> tuple[float, float]:
    """Shift of responding cells and share of responding cells for dose `dose` (0: the lowest).

    Returns:
      (shift, responding), both in [0, 1]; with one dose those of the highest.
    """
    at = 1.0 if doses == 1 else dose / (doses - 1)
    shift = LOWEST_SHIFT + at * (HIGHEST_SHIFT - LOWEST_SHIFT)
    return shift, LOWEST_RESPONDING + at * (HIGHEST_RESPONDING - LOWEST_RESPONDING)


def towards(phenotype: Phenotype, shift: float) -> Phenotype:
    """Interpolates between untreated (`shift` 0) and `phenotype` (`shift` 1)."""
    values = {
        field.name: (1 - shift) * getattr(UNTREATED, field.name)
        + shift * getattr(phenotype, field.name)
        for field in fields(Phenotype)
    }
    return Phenotype(**values)


# Lines of nucleus, cell body, tubulin, actin and population; the defaults are an untreated cell.
# fmt: off
MOA_PHENOTYPES: dict[str, Phenotype] = {
    # Severed actin: stress fibres gone, bright aggregates, the body shrinks to branches.
    "Actin disruptors": Phenotype(
        nucleus_area=860.0,
        cell_radius=31.0, cell_irregularity=0.14, protrusions=5.0, protrusion_length=38.0,
        actin_diffuse=0.40, actin_mesh=0.12, stress_fibres=0.0, cortex=0.05, junctions=0.03,
        actin_patches=11.0, patch_radius=4.4,
    ),
    # Failed cytokinesis: very large, deeply lobed nuclei in large cells.
    "Aurora kinase inhibitors": Phenotype(
        nucleus_area=2150.0, nucleus_irregularity=0.05, lobe_depth=0.30, fragments=0.7,
        nucleoli=5.0,
        cell_radius=64.0,
        mitotic=0.01, density=0.62, spacing=82.0,
    ),
    # Lowered cholesterol: spindle-shaped, shrunken cells with thin ends.
    "Cholesterol-lowering": Phenotype(
        nucleus_area=800.0, nucleus_aspect=1.75,
        cell_radius=27.0, cell_aspect=2.3, cell_irregularity=0.05, protrusions=2.0,
        protrusion_length=52.0,
        tubulin_network=0.10, tubulin_parallel=0.85,
        actin_mesh=0.15, stress_fibres=0.25, junctions=0.08,
        density=0.75,
    ),
    # Arrest after breaks: few, flat, spread cells; large round nuclei; many stress fibres.
    "DNA damage": Phenotype(
        nucleus_area=1950.0, nucleus_aspect=1.15, nucleus_irregularity=0.02,
        chromatin_contrast=0.16, chromatin_coarseness=1.0, nucleoli=1.6, nucleolus_radius=5.0,
        nucleolus_depth=0.42,
        cell_radius=70.0, cell_aspect=1.5,
        actin_mesh=0.16, stress_fibres=0.85, junctions=0.10,
        mitotic=0.004, density=0.50, spacing=88.0,
    ),
    # Stalled S phase: moderately enlarged nuclei of smooth chromatin in a dense tubulin ring.
    "DNA replication": Phenotype(
        nucleus_area=1480.0, nucleus_aspect=1.5, chromatin_contrast=0.03, nucleoli=0.0,
        cell_radius=53.0,
        tubulin_network=0.20, perinuclear=1.25,
        mitotic=0.004, density=0.70, spacing=66.0,
    ),
    # Spindle poles do not separate: round cells, a ring of DNA around one aster of microtubules.
    "Eg5 inhibitors": Phenotype(
        fragments=0.4,
        mitotic=0.72, monoaster=0.92, apoptotic=0.05, density=0.85,
    ),
    # Tight, regular colonies with actin along the borders between cells.
    "Epithelial": Phenotype(
        nucleus_area=820.0, nucleus_aspect=1.12,
        cell_radius=40.0, cell_aspect=1.05, cell_irregularity=0.03,
        tubulin_diffuse=0.75, tubulin_network=0.25,
        actin_mesh=0.07, stress_fibres=0.0, cortex=0.9, junctions=1.75, actin_patches=0.2,
        spacing=43.0,
    ),
    # Flat, round, spread cells: no fibres inside, a thick ring of actin along the free edge.
    "Kinase inhibitors": Phenotype(
        nucleus_area=1080.0,
        cell_radius=56.0, cell_aspect=1.05, cell_irregularity=0.025,
        tubulin_diffuse=0.30, tubulin_network=0.95, perinuclear=0.15,
        actin_mesh=0.08, stress_fibres=0.0, cortex=1.6, junctions=0.45, actin_patches=0.2,
        density=0.70, spacing=80.0,
    ),
    # No microtubules: diffuse tubulin, lobed and broken nuclei, rounding, arrest without a spindle.
    "Microtubule destabilizers": Phenotype(
        nucleus_area=1050.0, lobe_depth=0.26, fragments=1.0,
        cell_radius=38.0, cell_aspect=1.08,
        tubulin_diffuse=1.0, tubulin_network=0.0, perinuclear=0.1,
        mitotic=0.26, scattered=0.9, rounded=0.10, density=0.75,
    ),
    # Bundled microtubules; slippage leaves many small nuclei.
    "Microtubule stabilizers": Phenotype(
        nucleus_area=1300.0, fragments=3.4,
        cell_radius=52.0,
        tubulin_diffuse=0.30, tubulin_network=0.05, tubulin_bundles=1.15, perinuclear=0.1,
        mitotic=0.14, scattered=0.6, density=0.65, spacing=66.0,
    ),
    # Proteasome blocked: condensed, dented nuclei next to an aggresome; shrunken, rounding cells.
    "Protein degradation": Phenotype(
        nucleus_area=640.0, nucleus_aspect=1.3, nucleus_irregularity=0.10, lobe_depth=0.12,
        chromatin_contrast=0.20, nucleoli=0.5,
        cell_radius=34.0, cell_irregularity=0.14,
        tubulin_network=0.12, perinuclear=0.2, aggresome=2.6,
        apoptotic=0.06, rounded=0.15, density=0.70,
    ),
    # No translation: small cells and nuclei with round, prominent nucleoli; little cytoplasm.
    "Protein synthesis": Phenotype(
        nucleus_area=660.0, nucleus_aspect=1.1, chromatin_contrast=0.05, nucleoli=1.8,
        nucleolus_radius=5.2, nucleolus_depth=0.85,
        cell_radius=33.0, cell_aspect=1.15,
        tubulin_diffuse=0.40, tubulin_network=0.15, perinuclear=0.25,
        actin_mesh=0.15, stress_fibres=0.05, actin_patches=0.5,
        density=0.80,
    ),
}
# fmt: on

# Part of a compound's name, such as `sim-eg5-1`, which no real compound has.
MOA_NAMES: dict[str, str] = {
    "Actin disruptors": "actin",
    "Aurora kinase inhibitors": "aurora",
    "Cholesterol-lowering": "cholesterol",
    "DNA damage": "damage",
    "DNA replication": "replication",
    "Eg5 inhibitors": "eg5",
    "Epithelial": "epithelial",
    "Kinase inhibitors": "kinase",
    "Microtubule destabilizers": "destabilizer",
    "Microtubule stabilizers": "stabilizer",
    "Protein degradation": "degradation",
    "Protein synthesis": "synthesis",
}

# Mechanisms with all compounds in one week, as in BBBC021, and so without a match in another week.
ONE_WEEK_MOAS = ("Cholesterol-lowering", "Kinase inhibitors")


def compound_name(moa: str, number: int) -> str:
    """Name of the `number`-th (from 1) simulated compound of `moa`, e.g. `sim-eg5-1`."""
    return f"sim-{MOA_NAMES[moa]}-{number}"


def compound_phenotype(moa: str, rng: np.random.Generator, spread: float = 0.08) -> Phenotype:
    """Draws a compound's variant of its mechanism's phenotype.

    Args:
      moa: a key of `MOA_PHENOTYPES`.
      rng: draws an independent deviation for each parameter.
      spread: standard deviation of the relative size of the change.
    """
    phenotype = MOA_PHENOTYPES[moa]
    values = {}
    for field in fields(Phenotype):
        normal, full = getattr(UNTREATED, field.name), getattr(phenotype, field.name)
        factor = 1 + spread * float(np.clip(rng.standard_normal(), -2, 2))
        moved = normal + (full - normal) * factor
        values[field.name] = max(0.0, moved)
    return Phenotype(**values)
