"""Trains an encoder of cells without labels.

python -m cellclr_jax.main --config=configs/simclr.py [--workdir=DIR] [--config.a.b=value …]
                           [--compilation_cache=DIR|off] [--profile=STEPS] [--wandb=PROJECT]

Run again with the same work directory, it goes on from the newest checkpoint. Ctrl-C, SIGTERM
and SIGHUP save first. The settings are those of cellclr_jax/default_config.py.
"""

import sys

from cellclr_jax import cli, config_flag, train_flags
from cellclr_jax.startup.large_pages import STARTED


def main() -> None:
    """Reads the flags and trains."""
    config, workdir = config_flag.read_config(), train_flags.workdir()
    from cellclr_jax import sharding, train
    from cellclr_jax.loop.stop_signals import Interrupted
    from cellclr_jax.startup import compiled_programs

    if train_flags.DISTRIBUTED.value:
        sharding.join_processes()
    else:
        sharding.use_all_cores(config.micro_batch_size or config.minibatch_size)
    compiled_programs.keep_compiled_programs(train_flags.COMPILATION_CACHE.value)
    try:
        train.train(
            config,
            workdir,
            profile_steps=train_flags.PROFILE.value,
            wandb=train_flags.WANDB.value,
            began=STARTED,
        )
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.number)


if __name__ == "__main__":
    cli.run(main, __doc__)
