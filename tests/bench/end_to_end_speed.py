"""Compares training throughput, from crops on disk to updates, with PyTorch and a host chain.

pip install torch torchvision albumentations
python tests/bench/end_to_end_speed.py [--models=demo,resnet18] [--data_dir=DIR] [--files=png]

CellCLR trains as `main` does: shards, normalisation and the paper's augmentations in the step. The
program in PyTorch reads the same crops from a file each (16-bit PNG, or NPY), augments them by
albumentations in a DataLoader of two workers, and trains the same network with the same optimiser
and precision. It runs with and without large pages of the C library. All programs take turns.
Without `--data_dir` a small dataset is simulated first.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from simulated_cells import build_simulated
from turns import Step, TimingProcess

from cellclr_jax import cli

WORKERS = 2
TURN_STEPS = 8
# Untimed steps before a turn use up minibatches that were prefetched while waiting.
UNTIMED_STEPS = 4


@dataclass(frozen=True)
class Case:
    """A measurement: encoder, cells per minibatch, side of views in pixels, normalisation."""

    encoder: str
    cells: int
    side: int
    norm: bool


CASES = {"demo": Case("cnn", 256, 48, True), "resnet18": Case("resnet18", 64, 96, False)}


def experiment_config(case: Case, data_dir: Path) -> Any:
    """Makes the config of a run with the paper's chain."""
    from cellclr_jax import default_config

    config = default_config.get_config()
    config.data_dir = str(data_dir)
    config.image_size, config.minibatch_size, config.epochs = case.side, case.cells, 10_000
    config.validation_fraction = 0.0
    for name in ("flip_vertical", "rotate_quarter", "add_noise"):
        del config.views[name]
    config.model.encoder = case.encoder
    config.model.cnn.norm = config.model.head.norm = "batch" if case.norm else "none"
    config.optimizer.name = "sgd"
    config.schedule.warmup_epochs = 0.0
    return config


def make_cellclr(case: Case, data_dir: Path) -> tuple[Step, float]:
    """Makes CellCLR's step with its data; also returns the seconds to its first result."""
    import jax

    from cellclr_jax import devices
    from cellclr_jax.data import minibatches
    from cellclr_jax.training import setup
    from cellclr_jax.training.feed import Feed
    from cellclr_jax.training.setup import make_experiment

    began = time.perf_counter()
    mesh = devices.make_mesh()
    experiment = make_experiment(experiment_config(case, data_dir))
    config, compiled = experiment.config, setup.compile_program(experiment, mesh)
    data = minibatches.training_minibatches(
        experiment.encoder.cells,
        experiment.train_rows,
        minibatch_size=config.minibatch_size,
        epochs=config.epochs,
        seed=config.seed,
    )
    feed = Feed(iter(data), mesh)
    key = devices.root_key(config.seed, mesh)
    state, metrics = compiled.init(key), None

    def run() -> object:
        nonlocal state, metrics
        fed, _ = feed.next(metrics)
        state, metrics = compiled.step(state, fed.arrays, key)
        return metrics

    jax.block_until_ready(run())
    return run, time.perf_counter() - began


def export(data_dir: Path, folder: Path, suffix: str) -> int:
    """Writes each crop to a separate file; returns their number."""
    import cv2

    from cellclr_jax.data import minibatches

    cells = minibatches.open_cells(str(data_dir), "annotated", "shards")
    for row in range(len(cells.table)):
        pixels = cells.images.read([row])[0]
        if suffix == "png":
            cv2.imwrite(str(folder / f"{row}.png"), pixels)
        else:
            np.save(folder / f"{row}.npy", pixels)
    return len(cells.table)


class Files:
    """A dataset of image files: two augmented views of each, [2, 3, side, side] float32."""

    def __init__(self, folder: Path, count: int, suffix: str, side: int) -> None:
        self.paths = [folder / f"{row}.{suffix}" for row in range(count)]
        self.side, self.chain = side, None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> np.ndarray:
        import cv2

        if self.chain is None:
            cv2.setNumThreads(0)  # the workers already use all cores
            self.chain = _chain(self.side)
        path = self.paths[row]
        if path.suffix == ".png":
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        else:
            image = np.load(path)
        image = image.astype(np.float32)
        image = (image - image.mean((0, 1))) / (image.std((0, 1)) + 1e-6)
        views = [self.chain(image=image)["image"].transpose(2, 0, 1) for _ in range(2)]
        return np.ascontiguousarray(np.stack(views), np.float32)


