"""The paper's tables from the runs that launch/reproduce_paper.sh trains: one row a run.

python -m cellclr_jax.paper_tables --runs=DIR

Reads DIR/rows.tsv (table, row, seed, folders of the run and of its scores) and what lies in these
folders; writes DIR/tables.md, tables.csv and, with single augmentations and pairs of them,
augmentations.png. A row without scores is shown as such.
"""

import contextlib
import json
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import flags

from cellclr_jax import cli
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import atomic_write, write_text

_RUNS = flags.DEFINE_string("runs", None, "The folder of the runs, with rows.tsv in it.")

ROWS = "rows.tsv"
"""What the runs are: no header, tab-separated; further columns are for whoever wrote it."""
DONE = "scored"
"""The file in a folder of scores that says that they are whole."""
_COLUMNS = ("table", "row", "seed", "run", "scores")
_KINDS = ("nsc", "nscb")
_COUNTS = ("_correct", "_total", "step", "minibatch", "epochs")
_PAIRS = "augmentations.png"


def write_tables(folder: str | Path) -> list[Path]:
    """Writes the tables of all rows of a folder, those that have no scores yet among them.

    Args:
      folder: with `ROWS`; the folders that it names lie in it.

    Returns:
      The files written.

    Raises:
      BadUse: there is no such file.
      BadData: it cannot be read.
    """
    folder = Path(folder)
    table = read_tables(folder)
    text = markdown(table, folder)
    with atomic_write(folder / "tables.csv") as part:
        table.round(4).to_csv(part, index=False)
    write_text(folder / "tables.md", text)
    written = [folder / "tables.csv", folder / "tables.md"]
    pairs = pair_scores(table)
    if pairs is not None:
        with atomic_write(folder / _PAIRS) as part:
            _draw_pairs(pairs, part)
        written.append(folder / _PAIRS)
    return written


def read_tables(folder: Path) -> pd.DataFrame:
    """One row a run: what it is, settings of its training, and its scores.

    A row has scores when its folder of scores holds `DONE`, which comes last.

    Returns:
      Columns table, row, seed, run, problem (what cannot be read, '' for nothing), encoder,
      minibatch, epochs, operations (joined by '+'), step, loss (of the last epoch's validation, or
      training without one), cells_per_second (median), and for each correction
      <correction>_<nsc|nscb>_correct, _total, _accuracy (in [0, 1], NaN where undefined) and
      <correction>_drop (points). Without scores all of these are NaN.

    Raises:
      BadUse, BadData: see `write_tables`.
    """
    path = folder / ROWS
    if not path.is_file():
        raise BadUse(f"{path}: no such file; bash launch/reproduce_paper.sh writes it")
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise BadData(f"{path}: not a table of runs ({error})") from error
    lines = [line.split("\t") for line in text.splitlines() if line]
    if not lines:
        raise BadData(f"{path} is empty: {', '.join(_COLUMNS)} were expected, by tabs")
    if short := [n for n, line in enumerate(lines, 1) if len(line) < len(_COLUMNS)]:
        raise BadData(f"{path}, line {short[0]}: {', '.join(_COLUMNS)} were expected, by tabs")
    rows = [dict(zip(_COLUMNS, line, strict=False)) for line in lines]
    table = pd.DataFrame([_described(folder, row) for row in rows])
    counts = [name for name in map(str, table) if name.endswith(_COUNTS)]
    return table.astype(dict.fromkeys(counts, "Int64"))


def _described(folder: Path, row: Mapping[str, str]) -> dict[str, Any]:
    """A row of `read_tables`."""
    known: dict[str, Any] = {name: row[name] for name in ("table", "row", "seed", "run")}
    known |= {"problem": "", "step": np.nan}
    try:
        known |= {**_settings(folder, row), **_scored(folder, row)}
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        known["problem"] = f"what {row['scores']} or its run holds cannot be read ({error!r})"
    return known


