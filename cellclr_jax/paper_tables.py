"""Writes the paper's tables from the runs of launch/reproduce_paper.sh, one row per run.

python -m cellclr_jax.paper_tables --runs=DIR

Reads DIR/rows.tsv (table, row, seed, folders of the run and of its scores) and these folders;
writes DIR/tables.md, DIR/tables.csv and, if there are runs with pairs of augmentations,
DIR/augmentations.png. Rows without scores are listed as missing.
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

_RUNS = flags.DEFINE_string("runs", None, "Folder of the runs, which contains rows.tsv.")

ROWS = "rows.tsv"
"""List of the runs: tab-separated, without header; further columns are ignored."""
DONE = "scored"
"""File that marks a folder of scores as complete."""
_COLUMNS = ("table", "row", "seed", "run", "scores")
_KINDS = ("nsc", "nscb")
_COUNTS = ("_correct", "_total", "step", "minibatch", "epochs")
_PAIRS = "augmentations.png"


def write_tables(folder: str | Path) -> list[Path]:
    """Writes the tables of all rows of a folder, also of those without scores.

    Args:
      folder: contains `ROWS` and the folders that it names.

    Returns:
      The files written.

    Raises:
      BadUse: `ROWS` does not exist.
      BadData: it cannot be read.
    """
    folder = Path(folder)
    table = read_tables(folder)
    written = [folder / "tables.csv", folder / "tables.md"]
    with atomic_write(written[0]) as part:
        table.round(4).to_csv(part, index=False)
    write_text(written[1], markdown(table, folder))
    pairs = pair_scores(table)
    if pairs is not None:
        written.append(folder / _PAIRS)
        with atomic_write(written[2]) as part:
            _draw_pairs(pairs, part)
    return written


def read_tables(folder: Path) -> pd.DataFrame:
    """Reads settings and scores of all runs.

    A row has scores once its folder of scores contains `DONE`, which is written last.

    Returns:
      One row a run: table, row, seed, run, problem (files that cannot be read, or ''), encoder,
      minibatch, epochs, operations (joined by '+'), step, loss (last validation loss, or training
      loss if there is none), cells_per_second (median), and for each correction
      <correction>_<nsc|nscb>_correct, _total, _accuracy (in [0, 1], NaN if undefined) and
      <correction>_drop (percentage points). Without scores all of these are NaN.

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
    for number, line in enumerate(lines or [[]], 1):
        if len(line) < len(_COLUMNS):
            raise BadData(f"{path}, line {number}: expected {', '.join(_COLUMNS)}, tab-separated")
    rows = [dict(zip(_COLUMNS, line, strict=False)) for line in lines]
    table = pd.DataFrame([_read_row(folder, row) for row in rows])
    counts = [name for name in map(str, table) if name.endswith(_COUNTS)]
    return table.astype(dict.fromkeys(counts, "Int64"))


def _read_row(folder: Path, row: Mapping[str, str]) -> dict[str, Any]:
    """Reads a row of `read_tables`."""
    values: dict[str, Any] = {name: row[name] for name in ("table", "row", "seed", "run")}
    values |= {"problem": "", "step": np.nan}
    try:
        values |= {**_settings(folder / row["run"]), **_scored(folder, row)}
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        values["problem"] = f"files of {row['scores']} or its run cannot be read ({error!r})"
    return values


