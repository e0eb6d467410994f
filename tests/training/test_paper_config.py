"""The published recipe: its settings, the switch of each quirk, and their effect on the step."""

import runpy
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from cellclr_jax import devices
from cellclr_jax.augment import make_views, resize_all, view_keys
from cellclr_jax.encoder.preprocessing import normalized, preprocess
from cellclr_jax.errors import BadUse
from cellclr_jax.training import optimizers
from cellclr_jax.training.loop import describe
from cellclr_jax.training.setup import make_experiment
from cellclr_jax.training.step import views_of

CONFIGS = Path(__file__).parents[2] / "configs"


def recipe(name="simclr_paper", encoder="cnn"):
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](encoder)


@pytest.fixture(scope="module")
def experiment(data_dir):
    """The recipe on small images of the tests' dataset; experiments are shared by the tests."""
    experiments = {}

    def make(name="simclr_paper", **changes):
        key = name, repr(changes)
        if key not in experiments:
            config = recipe(name)
            config.update(data_dir=str(data_dir), image_size=16, minibatch_size=16, epochs=12)
            config.update_from_flattened_dict(changes)
            experiments[key] = make_experiment(config)
        return experiments[key]

    return make


def minibatch(made, count=4):
    return {name: v[:count] for name, v in made.encoder.cells.read(made.train_rows[:count]).items()}


def test_the_recipe_is_the_published_one():
    config = recipe(encoder="resnet50")
    assert (config.minibatch_size, config.epochs, config.temperature) == (256, 600, 0.1)
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("adam", 3e-4)
    assert (config.optimizer.weight_decay, config.optimizer.decayed) == (1e-5, "all")
    assert (config.model.head.depth, config.model.head.width, config.model.head.norm) == (
        2, 256, "none",
    )  # fmt: skip
    assert config.init.workdir == "weights/resnet50"
    small = recipe(encoder="cnn")
    assert (small.model.head.width, small.init.workdir) == (64, "")
    assert (small.model.cnn.widths, small.model.cnn.norm) == ((16, 32, 64, 64), "none")
    assert config.evaluation.regularization == 1
    assert not config.evaluation.relative_regularization
    with pytest.raises(ValueError, match="unknown encoder 'vit'"):
        recipe(encoder="vit")


def test_the_input_has_inverted_standardised_8_bit_levels(experiment):
    made = experiment()
    cells = minibatch(made)
    images = np.asarray(normalized(cells, made.encoder.preprocessing))
    levels = np.round(images * 255)
    np.testing.assert_allclose(images * 255, levels, atol=1e-3)
    plain = experiment(**{"normalization.legacy_invert": False})
    np.testing.assert_allclose(
        levels, (256 - np.round(255 * normalized(cells, plain.encoder.preprocessing))) % 256, atol=1
    )
    mean, deviation = (np.array(made.config.normalization[n]) for n in ("mean", "deviation"))
    same_side = replace(made.encoder.preprocessing, size=images.shape[1])
    np.testing.assert_allclose(
        preprocess(cells, same_side), (images - mean) / deviation, rtol=1e-4, atol=1e-5
    )


def test_views_are_standardised_last(experiment):
    learner = experiment(operations=("flip_horizontal",)).learner()
    cells, keys = minibatch(experiment()), view_keys(jax.random.key(3), 4)
    settings = learner.preprocessing
    images = resize_all(normalized(cells, settings), settings.size)
    views = np.asarray(make_views(keys, images, learner.augmentations))
    expected = (views - np.array(settings.mean)) / np.array(settings.deviation)
    assert not np.allclose(expected, views)
    found = views_of(learner, cells, keys, learner.objective.views[0])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_learning_rate_changes_by_epochs_unless_turned_off(experiment):
    made = experiment()
    legacy = optimizers.legacy_cosine(
        3e-4, steps_per_epoch=made.steps_per_epoch, constant_epochs=10
    )
    for step in range(made.total_steps):
        assert float(made.schedule(step)) == float(legacy(step))
    corrected = experiment(**{"schedule.legacy_per_epoch": False})
    assert float(corrected.schedule(10 * made.steps_per_epoch)) == pytest.approx(3e-4)
    assert float(corrected.schedule(made.total_steps)) == pytest.approx(0, abs=1e-9)
    with pytest.raises(BadUse, match="legacy_per_epoch is a cosine without warm-up"):
        experiment(**{"schedule.warmup_epochs": 1.0})


