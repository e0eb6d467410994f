"""Reads files of a run, and ends a run early."""

import contextlib
import json

import jax
import numpy as np
import pytest

from cellclr_jax.training import loop


def rows(workdir):
    """Reads the rows of `metrics.jsonl`."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def checkpoints(workdir):
    """Lists folders of a run's finished checkpoints in ascending order."""
    found = [path for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name))


def same(first, second):
    """Checks whether two trees of arrays are equal, bit for bit."""
    pairs = zip(*(jax.tree.leaves(jax.device_get(s)) for s in (first, second)), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


class Crash(Exception):
    """Simulates the end of the process."""


@contextlib.contextmanager
def crash_at(step):
    """Raises Crash in the run of the body right after a step."""
    original = loop._Run._after_step

    def after_step(self, number, *rest):
        original(self, number, *rest)
        if number == step:
            raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "_after_step", after_step)
        with pytest.raises(Crash):
            yield