def _chain(side: int) -> Any:
    """Makes the paper's operations with the probabilities and ranges of CellCLR's defaults."""
    import albumentations

    return albumentations.Compose(
        [
            albumentations.RandomResizedCrop((side, side), scale=(0.3, 1.0), ratio=(0.75, 4 / 3)),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.ElasticTransform(alpha=20, sigma=5, p=0.5),
            albumentations.Lambda(image=_jitter_channels, p=0.8),
            albumentations.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=0.5),
        ]
    )


def _jitter_channels(image: np.ndarray, **_: Any) -> np.ndarray:
    """Jitters contrast and brightness of each channel of a float image."""
    rng = np.random.default_rng()
    contrast, brightness = rng.uniform(0.6, 1.4, (2, image.shape[-1])).astype(np.float32)
    mean = image.mean((0, 1))
    return ((image - mean) * contrast + mean) * brightness


def make_torch(case: Case, folder: Path, count: int, suffix: str) -> tuple[Step, float]:
    """Makes the same step in PyTorch: eager, channels_last (the faster layout here)."""
    import torch
    import torch_peer

    began = time.perf_counter()
    peer = torch_peer.Peer(
        torch_peer.make_model(case.encoder, norm=case.norm),
        temperature=0.1,
        dtype=torch.float32,
        channels_last=True,
        compiled=False,
    )
    loader = torch.utils.data.DataLoader(
        Files(folder, count, suffix, case.side),
        batch_size=case.cells,
        shuffle=True,
        num_workers=WORKERS,
        drop_last=True,
        persistent_workers=True,
    )

    def endless() -> Any:
        while True:
            yield from loader

    minibatches = endless()

    def run() -> object:
        return peer.step(peer.put(next(minibatches).flatten(0, 1)))

    run()
    return run, time.perf_counter() - began


def measure(name: str, data_dir: Path, folder: Path, settings: argparse.Namespace) -> None:
    """Prints both rates and their ratio."""
    import jax

    case = CASES[name]
    count = len(list(folder.iterdir()))
    with TimingProcess(make_torch) as usual, TimingProcess(make_torch, large_pages=True) as large:
        run, first = make_cellclr(case, data_dir)

        def cellclr_timer(repeats: int) -> float:
            began = time.perf_counter()
            for _ in range(repeats):
                metrics = run()
            jax.block_until_ready(metrics)
            return (time.perf_counter() - began) / repeats

        timers, started = {"CellCLR": cellclr_timer}, {"CellCLR": first}
        for program, process in (("PyTorch", usual), ("PyTorch, large pages", large)):
            timers[program], started[program] = process.make(case, folder, count, settings.files)
        taken: dict[str, list[float]] = {program: [] for program in timers}
        for _ in range(settings.turns):
            for program, timer in timers.items():
                timer(UNTIMED_STEPS)
                taken[program].append(timer(TURN_STEPS))
    medians = {program: statistics.median(turns) for program, turns in taken.items()}
    print(f"{name}: {case.cells} cells a step, {case.side}×{case.side}×3, {settings.files} files")
    for program, median in medians.items():
        print(
            f"  {program:20} {case.cells / median:8.1f} cells/s"
            f"  first step {started[program]:5.1f} s  ratio {median / medians['CellCLR']:.2f}",
            flush=True,
        )


def main() -> None:
    """Measures each requested case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--files", choices=("png", "npy"), default="png")
    parser.add_argument("--turns", type=int, default=4)
    settings = parser.parse_args()
    cli.keep_freed_memory()
    from cellclr_jax import devices

    devices.use_all_cores(min(case.cells for case in CASES.values()))
    with tempfile.TemporaryDirectory() as scratch:
        data_dir, folder = settings.data_dir, Path(scratch) / "files"
        if data_dir is None:
            small = ("--noqc", "--simulator=height=512,width=640")
            data_dir = build_simulated(Path(scratch), 96, *small)
        folder.mkdir()
        print(f"{export(data_dir, folder, settings.files):,} cells")
        for name in settings.models.split(","):
            measure(name, data_dir, folder, settings)


if __name__ == "__main__":
    main()
