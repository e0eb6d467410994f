"""A run learns, writes its files, and does not depend on the number of devices or on the host."""

import json
import math

import jax
import numpy as np
import pytest
from support.tiny_dataset import random_images, write_dataset
from support.tiny_run import get_config
from support.training_runs import checkpoints, rows

from cellclr_jax import devices as sharding
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.training import loop, setup
from cellclr_jax.training.checkpoints import Checkpoints
from cellclr_jax.training.setup import make_experiment


@pytest.fixture
def config(data_dir):
    """Of nine steps in three epochs."""
    config = get_config()
    config.data_dir = str(data_dir)
    return config


def parameters(state):
    leaves = jax.device_get(jax.tree.leaves((state.params, state.batch_stats)))
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def train_alone(config, workdir, **settings):
    """On one device, for which programs compile fast."""
    return loop.train(config, workdir, sharding.make_mesh(1), **settings)


def test_a_run_learns_and_writes_its_files(config, tmp_path, capsys):
    config.epochs = 6
    config.optimizer.learning_rate = 0.01
    config.log_every = 2
    state = train_alone(config, tmp_path, profile_steps=3)
    experiment = make_experiment(config)
    assert int(state.step) == experiment.total_steps
    found = rows(tmp_path)
    steps = [row for row in found if "loss" in row]
    assert {"step", "epoch", "lr", "contrastive_accuracy"} <= steps[0].keys()
    assert all(row["cells_per_second"] > 0 for row in steps)
    assert all(0 <= row["input_wait"] <= 1 for row in steps)
    assert steps[-1]["loss"] < steps[0]["loss"]
    losses = [row["validation_loss"] for row in found if "validation_loss" in row]
    assert len(losses) == 6
    # Cells and views of the validation are the same at every epoch.
    assert losses[-1] < losses[0] - 0.1
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 6
    assert list((tmp_path / "tensorboard").glob("events*"))
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as opened:
        assert opened.find("last") == experiment.total_steps
        best = 1 + int(np.argmin(losses))
        assert opened.find("best") == best * experiment.steps_per_epoch
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    printed = capsys.readouterr().err
    assert "first step after" in printed
    assert "traced steps 6 to 8: pip install xprof" in printed


def test_1_4_and_8_devices_give_the_same_parameters_and_trace_the_step_once(config):
    config.optimizer.name, config.optimizer.learning_rate = "lars", 0.3
    experiment, results, first = make_experiment(config), [], None
    for devices in (1, 4, 8):
        mesh = sharding.make_mesh(devices)
        program, key = setup.compile_program(experiment, mesh), sharding.root_key(0, mesh)
        first = jax.device_get(program.init(key)) if first is None else first
        state = jax.device_put(first, sharding.replicated(mesh))
        for start in (0, 64, 128):
            cells = experiment.encoder.cells.read(experiment.train_rows[start : start + 64])
            state, _ = program.step(state, sharding.to_global(mesh, cells), key)
        assert program.step._cache_size() == 1
        results.append(parameters(state))
    assert np.abs(results[0] - parameters(first)).max() > 0.01
    np.testing.assert_allclose(results[1], results[0], atol=1e-5)
    np.testing.assert_allclose(results[2], results[0], atol=1e-5)


def test_the_transfer_guard_of_the_loop_catches_a_planted_transfer(config, tmp_path, monkeypatch):
    def peeking(self, step, state, metrics, position):
        return metrics["loss"] + np.float32(1)

    monkeypatch.setattr(loop._Run, "_after_step", peeking)
    with pytest.raises(Exception, match="Disallowed host-to-device"):
        train_alone(config, tmp_path)


