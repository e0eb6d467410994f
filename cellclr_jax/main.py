"""Trains an encoder of cells without labels.

python -m cellclr_jax.main --config=configs/simclr.py [--workdir=DIR] [--config.a.b=value …]

Run again with the same work directory, it goes on from the newest checkpoint.
"""

import sys
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from cellclr_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file in configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Work directory; default: runs/<config's name>.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Joins the processes of a TPU pod slice, a Slurm job or several hosts."
)


def main() -> None:
    """Reads the flags and trains."""
    config, name = _config()
    from cellclr_jax import sharding, train

    if _DISTRIBUTED.value:
        sharding.join_processes()
    else:
        sharding.use_all_cores(config.minibatch_size)
    try:
        train.train(config, _WORKDIR.value or f"runs/{name}")
    except train.Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + 15)


def _config() -> tuple[ml_collections.ConfigDict, str]:
    """The config that the flags describe, and the name of its file."""
    config = _CONFIG.value
    if config is None:
        raise cli.BadUse("--config is missing, e.g. --config=configs/simclr_demo.py")
    try:
        config.lock()
    except OSError as error:  # ml_collections keeps what loading raised until the first use
        reason = str(error.__cause__ or error).strip().splitlines()[-1].strip()
        raise cli.BadUse(f"--config cannot be loaded: {reason}") from error
    return config, Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


if __name__ == "__main__":
    cli.run(main, __doc__)
