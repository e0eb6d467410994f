"""A run that was killed ends like one that was not: to the bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from cellclr_jax import sharding, train
from cellclr_jax.checkpoint import Checkpoints
from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.lock import alone

ROOT = Path(__file__).parents[1]


def same(first, second):
    pairs = zip(*(jax.tree.leaves(jax.device_get(s)) for s in (first, second)), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


class Crash(Exception):
    """Stands for the end of the process."""


def crash_at(monkeypatch, step):
    """Ends the run right after a step, wherever its checkpoints are."""
    original = train._Run._after_step

    def after_step(self, number, *rest):
        original(self, number, *rest)
        if number == step:
            raise Crash

    monkeypatch.setattr(train._Run, "_after_step", after_step)


def cut_in_half(checkpoint):
    """Leaves the first half of each of a checkpoint's larger files."""
    for file in (checkpoint / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 500:
            os.truncate(file, file.stat().st_size // 2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Final states of uninterrupted runs by sampling, made once."""
    states = {}

    def state(config):
        if config.sampling not in states:
            states[config.sampling] = train.train(config, tmp_path_factory.mktemp("whole"))
        return states[config.sampling]

    return state


@pytest.mark.parametrize(("sampling", "step"), [("uniform", 7), ("uniform", 4), ("balanced", 9)])
def test_a_run_goes_on_to_the_bit(config, tmp_path, monkeypatch, undisturbed, sampling, step):
    config.sampling = sampling
    config.optimizer.name = "adamw"
    config.checkpoint.save_every_steps = 3
    whole = undisturbed(config)
    with monkeypatch.context() as patch:
        crash_at(patch, step)
        with pytest.raises(Crash):
            train.train(config, tmp_path)
    assert same(train.train(config, tmp_path), whole)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    steps = [row["step"] for row in logged if "loss" in row]
    assert steps == sorted(set(steps))


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    config, tmp_path, monkeypatch, undisturbed
):
    config.optimizer.name = "adamw"
    config.checkpoint.save_every_steps = 3
    whole = undisturbed(config)
    with monkeypatch.context() as patch:
        crash_at(patch, 7)
        with pytest.raises(Crash):
            train.train(config, tmp_path)
    kept = sorted((p for p in (tmp_path / "checkpoints").iterdir()), key=lambda p: int(p.name))
    cut_in_half(kept[-1])
    assert same(train.train(config, tmp_path), whole)
    # The arrays alone, which TensorStore tells of by a bare Exception. All their files: which of
    # them a restore reads is the format's own affair.
    for file in (tmp_path / "checkpoints" / "9" / "state").rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)
    assert same(train.train(config, tmp_path), whole)
    assert sorted(path.name for path in (tmp_path / "unreadable").iterdir())[-1] == "9"
    last, mended = final_parameters(tmp_path)
    assert last == 9
    want = jax.tree.leaves(jax.device_get(whole))
    assert all(any(np.array_equal(a, b) for b in want) for a in mended)
    for step in (tmp_path / "checkpoints").iterdir():
        shutil.rmtree(step / "state")
    with pytest.raises(BadData, match=r"no checkpoint in .* can be read"):
        train.train(config, tmp_path)


def test_a_run_goes_on_with_another_number_of_devices(config, tmp_path, monkeypatch):
    config.checkpoint.save_every_steps = 3
    whole = train.train(config, tmp_path / "whole", sharding.make_mesh(8))
    with monkeypatch.context() as patch:
        crash_at(patch, 7)
        with pytest.raises(Crash):
            train.train(config, tmp_path / "run", sharding.make_mesh(8))
    state = train.train(config, tmp_path / "run", sharding.make_mesh(2))
    for a, b in zip(*(jax.tree.leaves(jax.device_get(s)) for s in (state, whole)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    kept = Checkpoints((tmp_path / "run" / "checkpoints").absolute(), read_only=True)
    template = jax.device_put(state.variables, sharding.replicated(sharding.make_mesh(1)))
    part, progress = kept.restore_part(kept.find("last"), template)
    kept.close()
    assert progress["data"] == {"next_index": int(state.step)}
    assert same(part, state.variables)


def test_a_full_disk_is_told_in_one_line(config, tmp_path, monkeypatch):
    def full(*arguments, **settings):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nmore lines")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    with pytest.raises(BadData, match=r"could not be written .*MB free\).*goes on") as caught:
        train.train(config, tmp_path)
    assert "\n" not in str(caught.value)


def test_two_trainings_in_one_folder_are_refused(config, tmp_path):
    with (
        alone(tmp_path, ".training", "training in it"),
        pytest.raises(BadUse, match="another process is training in it"),
    ):
        train.train(config, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_best_is_refused_where_no_checkpoint_is_ranked(config, tmp_path, capsys):
    config.validation_fraction = 0.0
    config.epochs = 1
    config.schedule.warmup_epochs = 0.0
    train.train(config, tmp_path)
    assert "no validation set" in capsys.readouterr().err
    kept = Checkpoints((tmp_path / "checkpoints").absolute(), read_only=True)
    with pytest.raises(BadUse, match="has a validation loss"):
        kept.find("best")
    with pytest.raises(BadUse, match="there are"):
        kept.find("12345")
    kept.close()


def test_another_dataset_is_refused(config, tmp_path, data_dir, monkeypatch):
    with monkeypatch.context() as patch:
        crash_at(patch, 8)
        with pytest.raises(Crash):
            train.train(config, tmp_path / "run")
    shutil.copytree(data_dir / "bbbc021", tmp_path / "bbbc021")
    manifest = next((tmp_path / "bbbc021").rglob("manifest.json"))
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"fingerprint": "0" * 32}))
    config.data_dir = str(tmp_path)
    with pytest.raises(BadUse, match="another dataset"):
        train.train(config, tmp_path / "run")


def start(data_dir, workdir):
    """The binary, on small settings, in a process of its own."""
    settings = (
        "--config.image_size=24",
        "--config.minibatch_size=64",
        "--config.epochs=16",
        "--config.log_every=1",
        "--config.checkpoint.save_every_steps=5",
    )
    command = [sys.executable, "-m", "cellclr_jax.main", "--config=configs/simclr_demo.py"]
    command += [f"--workdir={workdir}", f"--config.data_dir={data_dir}", *settings]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_step(process, workdir, step, seconds=120):
    """Waits until a row of at least this step is written."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        log = workdir / "metrics.jsonl"
        if log.exists() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} not reached: {process.communicate()[1]}")


def final_parameters(workdir):
    """The last checkpoint's step and arrays, as they lie on the disk."""
    import orbax.checkpoint as ocp

    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
    state = ocp.StandardCheckpointer().restore(
        (workdir / "checkpoints" / str(steps[-1]) / "state").absolute()
    )
    return steps[-1], [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def test_kill_and_sigterm_lose_nothing(data_dir, tmp_path):
    whole = start(data_dir, tmp_path / "whole")
    message = whole.communicate(timeout=240)[1]
    assert whole.returncode == 0, message
    killed = tmp_path / "killed"
    process = start(data_dir, killed)
    wait_for_step(process, killed, 17)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start(data_dir, killed)
    wait_for_step(process, killed, 30)
    process.send_signal(signal.SIGTERM)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "SIGTERM: saved step" in message
    assert "Traceback" not in message
    process = start(data_dir, killed)
    message = process.communicate(timeout=240)[1]
    assert process.returncode == 0, message
    assert "going on from step" in message
    (step, want), (other, got) = (final_parameters(d) for d in (tmp_path / "whole", killed))
    assert step == other
    assert all(np.array_equal(a, b) for a, b in zip(want, got, strict=True))
