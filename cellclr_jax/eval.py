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
and figures, of single cells cells.parquet. An existing evaluation is replaced by one with the same
settings, and by one with others only with --overwrite.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib import util
from typing import TYPE_CHECKING, Any

from absl import flags

from cellclr_jax import cli
from cellclr_jax.errors import BadData, BadUse

if TYPE_CHECKING:
    from cellclr_jax.profiling.evaluation import Options
    from cellclr_jax.profiling.protocol import Protocol

# Told here as well as in `profiling.measures`, which takes its time to import.
MEASURES = (
    "activity",
    "consistency",
    "reproducibility",
    "batch_effect",
    "well_intervals",
    "mechanisms",
    "k_nearest",
    "across_plates",
)
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
    "Where to write; by default <workdir>/eval/<step>. An existing evaluation with the same "
    "settings is replaced.",
)
flags.DEFINE_bool("overwrite", False, "Replaces an evaluation with other settings, too.")
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
    "What is scored: none and others of pca_whitening (of the principal components that the "
    "controls span, and no others), whitening, tvn, and of harmony and combat, which are fitted on "
    "all wells and need pip install 'cellclr_jax[batch]'.",
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
flags.DEFINE_list(
    "measures",
    ["all"],
    "What is measured beside the scores, under each correction: all, none, or some of "
    f"{', '.join(MEASURES)}. Of more than 20,000 wells none, unless they are named.",
)
flags.DEFINE_list("formats", ["parquet"], "Of the tables: parquet, csv, h5ad (AnnData).")
flags.DEFINE_bool(
    "umap",
    False,
    "Lets the reader of the report lay out its map by UMAP, too: pip install 'cellclr_jax[umap]'.",
)
flags.DEFINE_string(
    "label",
    None,
    "The column of the cells whose classes single cells are asked for, such as moa; by default "
    "label where there is one, and moa or compound where no treatment can be scored.",
)
flags.DEFINE_enum(
    "hold_out",
    "auto",
    ["auto", "plate", "batch", "well", "site", "compound", "nothing"],
    "What is kept whole, so that a cell's class is told by others alone; auto: the first of these "
    "but compounds that leaves classes to tell apart.",
)
flags.DEFINE_list(
    "compare", [], "Evaluated runs to set side by side; more of them may follow as arguments."
)


def protocol_flags(run: Mapping[str, Any] | None = None) -> "Protocol":
    """The protocol that the flags describe.

    Args:
      run: what a run's config says of its evaluation, where no flag says otherwise.
    """
    from cellclr_jax.profiling.protocol import Protocol

    settings: dict[str, Any] = {field.name: FLAGS[field.name].value for field in fields(Protocol)}
    if unknown := sorted(set(run or {}) - set(settings)):
        raise BadData(f"config.json of the run: evaluation has no setting {unknown[0]!r}")
    settings |= {name: value for name, value in (run or {}).items() if not FLAGS[name].present}
    settings |= {name: tuple(v) for name, v in settings.items() if isinstance(v, list)}
    return Protocol(**settings)


def option_flags() -> "Options":
    """What the flags ask for beside the scores.

    Raises:
      BadUse: there is no such measure or format.
    """
    from cellclr_jax.profiling.evaluation import Options
    from cellclr_jax.profiling.exports import check_formats

    asked = tuple(FLAGS.measures)
    if unknown := [name for name in asked if name not in ("all", "none", *MEASURES)]:
        raise BadUse(
            f"--measures={unknown[0]}: all, none or some of {', '.join(MEASURES)} were expected"
        )
    if len(asked) > 1 and {"all", "none"} & set(asked):
        raise BadUse(f"--measures={','.join(asked)}: all and none stand alone")
    check_formats(FLAGS.formats)
    if FLAGS.umap and util.find_spec("umap") is None:
        raise BadUse("--umap needs umap-learn: pip install 'cellclr_jax[umap]'")
    return Options(
        measures=None if asked == ("all",) else () if asked == ("none",) else asked,
        formats=tuple(FLAGS.formats),
        umap=FLAGS.umap,
        label=FLAGS.label,
        hold_out=FLAGS.hold_out,
    )


if TYPE_CHECKING:
    import pandas as pd

    from cellclr_jax.profiling.protocol import Protocol
    from cellclr_jax.profiling.tables import ProfileTable


def main() -> None:
    """Evaluates what the flags name."""
    given = [name for name in _INPUTS if FLAGS[name].present]
    if len(given) != 1:
        raise BadUse("one of --profiles, --workdir and --compare was expected (see --help)")
    for name in (name for kind, names in _ONLY_WITH.items() if kind != given[0] for name in names):
        if FLAGS[name].present:
            raise BadUse(f"--{name} says nothing beside --{given[0]}")
    if given[0] == "compare":
        # Not by `__name__`: absl calls the module that is run by its file.
        for flag in FLAGS.flags_by_module_dict()[str(FLAGS.find_module_defining_flag("compare"))]:
            if flag.present and flag.name not in _OF_A_COMPARISON:
                raise BadUse(f"--{flag.name} says nothing beside --compare")
    if FLAGS.out == "":
        raise BadUse("--out=: the name of a folder was expected")
    _INPUTS[given[0]]()


def evaluate_workdir() -> None:
    """Evaluates the model of --workdir.

    Raises:
      BadUse: there is no run, or a setting does not exist.
    """
    from cellclr_jax.run_folder import evaluation_settings

    protocol = protocol_flags(evaluation_settings(FLAGS.workdir))
    options = option_flags()
    from cellclr_jax import devices
    from cellclr_jax.encoder.apply import MINIBATCH
    from cellclr_jax.encoder.evaluate_run import evaluate_run

    if FLAGS.distributed:
        devices.join_processes()
    else:
        devices.use_all_cores(MINIBATCH)
    devices.keep_compiled_programs(None)
    evaluate_run(
        FLAGS.workdir,
        step=FLAGS.step,
        data_dir=FLAGS.data_dir,
        data_access=FLAGS.data_access,
        out=FLAGS.out,
        overwrite=FLAGS.overwrite,
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
    protocol, options = protocol_flags(), option_flags()
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
    from cellclr_jax.profiling import report  # matplotlib and scikit-learn take their time
    from cellclr_jax.run_folder import environment

    details = {**_files_read(), "columns_left_out": list(house.left_out)}
    report.check_settings(FLAGS.out, protocol, details, overwrite=FLAGS.overwrite)
    found = evaluation.evaluate(wells, protocol, measures=options.measures_of(rows))
    results = report.Results(found, "profiles", details=details, provenance=environment())
    report.write_evaluation(FLAGS.out, results, options=options, overwrite=FLAGS.overwrite)
    report.print_scores(found, name="profiles")
    print(f"written to {FLAGS.out}")


def compare_runs() -> None:
    """Sets the runs of --compare side by side.

    Raises:
      BadUse: one is no evaluated run, or there is one alone.
      BadData: one cannot be read.
    """
    from cellclr_jax.profiling.comparison import compare
    from cellclr_jax.profiling.report.comparison_page import (
        print_comparison,
        write_comparison,
    )

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
        raise BadUse("--profiles needs --out=DIR, where the scores are written")
    for name in ("profiles", "image_csv", "moa_csv"):
        path = FLAGS[name].value
        if path is not None and not os.path.isfile(path):
            raise BadUse(f"--{name}={path}: no such file")


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
            raise BadUse("--aggregate says nothing about a table with one row a well")
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
