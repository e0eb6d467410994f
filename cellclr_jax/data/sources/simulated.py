"""Simulated plates in BBBC021's layout."""

import dataclasses
from typing import Any

from cellclr_jax import simulation
from cellclr_jax.data.sources.bbbc021_plates import CHANNELS, raw_fields
from cellclr_jax.data.sources.source import Request, Source
from cellclr_jax.errors import BadUse

# Settings with a separate flag; --simulator sets the others.
_FLAGS = ("seed", "weeks", "plates_per_week", "sites")


def simulated_fields(request: Request) -> Source:
    """Simulates plates into the input folder, unless they exist, and reads them.

    Raises:
      BadUse: wrong settings, or more than one input.
    """
    if len(request.inputs) != 1:
        raise BadUse("--source=simulated writes into one --input folder")
    settings = simulation.SimulatorSettings(**_simulator_settings(request))
    simulation.simulate_release(
        request.inputs[0], settings, workers=request.workers, overwrite=request.overwrite
    )
    return raw_fields(request)


def simulation_settings(request: Request) -> dict[str, Any]:
    """Returns the settings that determine the content of simulated plates."""
    return {
        "channels": list(request.channels or CHANNELS),
        "simulation": _simulator_settings(request),
        "plates": sorted(request.plates),
    }


def _simulator_settings(request: Request) -> dict[str, Any]:
    """Settings of the simulator: its defaults, replaced by --simulator, then by flags."""
    values = dataclasses.asdict(simulation.SimulatorSettings())
    chosen = dict(text.partition("=")[::2] for text in request.options.get("simulator", ()))
    flags = {name: request.options.get(name) for name in _FLAGS}
    chosen |= {name: value for name, value in flags.items() if value is not None}
    for name, value in chosen.items():
        if name not in values:
            raise BadUse(f"--simulator={name}: there are {', '.join(values)}")
        kind = type(values[name])
        try:
            values[name] = kind(value)
        except ValueError as error:
            raise BadUse(
                f"--simulator={name}={value}: a value like {values[name]!r} was expected"
            ) from error
    return values
