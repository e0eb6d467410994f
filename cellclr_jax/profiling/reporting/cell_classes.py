"""Scores of single cells as the page shows them: how well each class is told from the features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cellclr_jax.profiling.probing.probes import TITLES
from cellclr_jax.profiling.reporting.json_values import mapping, real
from cellclr_jax.profiling.reporting.settings import flatten


@dataclass(frozen=True)
class CellTables:
    """Tables of the section; all texts.

    Attributes:
      undefined: why there is no score, or ''.
      text: what the numbers are.
      notes: what a reader must know.
      heads, rows: features and classifiers.
      class_heads, class_rows: each class with its cells and recalls of the first features.
      class_of: whose these are.
      settings: (name, value).
    """

    undefined: str
    notes: list[str]
    text: str = ""
    heads: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    class_heads: list[str] = field(default_factory=list)
    class_rows: list[list[str]] = field(default_factory=list)
    class_of: str = ""
    settings: list[tuple[str, str]] = field(default_factory=list)


def cell_tables(cells: Mapping[str, object]) -> CellTables:
    """The section's tables.

    Args:
      cells: what `probing.cells.describe_cells` returns.
    """
    notes = [str(note) for note in _listed(cells.get("notes"))]
    scores = {name: mapping(entry) for name, entry in mapping(cells.get("scores")).items()}
    if "undefined" in cells or not scores:
        return CellTables(str(cells.get("undefined", "no features were scored")), notes)
    first = next(iter(scores))
    kinds = list(scores[first])
    titles = [str(TITLES.get(kind, kind)) for kind in kinds]
    rows = [
        [name, *(_percent(real(entry.get(kind), "balanced_accuracy")) for kind in kinds)]
        for name, entry in scores.items()
    ]
    recalls = [mapping(mapping(scores[first][kind]).get("recall")) for kind in kinds]
    classes = [
        [name, f"{count:,}", *(_percent(real(recall, name)) for recall in recalls)]
        for name, count in mapping(cells.get("classes")).items()
    ]
    return CellTables(
        undefined="",
        notes=notes,
        text=_explained(cells),
        heads=["Features", *titles],
        rows=rows,
        class_heads=["Class", "Cells", *titles],
        class_rows=classes,
        class_of=first,
        settings=flatten(mapping(cells.get("settings"))),
    )


def _explained(cells: Mapping[str, object]) -> str:
    """What a balanced accuracy is here."""
    kept = f", each {cells['grouped_by']} kept whole" if cells.get("grouped_by") else ""
    return (
        "Balanced accuracy: the mean over classes of the share of cells whose "
        f"{cells.get('label_column')} is told rightly by a classifier that was fitted on other "
        f"cells ({cells.get('folds')} folds{kept}). {cells.get('cells'):,} cells; guessing gives "
        f"{_percent(real(cells, 'chance'))}."
    )


def _percent(share: float | None) -> str:
    """A share in per cent, or a dash."""
    return "–" if share is None else f"{100 * share:.1f} %"


def _listed(value: object) -> Sequence[object]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, (list, tuple)) else []
