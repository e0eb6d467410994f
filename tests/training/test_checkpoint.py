"""Checkpoints are restored into a state of the same tree; damaged ones are moved aside."""

import itertools
import json
import shutil
import time

import jax
import numpy as np
import pytest
from support.training_runs import checkpoints

from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.training.checkpoints import Checkpoints


def state(width=4, layers=("first", "second"), moments=("mu",)):
    params = {name: {"kernel": np.full((3, width), 2.0, np.float32)} for name in layers}
    return {"params": params, "batch_stats": {}, "opt_state": dict.fromkeys(moments, params)}


def on_device(tree):
    return jax.tree.map(jax.device_put, tree)


@pytest.fixture
def saved(tmp_path):
    """A folder with checkpoints of steps 1 and 2."""
    with Checkpoints(tmp_path / "checkpoints") as opened:
        for step in (1, 2):
            opened.save(step, on_device(state()), {"data": step})
        opened.wait()
    return tmp_path


def test_a_clock_that_jumps_while_a_checkpoint_is_saved_does_no_harm(tmp_path, monkeypatch):
    """Orbax measures the time of a save on the system clock: each reading is an hour later."""
    readings = itertools.count()
    real = time.time
    with monkeypatch.context() as patch, Checkpoints(tmp_path / "checkpoints") as opened:
        patch.setattr(time, "time", lambda: real() + 3600 * next(readings))
        for step in (1, 2):
            opened.save(step, on_device(state()), {"data": step}, validation_loss=0.1)
            opened.wait()
    assert next(readings) > 2
    assert restore(tmp_path, state())[1] == {"data": 2}


def restore(folder, template):
    with Checkpoints(folder / "checkpoints") as opened:
        return opened.restore_newest(on_device(template))


def test_a_saved_state_is_restored(saved):
    found, progress, damaged = restore(saved, state())
    assert progress == {"data": 2}
    assert damaged == []
    jax.tree.map(np.testing.assert_array_equal, found, state())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (state(width=5), r"shapes: params/first/kernel \(3, 4\), expected \(3, 5\), params/sec"),
        (state(layers=("first",)), "it also has params/second/kernel, opt_state/mu/second"),
        (state(layers=("first", "second", "third")), "it lacks params/third/kernel"),
        (state(moments=("nu",)), "it lacks opt_state/nu/.*; it also has opt_state/mu/"),
    ],
)
def test_another_tree_is_refused_with_the_difference_named(saved, template, message):
    with pytest.raises(BadUse, match=message):
        restore(saved, template)
    assert [path.name for path in checkpoints(saved)] == ["1", "2"]
    assert not (saved / "unreadable").exists()
    if "params" in message:
        part = {"params": template["params"]}
        refused = pytest.raises(BadUse, match=message.split(", opt_state")[0])
        with Checkpoints(saved / "checkpoints", read_only=True) as opened, refused:
            opened.restore_part(2, on_device(part))


def test_a_step_that_does_not_exist_and_the_best_of_unranked_ones_are_refused(saved):
    with Checkpoints(saved / "checkpoints", read_only=True) as opened:
        with pytest.raises(BadUse, match="has a validation loss"):
            opened.find("best")
        with pytest.raises(BadUse, match="there are 1, 2"):
            opened.find("12345")


def test_a_part_is_restored_without_the_optimiser(saved):
    with Checkpoints(saved / "checkpoints", read_only=True) as opened:
        part = on_device({"params": state()["params"], "batch_stats": {}})
        found, progress = opened.restore_part(1, part)
    jax.tree.map(np.testing.assert_array_equal, found, part)
    assert progress == {"data": 1}


@pytest.mark.parametrize("file", ["_METADATA", "manifest.ocdbt", "d", "array_metadatas"])
def test_the_checkpoint_before_a_damaged_one_is_restored(saved, file):
    victim = saved / "checkpoints" / "2" / "state" / file
    shutil.rmtree(victim) if victim.is_dir() else victim.write_bytes(b"{")
    found, progress, damaged = restore(saved, state())
    if damaged:  # a restore does not need all files
        assert progress == {"data": 1}
        assert [path.name for path in (saved / "unreadable").iterdir()] == ["2"]
    jax.tree.map(np.testing.assert_array_equal, found, state())


DAMAGED = [None, '{"validation_loss": null}']


@pytest.fixture
def ranked(tmp_path):
    """A folder with ranked checkpoints of steps 1 and 2, the first the better one."""
    with Checkpoints(tmp_path / "checkpoints") as opened:
        for step in (1, 2):
            opened.save(step, on_device(state()), {"data": step}, validation_loss=0.1 * step)
        opened.wait()
    return tmp_path


def damage_metrics(folder, content):
    file = folder / "checkpoints" / "1" / "metrics" / "metrics"
    file.unlink() if content is None else file.write_text(content)


@pytest.mark.parametrize("content", DAMAGED)
def test_a_checkpoint_with_damaged_metrics_is_moved_aside(ranked, content):
    damage_metrics(ranked, content)
    with Checkpoints(ranked / "checkpoints") as opened:
        assert opened.steps() == [2]
        assert opened.find("best") == 2
        _, progress, damaged = opened.restore_newest(on_device(state()))
        assert progress == {"data": 2}
        assert damaged == [1]
    assert [path.name for path in (ranked / "unreadable").iterdir()] == ["1"]
    assert (ranked / "unreadable" / "1" / "state" / "_METADATA").exists()


@pytest.mark.parametrize("content", DAMAGED)
def test_reading_ignores_damaged_metrics(ranked, content):
    with Checkpoints(ranked / "checkpoints", read_only=True) as opened:
        assert opened.find("best") == 1
    damage_metrics(ranked, content)
    with Checkpoints(ranked / "checkpoints", read_only=True) as opened:
        assert opened.steps() == [1, 2]
        assert opened.find("best") == opened.find("last") == 2
        part = on_device({"params": state()["params"], "batch_stats": {}})
        assert opened.restore_part(1, part)[1] == {"data": 1}


def test_a_disk_that_cannot_be_reached_is_an_error_and_nothing_is_moved(ranked, monkeypatch):
    def unreachable(self, *_, **__):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("etils.epath.gpath._GPath.read_text", unreachable)
    with pytest.raises(OSError, match="Stale"):
        Checkpoints(ranked / "checkpoints")
    assert not (ranked / "unreadable").exists()


def test_moving_aside_replaces_no_earlier_checkpoint(saved):
    for name in ("2", "2.2"):
        (saved / "unreadable" / name).mkdir(parents=True)
    shutil.rmtree(saved / "checkpoints" / "2" / "state" / "d")
    assert restore(saved, state())[2] == [2]
    assert {path.name for path in (saved / "unreadable").iterdir()} == {"2", "2.1", "2.2"}


def test_no_readable_checkpoint_is_an_error(saved):
    for step in checkpoints(saved):
        (step / "state" / "_METADATA").write_text(json.dumps({}))
    with pytest.raises(BadData, match=r"no checkpoint in .* can be read: step 2: .*step 1: "):
        restore(saved, state())
