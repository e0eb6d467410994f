"""What is computed and written beside the scores; none of it changes them."""

from dataclasses import dataclass

from cellclr_jax.profiling.measures import MEASURES
from cellclr_jax.profiling.probing.cells import AUTO

MOST_MEASURED = 20_000
"""Wells: of more, measures take longer than all else, and are taken where they are named."""


@dataclass(frozen=True)
class Options:
    """Choices of an evaluation.

    Attributes:
      measures: of `measures.MEASURES`; None for all, unless there are too many wells.
      formats: of the tables that are written, of `exports.FORMATS`.
      umap: whether the report's map of treatments can be laid out by UMAP, too.
      label: the column of the cells that tells their classes; None: see `cells.draw_sample`.
      hold_out: what is kept whole when classes are told, of `cells.HELD_OUT`.
    """

    measures: tuple[str, ...] | None = None
    formats: tuple[str, ...] = ("parquet",)
    umap: bool = False
    label: str | None = None
    hold_out: str = AUTO

    def measures_of(self, wells: int) -> tuple[str, ...]:
        """The names of what is measured of a table with so many wells."""
        if self.measures is not None:
            return self.measures
        return tuple(MEASURES) if wells <= MOST_MEASURED else ()

    def note(self, wells: int) -> str:
        """What is to be said of measures that are not taken; '' for nothing."""
        if self.measures is not None or wells <= MOST_MEASURED:
            return ""
        return f"of {wells:,} wells no measures are taken, unless --measures names them"
