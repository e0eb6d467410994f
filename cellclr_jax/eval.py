"""Scores profiles by mechanism of action (NSC, NSCB, and the drop between them), cells by class.

The model of a training run, on the cells of its dataset: treatments where it has plates, wells,
compounds and MoAs; single cells where it has labels, or no treatments:
  python -m cellclr_jax.eval --workdir=DIR [--step=last|best|N] [--data_dir=DIR] [--out=DIR]
                             [--data_access=shards|mapped]

Any table of well profiles (CSV, gzipped CSV, Parquet):
  python -m cellclr_jax.eval --profiles=FILE [--image_csv=F --moa_csv=F]
                             [--standardize=none|controls|plates] --out=DIR

Several evaluated runs in one table, and with --out on one page:
  python -m cellclr_jax.eval --compare RUN RUN … [--out=DIR]

Writes metrics.json and report.html; of profiles wells.parquet, treatments.parquet, neighbours.csv
and figures, of single cells cells.parquet. An existing evaluation is replaced by one with the same
settings, and by one with others only with --overwrite.
"""

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from cellclr_jax import cli
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import file_sha256, make_writable
from cellclr_jax.profiling import protocol as choices
from cellclr_jax.profiling.measures import MEASURES
from cellclr_jax.profiling.protocol import Options, Protocol

if TYPE_CHECKING:
    from cellclr_jax.profiling.tables import ProfileTable

FLAGS = flags.FLAGS

flags.DEFINE_string("workdir", None, "A training run's folder: evaluate its model.")
flags.DEFINE_string("step", "last", "Which checkpoint of --workdir: last, best or a number.")
flags.DEFINE_string("data_dir", None, "Where the dataset is; by default where the run had it.")
flags.DEFINE_enum(
    "data_access",
    "shards",
    ["shards", "mapped"],
    "How images are read: shards, whatever the run used in training, since each is read once; "
    "mapped unpacks them all first, into a file of the data set's folder.",
)
flags.DEFINE_bool("distributed", False, "Joins the processes of several hosts, as in training.")
flags.DEFINE_string("profiles", None, "A table of profiles: .csv, .csv.gz or .parquet.")
flags.DEFINE_string("image_csv", None, "Gives each well of --profiles its compound and dose.")
flags.DEFINE_string("moa_csv", None, "Gives each compound and dose of --profiles its mechanism.")
flags.DEFINE_bool(
    "exact_names",
    False,
    "Profiles: spellings that differ by case, spaces or dashes are other names, and words such as "
    "NA are names, too.",
)
flags.DEFINE_string(
    "out",
    None,
    "Where to write; by default <workdir>/eval/<step>. An existing evaluation with the same "
    "settings is replaced.",
)
flags.DEFINE_bool("overwrite", False, "Replaces an evaluation with other settings, too.")


def _setting(name: str, allowed: tuple[str, ...], text: str) -> None:
    """Defines a flag for a setting of `Protocol` or `Options`, with its default."""
    default = getattr(Protocol, name, None) or getattr(Options, name)
    flags.DEFINE_enum(name, default, list(allowed), text)


