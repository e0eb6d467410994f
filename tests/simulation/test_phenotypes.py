"""Each simulated mechanism has its published phenotype, on painted cells without a camera."""

import functools

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label, regionprops
from support.painted_cells import field_of

from cellclr_jax.simulation.phenotypes import MOA_PHENOTYPES
from cellclr_jax.simulation.plate_layout import SimulatorSettings, treatments
from cellclr_jax.simulation.population import INTERPHASE, MITOTIC, ROUNDED

# Pixels inside a free edge of a cell: its cortex, and beyond it.
EDGE, WITHIN = (2, 6), (10, 16)
# Pixels from the nearest nucleus: its rim, all the cytoplasm, the outer cytoplasm.
RIM, CYTOPLASM, OUTER = (2, 7), (3, 16), (18, 30)
CORE = 5  # pixels inside the outline of a nucleus, where its brightness is that of its chromatin
FULL = 1e9

# Ranges of each measure relative to a field of untreated cells.
SIGNATURES = {
    "Actin disruptors": {
        "actin far out": (0.2, 0.6),  # the body shrinks to branches
        "actin texture": (1.55, FULL),  # aggregates
        "actin direction": (0, 1.1),  # no stress fibres
    },
    "Aurora kinase inhibitors": {
        "nuclear area": (1.8, FULL),
        "nuclear solidity": (0, 0.96),  # lobes
        "tubulin texture": (0.8, 1.2),
        "pieces of a nucleus": (1.05, 2),
    },
    "Cholesterol-lowering": {
        "nuclear area": (0, 0.9),
        "nuclear aspect": (1.25, FULL),
        "tubulin direction": (1.85, FULL),  # parallel fibres in spindle-shaped cells
        "tubulin texture": (2.3, FULL),
        "actin far out": (0.2, 0.6),  # thin ends
        "nuclear solidity": (0.97, 1.03),
    },
    "DNA damage": {
        "nuclear area": (1.5, FULL),
        "nuclear solidity": (0.98, 1.02),  # large and round, not lobed
        "darkest chromatin": (0, 0.88),  # few, large nucleoli
        "cells": (0, 0.65),
        "actin direction": (1.5, FULL),  # stress fibres
    },
    "DNA replication": {
        "nuclear area": (1.25, 1.7),
        "darkest chromatin": (1.05, FULL),  # smooth, without nucleoli
        "tubulin at the nucleus": (1.4, FULL),
        "tubulin grain": (0, 0.5),
    },
    "Eg5 inhibitors": {
        "mitotic": (0.5, 1),
        "tubulin texture": (0.8, 1.2),  # of the cells that do not divide
    },
    "Epithelial": {
        "distance of neighbours": (0, 0.9),  # tight colonies
        "actin texture": (1.8, FULL),  # bright borders between dark cells
        "tubulin texture": (0, 0.7),
        "nuclear aspect": (0, 0.95),
    },
    "Kinase inhibitors": {
        "actin at the edge": (1.7, FULL),  # a thick ring
        "actin far out": (1.4, FULL),  # spread cells
        "actin texture": (0, 0.6),  # nothing within
        "distance of neighbours": (1.3, FULL),
        "tubulin grain": (1.2, FULL),
    },
    "Microtubule destabilizers": {
        "tubulin texture": (0, 0.65),  # diffuse
        "tubulin grain": (0, 0.35),
        "nuclear solidity": (0, 0.97),
        "pieces of a nucleus": (1.4, 2.4),
        "mitotic": (0.2, 0.5),
        "rounded": (0.03, 0.3),
    },
    "Microtubule stabilizers": {
        "tubulin texture": (1.8, FULL),  # bundles
        "brightest tubulin": (2, FULL),
        "pieces of a nucleus": (2.5, FULL),
        "nuclear area": (1.15, 1.6),
    },
    "Protein degradation": {
        "nuclear area": (0, 0.75),
        "nuclear solidity": (0, 0.97),  # dented
        "brightest tubulin": (1.4, FULL),  # an aggresome
        "rounded": (0.1, 0.4),
    },
    "Protein synthesis": {
        "nuclear area": (0, 0.75),
        "nuclear aspect": (0, 0.95),
        "darkest chromatin": (0, 0.6),  # prominent nucleoli
        "tubulin texture": (0, 0.9),
        "actin far out": (0, 0.6),  # little cytoplasm
    },
}
SHARES = ("mitotic", "rounded")  # compared as they are: untreated fields may have none


def contrast(layer: np.ndarray, where: np.ndarray, low: float, high: float) -> float:
    """Relative variation of a layer's structures between two sizes in pixels."""
    fine = ndimage.gaussian_filter(layer, low) - ndimage.gaussian_filter(layer, high)
    return float(fine[where].std() / layer[where].mean())


def direction(layer: np.ndarray, where: np.ndarray) -> float:
    """Coherence of the structure tensor, from 0 to 1: neighbouring structures run in parallel."""
    down, right = (ndimage.gaussian_filter(layer, 1.2, order=order) for order in ((1, 0), (0, 1)))
    xx, yy, xy = (ndimage.gaussian_filter(p, 4) for p in (right**2, down**2, right * down))
    return float((np.hypot(xx - yy, 2 * xy) / (xx + yy + 1e-6))[where].mean())


