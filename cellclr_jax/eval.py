"""Scores profiles by mechanism of action (NSC, NSCB and their difference), and cells by class.

The cells of a training run: treatments if the dataset has plates, wells, compounds and MoAs; single
cells if it has labels, or no treatments:
  python -m cellclr_jax.eval --workdir=RUN [--step=last|best|N] [--data_dir=DIR] [--out=DIR]

Any table of profiles (CSV, gzipped CSV or Parquet):
  python -m cellclr_jax.eval --profiles=FILE [--image_csv=FILE --moa_csv=FILE]
                             [--standardize=none|controls|plates] --out=DIR

Several evaluated runs in one table; with --out, also on one page:
  python -m cellclr_jax.eval --compare RUN RUN … [--out=DIR]

Writes metrics.json and report.html; for profiles also wells.parquet, treatments.parquet,
neighbours.csv and figures; for single cells also cells.parquet.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
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

flags.DEFINE_string(
    "workdir", None, "Work directory of a training run, e.g. --workdir=runs/simclr; no default."
)
flags.DEFINE_string(
    "profiles",
    None,
    "Table of profiles, one row a well, site or cell: .csv, .csv.gz or .parquet, e.g. "
    "--profiles=wells.csv; no default.",
)
flags.DEFINE_list(
    "compare",
    [],
    "Evaluated runs: work directories, of which the newest evaluation is read, or folders of "
    "evaluations, e.g. --compare runs/a runs/b; no default.",
)
flags.DEFINE_string("step", "last", "Checkpoint: last, best or a step number, e.g. --step=12000.")
flags.DEFINE_string("data_dir", None, "Folder of the dataset; by default that of the run.")
flags.DEFINE_enum(
    "data_access",
    "shards",
    ["shards", "mapped"],
    "How images are read, whatever the run used: shards reads each image once from its shard; "
    "mapped first unpacks all of them into a file in the dataset's folder.",
)
flags.DEFINE_bool("distributed", False, "Evaluate as one of several processes, as in training.")
flags.DEFINE_string(
    "label",
    Options.label,
    "Column with the classes of single cells, e.g. --label=moa. By default label, or moa or "
    "compound if no treatment can be scored.",
)


def _setting(name: str, allowed: tuple[str, ...], text: str) -> None:
    """Defines a flag for a setting of `Protocol` or `Options`, with its default."""
    default = getattr(Protocol, name, None) or getattr(Options, name)
    flags.DEFINE_enum(name, default, list(allowed), text)


_setting(
    "hold_out",
    choices.HELD_OUT,
    "Groups of cells that a cross-validation fold keeps together when classes are predicted; auto "
    "takes the first of them, except compound, that leaves at least two classes.",
)
flags.DEFINE_string(
    "image_csv", None, "Table with compound and concentration of each well, e.g. BBBC021's."
)
flags.DEFINE_string("moa_csv", None, "Table with the MoA of each compound and concentration.")
flags.DEFINE_bool(
    "exact_names",
    False,
    "Do not merge names that differ in case, spaces or dashes; words such as NA are names, too.",
)
_setting(
    "aggregate", choices.AGGREGATES, "Well profile: mean of its cells, or of its sites' means."
)
_setting(
    "standardize",
    choices.STANDARDIZE,
    "z-scores of every feature by the control wells: all of them, or those of the same plate.",
)
flags.DEFINE_bool(
    "robust", Protocol.robust, "Compute z-scores by median and median absolute deviation."
)
_setting("statistic", choices.STATISTICS, "Treatment profile: median or mean of its wells.")
flags.DEFINE_string("control", Protocol.control, "Compound name of the control wells.")
flags.DEFINE_list(
    "corrections",
    list(Protocol.corrections),
    f"Corrections to score: none and any of {', '.join(choices.CORRECTIONS[1:])}. pca_whitening "
    "keeps only the principal components that the controls span; harmony and combat are fitted on "
    "all wells and need pip install 'cellclr_jax[batch]'.",
)
flags.DEFINE_float(
    "regularization", Protocol.regularization, "λ of whitening and TVN.", lower_bound=0.0
)
flags.DEFINE_bool(
    "relative_regularization",
    Protocol.relative_regularization,
    "Take λ as a fraction of the mean eigenvalue, independent of the features' scale.",
)
_setting(
    "batches",
    choices.BATCH_RULES,
    "NSCB's rule for treatments in several batches. joined: another batch is another set of "
    "batches; disjoint: no batch in common; week1: only the wells of the first batch count.",
)
flags.DEFINE_list(
    "left_out",
    Protocol.left_out,
    "MoAs left out of NSCB, e.g. --left_out='Kinase inhibitors'; by default those in one batch.",
)
flags.DEFINE_list(
    "measures",
    ["all"],
    f"Further measures under each correction: all, none, or any of {', '.join(MEASURES)}. With "
    "more than 20,000 wells, all computes none: name them.",
)
flags.DEFINE_string(
    "out",
    None,
    "Output folder; by default RUN/eval/STEP with --workdir. An existing evaluation with the same "
    "settings is replaced, one with other settings is an error.",
)
flags.DEFINE_bool("overwrite", False, "Replace an existing evaluation that has other settings.")
flags.DEFINE_list(
    "formats",
    list(Options.formats),
    f"Formats of the tables: any of {', '.join(choices.FORMATS)} (AnnData), e.g. "
    "--formats=csv,h5ad.",
)
flags.DEFINE_bool(
    "umap",
    Options.umap,
    "Add a UMAP layout to the report's map of treatments; needs pip install 'cellclr_jax[umap]'.",
)
_ONLY_WORKDIR = ("step", "data_dir", "data_access", "label", "hold_out", "distributed")
_ONLY_PROFILES = ("image_csv", "moa_csv", "exact_names")
_HELP = {
    "Input, one of": ("workdir", "profiles", "compare"),
    "With --workdir": _ONLY_WORKDIR,
    "With --profiles": _ONLY_PROFILES,
    "Profiles": ("aggregate", "standardize", "robust", "statistic", "control"),
    "Corrections": ("corrections", "regularization", "relative_regularization"),
    "Scores": ("batches", "left_out", "measures"),
    "Output": ("out", "overwrite", "formats", "umap"),
}
# A comparison reads results; their settings cannot be changed any more.
_WITH_COMPARE = ("compare", "out", "debug")


def protocol_flags(run: Mapping[str, Any] | None = None) -> Protocol:
    """Returns the protocol that the flags describe.

    Args:
      run: settings of a run's config; flags on the command line override them.
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
      BadUse: an unknown measure or format, or a package is not installed.
    """
    from cellclr_jax.profiling.exports import check_formats

    names: tuple[str, ...] = tuple(FLAGS.measures)
    if len(names) > 1 and {"all", "none"} & set(names):
        raise BadUse(f"--measures={','.join(names)}: all and none exclude other names")
    named: dict[tuple[str, ...], tuple[str, ...] | None] = {("all",): None, ("none",): ()}
    measures = named.get(names, names)
    check_formats(FLAGS.formats)
    if FLAGS.umap and util.find_spec("umap") is None:
        raise BadUse("--umap needs umap-learn: pip install 'cellclr_jax[umap]'")
    return Options(measures, tuple(FLAGS.formats), FLAGS.umap, FLAGS.label, FLAGS.hold_out)


def main() -> None:
    """Evaluates the run, table or runs that the flags name."""
    inputs = {
        "workdir": evaluate_workdir,
        "profiles": evaluate_profiles,
        "compare": compare_runs,
    }
    named = [name for name in inputs if FLAGS[name].present]
    if len(named) != 1:
        raise BadUse("one of --profiles, --workdir and --compare was expected (see --help)")
    other = {"workdir": _ONLY_PROFILES, "profiles": _ONLY_WORKDIR}.get(
        named[0], [name for name in FLAGS if name not in _WITH_COMPARE]
    )
    for name in (name for name in other if FLAGS[name].present):
        raise BadUse(f"--{name} cannot be combined with --{named[0]}")
    if FLAGS.out == "":
        raise BadUse("--out=: the name of a folder was expected")
    with _without_empty_folder(FLAGS.out):
        inputs[named[0]]()


@contextlib.contextmanager
def _without_empty_folder(path: str | None) -> Iterator[None]:
    """After an error, removes the output folder if this process created it and it is empty."""
    existed = path is None or os.path.exists(path)
    try:
        yield
    except BaseException:
        if path is not None and not existed:
            with contextlib.suppress(OSError):
                os.rmdir(path)
        raise


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
    names = ("step", "data_dir", "data_access", "out", "overwrite")
    settings: dict[str, Any] = {name: FLAGS[name].value for name in names}
    evaluate_run(FLAGS.workdir, protocol=protocol, options=options, **settings)


def evaluate_profiles() -> None:
    """Evaluates the table of --profiles and writes to --out."""
    if FLAGS.out is None:
        raise BadUse("--profiles needs --out=DIR, where the scores are written")
    files = {name: FLAGS[name].value for name in ("profiles", "image_csv", "moa_csv")}
    for name, path in files.items():
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
    wells, protocol = _average_wells(table, protocol)
    from cellclr_jax.profiling import report  # takes long: imports matplotlib and scikit-learn
    from cellclr_jax.run_folder import environment

    details: dict[str, object] = {"columns_left_out": list(table.left_out)}
    if FLAGS.exact_names:
        details["exact_names"] = True
    for name, path in {"table": files.pop("profiles"), **files}.items():
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
    """Compares the runs of --compare."""
    from cellclr_jax.profiling.comparison import compare
    from cellclr_jax.profiling.report.comparison_page import print_comparison, write_comparison

    found = compare(FLAGS.compare)
    print_comparison(found)
    if FLAGS.out is not None:
        write_comparison(FLAGS.out, found)
        print(f"written to {FLAGS.out}")


def _average_wells(profiles: "ProfileTable", protocol: Protocol) -> tuple["ProfileTable", Protocol]:
    """Averages sites or cells into wells; a table of wells stays, and the protocol records it."""
    from cellclr_jax.profiling.profiles import aggregate_wells

    table, features = profiles.table, profiles.features
    protocol = replace(protocol, control=profiles.control)
    repeated = table.duplicated(["Metadata_Plate", "Metadata_Well"]).any()
    # A row with a cell count is a well or a site. Without a site, a repeated well is a mistake,
    # which `evaluate` reports.
    if not repeated or ("Metadata_CellCount" in table and "Metadata_Site" not in table):
        if FLAGS["aggregate"].present:
            raise BadUse("--aggregate does not apply to a table with one row a well")
        return profiles, replace(protocol, aggregate=choices.AS_GIVEN)
    wells = aggregate_wells(table, through=protocol.aggregate, features=features)
    print(f"{len(table)} rows averaged into {len(wells)} wells (--aggregate={protocol.aggregate})")
    values = wells[features].to_numpy()
    return replace(profiles, table=wells, values=values), protocol


if __name__ == "__main__":
    cli.run(main, __doc__, arguments="compare", groups=_HELP)