def test_a_cosine_that_rises_again_is_noted(experiment):
    mesh = devices.make_mesh(1)
    assert "rises again" not in describe(experiment(epochs=12), mesh, Path("run"))
    longer = experiment(epochs=100)
    assert f"rises again after {longer.steps_per_epoch} epochs" in describe(longer, mesh, Path("r"))


def test_weighted_sampling_and_fewer_controls_shorten_an_epoch(experiment):
    everything = experiment()
    weighted = experiment(sampling="weighted")
    assert weighted.steps_per_epoch < everything.steps_per_epoch
    without = experiment(control_fraction=0.0)
    compounds = without.encoder.cells.table["compound"].to_numpy()
    assert "DMSO" in compounds
    assert "DMSO" not in compounds[without.train_rows]
    assert "DMSO" not in compounds[without.validation_rows]


def test_operations_name_the_applied_augmentations(experiment):
    made = experiment(operations=("flip_horizontal",))
    assert list(made.augmentations) == ["flip_horizontal"]
    learner, keys = made.learner(), view_keys(jax.random.key(0), 4)
    views = views_of(learner, minibatch(made), keys, learner.objective.views[0])
    assert views.shape[2:4] == (16, 16)  # images are resized if no operation crops
    with pytest.raises(BadUse, match=r"config.operations: 'shear' is not in config.views"):
        experiment(operations=("shear",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluation.standardize": "often"}, "standardize 'often'"),
        ({"evaluation.corrections": ("tvn",)}, "corrections tvn"),
        ({"schedule.hold_epochs": 10.6}, "hold_epochs is 10.6, no integer"),
        ({"normalization.mean": (float("inf"), 0.0, 0.0)}, "mean .* finite numbers"),
        ({"normalization.bits": 7}, "bits is 7: 0 or 8"),
        ({"normalization.bits": 0}, "legacy_invert is defined on 256 levels"),
        ({"normalization.mean": (0.5,)}, "need 3 numbers"),
        (
            {"normalization.method": "zscore", "normalization.bits": 0}
            | {"normalization.legacy_invert": False, "operations": ("flip_horizontal",)},
            "after a zscore they are 0 and 1: leave them empty",
        ),
        ({"normalization.deviation": (0.1, 0.0, 0.1)}, "numbers above 0"),
        ({"control_fraction": -0.5}, "control_fraction is -0.5"),
        ({"optimizer.decayed": "some"}, "unknown decayed 'some'"),
    ],
)
def test_wrong_settings_are_named(experiment, change, message):
    with pytest.raises(BadUse, match=message):
        experiment(**change)


def test_the_corrected_recipe_has_none_of_the_quirks(experiment):
    made = experiment("simclr_paper_corrected")
    config = made.config
    assert not config.normalization.legacy_invert
    assert not config.schedule.legacy_per_epoch
    assert config.optimizer.decayed == "kernels"
    assert config.views.elastic.get("affine", 0.0) == 0
    assert config.evaluation.standardize == "controls"
    settings = made.encoder.preprocessing
    cells = minibatch(made)
    side = cells["image"].shape[1]
    images = np.asarray(preprocess(cells, replace(settings, size=side)))
    np.testing.assert_allclose(images.mean((1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(images.std((1, 2)), 1, atol=1e-3)
    # All other settings are equal.
    published, corrected = (recipe(name) for name in ("simclr_paper", "simclr_paper_corrected"))
    for name in ("temperature", "minibatch_size", "epochs", "model", "sampling", "init"):
        assert corrected[name] == published[name]
    assert corrected.views.random_resized_crop == published.views.random_resized_crop