_setting(
    "standardize",
    choices.STANDARDIZE,
    "z-score every feature by the control wells, all of them or those of the well's own plate.",
)
flags.DEFINE_bool("robust", Protocol.robust, "z-scores by median and median absolute deviation.")
flags.DEFINE_list(
    "corrections",
    list(Protocol.corrections),
    f"What is scored: none and others of {', '.join(choices.CORRECTIONS[1:])}. pca_whitening keeps "
    "only the principal components that the controls span; harmony and combat are fitted on all "
    "wells and need pip install 'cellclr_jax[batch]'.",
)
_setting("aggregate", choices.AGGREGATES, "Well profile: mean of cells, or of sites.")
_setting("statistic", choices.STATISTICS, "Treatment profile: of its wells.")
_setting(
    "batches",
    choices.BATCH_RULES,
    "NSCB, a treatment in several batches: the joined names differ, no batch in common, or only "
    "the wells of its first batch count.",
)
flags.DEFINE_float(
    "regularization", Protocol.regularization, "The λ of whitening and TVN.", lower_bound=0.0
)
flags.DEFINE_bool(
    "relative_regularization",
    Protocol.relative_regularization,
    "Take λ as a fraction of the mean eigenvalue (scale-free).",
)
flags.DEFINE_list(
    "left_out", Protocol.left_out, "MoAs left out of NSCB; by default those in a single batch."
)
flags.DEFINE_string("control", Protocol.control, "The controls' compound.")
flags.DEFINE_list(
    "measures",
    ["all"],
    "What is measured in addition to the scores, under each correction: all, none, or some of "
    f"{', '.join(MEASURES)}. Of more than 20,000 wells none, unless they are named.",
)
flags.DEFINE_list(
    "formats",
    list(Options.formats),
    f"Of the tables: {', '.join(choices.FORMATS)} (h5ad is AnnData's).",
)
flags.DEFINE_bool(
    "umap",
    Options.umap,
    "Lets the reader lay out the report's map by UMAP, too: pip install 'cellclr_jax[umap]'.",
)
flags.DEFINE_string(
    "label",
    Options.label,
    "The column with the classes of single cells, such as moa; by default label where there is "
    "one, and moa or compound where no treatment can be scored.",
)
_setting(
    "hold_out",
    choices.HELD_OUT,
    "What a fold keeps whole when classes of cells are predicted; auto: the first of these, but "
    "compounds, that leaves classes to tell apart.",
)
flags.DEFINE_list(
    "compare", [], "Evaluated runs to set side by side; more of them may follow as arguments."
)


def protocol_flags(run: Mapping[str, Any] | None = None) -> Protocol:
    """Returns the protocol that the flags describe.

    Args:
      run: settings of a run's config, which a given flag overrides.
    """
    settings: dict[str, Any] = {field.name: FLAGS[field.name].value for field in fields(Protocol)}
    if unknown := sorted(set(run or {}) - set(settings)):
        raise BadData(f"config.json of the run: evaluation has no setting {unknown[0]!r}")
    settings |= {name: value for name, value in (run or {}).items() if not FLAGS[name].present}
    settings |= {name: tuple(v) for name, v in settings.items() if isinstance(v, list)}
    return Protocol(**settings)


def option_flags() -> Options:
    """Returns the options that the flags describe.

    Raises:
      BadUse: there is no such measure or format, or a package is not installed.
    """
    from cellclr_jax.profiling.exports import check_formats

    asked: tuple[str, ...] | None = tuple(FLAGS.measures)
    if len(FLAGS.measures) > 1 and {"all", "none"} & set(FLAGS.measures):
        raise BadUse(f"--measures={','.join(FLAGS.measures)}: all and none stand by themselves")
    if FLAGS.measures in (["all"], ["none"]):
        asked = None if FLAGS.measures == ["all"] else ()
    check_formats(FLAGS.formats)
    if FLAGS.umap and util.find_spec("umap") is None:
        raise BadUse("--umap needs umap-learn: pip install 'cellclr_jax[umap]'")
    return Options(asked, tuple(FLAGS.formats), FLAGS.umap, FLAGS.label, FLAGS.hold_out)


def main() -> None:
    """Evaluates the run, table or runs that the flags name."""
    given = [name for name in _INPUTS if FLAGS[name].present]
    if len(given) != 1:
        raise BadUse("one of --profiles, --workdir and --compare was expected (see --help)")
    for name in (name for kind, names in _ONLY_WITH.items() if kind != given[0] for name in names):
        if FLAGS[name].present:
            raise BadUse(f"--{name} says nothing beside --{given[0]}")
    if given[0] == "compare":
        for name in FLAGS:
            if FLAGS[name].present and name not in _OF_A_COMPARISON:
                raise BadUse(f"--{name} says nothing beside --compare")
    if FLAGS.out == "":
        raise BadUse("--out=: the name of a folder was expected")
    _INPUTS[given[0]]()


