"""What numbers the settings of a config may be, told before anything is opened or compiled."""

import math
from typing import Any

import ml_collections

from cellclr_jax.cli import BadUse

# The least and the largest value of each setting that a loop or a formula would trip over much
# later, or that would train on nonsense without a word.
_RANGES = {
    "seed": (0, 2**63 - 1),
    "image_size": (1, math.inf),
    "temperature": (0, math.inf),
    "minibatch_size": (2, math.inf),
    "micro_batch_size": (0, math.inf),
    "loss_block_size": (0, math.inf),
    "epochs": (1, math.inf),
    "log_every": (1, math.inf),
    "online.every_epochs": (0, math.inf),
    "online.cells": (2, math.inf),
    "checkpoint.save_every_steps": (0, math.inf),
    "checkpoint.keep_every_epochs": (0, math.inf),
    "optimizer.learning_rate": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.momentum": (0, 0.9999),
    "optimizer.trust_coefficient": (0, math.inf),
    "schedule.warmup_epochs": (0, math.inf),
    "schedule.hold_epochs": (0, math.inf),
    "schedule.final": (0, 1),
    "model.head.depth": (0, math.inf),
}


def check_ranges(config: ml_collections.ConfigDict) -> None:
    """Refuses numbers that no run could mean.

    Raises:
      BadUse: which names the setting, its value and what was expected.
    """
    for path, (least, most) in _RANGES.items():
        value: Any = config
        for name in path.split("."):
            value = value[name]
        if not (math.isfinite(value) and least <= value <= most):
            expected = f"at least {least}" if math.isinf(most) else f"from {least} to {most}"
            raise BadUse(f"config.{path} is {value}: {expected} was expected")
    cells, at_once = config.minibatch_size, config.micro_batch_size
    if at_once and cells % at_once:
        raise BadUse(
            f"config.micro_batch_size is {at_once}: a divisor of config.minibatch_size {cells}, "
            "or 0 for none, was expected"
        )
    for name, settings in config.views.items():
        share = (settings or {}).get("probability", 1.0)
        if not 0 <= share <= 1:
            raise BadUse(f"config.views.{name}.probability is {share}: from 0 to 1 was expected")
