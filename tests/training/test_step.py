"""The training step gives the same result in micro-batches and on any number of devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from support import tiny_run, traced

from cellclr_jax import devices as sharding
from cellclr_jax.augment import make_views, two_views, view_keys
from cellclr_jax.devices import stream
from cellclr_jax.encoder.load import init_variables
from cellclr_jax.encoder.preprocessing import Preprocessing
from cellclr_jax.models import make_model
from cellclr_jax.objectives import nt_xent
from cellclr_jax.training.setup import compile_program, make_experiment
from cellclr_jax.training.step import (
    Learner,
    init_state,
    make_train_step,
    make_validation_step,
    value_and_grad,
)

CELLS, SIDE, WIDTH = 64, 16, 16
VIEWS = {"flip_horizontal": {"probability": 0.5}, "flip_vertical": {"probability": 0.5}}
# Of LLVM: compiling takes longer than these programs run.
QUICK = {"xla_backend_optimization_level": 0}


def small_model(norm, *, dtype="float32", remat=False, widths=(8, 8)):
    return make_model(
        "cnn",
        dtype=dtype,
        remat=remat,
        encoder_settings={"widths": widths, "norm": norm},
        head_settings={"width": WIDTH, "norm": norm},
    )


# The identity.
RAW = Preprocessing(SIDE, method="fixed", low=(0.0,) * 3, high=(1.0,) * 3)
GOAL = nt_xent.NTXent(temperature=0.2, loss_block_size=64)


def learner(norm="none", **settings):
    settings = {"model": small_model(norm), "objective": GOAL} | settings
    return Learner(preprocessing=RAW, augmentations=VIEWS, **settings)


def first_state(goal, optimizer):
    key = jax.random.key(0)
    start = init_variables(goal.model, key, (SIDE, SIDE, 3))
    return init_state(goal, start, optimizer, key)


@functools.cache
def minibatch(cells=CELLS):
    images = np.random.default_rng(0).normal(size=(cells, SIDE, SIDE, 3))
    return {"image": images.astype(np.float32)}


def over(mesh, function):
    """`jit` of a function of (replicated, by rows, replicated) to replicated results."""
    everywhere, rows = sharding.replicated(mesh), sharding.by_rows(mesh)
    return jax.jit(
        function,
        in_shardings=(everywhere, rows, everywhere),
        out_shardings=everywhere,
        compiler_options=QUICK,
    )


@functools.cache
def gradient(norm, devices, micro_batch_size):
    """(metrics, gradient, running statistics) of the minibatch, on the host."""
    mesh = sharding.make_mesh(devices)
    goal = learner(norm, micro_batch_size=micro_batch_size, mesh=mesh)
    state = first_state(goal, optax.sgd(0.1))
    start, key = jax.device_put((state, jax.random.key(1)), sharding.replicated(mesh))
    cells = sharding.to_global(mesh, minibatch())
    found = over(mesh, functools.partial(value_and_grad, goal))(start, cells, key)
    return jax.device_get(found[:3])


def relative_error(found, expected):
    """Norm of the difference of two trees, divided by the norm of the second."""
    difference = jax.tree.map(np.subtract, found, expected)
    return float(optax.tree.norm(difference) / optax.tree.norm(expected))


# Of the sums; eight devices without micro-batches differ from one device by as much.
ROUNDING = 4e-6


def test_neither_micro_batches_nor_devices_change_the_gradient():
    metrics, found, _ = gradient("none", 8, 16)
    expected_metrics, expected, _ = gradient("none", 1, None)
    assert relative_error(found, expected) < ROUNDING
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, atol=1e-6)


def test_batch_normalisation_sees_the_same_micro_batches_on_all_devices():
    found, expected = gradient("batch", 8, 16), gradient("batch", 1, 16)
    # Features that hardly vary are divided by a small standard deviation.
    assert relative_error(found[1], expected[1]) < 1e-3
    for statistics in zip(*(jax.tree.leaves(g[2]) for g in (found, expected)), strict=True):
        np.testing.assert_allclose(*statistics, atol=1e-6)


def naive_with_batch_statistics(goal, pieces):
    """Loss, gradient and statistics by one differentiation through all micro-batches."""
    start = first_state(goal, optax.sgd(0.1)).variables
    views = two_views(jax.random.key(1), jnp.asarray(minibatch()["image"]), VIEWS)

    def whole(params):
        projections, statistics = [], []
        for i in range(pieces):
            images = views[i::pieces].reshape(-1, *views.shape[2:])
            (_, z), updated = goal.model.apply(
                {**start, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            projections.append(z.reshape(-1, 2, WIDTH))
            statistics.append(updated["batch_stats"])
        z = jnp.concatenate(projections)
        mean = jax.tree.map(lambda *s: sum(s) / pieces, *statistics)
        return nt_xent.nt_xent(z[:, 0], z[:, 1], goal.objective.temperature), mean

    compiled = jax.jit(jax.value_and_grad(whole, has_aux=True), compiler_options=QUICK)
    (value, statistics), expected = compiled(start["params"])
    return value, expected, statistics


def test_a_micro_batch_has_its_own_statistics_and_the_running_ones_move_by_their_mean():
    value, expected, statistics = naive_with_batch_statistics(learner("batch"), 4)
    metrics, found, found_statistics = gradient("batch", 1, 16)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    assert relative_error(found, expected) < 1e-4
    assert relative_error(found_statistics, statistics) < 1e-6


def test_the_views_of_a_cell_do_not_depend_on_other_cells():
    key, images = jax.random.key(1), jnp.asarray(minibatch()["image"])
    views = two_views(key, images, VIEWS)
    part = make_views(view_keys(key, CELLS)[3::4], images[3::4], VIEWS)
    np.testing.assert_array_equal(part, views[3::4])


def test_validation_is_the_same_in_micro_batches():
    cells = 48  # no multiple of the micro-batch's size
    state = first_state(learner("batch"), optax.sgd(0.1))
    found = []
    for devices, size in ((1, None), (8, 40)):
        mesh = sharding.make_mesh(devices)
        goal = learner("batch", micro_batch_size=size, mesh=mesh)
        validate = over(mesh, make_validation_step(goal))
        placed = jax.device_put((state, jax.random.key(2)), sharding.replicated(mesh))
        rows = sharding.to_global(mesh, minibatch(cells))
        found.append(jax.device_get(validate(placed[0], rows, placed[1])))
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-6, atol=1e-6)


def compiled_step(goal, cells=CELLS):
    """The step's executable."""
    optimizer, mesh = optax.sgd(0.1), goal.mesh or sharding.make_mesh(1)
    key = jax.eval_shape(lambda: jax.random.key(0))
    start = functools.partial(first_state, goal, optimizer)
    rows = {"image": jax.ShapeDtypeStruct((cells, SIDE, SIDE, 3), jnp.float32)}
    step = over(mesh, make_train_step(goal, optimizer, lambda step: 0.1))
    return step.lower(jax.eval_shape(start), rows, key).compile()


