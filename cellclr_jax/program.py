"""The compiled functions of a run."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from cellclr_jax import sharding
from cellclr_jax.experiment import Experiment
from cellclr_jax.train_step import Metrics, TrainState

# Of LLVM. Initial values are drawn once, with a hundred small loops that take longest to compile.
_COMPILED_QUICKLY = {"xla_backend_optimization_level": 1}


@dataclass(frozen=True)
class Program:
    """The compiled functions of a run.

    Attributes:
      init: key → state at step 0, on every device.
      step: (state, minibatch, key) → (state, metrics); the state is donated.
      validate: (state, minibatch, key) → metrics.
    """

    init: Callable[[jax.Array], TrainState]
    step: Callable[..., tuple[TrainState, Metrics]]
    validate: Callable[..., Metrics]


def compile_program(experiment: Experiment, mesh: Mesh) -> Program:
    """Wraps the pure functions of an experiment in `jit`, with their shardings over the mesh."""
    everywhere, rows = sharding.replicated(mesh), sharding.by_rows(mesh)
    step, validate = experiment.make_train_step(mesh), experiment.make_validation_step(mesh)
    inputs = (everywhere, rows, everywhere)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return Program(
        init=jax.jit(
            experiment.init,
            out_shardings=everywhere,
            compiler_options=_COMPILED_QUICKLY if on_cpu else None,
        ),
        step=jax.jit(
            step,
            in_shardings=inputs,
            out_shardings=everywhere,
            donate_argnums=0,
            compiler_options=experiment.compiler_options(mesh),
        ),
        validate=jax.jit(validate, in_shardings=inputs, out_shardings=everywhere),
    )


def state_template(experiment: Experiment, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, for which nothing is compiled."""
    everywhere = sharding.replicated(mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    template: TrainState = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(experiment.init, key),
    )
    return template


def root_key(seed: int, mesh: Mesh) -> jax.Array:
    """The key that all streams of a run are folded from, on every device of every process."""
    return jax.jit(lambda: jax.random.key(seed), out_shardings=sharding.replicated(mesh))()
