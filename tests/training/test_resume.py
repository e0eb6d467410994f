"""A run that was killed and resumed equals an undisturbed one, bit for bit."""

import copy
import json
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from support.faults import final_state
from support.tiny_run import get_config
from support.training_runs import checkpoints, crash_at, rows, same

from cellclr_jax import devices as sharding
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import TRAINING, locked
from cellclr_jax.run_folder import RunFolder, write_config
from cellclr_jax.training import loop
from cellclr_jax.training.checkpoints import Checkpoints


@pytest.fixture
def config(data_dir):
    """Of nine steps, with a checkpoint after every third one."""
    config = get_config()
    config.data_dir = str(data_dir)
    config.log_every = 2
    return config


def run(config, workdir, devices=1):
    return loop.train(config, workdir, sharding.make_mesh(devices))


def crashed(config, workdir, step, devices=1):
    """Leaves a run as if the process had ended right after a step."""
    with crash_at(step):
        run(config, workdir, devices)


def cut_in_half(checkpoint):
    """Leaves the first half of each of a checkpoint's larger files."""
    for file in (checkpoint / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 500:
            os.truncate(file, file.stat().st_size // 2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The final state of an undisturbed run, computed once."""
    states = []

    def state(config):
        states[:] = states or [run(config, tmp_path_factory.mktemp("undisturbed"))]
        return states[0]

    return state


def test_killed_and_resumed_equals_undisturbed_bit_for_bit(config, tmp_path, undisturbed):
    expected = undisturbed(config)
    crashed(config, tmp_path, 7)
    assert same(run(config, tmp_path), expected)
    steps = [row["step"] for row in rows(tmp_path) if "loss" in row]
    assert steps == sorted(set(steps))


def test_a_run_saves_at_a_signal_and_misses_no_score(
    config, tmp_path, undisturbed, monkeypatch, capfd
):
    expected = undisturbed(config)
    config.online.every_epochs, config.online.cells = 1, 100
    original = loop._Run._after_step

    def signal_at_the_end_of_an_epoch(self, step, *rest):
        if step == 6:
            signal.raise_signal(signal.SIGINT)
        original(self, step, *rest)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(loop._Run, "_after_step", signal_at_the_end_of_an_epoch)
            with pytest.raises(loop.Interrupted, match="saved step 6") as stop:
                run(config, tmp_path)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert stop.value.number == signal.SIGINT
    assert "saving after this step" in capfd.readouterr().err
    assert same(run(config, tmp_path), expected)
    scored = [row["step"] for row in rows(tmp_path) if "online" in " ".join(row)]
    assert scored == [3, 6, 9]


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(config, tmp_path, undisturbed):
    expected = undisturbed(config)
    crashed(config, tmp_path, 7)
    cut_in_half(checkpoints(tmp_path)[-1])
    assert same(run(config, tmp_path), expected)
    # Damaged arrays, for which TensorStore raises a bare Exception.
    for file in (tmp_path / "checkpoints" / "9" / "state").rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)
    assert same(run(config, tmp_path), expected)
    assert sorted(path.name for path in (tmp_path / "unreadable").iterdir())[-1] == "9"
    last, arrays = final_state(tmp_path)
    assert last == 9
    leaves = jax.tree.leaves(jax.device_get(expected))
    assert all(any(np.array_equal(a, b) for b in leaves) for a in arrays)


def test_a_run_resumes_on_another_number_of_devices(config, tmp_path, undisturbed):
    expected = undisturbed(config)
    crashed(config, tmp_path / "run", 4, devices=2)
    state = run(config, tmp_path / "run", 1)
    for a, b in zip(*(jax.tree.leaves(jax.device_get(s)) for s in (state, expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    template = jax.device_put(state.variables, sharding.replicated(sharding.make_mesh(2)))
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as opened:
        part, progress = opened.restore_part(opened.find("last"), template)
    assert progress["data"] == {"next_index": int(state.step)}
    assert same(part, state.variables)


def test_a_checkpoint_of_another_config_is_refused_with_and_without_config_json(config, tmp_path):
    crashed(config, tmp_path / "run", 4)
    shutil.copytree(tmp_path / "run" / "checkpoints", tmp_path / "other" / "checkpoints")
    (tmp_path / "run" / "config.json").unlink()
    config.temperature = 0.5
    for workdir in (tmp_path / "run", tmp_path / "other"):
        with pytest.raises(BadUse, match=r"another config \(temperature: was 0\.1, now 0\.5\)"):
            run(config, workdir)
        assert not (workdir / "config.json").exists()


def test_a_full_disk_is_reported_in_one_line(config, tmp_path, monkeypatch):
    def full(*arguments, **settings):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nmore lines")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    with pytest.raises(BadData, match=r"could not be written .*MB free\).*resumes") as caught:
        run(config, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_second_training_in_a_folder_is_refused(config, tmp_path):
    with (
        locked(tmp_path, TRAINING, "busy"),
        pytest.raises(BadUse, match="another process is training in it"),
    ):
        run(config, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_run_that_another_job_started_just_before_the_lock_is_noticed(
    config, tmp_path, monkeypatch
):
    claimed, other = RunFolder.claimed, copy.deepcopy(config)
    other.temperature = 0.5

    def claimed_later(self):
        write_config(other, self.path)
        return claimed(self)

    monkeypatch.setattr(RunFolder, "claimed", claimed_later)
    with pytest.raises(BadUse, match=r"temperature: was 0\.5, now 0\.1"):
        run(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["temperature"] == 0.5


def test_another_dataset_is_refused(config, tmp_path, data_dir):
    crashed(config, tmp_path / "run", 4)
    shutil.copytree(data_dir / "bbbc021", tmp_path / "bbbc021")
    manifest = next((tmp_path / "bbbc021").rglob("manifest.json"))
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"fingerprint": "0" * 32}))
    config.data_dir = str(tmp_path)
    with pytest.raises(BadUse, match="another dataset"):
        run(config, tmp_path / "run")


def test_a_run_resumes_after_a_missing_shard_is_back(config, tmp_path, data_dir, undisturbed):
    expected = undisturbed(config)
    crashed(config, tmp_path / "run", 5)
    shutil.copytree(data_dir / "bbbc021", tmp_path / "bbbc021")
    config.data_dir = str(tmp_path)
    shard = next((tmp_path / "bbbc021").rglob("*.array_record-*"))
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(BadData, match=re.escape(shard.name)):
        run(config, tmp_path / "run")
    (tmp_path / "elsewhere").rename(shard)
    assert same(run(config, tmp_path / "run"), expected)
