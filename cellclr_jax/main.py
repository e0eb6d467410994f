"""Trains an encoder of single-cell images without labels.

  python -m cellclr_jax.main --config=configs/simclr.py [--workdir=DIR] [--config.a.b=value …]

If the work directory has checkpoints, training resumes from the newest one. Ctrl-C, SIGTERM and
SIGHUP (a closed terminal) save a checkpoint before the program ends.

Any setting can be changed by --config.NAME=VALUE; cellclr_jax/default_config.py lists all of them.
The most used ones with their defaults, some of which the files in configs/ change:
  --config.data_dir=data               folder of the dataset, --data_dir of cellclr_jax.build
  --config.dataset=annotated           or all; <builder>/<config> for images of your own
  --config.model.encoder=resnet50      cnn, resnet18, resnet50 or resnet101
  --config.model.dtype=float32         bfloat16 is faster on TPUs and recent GPUs
  --config.init.workdir=               work directory whose encoder training starts from
  --config.objective=nt_xent           or vicreg
  --config.temperature=0.1             of nt_xent
  --config.image_size=96               side of the encoder's input in pixels
  --config.minibatch_size=4096         cells per step
  --config.micro_batch_size=0          smaller if memory runs out, e.g. 256; 0 is the minibatch
  --config.epochs=400
  --config.optimizer.name=lars         adam, adamw, lars or sgd
  --config.optimizer.learning_rate=0.3
  --config.schedule.warmup_epochs=10.0
  --config.online.every_epochs=0       scores NSC, NSCB and k-NN every N epochs; 0: never
  --config.seed=0
"""

import sys

from absl import flags

from cellclr_jax import cli

FLAGS = flags.FLAGS

cli.define_config()
flags.DEFINE_string(
    "workdir",
    None,
    "Work directory for checkpoints, metrics and logs: a folder or a bucket (gs://…). By default "
    "runs/<name of the config's file>.",
)
flags.DEFINE_bool(
    "distributed",
    False,
    "Train as one of several processes: of a TPU pod slice, a Slurm or Open MPI job, or of hosts "
    "with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
)
flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder that stores compiled programs for the next start, or off. By default "
    "JAX_COMPILATION_CACHE_DIR, else ~/.cache/cellclr_jax/xla.",
)
flags.DEFINE_integer(
    "profile",
    0,
    "Number of steps to trace with JAX's profiler into <workdir>/profile, after the first few "
    "steps, e.g. --profile=5; 0: none.",
    lower_bound=0,
)
flags.DEFINE_string(
    "wandb",
    None,
    "Project of Weights & Biases that also gets the metrics, e.g. --wandb=cells; default: none.",
)
_HELP = {
    "What to train, and where": ("config", "workdir"),
    "Several machines": ("distributed",),
    "Logs, profiles and compiled programs": ("wandb", "profile", "compilation_cache"),
}


def main() -> None:
    """Reads the flags and trains."""
    config = cli.read_config()
    workdir = FLAGS.workdir or f"runs/{cli.config_name()}"
    from cellclr_jax import devices
    from cellclr_jax.training import loop

    if FLAGS.distributed:
        devices.join_processes()
    else:
        devices.use_all_cores(config.micro_batch_size or config.minibatch_size)
    devices.keep_compiled_programs(FLAGS.compilation_cache)
    try:
        loop.train(
            config, workdir, profile_steps=FLAGS.profile, wandb=FLAGS.wandb, began=cli.STARTED
        )
    except loop.Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.number)


if __name__ == "__main__":
    cli.run(main, __doc__, groups=_HELP)
