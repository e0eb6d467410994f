"""Scores profiles by mechanism of action (NSC, NSCB, and the drop between them), cells by class.

The model of a training run, on the cells of its data set: treatments where it has plates, wells,
compounds and MoAs; single cells where it has labels, or no treatments:
  python -m cellclr_jax.eval --workdir=DIR [--step=last|best|N] [--data_dir=DIR] [--out=DIR]
                             [--data_access=shards|memory|mapped]

Any table of well profiles (CSV, gzipped CSV, Parquet):
  python -m cellclr_jax.eval --profiles=FILE [--image_csv=F --moa_csv=F]
                             [--standardize=none|controls|plates] --out=DIR

Writes metrics.json and report.html; of profiles wells.parquet, treatments.parquet, neighbours.csv
and figures, of single cells cells.parquet. An evaluation with other settings that is there is kept.
"""

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from absl import flags

from cellclr_jax import cli

if TYPE_CHECKING:
    import pandas as pd

    from cellclr_jax.profiling.protocol import Protocol

FLAGS = flags.FLAGS

flags.DEFINE_string("workdir", None, "A training run's folder: evaluate its model.")
flags.DEFINE_string("step", "last", "Which checkpoint of --workdir: last, best or a number.")
flags.DEFINE_string("data_dir", None, "Where the data set is; by default where the run had it.")
flags.DEFINE_enum(
    "data_access",
    "shards",
    ["shards", "memory", "mapped"],
    "How images are read: shards, whatever the run used in training, since each is read once; "
    "memory unpacks them all first, mapped into a file of the data set's folder.",
)
flags.DEFINE_bool("distributed", False, "Joins the processes of several hosts, as in training.")
flags.DEFINE_string("profiles", None, "A table of profiles: .csv, .csv.gz or .parquet.")
flags.DEFINE_string("image_csv", None, "Gives each well of --profiles its compound and dose.")
flags.DEFINE_string("moa_csv", None, "Gives each compound and dose of --profiles its mechanism.")
flags.DEFINE_string(
    "out",
    None,
    "Where to write; by default <workdir>/eval/<step>. An evaluation that is there is replaced by "
    "one with the same settings, and kept in earlier/<number> beside one with others.",
)
flags.DEFINE_enum(
    "standardize",
    "none",
    ["none", "controls", "plates"],
    "z-score every feature by the control wells, all of them or those of the well's own plate.",
)
flags.DEFINE_bool("robust", False, "z-scores by median and median absolute deviation.")
flags.DEFINE_list(
    "corrections",
    ["none", "whitening", "tvn"],
    "What is scored: none and others of whitening, pca_whitening (of the principal components that "
    "the controls span, and no others), tvn.",
)
flags.DEFINE_enum(
    "aggregate", "well", ["well", "site"], "Well profile: mean of cells, or of sites."
)
flags.DEFINE_enum("statistic", "median", ["median", "mean"], "Treatment profile: of its wells.")
flags.DEFINE_enum(
    "batches",
    "joined",
    ["joined", "disjoint", "week1"],
    "NSCB, a treatment in several batches: the joined names differ, no batch in common, or the "
    "wells of its first batch alone.",
)
flags.DEFINE_float("regularization", 1.0, "The λ of whitening and TVN.", lower_bound=0.0)
flags.DEFINE_bool(
    "relative_regularization", False, "Take λ as a fraction of the mean eigenvalue (scale-free)."
)
flags.DEFINE_list("left_out", None, "MoAs left out of NSCB; by default those in one batch alone.")
flags.DEFINE_string("control", "DMSO", "The controls' compound.")

# A flag that says something about one kind of input is an error beside the other.
_ONLY_WITH_PROFILES = ("image_csv", "moa_csv")
_ONLY_WITH_WORKDIR = ("step", "data_dir", "data_access", "distributed")


