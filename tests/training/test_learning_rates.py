"""Schedules that stay at their peak, and the published cosine, which PyTorch stepped by epochs."""

import math

import numpy as np
import pytest

from cellclr_jax.training import optimizers


def test_a_cosine_may_stay_at_its_peak_before_it_falls():
    schedule = optimizers.make_schedule(
        "cosine", peak=2.0, total_steps=120, warmup_steps=10, hold_steps=10
    )
    assert float(schedule(5)) == pytest.approx(1)
    assert [float(schedule(s)) for s in (10, 15, 20)] == pytest.approx([2, 2, 2])
    assert float(schedule(70)) == pytest.approx(1)
    assert float(schedule(120)) == pytest.approx(0, abs=1e-6)
    held = optimizers.make_schedule("cosine", peak=2.0, total_steps=110, hold_steps=10)
    assert float(held(0)) == float(held(10)) == 2
    assert float(held(60)) == pytest.approx(1)


def test_a_peak_that_leaves_nothing_to_fall_is_refused():
    with pytest.raises(ValueError, match="warm-up of 4 steps and 6 at the peak leave none of 10"):
        optimizers.make_schedule("cosine", peak=1.0, total_steps=10, warmup_steps=4, hold_steps=6)


def published_rates(peak, steps_per_epoch, constant_epochs, epochs):
    """Epoch by epoch as PyTorch's CosineAnnealingLR goes on from the rate before."""
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
def test_the_published_cosine_is_pytorchs_stepped_once_an_epoch(steps_per_epoch, epochs):
    schedule = optimizers.legacy_cosine(3e-4, steps_per_epoch=steps_per_epoch, constant_epochs=10)
    want = published_rates(3e-4, steps_per_epoch, 10, epochs)
    first = [float(schedule(epoch * steps_per_epoch)) for epoch in range(epochs)]
    last = [float(schedule((epoch + 1) * steps_per_epoch - 1)) for epoch in range(epochs)]
    np.testing.assert_allclose(first, want, rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(first, last)


def test_the_published_cosine_hardly_falls_in_a_run_of_its_length():
    """600 epochs of some 1,600 steps: a rate that should end at 0 ends at 70 % of its peak."""
    schedule = optimizers.legacy_cosine(1.0, steps_per_epoch=1600, constant_epochs=10)
    assert float(schedule(600 * 1600 - 1)) == pytest.approx(0.70, abs=0.01)