def test_no_image_is_sent_to_another_device():
    goal = learner("batch", micro_batch_size=16, mesh=sharding.make_mesh(8))
    program = compiled_step(goal).as_text()
    assert not re.search(r" (all-to-all|collective-permute)(-start)?\(", program)
    gathered = re.findall(r"= (.*) all-gather(?:-start)?\(", program)
    sizes = [
        np.prod([int(n) for n in shape.split(",") if n])
        for result in gathered
        for shape in re.findall(r"\[([\d,]*)\]", result)
    ]
    assert sizes
    assert max(sizes) <= CELLS * 2 * WIDTH < CELLS * SIDE * SIDE * 3


def temporaries(goal, cells):
    return compiled_step(goal, cells).memory_analysis().temp_size_in_bytes


def test_4096_cells_train_in_the_memory_of_256():
    small = temporaries(learner("batch"), 256)
    large = temporaries(learner("batch", micro_batch_size=256), 4096)
    projections = 4096 * 2 * WIDTH * 4
    tiles = 4096 * 2 * 64 * 4  # of the loss: all rows against a block of columns
    assert large < 1.3 * small + 8 * projections + 2 * tiles < 4 * small


def test_rematerialisation_takes_less_memory_and_gives_the_same_step(data_dir):
    config = tiny_run.get_config()
    config.update(data_dir=str(data_dir), image_size=24, operations=("flip_horizontal",))
    mesh = sharding.make_mesh(1)
    memory, results = [], []
    for remat in (False, True):
        config.model.remat = remat
        experiment = make_experiment(config)
        cells = sharding.to_global(mesh, experiment.encoder.cells.read(experiment.train_rows[:64]))
        key, program = sharding.root_key(0, mesh), compile_program(experiment, mesh)
        state = program.init(key)
        step = program.step.lower(state, cells, key).compile()
        memory.append(step.memory_analysis().temp_size_in_bytes)
        results.append(jax.device_get(step(state, cells, key)))
    assert memory[1] < 0.9 * memory[0]
    (plain, metrics), (again, metrics_again) = results
    assert relative_error(again.params, plain.params) < 1e-6
    assert relative_error(again.batch_stats, plain.batch_stats) < 1e-6
    np.testing.assert_allclose(metrics_again["loss"], metrics["loss"], rtol=1e-6)