def main() -> None:
    """Evaluates what the flags name."""
    if (FLAGS.profiles is None) == (FLAGS.workdir is None):
        raise cli.BadUse("one of --profiles=FILE and --workdir=DIR was expected (see --help)")
    mode, foreign = (
        ("--profiles", _ONLY_WITH_WORKDIR)
        if FLAGS.profiles is not None
        else ("--workdir", _ONLY_WITH_PROFILES)
    )
    for name in foreign:
        if FLAGS[name].present:
            raise cli.BadUse(f"--{name} says nothing beside {mode}")
    if FLAGS.profiles is not None:
        _check_inputs()
        evaluate_profiles(_protocol())
        return
    protocol = _protocol()
    from cellclr_jax import sharding
    from cellclr_jax.embedding import MINIBATCH
    from cellclr_jax.run_evaluation import evaluate_run
    from cellclr_jax.startup import compiled_programs

    if FLAGS.distributed:
        sharding.join_processes()
    else:
        sharding.use_all_cores(MINIBATCH)
    compiled_programs.keep_compiled_programs(None)
    evaluate_run(
        FLAGS.workdir,
        step=FLAGS.step,
        data_dir=FLAGS.data_dir,
        data_access=FLAGS.data_access,
        out=FLAGS.out,
        protocol=protocol,
    )


def evaluate_profiles(protocol: "Protocol") -> None:
    """Evaluates the table of --profiles and writes to --out.

    Raises:
      BadUse: a file is missing.
      BadData: the table cannot be used.
    """
    from cellclr_jax.profiling import evaluation, tables

    house = tables.read_profiles(
        FLAGS.profiles,
        image_csv=FLAGS.image_csv,
        moa_csv=FLAGS.moa_csv,
        control=protocol.control,
    )
    if house.left_out:
        listed = ", ".join(f"{name} ({why})" for name, why in list(house.left_out.items())[:10])
        print(f"note: {len(house.left_out)} columns are not used as features: {listed}")
    wells, protocol = _one_row_a_well(house.table, protocol)
    found = evaluation.evaluate(wells, protocol)
    from cellclr_jax.profiling import report  # matplotlib and scikit-learn take their time

    details = {"table": FLAGS.profiles, "columns_left_out": list(house.left_out)}
    report.write_evaluation(FLAGS.out, found, name="profiles", details=details)
    report.print_scores(found, name="profiles")
    print(f"written to {FLAGS.out}")


def _check_inputs() -> None:
    """Raises BadUse for what is missing, before anything heavy is loaded."""
    if FLAGS.out is None:
        raise cli.BadUse("--profiles needs --out=DIR, where the scores are written")
    for name in ("profiles", "image_csv", "moa_csv"):
        path = FLAGS[name].value
        if path is not None and not os.path.isfile(path):
            raise cli.BadUse(f"--{name}={path}: no such file")


def _protocol() -> "Protocol":
    """The protocol that the flags describe."""
    from cellclr_jax.profiling.protocol import Protocol

    return Protocol(
        aggregate=FLAGS.aggregate,
        standardize=FLAGS.standardize,
        robust=FLAGS.robust,
        corrections=tuple(FLAGS.corrections),
        regularization=FLAGS.regularization,
        relative_regularization=FLAGS.relative_regularization,
        statistic=FLAGS.statistic,
        batches=FLAGS.batches,
        left_out=None if FLAGS.left_out is None else tuple(FLAGS.left_out),
        control=FLAGS.control,
    )


def _one_row_a_well(
    table: "pd.DataFrame", protocol: "Protocol"
) -> tuple["pd.DataFrame", "Protocol"]:
    """Averages sites or cells into wells; a table of wells stays, and the protocol says so.

    Raises:
      BadUse: --aggregate is given for a table of wells.
    """
    from cellclr_jax.profiling import profiles
    from cellclr_jax.profiling.protocol import AS_GIVEN

    repeated = table.duplicated(["Metadata_Plate", "Metadata_Well"]).any()
    # A row that counts its cells is a well or a site: without a site it is there twice by mistake,
    # which `evaluate` reports.
    if not repeated or ("Metadata_CellCount" in table and "Metadata_Site" not in table):
        if FLAGS["aggregate"].present:
            raise cli.BadUse("--aggregate says nothing about a table with one row a well")
        return table, replace(protocol, aggregate=AS_GIVEN)
    wells = profiles.aggregate_wells(table, through=protocol.aggregate)
    print(f"{len(table)} rows averaged into {len(wells)} wells (--aggregate={protocol.aggregate})")
    return wells, protocol


if __name__ == "__main__":
    cli.run(main, __doc__)
