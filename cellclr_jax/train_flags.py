"""The flags of the training binary. Imports nothing heavy."""

from absl import flags

from cellclr_jax import config_flag

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


def workdir() -> str:
    """The work directory, named after the config's file where no flag names it."""
    return _WORKDIR.value or f"runs/{config_flag.config_name()}"
