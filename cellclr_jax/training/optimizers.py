"""Optimisers and schedules by name; weight decay and trust ratio are masked by path."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

# Leaves that weight decay and LARS' trust ratio act on; biases and normalisation scales are none.
_KERNEL = "kernel"

Schedule = Callable[[jax.Array | int], jax.Array | float]


def is_kernel(params: optax.Params) -> optax.Params:
    """Marks what weight decay and trust ratio act on: kernels, by their path.

    Args:
      params: a tree of parameters.

    Returns:
      The same tree of bools: True for kernels, False for biases and normalisation scales.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == _KERNEL, params
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
    name: str,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int = 0,
    hold_steps: int = 0,
    final: float = 0.0,
) -> Schedule:
    """A learning rate by step.

    Args:
      name: `constant`, or `cosine` (from peak to final at total_steps); both rise linearly from 0
        over the warm-up.
      peak: the highest learning rate.
      total_steps: of the whole run.
      warmup_steps: of the linear rise, included in total_steps.
      hold_steps: at the peak after the rise, before the cosine; included likewise.
      final: the learning rate at total_steps, as a share of the peak.

    Raises:
      ValueError: for an unknown name, or a warm-up that leaves no step.
    """
    decay_steps = total_steps - warmup_steps - hold_steps
    if decay_steps < 1:
        held = f" and {hold_steps} at the peak leave" if hold_steps else " leaves"
        raise ValueError(
            f"a warm-up of {warmup_steps} steps{held} none of {total_steps}: fewer warmup_epochs "
            "or hold_epochs were expected, or more epochs"
        )
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay_steps, alpha=final),
    }
    if name not in after:
        raise ValueError(f"unknown schedule {name!r}: choose one of {', '.join(after)}")
    rise = optax.linear_schedule(0.0, peak, max(warmup_steps, 1))
    parts = [rise, optax.constant_schedule(peak), after[name]()]
    return optax.join_schedules(parts, [warmup_steps, warmup_steps + hold_steps])


def legacy_cosine(peak: float, *, steps_per_epoch: int, constant_epochs: int) -> Schedule:
    """The published code's cosine: its period counts steps of an epoch, its argument epochs.

    PyTorch's CosineAnnealingLR with T_max of an epoch's steps, stepped at the end of each epoch
    after the constant ones: with hundreds of steps an epoch the learning rate hardly falls, and
    with fewer steps than epochs it rises again.

    Args:
      peak: the learning rate of the first epochs.
      steps_per_epoch: T_max.
      constant_epochs: before the cosine begins.
    """

    def schedule(step: jax.Array | int) -> jax.Array:
        epoch = jnp.asarray(step, jnp.int32) // steps_per_epoch
        angle = jnp.pi * jnp.maximum(0, epoch - constant_epochs) / steps_per_epoch
        return 0.5 * peak * (1.0 + jnp.cos(angle))

    return schedule


def make_optimizer(
    name: str,
    schedule: Schedule,
    *,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
    decayed: str = "kernels",
) -> optax.GradientTransformation:
    """An optimiser by name.

    Args:
      name: `lars` (You et al. 2017, with the masks of SimCLR), `adam` (decay added to the gradient,
        as PyTorch's), `adamw` (decoupled decay) or `sgd` (with momentum).
      schedule: learning rate by step.
      weight_decay: acts on what `decayed` says.
      momentum: of LARS and SGD.
      trust_coefficient: of LARS, whose trust ratio scales only kernels.
      decayed: `kernels`, neither biases nor normalisation scales (see `is_kernel`); `all`
        parameters, as PyTorch does by default.

    Raises:
      ValueError: for an unknown name, or another `decayed`.
    """
    masks = {"kernels": is_kernel, "all": None}
    if decayed not in masks:
        raise ValueError(f"unknown decayed {decayed!r}: choose one of {', '.join(masks)}")
    mask = masks[decayed]
    makers = {
        "lars": lambda: optax.lars(
            schedule,
            weight_decay=weight_decay,
            weight_decay_mask=True if mask is None else mask,
            trust_coefficient=trust_coefficient,
            trust_ratio_mask=is_kernel,
            momentum=momentum,
        ),
        "adam": lambda: optax.chain(
            optax.add_decayed_weights(weight_decay, mask=mask), optax.adam(schedule)
        ),
        "adamw": lambda: optax.adamw(schedule, weight_decay=weight_decay, mask=mask),
        "sgd": lambda: optax.chain(
            optax.add_decayed_weights(weight_decay, mask=mask),
            optax.sgd(schedule, momentum=momentum),
        ),
    }
    if name not in makers:
        raise ValueError(f"unknown optimiser {name!r}: choose one of {', '.join(makers)}")
    return makers[name]()
