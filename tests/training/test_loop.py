"""A run learns, writes what it promises, and does not depend on devices, traces or the host."""

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


def test_a_run_learns_and_writes_what_it_promises(config, tmp_path, capsys):
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
    # Its cells and views are the same ones at every epoch.
    assert losses[-1] < losses[0] - 0.1
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 6
    assert list((tmp_path / "tensorboard").glob("events*"))
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as kept:
        assert kept.find("last") == experiment.total_steps
        best = 1 + int(np.argmin(losses))
        assert kept.find("best") == best * experiment.steps_per_epoch
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    told = capsys.readouterr().err
    assert "first step after" in told
    assert "traced steps 6 to 8: pip install xprof" in told


def test_devices_do_not_change_the_parameters(config, tmp_path):
    config.optimizer.name, config.optimizer.learning_rate = "lars", 0.3
    config.epochs = 1
    results = []
    for devices in (1, 4, 8):
        mesh = sharding.make_mesh(devices)
        results.append(parameters(loop.train(config, tmp_path / str(devices), mesh)))
    np.testing.assert_allclose(results[1], results[0], atol=1e-5)
    np.testing.assert_allclose(results[2], results[0], atol=1e-5)


def test_the_step_is_traced_once(config):
    experiment, mesh = make_experiment(config), sharding.make_mesh(1)
    compiled = setup.compile_program(experiment, mesh)
    key = sharding.root_key(0, mesh)
    state = compiled.init(key)
    for start in (0, 64, 128):
        cells = experiment.encoder.cells.read(experiment.train_rows[start : start + 64])
        state, _ = compiled.step(state, sharding.to_global(mesh, cells), key)
    assert compiled.step._cache_size() == 1


def test_the_loop_refuses_a_hidden_transfer(config, tmp_path, monkeypatch):
    def peeking(self, step, state, metrics, position):
        return metrics["loss"] + np.float32(1)

    monkeypatch.setattr(loop._Run, "_after_step", peeking)
    with pytest.raises(Exception, match="Disallowed host-to-device"):
        train_alone(config, tmp_path)


def test_metrics_are_fetched_once_an_interval_and_the_host_is_no_further_ahead_than_two_steps(
    config, tmp_path, monkeypatch
):
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
    # An epoch ends with a fetch; within it, the step that is two back is waited for.
    ends = range(steps, steps * config.epochs + 1, steps)
    assert waited == [step for end in ends for step in range(end - steps + 1, end - 1)]


@pytest.mark.parametrize(
    ("cells", "minibatch", "used"),
    [(511, 256, 480), (5000, 4096, 4608), (64, 256, 64), (7, 256, 7), (1, 256, 1), (0, 256, 0)],
)
def test_validation_uses_nearly_all_cells_whatever_the_devices(cells, minibatch, used):
    size = setup.validation_size(cells, minibatch, 1)
    assert size <= minibatch
    assert (cells // size * size if size else 0) == used
    if cells > 500:
        assert all(setup.validation_size(cells, minibatch, n) == size for n in (2, 4, 8))


@pytest.fixture
def breaking(monkeypatch):
    """Has a metric of a step, or of validation, be what no run survives."""
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


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(config, tmp_path, breaking):
    breaking("loss", 2)
    with pytest.raises(BadData, match=r"the loss became nan at step 2 .*none was saved yet"):
        train_alone(config, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("loss", np.nan), ("gradient_norm", np.inf), ("parameter_norm", np.nan)]
)
def test_nothing_that_is_not_finite_is_ever_saved(config, tmp_path, breaking, name, value):
    config.log_every = 100  # the step is looked at before a save, whenever rows are written
    config.checkpoint.save_every_steps = 2
    breaking(name, 5, value)
    told = rf"the {name.replace('_', ' ')} became {value} at step 5 \(epoch 2\); .* is of step 4 "
    with pytest.raises(BadData, match=told):
        train_alone(config, tmp_path)
    assert [path.name for path in checkpoints(tmp_path)][-1] == "4"
    assert all(row["step"] <= 4 for row in rows(tmp_path))


def test_a_validation_that_is_not_finite_saves_nothing_either(config, tmp_path, breaking):
    breaking("loss", 2, function="validate")
    with pytest.raises(BadData, match=r"validation loss became nan at step 6 .* is of step 3 "):
        train_alone(config, tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["3"]


def test_pixels_that_are_not_finite_are_noticed_at_once(own_images, tmp_path, monkeypatch):
    config, _ = own_images
    config.normalization.method = "percentile"
    config.normalization.percentiles = (0.0, 100.0)
    nothing = lambda cells, low, high: (np.full((len(cells.table), 2), np.nan, np.float32),) * 2  # noqa: E731
    monkeypatch.setattr("cellclr_jax.encoder.load.plate_percentiles", nothing)
    with pytest.raises(BadData, match=r"the loss became nan at step 1 .*none was saved yet"):
        train_alone(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"minibatch_size": 63}, "63 cells cannot be divided among 8 devices"),
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
    """A run of seconds on cells of two channels of which nothing is told, and their folder."""
    folder = write_dataset(tmp_path / "data", random_images(np.uint8, channels=2))
    name_channels(folder, ["dna", "actin"])
    config.update(data_dir=str(tmp_path / "data"), dataset="single_cells/all", minibatch_size=16)
    config.update(image_size=12, epochs=2, validation_fraction=0.3)
    config.views = {"flip_vertical": {"probability": 0.5}}  # programs of few parts compile fast
    config.model.cnn.widths = (8, 8)
    return config, folder


def name_channels(folder, channels):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["image"]["channels"] = channels
    path.write_text(json.dumps(manifest))


def test_cells_of_8_bits_and_two_channels_without_metadata_are_trained_on(own_images, tmp_path):
    config, _ = own_images
    config.normalization.method = "percentile"  # of the plates, of which there are none
    state = train_alone(config, tmp_path / "run")
    assert int(state.step) == make_experiment(config).total_steps > 0
    assert np.isfinite(parameters(state)).all()


def test_minibatches_of_validation_are_computed_one_at_a_time(own_images, tmp_path, monkeypatch):
    # Programs of many devices that run at once may wait for one another for ever.
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


@pytest.mark.parametrize("channels", [["actin", "dna"], ["dna", "tubulin"], ["dna"]])
def test_a_run_goes_on_with_its_own_channels_alone(own_images, tmp_path, channels):
    config, folder = own_images
    train_alone(config, tmp_path / "run")
    if len(channels) == 1:  # a number that the arrays of the checkpoint do not fit
        write_dataset(tmp_path / "other", random_images(np.uint8, channels=1))
        config.data_dir, folder = str(tmp_path / "other"), next((tmp_path / "other").glob("*/*/*"))
    name_channels(folder, channels)
    message = f"channels dna, actin .* has {', '.join(channels)}: .*--channels=dna,actin"
    written = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(BadUse, match=message):
        train_alone(config, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == written
