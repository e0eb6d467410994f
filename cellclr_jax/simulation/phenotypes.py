"""What one cell looks like, as data: the parameters it is drawn from, and how a dose moves them.

They are of shape, texture and arrangement; how bright a well is belongs to the nuisances, which
`plate_layout` draws apart from them.
"""

from dataclasses import dataclass, fields

# How strongly a dose acts: the lowest moves a cell this far from the untreated one and reaches
# this share of the cells; the highest moves them all the way and reaches most. Doses between
# lie evenly between.
LOWEST_SHIFT, HIGHEST_SHIFT = 0.70, 1.0
LOWEST_RESPONDING, HIGHEST_RESPONDING = 0.42, 0.75


@dataclass(frozen=True)
class Phenotype:
    """The parameters of one cell and its neighbourhood; the defaults are an untreated MCF-7 cell.

    Lengths are pixels (at 20x, about 0.65 um each), areas square pixels; weights are relative
    brightnesses of a structure within its channel. Shares of cells are at least 0; a compound that
    overdoes its mechanism may have one somewhat above 1, which acts as 1.
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
    """How far dose `dose` of `doses` (0 the lowest) moves a cell; the share of cells it reaches.

    Returns:
      (shift, responding), both in [0, 1]; a single dose acts as the highest.
    """
    at = 1.0 if doses == 1 else dose / (doses - 1)
    shift = LOWEST_SHIFT + at * (HIGHEST_SHIFT - LOWEST_SHIFT)
    return shift, LOWEST_RESPONDING + at * (HIGHEST_RESPONDING - LOWEST_RESPONDING)


def towards(phenotype: Phenotype, shift: float) -> Phenotype:
    """The phenotype `shift` of the way (0 to 1) from untreated to `phenotype`."""
    values = {
        field.name: (1 - shift) * getattr(UNTREATED, field.name)
        + shift * getattr(phenotype, field.name)
        for field in fields(Phenotype)
    }
    return Phenotype(**values)
