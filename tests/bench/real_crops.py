"""Scores 1,500 real crops of one week: treatments across plates, and plates of control cells.

    python tests/bench/real_crops.py --out=DIR [--seeds=0,1,2] [--epochs=300] [--source=DIR]

Builds the dataset, trains the demo's network once a seed, embeds every cell, and prints two tables
in Markdown: a comparison of features, and the same under each correction (see
`tests/support/crop_scores.py`). `--source` is the folder with `crops/` and BBBC021's two tables, by
default `data/bbbc021` of CELLCLR_SHARED (or `../shared`). If stopped, the same command resumes,
also with more seeds; other arguments are refused.

300 epochs are the only number tried: the validation loss (of a random 15 % of the cells, without
labels) is constant over the last thirty epochs. Scores did not influence any choice; they are of
the last checkpoint and all cells.

Writes settings.json and scores.json, and no images.
"""

import argparse
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.crop_scores import PLATE_CORRECTIONS, Scores, scores_of  # noqa: E402

from cellclr_jax.data.dataset import find_dataset, read_manifest  # noqa: E402
from cellclr_jax.errors import BadData, BadUse  # noqa: E402
from cellclr_jax.files import atomic_write, differences, write_json  # noqa: E402
from cellclr_jax.run_folder import CONFIG, check_same  # noqa: E402

KINDS = ("trained", "untrained", "intensity", "pixels")
SETTINGS = "settings.json"
VALIDATION = 0.15
MINIBATCH = 128  # of 1,253 cells: nine steps an epoch
# Columns of the first table: all treatments, and only doses, of wells and of sites.
RETRIEVED = ("all, wells", "all, sites", "doses, wells", "doses, sites")


def binary(name: str, *flags: str) -> None:
    """Runs one of the package's programs."""
    subprocess.run([sys.executable, "-m", f"cellclr_jax.{name}", *flags], check=True, cwd=ROOT)


def build(source: Path, data_dir: Path) -> None:
    """Builds the dataset unless it exists."""
    if not list(data_dir.glob("*/*/*/manifest.json")):
        binary(
            "build", "--source=crops", f"--input={source / 'crops'}", f"--data_dir={data_dir}",
            f"--image_csv={source / 'BBBC021_v1_image.csv'}",
            f"--moa_csv={source / 'BBBC021_v1_moa.csv'}", "--workers=1",
        )  # fmt: skip


def settings_of(seed: int, epochs: int) -> dict[str, int | float]:
    """Settings of a run that differ from its config."""
    return {
        "seed": seed,
        "minibatch_size": MINIBATCH,
        "epochs": epochs,
        "validation_fraction": VALIDATION,
        "schedule.warmup_epochs": epochs / 60,
    }


def train(folder: Path, data_dir: Path, config: str, changes: dict[str, int | float]) -> None:
    """Trains or resumes a run, and embeds the cells."""
    settings = [f"--config.{name}={value}" for name, value in changes.items()]
    settings += [f"--config.data_dir={data_dir}", f"--workdir={folder / 'run'}"]
    binary("main", f"--config={config}", *settings)
    binary("embed", f"--workdir={folder / 'run'}", f"--out={folder / 'embedding'}")


