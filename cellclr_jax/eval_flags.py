"""The flags of `eval`, and the protocol that they describe.

Of a run, `config.evaluation` decides what no flag does.
"""

from collections.abc import Mapping
from dataclasses import fields
from importlib import util
from typing import TYPE_CHECKING, Any

from absl import flags

from cellclr_jax import cli

if TYPE_CHECKING:
    from cellclr_jax.profiling.options import Options
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


def protocol(run: Mapping[str, Any] | None = None) -> "Protocol":
    """The protocol that the flags describe.

    Args:
      run: what a run's config says of its evaluation, where no flag says otherwise.
    """
    from cellclr_jax.profiling.protocol import Protocol

    settings: dict[str, Any] = {field.name: FLAGS[field.name].value for field in fields(Protocol)}
    if unknown := sorted(set(run or {}) - set(settings)):
        raise cli.BadData(f"config.json of the run: evaluation has no setting {unknown[0]!r}")
    settings |= {name: value for name, value in (run or {}).items() if not FLAGS[name].present}
    settings |= {name: tuple(v) for name, v in settings.items() if isinstance(v, list)}
    return Protocol(**settings)


def options() -> "Options":
    """What the flags ask for beside the scores.

    Raises:
      BadUse: there is no such measure or format.
    """
    from cellclr_jax.profiling.exports import check_formats
    from cellclr_jax.profiling.options import Options

    asked = tuple(FLAGS.measures)
    if unknown := [name for name in asked if name not in ("all", "none", *MEASURES)]:
        raise cli.BadUse(
            f"--measures={unknown[0]}: all, none or some of {', '.join(MEASURES)} were expected"
        )
    if len(asked) > 1 and {"all", "none"} & set(asked):
        raise cli.BadUse(f"--measures={','.join(asked)}: all and none stand alone")
    check_formats(FLAGS.formats)
    if FLAGS.umap and util.find_spec("umap") is None:
        raise cli.BadUse("--umap needs umap-learn: pip install 'cellclr_jax[umap]'")
    return Options(
        measures=None if asked == ("all",) else () if asked == ("none",) else asked,
        formats=tuple(FLAGS.formats),
        umap=FLAGS.umap,
        label=FLAGS.label,
        hold_out=FLAGS.hold_out,
    )
