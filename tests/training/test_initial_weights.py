"""A run starts from the encoder of another run or from random weights; errors are explained."""

import shutil
from pathlib import Path

import jax
import pytest
from support import tiny_run
from support.training_runs import same

from cellclr_jax import devices
from cellclr_jax.data import minibatches
from cellclr_jax.encoder.apply import restore
from cellclr_jax.errors import BadUse
from cellclr_jax.objectives import Teacher
from cellclr_jax.objectives.nt_xent import NTXent
from cellclr_jax.training import loop, setup
from cellclr_jax.training.initial_weights import read_initial_weights
from cellclr_jax.training.setup import make_experiment


@pytest.fixture(scope="module")
def other(data_dir, tmp_path_factory):
    """A finished run of another seed, and its last state."""
    config = tiny_run.get_config()
    config.update(data_dir=str(data_dir), epochs=1, seed=7)
    folder = tmp_path_factory.mktemp("other")
    return folder, loop.train(config, folder, devices.make_mesh(1))


@pytest.fixture
def config(data_dir, other):
    config = tiny_run.get_config()
    config.update(data_dir=str(data_dir), epochs=1)
    config.init.workdir = str(other[0])
    return config


@pytest.fixture(scope="module")
def started(data_dir, other, tmp_path_factory):
    """(config, folder, last state) of a run that started from a copy of the other one."""
    folder = tmp_path_factory.mktemp("started")
    shutil.copytree(other[0], folder / "source")
    config = tiny_run.get_config()
    config.update(data_dir=str(data_dir), epochs=1)
    config.init.workdir = str(folder / "source")
    return config, folder / "run", loop.train(config, folder / "run", devices.make_mesh(1))


def first_state(config, workdir):
    """The state that a run of this config starts from."""
    found = []

    class Seen(Exception):
        pass

    def go(self, *_):
        found.append(self._start()[0])
        raise Seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "go", go)
        with pytest.raises(Seen):
            loop.train(config, workdir, devices.make_mesh(1))
    return found[0]


def test_a_run_starts_from_the_encoder_of_another(config, other, tmp_path):
    source = other[1]
    config.model.head.width = 24  # the head may differ
    state = first_state(config, tmp_path)
    assert same(state.params["encoder"], source.params["encoder"])
    assert same(state.batch_stats["encoder"], source.batch_stats["encoder"])
    assert state.params["head"]["l2"]["kernel"].shape == (8, 24)
    assert int(state.step) == 0


def test_the_head_is_used_if_requested(config, other, tmp_path):
    without = first_state(config, tmp_path / "without")
    config.init.head = True
    with_head = first_state(config, tmp_path / "with")
    assert same(with_head.params, other[1].params)
    assert not same(without.params["head"], other[1].params["head"])


def test_a_teacher_starts_from_the_same_weights(config, other, tmp_path, monkeypatch):
    monkeypatch.setattr(NTXent, "teacher", Teacher())
    state = first_state(config, tmp_path)
    assert same(state.teacher, state.variables)
    assert same(state.teacher["params"]["encoder"], other[1].params["encoder"])


def test_a_resumed_run_does_not_read_initial_weights_again(started, tmp_path):
    config, folder, finished = started
    shutil.copytree(folder, tmp_path / "run")
    assert same(first_state(config, tmp_path / "run").params, finished.params)


def test_the_untrained_baseline_of_an_evaluation_has_the_initial_weights(started, other):
    config, folder, _ = started
    encoding, mesh = make_experiment(config).encoder, devices.make_mesh(1)
    _, variables, _ = restore(folder, "last", encoding, mesh)
    assert same(variables["untrained"]["params"]["encoder"], other[1].params["encoder"])
    assert not same(variables["trained"]["params"]["encoder"], other[1].params["encoder"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init.workdir": "/nowhere"}, r"config\.init\.workdir: no checkpoint in /nowhere/check.*"
         r"cellclr_jax\.convert --input=FILE --workdir=/nowhere, .*start from random"),
        ({"model.encoder": "resnet18"}, r"holds a cnn, but config\.model\.encoder is resnet18"),
        ({"init.step": "99"}, "no checkpoint of step '99'"),
        ({"model.cnn.widths": (8, 16)}, r"another model .*other shapes: params/encoder/bn2/bias"),
        ({"init.head": True, "model.head.width": 24}, r"head/l2/bias.*: config.model must equal .*"
         r"--config.init.head=False uses only its encoder"),
        ({"model.cnn.norm": "none"}, "another model .*it also has batch_stats/encoder|it lacks"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(config, tmp_path, change, message):
    config.update_from_flattened_dict(change)
    with pytest.raises(BadUse, match=message):
        loop.train(config, tmp_path / "run", devices.make_mesh(1))
    assert not (tmp_path / "run").exists()


def test_channels_of_another_order_are_refused(config, other):
    cells = minibatches.open_cells(config.data_dir, config.dataset)
    cells.manifest["image"]["channels"].reverse()
    made = make_experiment(config)
    variables = setup.state_template(made, devices.make_mesh(1)).variables
    with pytest.raises(BadUse, match="was trained on the channels"):
        read_initial_weights(config.init, "cnn", variables, cells)


def test_a_start_that_was_replaced_or_deleted_is_reported(started, capsys):
    config, folder, _ = started
    source = Path(config.init.workdir)
    shutil.rmtree(source)
    shutil.copytree(folder, source)  # of the same step, with other weights
    encoding, mesh = make_experiment(config).encoder, devices.make_mesh(1)
    random = jax.jit(encoding.init_variables)(devices.root_key(config.seed, mesh))
    for reported in ("holds other weights now", "no checkpoint in"):
        capsys.readouterr()
        _, variables, _ = restore(folder, "last", encoding, mesh)
        assert reported in capsys.readouterr().err
        assert same(variables["untrained"]["params"], random["params"])
        shutil.rmtree(source, ignore_errors=True)
