"""Masks by path, learning rate schedules and scaling rules."""

import math

import numpy as np
import pytest

from cellclr_jax.training import optimizers


def test_masks_select_kernels():
    params = {"conv1": {"kernel": 1.0, "bias": 1.0}, "bn1": {"scale": 1.0, "bias": 1.0}}
    assert optimizers.is_kernel(params) == {
        "conv1": {"kernel": True, "bias": False},
        "bn1": {"scale": False, "bias": False},
    }


def test_the_cosine_rises_then_falls_to_its_end():
    schedule = optimizers.make_schedule(
        "cosine", peak=2.0, total_steps=100, warmup_steps=10, final=0.1
    )
    assert float(schedule(0)) == 0
    assert float(schedule(5)) == pytest.approx(1)
    assert float(schedule(10)) == pytest.approx(2)
    assert float(schedule(55)) == pytest.approx(2 * (0.1 + 0.9 / 2))
    assert float(schedule(100)) == pytest.approx(0.2)


def test_the_constant_schedule_stays_after_the_warm_up():
    schedule = optimizers.make_schedule("constant", peak=2.0, total_steps=100, warmup_steps=4)
    assert [float(schedule(s)) for s in (0, 2, 4, 99)] == [0, 1, 2, 2]


def test_learning_rate_rules():
    assert optimizers.scaled_learning_rate(0.3, 4096, "linear") == pytest.approx(4.8)
    assert optimizers.scaled_learning_rate(0.075, 4096, "sqrt") == pytest.approx(4.8)
    assert optimizers.scaled_learning_rate(0.3, 4096, "constant") == 0.3


@pytest.mark.parametrize(
    "call",
    [
        lambda: optimizers.make_optimizer("lion", lambda _: 0.1),
        lambda: optimizers.make_schedule("steps", peak=1.0, total_steps=10),
        lambda: optimizers.make_schedule("cosine", peak=1.0, total_steps=10, warmup_steps=10),
        lambda: optimizers.scaled_learning_rate(0.1, 2, "cubic"),
    ],
)
def test_unknown_names_are_refused(call):
    with pytest.raises(ValueError, match=r"unknown|warm-up"):
        call()


def test_the_cosine_can_stay_at_its_peak():
    schedule = optimizers.make_schedule(
        "cosine", peak=2.0, total_steps=120, warmup_steps=10, hold_steps=10
    )
    assert float(schedule(5)) == pytest.approx(1)
    assert [float(schedule(s)) for s in (10, 15, 20)] == pytest.approx([2, 2, 2])
    assert float(schedule(70)) == pytest.approx(1)
    assert float(schedule(120)) == pytest.approx(0, abs=1e-6)
    schedule = optimizers.make_schedule("cosine", peak=2.0, total_steps=110, hold_steps=10)
    assert float(schedule(0)) == float(schedule(10)) == 2
    assert float(schedule(60)) == pytest.approx(1)


def test_a_warm_up_and_peak_without_further_steps_are_refused():
    with pytest.raises(ValueError, match="warm-up of 4 steps and 6 at the peak leave none of 10"):
        optimizers.make_schedule("cosine", peak=1.0, total_steps=10, warmup_steps=4, hold_steps=6)


def published_rates(peak, steps_per_epoch, constant_epochs, epochs):
    """Rates by epoch, each computed from the last one as by PyTorch's CosineAnnealingLR."""
    rate, rates = peak, []
    for epoch in range(epochs):
        if epoch > constant_epochs:
            k = epoch - constant_epochs
            if (k - 1 - steps_per_epoch) % (2 * steps_per_epoch) == 0:
                rate += peak * (1 - math.cos(math.pi / steps_per_epoch)) / 2
            else:
                ratio = 1 + math.cos(math.pi * k / steps_per_epoch)
                rate *= ratio / (1 + math.cos(math.pi * (k - 1) / steps_per_epoch))
        rates.append(rate)
    return rates


@pytest.mark.parametrize(("steps_per_epoch", "epochs"), [(7, 30), (50, 40), (1600, 600)])
def test_the_published_cosine_is_that_of_pytorch_stepped_once_per_epoch(steps_per_epoch, epochs):
    schedule = optimizers.legacy_cosine(3e-4, steps_per_epoch=steps_per_epoch, constant_epochs=10)
    expected = published_rates(3e-4, steps_per_epoch, 10, epochs)
    first = [float(schedule(epoch * steps_per_epoch)) for epoch in range(epochs)]
    last = [float(schedule((epoch + 1) * steps_per_epoch - 1)) for epoch in range(epochs)]
    np.testing.assert_allclose(first, expected, rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(first, last)


def test_the_published_cosine_hardly_falls_in_a_run_of_its_length():
    """In 600 epochs of some 1,600 steps it ends at 70 % of its peak instead of 0."""
    schedule = optimizers.legacy_cosine(1.0, steps_per_epoch=1600, constant_epochs=10)
    assert float(schedule(600 * 1600 - 1)) == pytest.approx(0.70, abs=0.01)