def test_metrics_are_fetched_at_intervals_and_the_host_is_two_steps_ahead_at_most(
    config, tmp_path, monkeypatch
):
    config.epochs = 2
    config.log_every = 100
    fetched, waited = [], []
    get, block = jax.device_get, jax.block_until_ready

    def noting_fetch(tree):
        if isinstance(tree, list):  # of metrics
            fetched.append(len(tree))
        return get(tree)

    def noting_wait(tree):
        if isinstance(tree, tuple):  # a step and its metrics
            waited.append(tree[0])
        return block(tree)

    monkeypatch.setattr(jax, "device_get", noting_fetch)
    monkeypatch.setattr(jax, "block_until_ready", noting_wait)
    train_alone(config, tmp_path)
    steps = make_experiment(config).steps_per_epoch
    assert [count for count in fetched if count > 1] == [steps] * config.epochs
    # An epoch ends with a fetch; within an epoch, the loop waits for the step before the last one.
    ends = range(steps, steps * config.epochs + 1, steps)
    assert waited == [step for end in ends for step in range(end - steps + 1, end - 1)]


@pytest.mark.parametrize(
    ("cells", "minibatch", "used"),
    [(511, 256, 480), (5000, 4096, 4608), (64, 256, 64), (7, 256, 7), (1, 256, 1), (0, 256, 0)],
)
def test_validation_uses_nearly_all_cells_on_any_number_of_devices(cells, minibatch, used):
    size = setup.validation_size(cells, minibatch, 1)
    assert size <= minibatch
    assert (cells // size * size if size else 0) == used
    if cells > 500:
        assert all(setup.validation_size(cells, minibatch, n) == size for n in (2, 4, 8))


@pytest.fixture
def breaking(monkeypatch):
    """Replaces a metric of the n-th step, or n-th validation minibatch, by NaN or infinity."""
    original = loop.compile_program

    def break_at(name, number, value=np.nan, function="step"):
        def broken(experiment, mesh):
            found, calls = original(experiment, mesh), []

            def spoil(metrics):
                calls.append(name)
                bad = {name: jax.device_put(np.float32(value))} if len(calls) == number else {}
                return metrics | bad

            def step(*arguments):
                state, metrics = found.step(*arguments)
                return state, spoil(metrics)

            def validate(*arguments):
                return spoil(found.validate(*arguments))

            if function == "step":
                return setup.Program(found.init, step, found.validate)
            return setup.Program(found.init, found.step, validate)

        monkeypatch.setattr(loop, "compile_program", broken)

    return break_at


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path, breaking):
    breaking("loss", 2)
    with pytest.raises(BadData, match=r"the loss became nan at step 2 .*none was saved"):
        train_alone(config, tmp_path)


@pytest.mark.parametrize(("name", "value"), [("gradient_norm", np.inf), ("parameter_norm", np.nan)])
def test_a_state_that_is_not_finite_is_not_saved(config, tmp_path, breaking, name, value):
    config.log_every = 100  # metrics are checked before a save as well
    config.checkpoint.save_every_steps = 2
    breaking(name, 5, value)
    message = rf"the {name.replace('_', ' ')} became {value} at step 5 \(epoch 2\); .* of step 4 "
    with pytest.raises(BadData, match=message):
        train_alone(config, tmp_path)
    assert [path.name for path in checkpoints(tmp_path)][-1] == "4"
    assert all(row["step"] <= 4 for row in rows(tmp_path))