def _settings(folder: Path, row: Mapping[str, str]) -> dict[str, Any]:
    """What a run was trained with; nothing before it was."""
    path = folder / row["run"] / "config.json"
    if not path.is_file():
        return {}
    config = json.loads(path.read_text(encoding="utf-8"))
    return {
        "encoder": str(config["model"]["encoder"]),
        "minibatch": operator.index(config["minibatch_size"]),
        "epochs": operator.index(config["epochs"]),
        "operations": "+".join(config["operations"] or config["views"]),
    }


def _scored(folder: Path, row: Mapping[str, str]) -> dict[str, Any]:
    """The scores of a row and what is known of its training; nothing before it has scores."""
    scores = folder / row["scores"]
    if not (scores / DONE).is_file():
        return {}
    metrics = json.loads((scores / "metrics.json").read_text(encoding="utf-8"))
    found = {"step": int(metrics["run"]["step"]), **_training(folder / row["run"])}
    for correction, both in metrics["scores"].items():
        for kind in _KINDS:
            score = both[kind]
            found |= {
                f"{correction}_{kind}_correct": operator.index(score["correct"] or 0),
                f"{correction}_{kind}_total": operator.index(score["total"]),
                f"{correction}_{kind}_accuracy": _number(score["accuracy"]),
            }
        found[f"{correction}_drop"] = _number(both["drop"])
    return found


def _number(value: float | None) -> float:
    """NaN for what is undefined."""
    return math.nan if value is None else float(value)


