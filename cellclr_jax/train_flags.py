"""The flags of the training binary. Imports nothing heavy."""

from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from cellclr_jax.cli import BadUse

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file in configs/.")
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
WANDB = flags.DEFINE_string("wandb", None, "A project of Weights & Biases that is told as well.")


def read_config() -> ml_collections.ConfigDict:
    """The config that the flags describe.

    Raises:
      BadUse: there is none, or it cannot be loaded.
    """
    config = _CONFIG.value
    if config is None:
        raise BadUse("--config is missing, e.g. --config=configs/simclr_demo.py")
    try:
        config.lock()
    except OSError as error:  # ml_collections keeps what loading raised until the first use
        reason = str(error.__cause__ or error).strip().splitlines()[-1].strip()
        raise BadUse(f"--config cannot be loaded: {reason}") from error
    return config


def workdir() -> str:
    """The work directory, named after the config's file where no flag names it."""
    stem = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    return _WORKDIR.value or f"runs/{stem}"