def test_a_state_with_a_validation_loss_that_is_not_finite_is_not_saved(config, tmp_path, breaking):
    breaking("loss", 2, function="validate")
    with pytest.raises(BadData, match=r"validation loss became nan at step 6 .* is of step 3 "):
        train_alone(config, tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"minibatch_size": 63}, "63 cells cannot be divided among 8 devices"),
        ({"micro_batch_size": 24}, "micro_batch_size is 24: a divisor of config.minibatch_size 64"),
        ({"micro_batch_size": -1}, "micro_batch_size is -1"),
        ({"micro_batch_size": 4}, r"micro batch of 4 cells .* 8 devices: set --config.micro_batch"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"optimizer.learning_rate": math.nan}, "learning_rate is nan: at least 0 was expected"),
        ({"minibatch_size": 100_000}, "does not fit an epoch"),
        ({"model.head.width": 0}, "width of the head is 0"),
        ({"model.cnn.widths": ()}, "widths of the CNN"),
        ({"image_size": 3}, "too small for 2 poolings"),
        ({"normalization.method": "percentile", "normalization.percentiles": (1, 200)}, "rising"),
        ({"model.head.norm": "layer"}, "norm of the head"),
        ({"views": {"flip_vertical": {"probability": 1.5}}}, "probability is 1.5"),
        ({"model.encoder": "vit"}, "unknown encoder 'vit'"),
        ({"normalization.method": "log"}, "config.normalization: unknown method 'log'"),
        ({"dataset": "single_cells/all"}, "no dataset single_cells/all"),
        ({"validation_fraction": 2.0}, "validation_fraction is 2.0"),
        ({"data_dir": "/nowhere"}, "launch/demo.sh"),
    ],
)
def test_wrong_settings_are_named(config, tmp_path, change, message):
    config.update(change) if "views" in change else config.update_from_flattened_dict(change)
    with pytest.raises(BadUse, match=message):
        loop.train(config, tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.fixture
def own_images(config, tmp_path):
    """A run on cells of two channels without metadata, and the dataset's folder."""
    folder = write_dataset(tmp_path / "data", random_images(np.uint8, channels=2))
    name_channels(folder, ["dna", "actin"])
    config.update(data_dir=str(tmp_path / "data"), dataset="single_cells/all", minibatch_size=16)
    config.update(image_size=12, epochs=2, validation_fraction=0.3)
    config.views = {"flip_vertical": {"probability": 0.5}}  # small programs compile fast
    config.model.cnn.widths = (8, 8)
    return config, folder


def name_channels(folder, channels):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["image"]["channels"] = channels
    path.write_text(json.dumps(manifest))


def test_minibatches_of_validation_are_computed_one_at_a_time(own_images, tmp_path, monkeypatch):
    # Programs on many devices that run at the same time may wait for one another for ever.
    config, _ = own_images
    config.epochs = 1
    done, compiled, prepared = [], loop.compile_program, loop.validation_minibatches

    def noting(experiment, mesh):
        found = compiled(experiment, mesh)

        def validate(*arguments):
            done.append("started")
            return found.validate(*arguments)

        return setup.Program(found.init, found.step, validate)

    def fetch(tree, original=jax.device_get):
        done.append("fetched")
        return original(tree)

    monkeypatch.setattr(loop, "compile_program", noting)
    monkeypatch.setattr(loop, "validation_minibatches", lambda *rest: 3 * prepared(*rest)[:1])
    monkeypatch.setattr(jax, "device_get", fetch)
    train_alone(config, tmp_path)
    first = done.index("started")
    assert done[first : first + 6] == 3 * ["started", "fetched"]


def test_a_run_on_8_bit_cells_without_metadata_resumes_with_its_own_channels_only(
    own_images, tmp_path
):
    config, folder = own_images
    config.normalization.method = "percentile"  # of plates, of which there are none
    state = train_alone(config, tmp_path / "run")
    assert int(state.step) == make_experiment(config).total_steps > 0
    assert np.isfinite(parameters(state)).all()
    written = (tmp_path / "run" / "config.json").read_text()
    for channels in (["actin", "dna"], ["dna", "tubulin"], ["dna"]):
        if len(channels) == 1:  # arrays of the checkpoint have another shape
            folder = write_dataset(tmp_path / "other", random_images(np.uint8, channels=1))
            config.data_dir = str(tmp_path / "other")
        name_channels(folder, channels)
        message = f"channels dna, actin .* has {', '.join(channels)}: .*--channels=dna,actin"
        with pytest.raises(BadUse, match=message):
            train_alone(config, tmp_path / "run")
        assert (tmp_path / "run" / "config.json").read_text() == written
