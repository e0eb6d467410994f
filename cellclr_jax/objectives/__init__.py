"""Objectives: what training minimises.

To add one, write a file with a subclass of `Objective` (a frozen dataclass whose fields are its
settings) and add a line to `OBJECTIVES`. Its settings become `config.<name>.<setting>`, except for
those that are settings of every config, such as `config.temperature`.
"""

from collections.abc import Mapping

from cellclr_jax.objectives.nt_xent import NTXent
from cellclr_jax.objectives.objective import Metric, Objective, Outputs, Teacher, Views
from cellclr_jax.objectives.vicreg import VICReg

__all__ = ["OBJECTIVES", "Metric", "Objective", "Outputs", "Teacher", "Views"]

OBJECTIVES: Mapping[str, type[Objective]] = {
    "nt_xent": NTXent,
    "vicreg": VICReg,
}
"""Objectives by their name in `config.objective`."""