def _training(run: Path) -> dict[str, float]:
    """The last validation loss (training loss without one) and the median rate of a run."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    history = pd.DataFrame([json.loads(line) for line in lines])
    found = {}
    for name in ("loss", "validation_loss"):
        if name in history and history[name].notna().any():
            found["loss"] = float(history[name].dropna().iloc[-1])
    if "cells_per_second" in history:
        found["cells_per_second"] = float(history["cells_per_second"].median())
    return found


def markdown(table: pd.DataFrame, folder: Path) -> str:
    """All tables as Markdown, what they rest on before, published scores behind."""
    corrections = [name.removesuffix("_drop") for name in map(str, table) if name.endswith("_drop")]
    done = int(table["step"].notna().sum())
    real = _is_real(table, folder)
    parts = [f"# The paper's tables\n\n{_introduction(done, len(table), real)}"]
    for name, rows in table.groupby("table", sort=False):
        parts.append(f"## {name}\n\n{_table(rows, corrections)}")
    if real:
        parts.append(f"## Published\n\n{_published()}")
    return "\n\n".join(parts) + "\n"


def _introduction(done: int, rows: int, real: bool | None) -> str:
    told = {
        None: "",
        True: " The compounds are BBBC021's.",
        False: " The compounds are not BBBC021's: these scores say nothing of the paper's.",
    }[real]
    return (
        f"{done} of {rows} rows have scores.{told} NSC, NSCB: 1-NN mechanism accuracy, correct of "
        "all; drop: in points. Loss: NT-Xent of the validation cells after the last epoch; by it, "
        "rows of another temperature, minibatch, augmentation or normalisation, or of other cells, "
        "cannot be compared."
    )


def _is_real(table: pd.DataFrame, folder: Path) -> bool | None:
    """Whether what was scored is BBBC021; None where that is not known."""
    from cellclr_jax.profiling.published import is_bbbc021  # all of profiling takes its time

    for run in table["run"]:
        for path in sorted((folder / run).glob("scores/*/treatments.parquet")):
            with contextlib.suppress(OSError, ValueError, LookupError):
                column = "Metadata_Compound"
                return is_bbbc021(pd.read_parquet(path, columns=[column])[column].astype(str))
    return None


def _table(rows: pd.DataFrame, corrections: Sequence[str]) -> str:
    used = [name for name in corrections if rows[f"{name}_nsc_total"].notna().any()]
    head = ["row", "seed", "encoder", "steps", "loss"]
    head += [f"{name}: NSC, NSCB, drop" for name in used]
    lines = [head, ["---"] * len(head)]
    for _, row in rows.iterrows():
        if pd.isna(row["step"]):
            told = row["problem"] or "not there yet"
            lines.append([row["row"], row["seed"], told, *[""] * (len(head) - 3)])
            continue
        told = [row["row"], row["seed"], row["encoder"], f"{int(row['step']):,}"]
        told += [f"{row['loss']:.3f}" if pd.notna(row.get("loss", np.nan)) else "–"]
        lines.append([*told, *(_scores(row, name) for name in used)])
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _scores(row: pd.Series, correction: str) -> str:
    if pd.isna(row.get(f"{correction}_nsc_total", np.nan)):
        return ""
    told = []
    for kind in _KINDS:
        correct, total = (int(row[f"{correction}_{kind}_{name}"]) for name in ("correct", "total"))
        accuracy = row[f"{correction}_{kind}_accuracy"]
        percent = f" ({100 * accuracy:.1f} %)" if pd.notna(accuracy) else " (undefined)"
        told.append(f"{correct}/{total}{percent}")
    drop = row[f"{correction}_drop"]
    return ", ".join([*told, f"{drop:.1f}" if pd.notna(drop) else "–"])


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _published() -> str:
    from cellclr_jax.profiling.published import published_scores

    rows = published_scores()
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([row[name] for name in head] for row in rows)]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def pair_scores(table: pd.DataFrame) -> dict[str, pd.DataFrame] | None:
    """Scores without correction by the operations that views are made of, alone and in pairs.

    Args:
      table: see `read_tables`.

    Returns:
      For nsc and nscb an [n, n] table by operation: the diagonal holds operations alone, the rest
      pairs, in percent, mean over seeds; NaN where there is none. None without any pair.
    """
    if not {"operations", "none_nsc_accuracy"} <= set(table):
        return None
    rows = table[(table["table"] == "augmentations") & table["step"].notna()].copy()
    names = [str(text).split("+") for text in rows["operations"]]
    pairs = [(first, *rest) for first, *rest in names if len(rest) == 1]
    order = list(dict.fromkeys(name for pair in pairs for name in pair))
    if not pairs:
        return None
    found = {}
    for kind in _KINDS:
        scores: dict[frozenset[str], list[float]] = {}
        for used, accuracy in zip(names, rows[f"none_{kind}_accuracy"], strict=True):
            if set(used) <= set(order):
                scores.setdefault(frozenset(used), []).append(100 * accuracy)
        square = [
            [np.mean(scores.get(frozenset((one, other)), [np.nan])) for other in order]
            for one in order
        ]
        found[kind] = pd.DataFrame(square, order, order)
    return found


def _draw_pairs(pairs: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Two squares of numbers in colour, NSC and NSCB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    for axes, (kind, square) in zip(figure.subplots(1, len(pairs)), pairs.items(), strict=True):
        image = axes.imshow(square, cmap="viridis")
        middle = (image.norm.vmin + image.norm.vmax) / 2
        names = [str(name).replace("_", " ") for name in square]
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_title(f"{kind.upper()} (%), no correction:\nalone (diagonal) and in pairs")
        for (i, j), value in np.ndenumerate(square.to_numpy()):
            if np.isfinite(value):
                colour = "black" if value > middle else "white"
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", color=colour)
        figure.colorbar(image, ax=axes, shrink=0.8)
    FigureCanvasAgg(figure).print_png(str(path))


def main() -> None:
    """Reads the flags and writes the tables."""
    if not _RUNS.value:
        raise BadUse("--runs=DIR is missing: the OUT of launch/reproduce_paper.sh")
    print(f"written: {', '.join(map(str, write_tables(_RUNS.value)))}")


if __name__ == "__main__":
    cli.run(main, __doc__)