BFLOAT16 = {"model": small_model("batch", dtype="bfloat16"), "micro_batch_size": 16}


def test_a_step_too_small_for_bfloat16_is_not_lost():
    goal, key, tiny = learner(**BFLOAT16), jax.random.key(0), optax.adam(1e-5)
    step = over(sharding.make_mesh(1), make_train_step(goal, tiny, lambda step: 1e-5))
    before = first_state(goal, tiny)
    after, _ = step(before, minibatch(), key)
    kernel, moved = (state.params["head"]["l1"]["kernel"] for state in (before, after))
    assert 0 < np.max(np.abs(moved - kernel)) < 2.0**-9 * np.max(np.abs(kernel))
    for leaf in jax.tree.leaves(after.batch_stats):
        assert np.any(leaf != leaf.astype(jnp.bfloat16).astype(jnp.float32))


def test_loss_statistics_and_update_are_computed_in_float32():
    goal, optimizer, key = learner(**BFLOAT16), optax.adamw(0.1), jax.random.key(0)
    state = first_state(goal, optimizer)
    step = make_train_step(goal, optimizer, lambda step: 0.1)
    found = list(traced.operations(jax.make_jaxpr(step)(state, minibatch(), key).jaxpr))
    # The loss takes exponentials and logarithms; statistics, norms and the optimiser take roots.
    fine = {dtype for name, dtype in found if name in ("exp", "log", "rsqrt", "sqrt")}
    assert fine == {jnp.dtype(jnp.float32)}
    convolutions = {dtype for name, dtype in found if name == "conv_general_dilated"}
    assert convolutions == {jnp.dtype(jnp.bfloat16)}


def test_metrics_contain_norms_and_the_spread_of_all_cells():
    goal, key = learner(micro_batch_size=16), jax.random.key(1)
    rate = optax.linear_schedule(0.1, 0.3, 2)
    state = first_state(goal, optax.sgd(rate))
    step = over(sharding.make_mesh(1), make_train_step(goal, optax.sgd(rate), rate))
    after, metrics = jax.device_get(step(state, minibatch(), key))
    views = two_views(stream(key, "augment", 0), jnp.asarray(minibatch()["image"]), VIEWS)
    embeddings = goal.model.apply(
        state.variables, views.reshape(-1, SIDE, SIDE, 3), method=goal.model.embed
    )
    spread = np.mean(np.std(embeddings, axis=0))
    np.testing.assert_allclose(metrics["embedding_spread"], spread, rtol=1e-4)
    np.testing.assert_allclose(metrics["update_norm"], 0.1 * metrics["gradient_norm"], rtol=1e-5)
    norm = np.sqrt(sum(np.sum(leaf.astype(float) ** 2) for leaf in jax.tree.leaves(after.params)))
    np.testing.assert_allclose(metrics["parameter_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["lr"], 0.1, rtol=1e-6)
    _, metrics = jax.device_get(step(after, minibatch(), key))
    np.testing.assert_allclose(metrics["lr"], 0.2, rtol=1e-6)
    np.testing.assert_allclose(metrics["update_norm"], 0.2 * metrics["gradient_norm"], rtol=1e-5)
