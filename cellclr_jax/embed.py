"""Embeds the cells of a dataset with the encoder of a training run, into tables.

  python -m cellclr_jax.embed --workdir=RUN --out=DIR [--data_dir=DIR] [--dataset=NAME]
                              [--step=last|best|N] [--formats=parquet,csv,h5ad]

The dataset was built by `python -m cellclr_jax.build` and has the same channels as that of the
run. Writes cells/part-00000.parquet and so on, wells.parquet and treatments.parquet if wells and
compounds are known, and embedding.json. If it was stopped, the same command resumes.
"""

from typing import Any

from absl import flags

from cellclr_jax import cli
from cellclr_jax.errors import BadUse

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "workdir", None, "Work directory of the training run, e.g. --workdir=runs/simclr; no default."
)
flags.DEFINE_string("step", "last", "Checkpoint of --workdir: last, best or a step number.")
flags.DEFINE_string("data_dir", None, "Folder of the dataset; by default that of the run.")
flags.DEFINE_string(
    "dataset",
    None,
    "Name of the dataset: annotated, all or <builder>/<config>, e.g. single_cells/all. By default "
    "that of the run, or the only one in --data_dir.",
)
flags.DEFINE_enum(
    "data_access",
    "shards",
    ["shards", "mapped"],
    "How images are read, whatever the run used: shards reads each image once from its shard; "
    "mapped first unpacks all of them into a file in the dataset's folder.",
)
flags.DEFINE_string(
    "out",
    None,
    "Folder of the tables; no default. An unfinished embedding with the same settings is resumed, "
    "one with other settings is an error.",
)
flags.DEFINE_bool("overwrite", False, "Replace an existing embedding that has other settings.")
flags.DEFINE_list(
    "formats",
    ["parquet"],
    "Formats of every table: parquet (always written), csv, h5ad (AnnData), "
    "e.g. --formats=csv,h5ad.",
)
flags.DEFINE_integer(
    "chunk_cells",
    50_000,
    "Cells per part: as many are in memory, and are embedded again after a stop.",
    lower_bound=1,
)
flags.DEFINE_bool(
    "distributed",
    False,
    "Embed as one of several processes, as in training; the first one writes.",
)
_HELP = {
    "Encoder": ("workdir", "step"),
    "Dataset": ("data_dir", "dataset", "data_access"),
    "Tables": ("out", "formats", "chunk_cells", "overwrite"),
    "Several machines": ("distributed",),
}


def main() -> None:
    """Embeds the dataset that the flags name."""
    for name in ("workdir", "out"):
        if not FLAGS[name].value:
            raise BadUse(f"--{name}=DIR was expected (see --help)")
    from cellclr_jax import devices
    from cellclr_jax.encoder.apply import MINIBATCH
    from cellclr_jax.encoder.embed_dataset import embed_run

    if FLAGS.distributed:
        devices.join_processes()
    else:
        devices.use_all_cores(MINIBATCH)
    devices.keep_compiled_programs(None)
    names = ("data_dir", "dataset", "step", "data_access", "formats", "chunk_cells", "overwrite")
    settings: dict[str, Any] = {name: FLAGS[name].value for name in names}
    embed_run(FLAGS.workdir, out=FLAGS.out, **settings)


if __name__ == "__main__":
    cli.run(main, __doc__, groups=_HELP)
