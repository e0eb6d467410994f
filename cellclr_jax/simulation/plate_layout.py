"""Layout of simulated plates: the treatment of each well, and its imaging conditions.

The layout follows BBBC021: ten by six inner wells, six DMSO wells per plate, each treatment on
every replicate plate of its week. The compounds of a mechanism lie in different weeks, so that each
has a match in another batch; two mechanisms lie in only one week.
"""

from dataclasses import dataclass, replace

import numpy as np

from cellclr_jax.data.columns import CONTROL
from cellclr_jax.errors import BadUse
from cellclr_jax.simulation.camera import (
    LevelNuisance,
    Optics,
    compound_nuisance,
    plate_nuisance,
    week_nuisance,
    well_conditions,
)
from cellclr_jax.simulation.phenotypes import (
    MOA_PHENOTYPES,
    ONE_WEEK_MOAS,
    UNTREATED,
    compound_name,
    compound_phenotype,
    dose_effect,
    towards,
)
from cellclr_jax.simulation.population import Population

WELLS = tuple(f"{row}{column:02d}" for row in "BCDEFG" for column in range(2, 12))
DMSO_WELLS = ("B02", "C02", "D02", "E11", "F11", "G11")  # where BBBC021 has them
CONCENTRATIONS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # uM, half-log steps
FIRST_PLATE = 90001  # above the five-digit plate numbers of BBBC021
POSITIVE_CONTROL = "Microtubule stabilizers"  # as taxol is in BBBC021
NO_NUISANCE = LevelNuisance()  # of DMSO
# Side in pixels: a smaller field may have no nucleus, a larger one takes gigabytes to paint.
SMALLEST_FIELD, LARGEST_FIELD = 64, 4096
# 'none' is the largest and fastest. LZW, which all readers of BBBC021 support, has half the size
# and takes 0.06 s per field. zlib has the same size as LZW and takes half the time, but is less
# common in TIFF.
COMPRESSIONS = ("none", "lzw", "zlib")
# Smallest and largest values of the settings. At a nuisance of 5 no structure is visible; from an
# effect of 1 / LOWEST_RESPONDING, all cells respond to any dose; above a density of 5, cells lie on
# top of each other, and separating them takes memory quadratic in their number.
BOUNDS: dict[str, tuple[int | float, int | float]] = {
    "seed": (0, 2**63 - 1),
    "weeks": (2, 100),
    "plates_per_week": (1, 100),
    "sites": (1, 100),
    "dmso_wells": (1, len(WELLS)),
    "compounds_per_moa": (2, len(WELLS)),
    "doses": (1, len(CONCENTRATIONS)),
    "positive_control_wells": (0, len(WELLS)),
    "height": (SMALLEST_FIELD, LARGEST_FIELD),
    "width": (SMALLEST_FIELD, LARGEST_FIELD),
    "nuisance": (0, 5),
    "effect": (0, 3),
    "density": (0.01, 5),
}

# Random streams, one for each kind of draw, so that adding a kind does not change the others.
_COMPOUND, _WEEK, _PLATE, _WELL, _FIELD, _CAMERA, _GUID = range(7)


@dataclass(frozen=True)
class SimulatorSettings:
    """Settings of a simulated release; the defaults are the demonstration's, about 200 fields.

    Attributes:
      seed: of all random draws.
      weeks: batches, at least 2, so that mechanisms have a match in another batch.
      plates_per_week: replicate plates; each treatment has one well on every plate of its week.
      sites: fields per well.
      dmso_wells: untreated wells per plate.
      compounds_per_moa, doses: treatments are mechanisms x compounds x doses.
      positive_control_wells: wells on every plate with the first stabilizer's highest dose.
      height, width: of a field in pixels.
      nuisance: strength of all differences in imaging and density between weeks, plates, wells and
        compounds; 0 removes them.
      effect: factor on the share of cells that respond to a compound.
      density: factor on the number of cells everywhere.
      compression: of the TIFF files, one of `COMPRESSIONS`; it changes no pixel.
    """

    seed: int = 0
    weeks: int = 3
    plates_per_week: int = 3
    sites: int = 1
    dmso_wells: int = 6
    compounds_per_moa: int = 2
    doses: int = 2
    positive_control_wells: int = 0
    height: int = 1024
    width: int = 1280
    nuisance: float = 1.0
    effect: float = 1.0
    density: float = 1.0
    compression: str = "lzw"

    def __post_init__(self) -> None:
        """Raises BadUse for an invalid setting."""
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if not low <= value <= high:  # NaN lies nowhere
                expected = f"{low} or more" if value < low else f"{low} to {high}"
                raise BadUse(f"simulator: {name} is {value}, expected {expected}")
        if self.compression not in COMPRESSIONS:
            raise BadUse(
                f"simulator: compression is {self.compression!r}, expected one of "
                f"{', '.join(COMPRESSIONS)}"
            )


