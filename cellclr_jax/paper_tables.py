"""The paper's tables from the runs that launch/reproduce_paper.sh trains: one row a run.

python -m cellclr_jax.paper_tables --runs=DIR

Reads DIR/rows.tsv (table, row, seed, folders of the run and of its scores) and what lies in these
folders; writes DIR/tables.md, tables.csv and, with single augmentations and pairs of them,
augmentations.png. A row without scores is shown as such.
"""

from absl import flags

from cellclr_jax import cli
from cellclr_jax.errors import BadUse

_RUNS = flags.DEFINE_string("runs", None, "The folder of the runs, with rows.tsv in it.")


def main() -> None:
    """Reads the flags and writes the tables."""
    if not _RUNS.value:
        raise BadUse("--runs=DIR is missing: the OUT of launch/reproduce_paper.sh")
    from cellclr_jax.profiling.report import paper_tables

    written = paper_tables.write_tables(_RUNS.value)
    print(f"written: {', '.join(map(str, written))}")


if __name__ == "__main__":
    cli.run(main, __doc__)
