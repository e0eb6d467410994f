"""Training objectives.

To add one, write a file with a subclass of `Objective` (a frozen dataclass, the fields of which are
its settings, each with a default) and add a line to `OBJECTIVES`. Its settings become
`config.<name>.<setting>`, except for `SHARED_SETTINGS`.
"""

from collections.abc import Mapping

from cellclr_jax.objectives.nt_xent import NTXent
from cellclr_jax.objectives.objective import Metric, Objective, Outputs, Teacher, Views
from cellclr_jax.objectives.vicreg import VICReg

__all__ = [
    "OBJECTIVES",
    "SHARED_SETTINGS",
    "Metric",
    "Objective",
    "Outputs",
    "Teacher",
    "Views",
]

OBJECTIVES: Mapping[str, type[Objective]] = {
    "nt_xent": NTXent,
    "vicreg": VICReg,
}
"""Objectives by their name in `config.objective`."""
SHARED_SETTINGS = ("temperature", "loss_block_size")
"""Fields of objectives that are top-level settings of the config, such as `config.temperature`."""
