"""Optimisers and learning rate schedules by name."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

# Name of the parameters to which weight decay and LARS's trust ratio apply.
_KERNEL = "kernel"

Schedule = Callable[[jax.Array | int], jax.Array | float]


def is_kernel(params: optax.Params) -> optax.Params:
    """Masks a tree of parameters: True for kernels, False for biases and normalisation scales."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == _KERNEL, params
    )


def scaled_learning_rate(base: float, minibatch_size: int, rule: str) -> float:
    """Returns the peak learning rate for a global minibatch size; ValueError for an unknown rule.

    Rules: `constant`; `linear`: base · size / 256; `sqrt`: base · √size (the last two are those of
    SimCLR, with base 0.3 and 0.075).
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
    """Builds a learning rate schedule.

    Args:
      name: `constant`, or `cosine` (from peak to final at total_steps); both rise linearly from 0
        during the warm-up.
      peak: highest learning rate.
      total_steps: number of steps of the run.
      warmup_steps: steps of the linear rise, included in total_steps.
      hold_steps: steps at the peak between rise and cosine, included in total_steps.
      final: learning rate at total_steps, as a share of the peak.

    Raises:
      ValueError: unknown name, or no step is left after the warm-up.
    """
    decay_steps = total_steps - warmup_steps - hold_steps
    if decay_steps < 1:
        hold = f" and {hold_steps} at the peak leave" if hold_steps else " leaves"
        raise ValueError(
            f"a warm-up of {warmup_steps} steps{hold} none of {total_steps}: fewer warmup_epochs "
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
    """Makes the published code's cosine: PyTorch's CosineAnnealingLR, stepped once per epoch.

    Its T_max is the number of steps per epoch: with hundreds of steps per epoch the learning rate
    hardly falls, and with fewer steps than epochs it rises again. During the first
    `constant_epochs` the learning rate is `peak`.
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
    """Builds an optimiser.

    Args:
      name: `lars` (You et al. 2017, with the masks of SimCLR), `adam` (decay added to the gradient,
        as in PyTorch), `adamw` (decoupled decay) or `sgd` (with momentum).
      schedule: learning rate by step.
      weight_decay: decay of the parameters that `decayed` selects.
      momentum: momentum of LARS and SGD.
      trust_coefficient: of LARS; its trust ratio scales only kernels.
      decayed: `kernels`, without biases and normalisation scales (see `is_kernel`), or `all`
        parameters, PyTorch's default.

    Raises:
      ValueError: unknown name or `decayed`.
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
