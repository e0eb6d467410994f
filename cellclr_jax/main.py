"""Trains an encoder of cells without labels.

python -m cellclr_jax.main --config=configs/simclr.py [--workdir=DIR] [--config.a.b=value …]
                           [--compilation_cache=DIR|off] [--profile=STEPS] [--wandb=PROJECT]

Run again with the same work directory, it resumes from the newest checkpoint. Ctrl-C, SIGTERM
and SIGHUP save first. The settings are those of cellclr_jax/default_config.py.
"""

import sys

from absl import flags

from cellclr_jax import cli
from cellclr_jax.cli import STARTED

cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Work directory; default: runs/<config's name>.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Joins the processes of a TPU pod slice, a Slurm job or several hosts."
)
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Where compiled programs are kept for the next start: a folder, or off; by default "
    "JAX_COMPILATION_CACHE_DIR, else ~/.cache/cellclr_jax/xla.",
)
PROFILE = flags.DEFINE_integer(
    "profile",
    0,
    "Traces so many steps, after the first few, into <workdir>/profile: 5 are plenty.",
    lower_bound=0,
)
WANDB = flags.DEFINE_string("wandb", None, "Also logs to this project of Weights & Biases.")


def workdir_flag() -> str:
    """Returns the work directory, by default named after the config's file."""
    return _WORKDIR.value or f"runs/{cli.config_name()}"


def main() -> None:
    """Reads the flags and trains."""
    config, workdir = cli.read_config(), workdir_flag()
    from cellclr_jax import devices
    from cellclr_jax.training import loop
    from cellclr_jax.training.stop_signals import Interrupted

    if DISTRIBUTED.value:
        devices.join_processes()
    else:
        devices.use_all_cores(config.micro_batch_size or config.minibatch_size)
    devices.keep_compiled_programs(COMPILATION_CACHE.value)
    try:
        loop.train(
            config,
            workdir,
            profile_steps=PROFILE.value,
            wandb=WANDB.value,
            began=STARTED,
        )
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.number)


if __name__ == "__main__":
    cli.run(main, __doc__)