def nuclear_shapes(labels: np.ndarray) -> dict[str, float]:
    """Shapes of nuclei that do not touch the border."""
    height, width = labels.shape
    whole = [
        region
        for region in regionprops(labels)
        if min(region.bbox[:2]) > 0 and region.bbox[2] < height and region.bbox[3] < width
    ]
    pieces = [regionprops(label(region.image)) for region in whole]
    largest = [max(found, key=lambda piece: piece.area) for found in pieces]
    return {
        "nuclear area": np.median([region.area for region in whole]),
        "nuclear aspect": np.median([p.axis_major_length / p.axis_minor_length for p in largest]),
        "nuclear solidity": np.median([piece.solidity for piece in largest]),
        "pieces of a nucleus": np.mean([len(found) for found in pieces]),
    }


@functools.cache
def measures(moa: str | None) -> dict[str, float]:
    """Measures of a field of cells with the full phenotype; structures in interphase."""
    field = field_of(moa)
    dna, tubulin, actin = field.image
    resting = np.flatnonzero(field.state == INTERPHASE) + 1
    nuclei = np.where(np.isin(field.labels, resting), field.labels, 0).astype(int)
    away, nearest = ndimage.distance_transform_edt(field.labels == 0, return_indices=True)
    own = np.isin(field.labels[tuple(nearest)], resting)
    rim, cytoplasm, outer = (
        own & (low < away) & (away < high) for low, high in (RIM, CYTOPLASM, OUTER)
    )
    core = np.where(ndimage.distance_transform_edt(nuclei > 0) > CORE, nuclei, 0)
    inside = ndimage.distance_transform_edt(actin > 0)  # nothing is painted between cells
    edge, within = ((low < inside) & (inside < high) & own for low, high in (EDGE, WITHIN))
    chromatin = [dna[core == number] for number in np.unique(core)[1:]]
    apart = np.linalg.norm(field.centres[:, None] - field.centres[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    return nuclear_shapes(nuclei) | {
        "cells": len(field.centres),
        "distance of neighbours": np.median(apart.min(axis=1)),
        "mitotic": (field.state == MITOTIC).mean(),
        "rounded": (field.state == ROUNDED).mean(),
        "darkest chromatin": np.median([np.percentile(c, 5) / np.median(c) for c in chromatin]),
        "tubulin texture": contrast(tubulin, cytoplasm, 1, 4),
        "tubulin grain": contrast(tubulin, cytoplasm, 0, 1.5),
        "tubulin direction": direction(tubulin, cytoplasm),
        "tubulin at the nucleus": tubulin[rim].mean() / tubulin[outer].mean(),
        "brightest tubulin": np.percentile(tubulin[rim], 99) / np.median(tubulin[rim]),
        "actin texture": contrast(actin, cytoplasm, 1, 4),
        "actin direction": direction(actin, cytoplasm),
        "actin at the edge": actin[edge].mean() / actin[within].mean(),
        "actin far out": actin[outer].mean() / actin[rim].mean(),
    }


def misses(moa: str | None, signature: dict[str, tuple[float, float]]) -> dict[str, float]:
    """The measures of a mechanism's field outside a signature."""
    shown, normal = measures(moa), measures(None)
    values = {
        name: shown[name] if name in SHARES else shown[name] / normal[name] for name in signature
    }
    return {
        name: value
        for name, value in values.items()
        if not signature[name][0] <= value <= signature[name][1]
    }


@pytest.mark.parametrize("moa", MOA_PHENOTYPES)
def test_mechanism_has_its_published_signature(moa: str) -> None:
    assert not misses(moa, SIGNATURES[moa])


@pytest.mark.parametrize("moa", MOA_PHENOTYPES)
def test_no_other_mechanism_has_that_signature(moa: str) -> None:
    others = {None, *MOA_PHENOTYPES} - {moa}
    assert not [other for other in others if not misses(other, SIGNATURES[moa])]


def test_ring_of_dna_is_dark_in_the_middle() -> None:
    field = field_of("Eg5 inhibitors")
    middles, rings = [], []
    sizes = np.bincount(field.labels.ravel(), minlength=len(field.centres) + 1)[1:]
    for x, y in np.rint(field.centres[(field.state == MITOTIC) & (sizes > 400)]).astype(int):
        patch = field.image[0, max(0, y - 10) : y + 11, max(0, x - 10) : x + 11]
        if patch.shape == (21, 21):
            middles.append(patch[9:12, 9:12].mean())
            rings.append(np.median([patch[10, 0], patch[10, 20], patch[0, 10], patch[20, 10]]))
    assert np.median(middles) < 0.5 * np.median(rings)


def test_responding_cells_are_larger_and_more_at_a_high_dose() -> None:
    compound = [t for t in treatments(SimulatorSettings()) if t.compound == "sim-damage-1"]
    shares, effects = [], []
    for treatment in compound:
        fields = [field_of(treatment.population, seed, size=1024) for seed in range(2)]
        responds = np.concatenate([field.responds for field in fields])
        shares.append(responds.mean())
        assert shares[-1] == pytest.approx(treatment.population.responding, abs=0.12)
        areas = np.concatenate([np.bincount(field.labels.ravel())[1:] for field in fields])
        effects.append(np.median(areas[responds]) / np.median(areas[~responds]))
    assert shares[0] < shares[1] - 0.1
    assert 1.25 < effects[0] < effects[1]
