"""An objective with a teacher, labels, state and views of two sizes trains, resumes and logs."""

import json
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from support import tiny_run
from support.tiny_dataset import metadata, name_channels, random_images, write_dataset

from cellclr_jax import default_config, devices, objectives
from cellclr_jax.encoder.load import make_objective
from cellclr_jax.errors import BadUse
from cellclr_jax.objectives import Metric, Objective, Teacher, Views
from cellclr_jax.training import loop
from cellclr_jax.training.setup import compile_program, make_experiment


@dataclass(frozen=True)
class Distillation(Objective):
    """Student views approach the teacher's mean view; the state counts cells by compound."""

    strength: float = 0.5

    views: ClassVar = (Views(2), Views(3, scale=0.5))
    labels: ClassVar = ("compound",)
    teacher: ClassVar = Teacher(momentum=0.9)
    metrics: ClassVar = (Metric("distance", "squared distance to the teacher", better="lower"),)

    def init_state(self, key, labels):
        return {"seen": jnp.zeros(labels["compound"])}

    def loss(self, outputs, mesh):
        assert outputs.student.shape[0] == 5
        assert outputs.teacher.shape[0] == 2
        target = jnp.mean(outputs.teacher, axis=0, keepdims=True)
        distance = jnp.mean(jnp.square(outputs.student - target))
        seen = outputs.state["seen"].at[outputs.labels["compound"]].add(1.0)
        return self.strength * distance, ({"seen": seen}, {"distance": distance})


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    name_channels(write_dataset(folder, random_images(), columns=metadata()))
    return folder


@pytest.fixture
def config(data_dir, monkeypatch):
    monkeypatch.setitem(objectives.OBJECTIVES, "distillation", Distillation)
    config = tiny_run.get_config()
    config.update(data_dir=str(data_dir), dataset="single_cells/all", image_size=8)
    config.views = {"flip_horizontal": {"probability": 0.5}}
    config.model.cnn.widths = (8,)
    config.update(objective="distillation", epochs=2, minibatch_size=16)
    return config


def test_a_new_objective_brings_its_settings(config):
    assert default_config.get_config().distillation.strength == 0.5
    config.distillation.strength = 0.25
    assert make_objective(config) == Distillation(strength=0.25)


def first_step(config, number):
    """The first step on a number of devices: (state before, state after, metrics)."""
    experiment, mesh = make_experiment(config), devices.make_mesh(number)
    program, key = compile_program(experiment, mesh), devices.root_key(0, mesh)
    cells = experiment.encoder.cells.read(experiment.train_rows[: config.minibatch_size])
    state = program.init(key)
    before = jax.device_get(state)
    return before, *jax.device_get(program.step(state, devices.to_global(mesh, cells), key))


def test_a_step_updates_teacher_and_state_and_does_not_depend_on_devices(config):
    before, after, metrics = first_step(config, 1)
    student, teacher = before.params, before.teacher["params"]
    jax.tree.map(np.testing.assert_array_equal, teacher, student)
    assert {"loss", "distance", "embedding_spread"} <= metrics.keys()
    np.testing.assert_allclose(metrics["loss"], 0.5 * metrics["distance"], rtol=1e-6)
    assert float(jnp.sum(after.objective["seen"])) == config.minibatch_size
    moved = jax.tree.map(lambda t, s: 0.9 * t + 0.1 * s, teacher, after.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        after.teacher["params"],
        moved,
    )
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (student, moved)), strict=True))
    _, divided, _ = first_step(config, 8)
    for many, one in zip(*map(jax.tree.leaves, (divided, after)), strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-3, atol=2e-4)


def test_a_run_with_a_teacher_resumes_bit_for_bit_and_logs_its_metrics(config, tmp_path):
    config.checkpoint.save_every_steps = 2
    mesh = devices.make_mesh(1)
    whole = loop.train(config, tmp_path, mesh)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any("distance" in row for row in rows)
    assert not any("contrastive_accuracy" in row for row in rows)
    newest = max((tmp_path / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    newest.rename(tmp_path / "gone")
    again = loop.train(config, tmp_path, mesh)
    for leaves in zip(*(jax.tree.leaves(state) for state in (again, whole)), strict=True):
        np.testing.assert_array_equal(*jax.device_get(leaves))


def test_settings_of_an_unused_head_are_noted(config):
    mesh = devices.make_mesh(1)
    for name, noted in (("vicreg", True), ("nt_xent", False)):
        config.objective, config.vicreg.width = name, 16
        line = loop.describe(make_experiment(config), mesh, epath.Path("run"))
        assert ("note: config.model.head has no effect" in line) == noted
    config.objective, config.model.head = "vicreg", default_config.get_config().model.head
    assert "note" not in loop.describe(make_experiment(config), mesh, epath.Path("run"))


def test_unknown_objectives_and_settings_are_refused(config):
    config.objective = "simclr2"
    with pytest.raises(BadUse, match="choose one of nt_xent, vicreg"):
        make_objective(config)
    config.objective = "nt_xent"
    config.temperature = 0.0
    with pytest.raises(BadUse, match="temperature must be positive"):
        make_objective(config)


def test_missing_labels_are_named(config, monkeypatch):
    monkeypatch.setattr(Distillation, "labels", ("colour",))
    with pytest.raises(BadUse, match="needs labels 'colour': the dataset has"):
        make_experiment(config)