def check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Raises BadUse if OUT has other settings; seeds may be added."""
    path = out / SETTINGS
    old = json.loads(path.read_text()) if path.exists() else settings
    added = ("seeds",) if set(old["seeds"]) <= set(settings["seeds"]) else ()
    if found := differences(old, settings, ignored=added):
        raise BadUse(f"{out} holds other results ({'; '.join(found)}): choose another --out")


def check_run(folder: Path, config: str, changes: dict[str, int | float]) -> None:
    """Raises BadUse if a run has another config."""
    if (path := folder / "run" / CONFIG).exists():
        wanted = runpy.run_path(str(ROOT / config))["get_config"]()
        wanted.update_from_flattened_dict(changes)
        check_same(json.loads(path.read_text()), wanted, folder / "run")


def features_of(folder: Path) -> dict[str, np.ndarray]:
    """[N, D] features of every cell by kind, in the order of the dataset.

    Features of the trained encoder are read from the embedding; those of the untrained encoder,
    intensities and components of pixels are computed in another pass.
    """
    path = folder / "features.npz"
    if not path.exists():
        from etils import epath

        from cellclr_jax import devices
        from cellclr_jax.encoder.apply import restore, visit
        from cellclr_jax.encoder.baselines import fit_pixel_components
        from cellclr_jax.encoder.load import make_cell_encoder
        from cellclr_jax.profiling.single_cells import KeptCells
        from cellclr_jax.run_folder import read_config

        run, mesh = epath.Path(folder / "run"), devices.make_mesh()
        encoding = make_cell_encoder(read_config(run))
        _, variables, _ = restore(run, "last", encoding, mesh)
        kept = KeptCells(np.arange(len(encoding.cells.table)))
        pixels = fit_pixel_components(encoding)
        visit(encoding, mesh, variables, kept.rows, kept.add, pixels=pixels)
        cells = embedded(folder)
        if cells["Metadata_CellId"].tolist() != encoding.cells.table["cell_id"].tolist():
            raise BadData(f"{folder / 'embedding'} does not hold the cells of the dataset")
        own = cells.filter(regex=r"^cellclr_\d+$").to_numpy(np.float32)
        with atomic_write(path) as part, part.open("wb") as file:
            np.savez(file, **(kept.features | {"trained": own}))
    with np.load(path) as found:
        return {kind: found[kind] for kind in KINDS}


def embedded(folder: Path) -> pd.DataFrame:
    """Reads the cells that `embed` wrote."""
    parts = sorted((folder / "embedding" / "cells").glob("*.parquet"))
    return pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)


def cells_of(folder: Path) -> pd.DataFrame:
    """[N] plate, well, site, compound, concentration."""
    names = ["plate", "well", "site", "compound", "concentration"]
    columns = {f"Metadata_{name.title()}": name for name in names}
    return embedded(folder)[list(columns)].rename(columns=columns)


def all_scores(folders: list[Path], out: Path) -> dict[str, list[Scores]]:
    """Scores of each seed by kind of features; one entry if they do not depend on the seed."""
    found: dict[str, list[Scores]] = {kind: [] for kind in KINDS}
    for folder in folders:
        path = folder / "scores.json"
        if not path.exists():
            features, cells = features_of(folder), cells_of(folder)
            scores = {kind: scores_of(features[kind], cells) for kind in KINDS}
            write_json(path, scores)
        for kind, scores in json.loads(path.read_text()).items():
            if folder == folders[0] or kind in ("trained", "untrained"):
                found[kind].append(scores)
    write_json(out / "scores.json", found)
    return found


def cell(runs: list[Scores], score: str, name: str) -> str:
    """Formats mean and standard deviation over seeds."""
    values = np.array([run[score][name] for run in runs])
    text = f"{values.mean():.2f}"
    return text if len(values) < 2 else f"{text} ± {values.std(ddof=1):.2f}"


def retrieved(runs: list[Scores], score: str) -> str:
    """Formats a retrieval: nearest (correct of all queries), precision.

    For example '0.50 ± 0.10 (7.3 of 14), 0.56 ± 0.03'.
    """
    right = np.mean([run[score]["correct"] for run in runs])
    counts = f"({right:.3g} of {runs[0][score]['asked']})"
    return f"{cell(runs, score, 'nearest')} {counts}, {cell(runs, score, 'precision')}"


def print_losses(folder: Path) -> None:
    """Prints the validation loss of the last epoch, and the lowest."""
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [row for line in lines if "validation_loss" in (row := json.loads(line))]
    least = min(rows, key=lambda row: row["validation_loss"])
    texts = [f"{row['validation_loss']:.4f} (epoch {row['epoch']})" for row in (rows[-1], least)]
    print(f"{folder.name}: validation loss {texts[0]} at the end, {texts[1]} at its lowest")


def print_features(found: dict[str, list[Scores]]) -> None:
    """Prints the first table: all features; plates before and after z-scores by plate."""
    last = ("plate, before", "plate, after", "4 treatments", "3 doses", "DMSO or not, AUC")
    head = ["features", *(f"{title}: nearest, mAP" for title in RETRIEVED), *last]
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for kind, runs in found.items():
        row = [kind, *(retrieved(runs, score) for score in RETRIEVED)]
        row += [
            cell(runs, f"plate, cells, {correction}", "logistic")
            for correction in ("none", "plates")
        ]
        row += [cell(runs, score, "logistic") for score in ("4 treatments", "3 doses")]
        print(f"| {' | '.join([*row, cell(runs, 'DMSO or not', 'auc')])} |")
    chance = ["chance"]
    for score in RETRIEVED:
        every = [run[score] for runs in found.values() for run in runs]
        named = ("nearest by chance", "precision by chance")
        chance.append(", ".join(f"{np.mean([one[name] for one in every]):.2f}" for name in named))
    print(f"| {' | '.join([*chance, '0.17', '0.17', '0.25', '0.33', '0.50'])} |")


def print_corrections(found: dict[str, list[Scores]]) -> None:
    """Prints the second table: doses across plates and plates under each correction."""
    head = ["features", "correction", "doses, sites: nearest, mAP"]
    head += ["plate of a cell: logistic", "k-NN", "plate of a site: logistic", "1-NN"]
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for kind, runs in found.items():
        for correction in PLATE_CORRECTIONS:
            row = [kind, correction, retrieved(runs, f"doses, sites, {correction}")]
            for level in ("cells", "sites"):
                row += [
                    cell(runs, f"plate, {level}, {correction}", name)
                    for name in ("logistic", "knn")
                ]
            print(f"| {' | '.join(row)} |")


def main() -> None:
    """Builds, trains, embeds, scores and prints; skips completed steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = Path(os.environ.get("CELLCLR_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2", help="of the runs, separated by commas")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--source", type=Path, default=shared / "data" / "bbbc021")
    parser.add_argument("--config", default="configs/simclr_demo.py")
    try:
        run(parser.parse_args())
    except (BadData, BadUse) as error:
        sys.exit(str(error))


def run(given: argparse.Namespace) -> None:
    """Runs all steps."""
    out, source = given.out.resolve(), given.source.resolve()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    out.mkdir(parents=True, exist_ok=True)
    build(source, out / "data")
    made = read_manifest(find_dataset(out / "data"))
    settings = {"source": str(source), "epochs": given.epochs, "config": given.config}
    settings |= {"seeds": seeds, "dataset": made["fingerprint"]}
    runs = {out / f"seed{seed}": settings_of(seed, given.epochs) for seed in seeds}
    check_settings(out, settings)
    for folder, changes in runs.items():
        check_run(folder, given.config, changes)
    write_json(out / SETTINGS, settings)
    for folder, changes in runs.items():
        if not (folder / "features.npz").exists():
            train(folder, out / "data", given.config, changes)
            features_of(folder)
    found = all_scores(list(runs), out)
    for folder in runs:
        print_losses(folder)
    print_features(found)
    print_corrections(found)


if __name__ == "__main__":
    main()
