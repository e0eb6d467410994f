"""The flag that names an experiment, and the config that it and its overrides give."""

from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from cellclr_jax.cli import BadUse

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file in configs/.")


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


def config_name() -> str:
    """The name of the config's file, without its ending."""
    return Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
