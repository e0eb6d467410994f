"""Scores profiles by mechanism of action (NSC, NSCB, and the drop between them), cells by class.

The model of a training run, on the cells of its data set: treatments where it has plates, wells,
compounds and MoAs; single cells where it has labels, or no treatments:
  python -m cellclr_jax.eval --workdir=DIR [--step=last|best|N] [--data_dir=DIR] [--out=DIR]
                             [--data_access=shards|memory|mapped]

Any table of well profiles (CSV, gzipped CSV, Parquet):
  python -m cellclr_jax.eval --profiles=FILE [--image_csv=F --moa_csv=F]
                             [--standardize=none|controls|plates] --out=DIR

Several evaluated runs in one table, and on one page where there is an --out:
  python -m cellclr_jax.eval --compare RUN RUN … [--out=DIR]

Writes metrics.json and report.html; of profiles wells.parquet, treatments.parquet, neighbours.csv
and figures, of single cells cells.parquet. An evaluation with other settings that is there is kept.
"""

import hashlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from cellclr_jax import cli, eval_flags

if TYPE_CHECKING:
    import pandas as pd

    from cellclr_jax.profiling.protocol import Protocol
    from cellclr_jax.profiling.tables import ProfileTable

FLAGS = eval_flags.FLAGS


def main() -> None:
    """Evaluates what the flags name."""
    given = [name for name in _INPUTS if FLAGS[name].present]
    if len(given) != 1:
        raise cli.BadUse("one of --profiles, --workdir and --compare was expected (see --help)")
    for name in (name for kind, names in _ONLY_WITH.items() if kind != given[0] for name in names):
        if FLAGS[name].present:
            raise cli.BadUse(f"--{name} says nothing beside --{given[0]}")
    if given[0] == "compare":
        for flag in FLAGS.flags_by_module_dict()[eval_flags.__name__]:
            if flag.present and flag.name not in _OF_A_COMPARISON:
                raise cli.BadUse(f"--{flag.name} says nothing beside --compare")
    if FLAGS.out == "":
        raise cli.BadUse("--out=: the name of a folder was expected")
    _INPUTS[given[0]]()


def evaluate_workdir() -> None:
    """Evaluates the model of --workdir.

    Raises:
      BadUse: there is no run, or a setting does not exist.
    """
    from cellclr_jax.run_config import evaluation_settings

    protocol = eval_flags.protocol(evaluation_settings(FLAGS.workdir))
    options = eval_flags.options()
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
        options=options,
    )


def evaluate_profiles() -> None:
    """Evaluates the table of --profiles and writes to --out.

    Raises:
      BadUse: a file is missing.
      BadData: the table cannot be used.
    """
    _check_inputs()
    protocol, options = eval_flags.protocol(), eval_flags.options()
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
    wells, protocol = _one_row_a_well(house, protocol)
    rows = len(wells.table) if isinstance(wells, tables.ProfileTable) else len(wells)
    if note := options.note(rows):
        print(f"note: {note}")
    found = evaluation.evaluate(wells, protocol, measures=options.measures_of(rows))
    from cellclr_jax.profiling import report  # matplotlib and scikit-learn take their time
    from cellclr_jax.provenance import environment

    details = {**_files_read(), "columns_left_out": list(house.left_out)}
    report.write_evaluation(
        FLAGS.out,
        found,
        name="profiles",
        details=details,
        options=options,
        background=report.Background(provenance=environment()),
    )
    report.print_scores(found, name="profiles")
    print(f"written to {FLAGS.out}")


def compare_runs() -> None:
    """Sets the runs of --compare side by side.

    Raises:
      BadUse: one is no evaluated run, or there is one alone.
      BadData: one cannot be read.
    """
    from cellclr_jax.profiling.comparison import compare
    from cellclr_jax.profiling.reporting.comparison_page import print_comparison, write_comparison

    found = compare(FLAGS.compare)
    print_comparison(found)
    if FLAGS.out is not None:
        write_comparison(FLAGS.out, found)
        print(f"written to {FLAGS.out}")


def _files_read() -> dict[str, str]:
    """The files that the scores rest on, and their SHA-256."""
    told: dict[str, str] = {}
    for name, flag in (("table", "profiles"), ("image_csv", "image_csv"), ("moa_csv", "moa_csv")):
        path = FLAGS[flag].value
        if path is not None:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            told |= {name: path, f"{name}_sha256": digest}
    return told


def _check_inputs() -> None:
    """Raises BadUse for what is missing, before anything heavy is loaded."""
    if FLAGS.out is None:
        raise cli.BadUse("--profiles needs --out=DIR, where the scores are written")
    for name in ("profiles", "image_csv", "moa_csv"):
        path = FLAGS[name].value
        if path is not None and not os.path.isfile(path):
            raise cli.BadUse(f"--{name}={path}: no such file")


def _one_row_a_well(
    house: "ProfileTable", protocol: "Protocol"
) -> tuple["pd.DataFrame | ProfileTable", "Protocol"]:
    """Averages sites or cells into wells; a table of wells stays, and the protocol says so.

    Raises:
      BadUse: --aggregate is given for a table of wells.
    """
    from cellclr_jax.profiling import profiles
    from cellclr_jax.profiling.protocol import AS_GIVEN

    table = house.table
    repeated = table.duplicated(["Metadata_Plate", "Metadata_Well"]).any()
    # A row that counts its cells is a well or a site: without a site it is there twice by mistake,
    # which `evaluate` reports.
    if not repeated or ("Metadata_CellCount" in table and "Metadata_Site" not in table):
        if FLAGS["aggregate"].present:
            raise cli.BadUse("--aggregate says nothing about a table with one row a well")
        return house, replace(protocol, aggregate=AS_GIVEN)
    wells = profiles.aggregate_wells(table, through=protocol.aggregate)
    print(f"{len(table)} rows averaged into {len(wells)} wells (--aggregate={protocol.aggregate})")
    return wells, protocol


_INPUTS = {
    "workdir": evaluate_workdir,
    "profiles": evaluate_profiles,
    "compare": compare_runs,
}
# A flag that says something about one kind of input is an error beside another.
_ONLY_WITH = {
    "workdir": ("step", "data_dir", "data_access", "distributed", "label", "hold_out"),
    "profiles": ("image_csv", "moa_csv"),
}
# What a comparison takes; all else was decided when the runs were evaluated.
_OF_A_COMPARISON = ("compare", "out")

if __name__ == "__main__":
    cli.run(main, __doc__, arguments="compare")