def _settings(run: Path) -> dict[str, Any]:
    """Settings of a run; empty before it was started."""
    path = run / "config.json"
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
    """Scores of a run, its last loss and its speed; empty before it was scored."""
    scores = folder / row["scores"]
    if not (scores / DONE).is_file():
        return {}
    metrics = json.loads((scores / "metrics.json").read_text(encoding="utf-8"))
    found = {"step": int(metrics["run"]["step"]), **_training(folder / row["run"])}
    for correction, both in metrics["scores"].items():
        for kind in _KINDS:
            score, prefix = both[kind], f"{correction}_{kind}"
            found[f"{prefix}_correct"] = operator.index(score["correct"] or 0)
            found[f"{prefix}_total"] = operator.index(score["total"])
            found[f"{prefix}_accuracy"] = _number(score["accuracy"])
        found[f"{correction}_drop"] = _number(both["drop"])
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _training(run: Path) -> dict[str, float]:
    """Last validation loss (or training loss) and median speed of a run."""
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
    """Formats all tables as Markdown, with published scores if the dataset is BBBC021."""
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
    dataset = {
        None: "",
        True: " The compounds are BBBC021's.",
        False: " The compounds are not BBBC021's: the scores cannot be compared with the paper's.",
    }[real]
    return (
        f"{done} of {rows} rows have scores.{dataset} NSC, NSCB: 1-NN mechanism accuracy, correct "
        "of all; drop: in percentage points. Loss: NT-Xent of the validation cells after the last "
        "epoch; it is not comparable between temperatures, minibatch sizes, augmentations, "
        "normalizations or datasets."
    )


def _is_real(table: pd.DataFrame, folder: Path) -> bool | None:
    """Whether the dataset is BBBC021; None if unknown."""
    from cellclr_jax.profiling.published import is_bbbc021  # a slow import

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
            state = row["problem"] or "not scored yet"
            lines.append([row["row"], row["seed"], state, *[""] * (len(head) - 3)])
            continue
        cells = [row["row"], row["seed"], row["encoder"], f"{int(row['step']):,}"]
        cells += [f"{row['loss']:.3f}" if pd.notna(row.get("loss", np.nan)) else "–"]
        lines.append([*cells, *(_scores(row, name) for name in used)])
    return _lines(lines)


def _scores(row: pd.Series, correction: str) -> str:
    if pd.isna(row.get(f"{correction}_nsc_total", np.nan)):
        return ""
    scores = []
    for kind in _KINDS:
        correct, total = (int(row[f"{correction}_{kind}_{name}"]) for name in ("correct", "total"))
        accuracy = row[f"{correction}_{kind}_accuracy"]
        percent = f" ({100 * accuracy:.1f} %)" if pd.notna(accuracy) else " (undefined)"
        scores.append(f"{correct}/{total}{percent}")
    drop = row[f"{correction}_drop"]
    return ", ".join([*scores, f"{drop:.1f}" if pd.notna(drop) else "–"])


def _lines(rows: Sequence[Sequence[object]]) -> str:
    """Formats the rows of a Markdown table."""
    escaped = [[str(v).replace("|", "\\|").replace("\n", " ") for v in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def _published() -> str:
    from cellclr_jax.profiling.published import published_scores

    rows = published_scores()
    return _lines([list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)])


def pair_scores(table: pd.DataFrame) -> dict[str, pd.DataFrame] | None:
    """Collects the scores of single augmentations and pairs, without correction.

    Args:
      table: see `read_tables`.

    Returns:
      For nsc and nscb an [n, n] table of accuracies in percent, mean over seeds: single operations
      on the diagonal, pairs elsewhere; NaN without a run. None if there are no pairs.
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
    """Draws a heatmap each of NSC and NSCB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    for axes, (kind, square) in zip(figure.subplots(1, len(pairs)), pairs.items(), strict=True):
        image = axes.imshow(square, cmap="viridis")
        middle = (image.norm.vmin + image.norm.vmax) / 2
        names = [str(name).replace("_", " ") for name in square]
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_title(f"{kind.upper()} (%), no correction:\nsingle (diagonal) and pairs")
        for (i, j), value in np.ndenumerate(square.to_numpy()):
            if np.isfinite(value):
                colour = "black" if value > middle else "white"
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", color=colour)
        figure.colorbar(image, ax=axes, shrink=0.8)
    FigureCanvasAgg(figure).print_png(str(path))


def main() -> None:
    """Reads the flags and writes the tables."""
    if not _RUNS.value:
        raise BadUse("--runs=DIR is missing: OUT of launch/reproduce_paper.sh")
    print(f"written: {', '.join(map(str, write_tables(_RUNS.value)))}")


if __name__ == "__main__":
    cli.run(main, __doc__)