def evaluate_workdir() -> None:
    """Evaluates the model of --workdir."""
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
    """Evaluates the table of --profiles and writes to --out."""
    if FLAGS.out is None:
        raise BadUse("--profiles needs --out=DIR, where the scores are written")
    read = {name: FLAGS[name].value for name in ("profiles", "image_csv", "moa_csv")}
    for name, path in read.items():
        if path is not None and not os.path.isfile(path):
            raise BadUse(f"--{name}={path}: no such file")
    protocol, options = protocol_flags(), option_flags()
    from cellclr_jax.profiling import evaluation, tables

    table = tables.read_profiles(
        FLAGS.profiles,
        image_csv=FLAGS.image_csv,
        moa_csv=FLAGS.moa_csv,
        control=protocol.control,
        exact_names=FLAGS.exact_names,
    )
    wells, protocol = _one_row_a_well(table, protocol)
    from cellclr_jax.profiling import report  # matplotlib and scikit-learn take their time
    from cellclr_jax.run_folder import environment

    details: dict[str, object] = {"columns_left_out": list(table.left_out)}
    if FLAGS.exact_names:
        details["exact_names"] = True
    for name, path in {"table": read.pop("profiles"), **read}.items():
        if path is not None:
            details |= {name: path, f"{name}_sha256": file_sha256(Path(path))}
    report.check_settings(FLAGS.out, protocol, details, overwrite=FLAGS.overwrite)
    make_writable(Path(FLAGS.out), "--out")
    found = evaluation.evaluate(wells, protocol, measures=options.measures, show_progress=True)
    report.print_scores(found, name="profiles")
    results = report.Results(found, "profiles", details=details, provenance=environment())
    report.write_evaluation(FLAGS.out, results, options=options, overwrite=FLAGS.overwrite)
    print(f"written to {FLAGS.out}")


def compare_runs() -> None:
    """Sets the runs of --compare side by side."""
    from cellclr_jax.profiling.comparison import compare
    from cellclr_jax.profiling.report.comparison_page import print_comparison, write_comparison

    found = compare(FLAGS.compare)
    print_comparison(found)
    if FLAGS.out is not None:
        write_comparison(FLAGS.out, found)
        print(f"written to {FLAGS.out}")


def _one_row_a_well(
    profiles: "ProfileTable", protocol: Protocol
) -> tuple["ProfileTable", Protocol]:
    """Averages sites or cells into wells; keeps a table of wells, which the protocol then says."""
    from cellclr_jax.profiling.profiles import aggregate_wells

    table, features = profiles.table, profiles.features
    protocol = replace(protocol, control=profiles.control)
    repeated = table.duplicated(["Metadata_Plate", "Metadata_Well"]).any()
    # A row that counts its cells is a well or a site. Without a site it is listed twice by mistake,
    # which `evaluate` reports.
    if not repeated or ("Metadata_CellCount" in table and "Metadata_Site" not in table):
        if FLAGS["aggregate"].present:
            raise BadUse("--aggregate says nothing about a table with one row a well")
        return profiles, replace(protocol, aggregate=choices.AS_GIVEN)
    wells = aggregate_wells(table, through=protocol.aggregate, features=features)
    print(f"{len(table)} rows averaged into {len(wells)} wells (--aggregate={protocol.aggregate})")
    values = wells[features].to_numpy()
    return replace(profiles, table=wells, values=values), protocol


_INPUTS = {
    "workdir": evaluate_workdir,
    "profiles": evaluate_profiles,
    "compare": compare_runs,
}
# A flag that says something about one kind of input is an error beside another.
_ONLY_WITH = {
    "workdir": ("step", "data_dir", "data_access", "distributed", "label", "hold_out"),
    "profiles": ("image_csv", "moa_csv", "exact_names"),
}
# Flags of a comparison; all else was decided when the runs were evaluated.
_OF_A_COMPARISON = ("compare", "out", "debug")

if __name__ == "__main__":
    cli.run(main, __doc__, arguments="compare")