@dataclass(frozen=True)
class Treatment:
    """A compound at a concentration in uM, and its effect; the well adds its density."""

    compound: str
    concentration: float
    moa: str
    week: int
    population: Population
    nuisance: LevelNuisance = NO_NUISANCE


@dataclass(frozen=True)
class Well:
    """One well of one plate; `plate` is e.g. `Week1_90001`, `replicate` counts from 1."""

    week: int
    plate: str
    replicate: int
    well: str
    treatment: Treatment
    population: Population
    optics: Optics


def random_stream(settings: SimulatorSettings, kind: int, *key: int) -> np.random.Generator:
    """Makes the generator of one kind of draw for one key, independent of the order of calls."""
    return np.random.default_rng([settings.seed, kind, *key])


def field_streams(
    settings: SimulatorSettings, well: Well, site: int
) -> tuple[np.random.Generator, np.random.Generator, np.random.Generator]:
    """Returns random generators for a field's cells, its camera noise and its file names."""
    key = (int(well.plate.split("_")[1]), WELLS.index(well.well), site)
    cells, camera, names = (
        random_stream(settings, kind, *key) for kind in (_FIELD, _CAMERA, _GUID)
    )
    return cells, camera, names


def treatments(settings: SimulatorSettings) -> list[Treatment]:
    """All treatments of a release except DMSO, ordered by mechanism, compound and dose."""
    found = []
    for index, moa in enumerate(MOA_PHENOTYPES):
        for number in range(1, settings.compounds_per_moa + 1):
            if moa in ONE_WEEK_MOAS:
                week = 1 + ONE_WEEK_MOAS.index(moa) % settings.weeks
            else:
                week = 1 + (index + number - 1) % settings.weeks
            found.extend(_doses(settings, index, moa, number, week))
    return found


def _doses(
    settings: SimulatorSettings, index: int, moa: str, number: int, week: int
) -> list[Treatment]:
    """Lists the treatments of one compound, from the lowest dose."""
    rng = random_stream(settings, _COMPOUND, index, number)
    phenotype = compound_phenotype(moa, rng)
    lowest = int(rng.integers(0, len(CONCENTRATIONS) - settings.doses + 1))
    nuisance = compound_nuisance(rng, settings.nuisance)
    found = []
    for dose in range(settings.doses):
        shift, responding = dose_effect(dose, settings.doses)
        population = Population(
            UNTREATED, towards(phenotype, shift), min(1.0, settings.effect * responding)
        )
        concentration = CONCENTRATIONS[lowest + dose]
        found.append(
            Treatment(compound_name(moa, number), concentration, moa, week, population, nuisance)
        )
    return found


def plate_wells(settings: SimulatorSettings) -> list[Well]:
    """All wells of a release in the order of its plates and wells.

    Raises:
      BadUse: a week's treatments do not fit on a plate.
    """
    every = treatments(settings)
    control = [t for t in every if t.compound == compound_name(POSITIVE_CONTROL, 1)][-1]
    wells = []
    number = FIRST_PLATE
    for week in range(1, settings.weeks + 1):
        treated = [t for t in every if t.week == week]
        treated += [control] * settings.positive_control_wells
        if len(treated) + settings.dmso_wells > len(WELLS):
            raise BadUse(
                f"simulator: week {week} has {len(treated)} treated and {settings.dmso_wells} DMSO "
                f"wells, a plate has {len(WELLS)}: take more weeks or fewer doses"
            )
        for replicate in range(1, settings.plates_per_week + 1):
            wells += _plate(settings, week, number, replicate, treated)
            number += 1
    return wells


def _plate(
    settings: SimulatorSettings, week: int, number: int, replicate: int, treated: list[Treatment]
) -> list[Well]:
    """Lists the wells of one plate: DMSO in fixed wells, treatments shuffled over the others."""
    rng = random_stream(settings, _PLATE, number)
    others = [str(well) for well in rng.permutation([w for w in WELLS if w not in DMSO_WELLS])]
    # Further DMSO wells lie among the treatments.
    places = [*DMSO_WELLS[: settings.dmso_wells], *others]
    untreated = Treatment(CONTROL, 0.0, CONTROL, week, Population(UNTREATED, UNTREATED, 0.0))
    contents = [untreated] * settings.dmso_wells + treated
    on_week = week_nuisance(random_stream(settings, _WEEK, week), settings.nuisance)
    on_plate = plate_nuisance(rng, settings.nuisance)
    wells = []
    for well, treatment in sorted(zip(places, contents, strict=False), key=lambda pair: pair[0]):
        stream = random_stream(settings, _WELL, number, WELLS.index(well))
        optics, density, flow, alignment = well_conditions(
            stream, settings.nuisance, on_week, on_plate, treatment.nuisance
        )
        population = replace(
            treatment.population,
            density=settings.density * density,
            flow=flow,
            alignment=alignment,
        )
        name = f"Week{week}_{number}"
        wells.append(Well(week, name, replicate, well, treatment, population, optics))
    return wells
