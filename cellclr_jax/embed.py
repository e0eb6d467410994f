"""Embeds the cells of a dataset by the encoder of a training run, into tables for other programs.

  python -m cellclr_jax.embed --workdir=RUN --out=DIR [--data_dir=DIR] [--dataset=NAME]
                              [--step=last|best|N] [--formats=parquet,csv,h5ad]
                              [--chunk_cells=50000] [--data_access=shards|mapped] [--overwrite]

The dataset is one that `python -m cellclr_jax.build` made; it need not be the run's, but has its
channels. Writes cells/part-00000.parquet and so on, wells.parquet and treatments.parquet if
wells and compounds are known, and embedding.json. If stopped, the same command resumes.
"""

from absl import flags

from cellclr_jax import cli
from cellclr_jax.errors import BadUse

FLAGS = flags.FLAGS

flags.DEFINE_string("workdir", None, "A training run's folder: its encoder is used.")
flags.DEFINE_string("step", "last", "Which checkpoint of --workdir: last, best or a number.")
flags.DEFINE_string("data_dir", None, "Folder of the dataset; by default that of the run's.")
flags.DEFINE_string(
    "dataset",
    None,
    "Its name: annotated, all or <builder>/<config>. By default the run's, or the only one that "
    "--data_dir has.",
)
flags.DEFINE_enum(
    "data_access",
    "shards",
    ["shards", "mapped"],
    "How images are read: shards, whatever the run used in training, since each is read once; "
    "mapped unpacks them all first, into a file of the dataset's folder.",
)
flags.DEFINE_string(
    "out",
    None,
    "Where to write. An existing embedding with the same settings is resumed, one with others is "
    "refused.",
)
flags.DEFINE_bool("overwrite", False, "Replaces an embedding with other settings.")
flags.DEFINE_list(
    "formats",
    ["parquet"],
    "How every table is written: parquet, which is written in any case; csv; h5ad (AnnData).",
)
flags.DEFINE_integer(
    "chunk_cells", 50_000, "Cells of a part: what is in memory, and lost when stopped.", 1
)
flags.DEFINE_bool(
    "distributed",
    False,
    "Joins the processes of several hosts, as in training; the first one writes.",
)


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
    embed_run(
        FLAGS.workdir,
        out=FLAGS.out,
        data_dir=FLAGS.data_dir,
        dataset=FLAGS.dataset,
        step=FLAGS.step,
        data_access=FLAGS.data_access,
        formats=FLAGS.formats,
        chunk_cells=FLAGS.chunk_cells,
        overwrite=FLAGS.overwrite,
    )


if __name__ == "__main__":
    cli.run(main, __doc__)
