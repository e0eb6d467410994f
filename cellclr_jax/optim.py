"""Optimisers and schedules by name; weight decay and trust ratio are masked by path."""

import math
from collections.abc import Callable

import jax
import optax

# Leaves that weight decay and LARS' trust ratio act on; biases and normalisation scales are none.
_DECAYED = "kernel"

Schedule = Callable[[jax.Array | int], jax.Array | float]


def decayed(params: optax.Params) -> optax.Params:
    """Marks what weight decay and trust ratio act on: kernels, by their path.

    Args:
      params: a tree of parameters.

    Returns:
      The same tree of bools: True for kernels, False for biases and normalisation scales.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == _DECAYED, params
    )


def scaled_learning_rate(base: float, minibatch_size: int, rule: str) -> float:
    """The peak learning rate for a minibatch size.

    Args:
      base: the learning rate that the rule scales.
      minibatch_size: cells in a global minibatch.
      rule: `constant`; `linear`: base · size / 256; `sqrt`: base · √size (both of SimCLR, where
        base is 0.3 and 0.075).

    Raises:
      ValueError: for an unknown rule.
    """
    factors = {"constant": 1.0, "linear": minibatch_size / 256, "sqrt": math.sqrt(minibatch_size)}
    if rule not in factors:
        raise ValueError(f"unknown scaling rule {rule!r}: choose one of {', '.join(factors)}")
    return base * factors[rule]


def make_schedule(
    name: str, *, peak: float, total_steps: int, warmup_steps: int = 0, final: float = 0.0
) -> Schedule:
    """A learning rate by step.

    Args:
      name: `constant`, or `cosine` (from peak to final at total_steps); both rise linearly from 0
        over the warm-up.
      peak: the highest learning rate.
      total_steps: of the whole run.
      warmup_steps: of the linear rise, included in total_steps.
      final: the learning rate at total_steps, as a share of the peak.

    Raises:
      ValueError: for an unknown name, or a warm-up that leaves no step.
    """
    if warmup_steps >= total_steps:
        raise ValueError(f"a warm-up of {warmup_steps} steps leaves none of {total_steps}")
    decay_steps = total_steps - warmup_steps
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay_steps, alpha=final),
    }
    if name not in after:
        raise ValueError(f"unknown schedule {name!r}: choose one of {', '.join(after)}")
    if not warmup_steps:
        return after[name]()
    rise = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([rise, after[name]()], [warmup_steps])


def make_optimizer(
    name: str,
    schedule: Schedule,
    *,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
) -> optax.GradientTransformation:
    """An optimiser by name.

    Args:
      name: `lars` (You et al. 2017, with the masks of SimCLR), `adam` (decay added to the gradient,
        as PyTorch's), `adamw` (decoupled decay) or `sgd` (with momentum).
      schedule: learning rate by step.
      weight_decay: acts on kernels alone (see `decayed`).
      momentum: of LARS and SGD.
      trust_coefficient: of LARS.

    Raises:
      ValueError: for an unknown name.
    """
    makers = {
        "lars": lambda: optax.lars(
            schedule,
            weight_decay=weight_decay,
            weight_decay_mask=decayed,
            trust_coefficient=trust_coefficient,
            trust_ratio_mask=decayed,
            momentum=momentum,
        ),
        "adam": lambda: optax.chain(
            optax.add_decayed_weights(weight_decay, mask=decayed), optax.adam(schedule)
        ),
        "adamw": lambda: optax.adamw(schedule, weight_decay=weight_decay, mask=decayed),
        "sgd": lambda: optax.chain(
            optax.add_decayed_weights(weight_decay, mask=decayed),
            optax.sgd(schedule, momentum=momentum),
        ),
    }
    if name not in makers:
        raise ValueError(f"unknown optimiser {name!r}: choose one of {', '.join(makers)}")
    return makers[name]()
