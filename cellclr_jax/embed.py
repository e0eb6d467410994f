"""Embeds the cells of a dataset once and scores them: a run's model and two baselines.

The baselines see the same cells in the same pass: the encoder as it was before training, and the
intensities of each channel. Profiles are scored where the dataset has treatments, single cells
where it has labels, or no treatments.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from etils import epath
from jax.sharding import Mesh

from cellclr_jax import sharding
from cellclr_jax.checkpoint import CHECKPOINTS, Checkpoints
from cellclr_jax.cli import BadUse
from cellclr_jax.data import pipeline
from cellclr_jax.data.counting import plural
from cellclr_jax.data.progress import Progress
from cellclr_jax.experiment import Encoding, make_encoding
from cellclr_jax.intensity import STATISTICS, intensity_statistics
from cellclr_jax.logs import is_local, say
from cellclr_jax.profiling import evaluation, profiles, report
from cellclr_jax.profiling.cells import CellEvaluation, KeptCells, draw_sample, evaluate_cells
from cellclr_jax.profiling.columns import is_control, own_features
from cellclr_jax.profiling.sites import has_treatments, sites_of
from cellclr_jax.program import root_key
from cellclr_jax.run_config import read_config
from cellclr_jax.train_step import Variables
from cellclr_jax.trained_on import check_channels, describe_dataset

# Cells of a minibatch; forward passes alone, so that it fits wherever training does.
MINIBATCH = 512
# What is scored, the run's own first.
_FEATURES = ("trained", "untrained", "intensity")

Features = dict[str, jax.Array]
# Takes the rows [b] of a minibatch and their features [b, D] by name.
Receiver = Callable[[np.ndarray, Mapping[str, np.ndarray]], None]


def evaluate_run(
    workdir: epath.PathLike,
    *,
    step: str = "last",
    data_dir: str | Path | None = None,
    data_access: str = "shards",
    out: str | Path | None = None,
    protocol: evaluation.Protocol,
) -> None:
    """Scores a checkpoint and its baselines, and writes tables, figures and the report.

    Args:
      workdir: of the run.
      step: `last`, `best` (by validation loss) or a number.
      data_dir: where the dataset lies; None takes the run's.
      data_access: how crops are read (see `index.open_images`), whatever the run took.
      out: where to write; None takes <workdir>/eval/<step>. An evaluation with other settings
        that is there is kept (see `report.write_evaluation`).
      protocol: the settings of the evaluation (see `_evaluate` for the intensities').

    Raises:
      BadUse: there is no such run, checkpoint or dataset.
      BadData: one of them cannot be read.
    """
    workdir = epath.Path(workdir)
    if out is None and not is_local(workdir):
        raise BadUse(f"{workdir} is no folder of this machine: say where to write, --out=DIR")
    config = read_config(workdir)
    if data_dir is not None:
        config.data_dir = str(data_dir)
    config.data_access = data_access
    encoding, mesh = make_encoding(config), sharding.make_mesh()
    number, variables, progress = _restore(workdir, step, encoding, mesh)
    details = {
        "step": number,
        "checkpoint": step,
        "cells": len(encoding.cells.table),
        **describe_dataset(encoding.cells),
        "trained_on": progress["dataset"],
    }
    if details["dataset"] != details["trained_on"]:
        _warn_of_another(encoding, out)
    scored, probed = _score(encoding, mesh, variables, protocol)
    if jax.process_index() == 0:
        folder = Path(out if out is not None else workdir / "eval" / str(number))
        _tell(scored, probed, folder, details)


def _warn_of_another(encoding: Encoding, out: str | Path | None) -> None:
    """Says that a dataset is not the run's; BadUse where the scores would lie among the run's."""
    if out is None:
        raise BadUse(
            f"{encoding.cells.directory} is not what the run was trained on: say where to "
            "write, --out=DIR"
        )
    say("note: this is not the dataset that the run was trained on")


def _score(
    encoding: Encoding,
    mesh: Mesh,
    variables: Mapping[str, Variables],
    protocol: evaluation.Protocol,
) -> tuple[dict[str, evaluation.Evaluation], CellEvaluation | None]:
    """Embeds what the dataset can be scored by, once, and scores it.

    Returns:
      (evaluations of the profiles by name, none without treatments; that of single cells).
    """
    table = encoding.cells.table
    treated = has_treatments(table, protocol.control)
    sample = draw_sample(table, with_treatments=treated)
    kept = KeptCells(np.empty(0, np.int64) if sample is None else sample.rows)
    scored = {}
    if treated:
        tables = site_profiles(encoding, mesh, variables, kept.add)
        scored = {name: _evaluate(name, sites, protocol) for name, sites in tables.items()}
    else:
        if protocol != evaluation.Protocol():
            say("note: there are no treatments to score: settings of profiles decide nothing")
        visit(encoding, mesh, variables, kept.rows, kept.add)
    if sample is None:
        return scored, None
    if sample.label_column and jax.process_index() == 0:
        say(f"telling the {sample.label_column} of {len(kept.rows):,} cells from their features")
    return scored, evaluate_cells(sample, {name: kept.features[name] for name in _FEATURES})


def _tell(
    scored: Mapping[str, evaluation.Evaluation],
    probed: CellEvaluation | None,
    folder: Path,
    details: Mapping[str, Any],
) -> None:
    """Writes the evaluation and prints its tables, baselines below."""
    trained = scored.get("trained")
    baselines = {name: scored[name] for name in _FEATURES[1:] if name in scored}
    report.write_evaluation(folder, trained, baselines=baselines, details=details, cells=probed)
    if trained is not None:
        report.print_scores(trained, baselines=baselines)
    if probed is not None:
        report.print_cells(probed)
    print(f"written to {folder}")


def site_profiles(
    encoding: Encoding, mesh: Mesh, variables: Mapping[str, Variables], *receivers: Receiver
) -> dict[str, pd.DataFrame]:
    """Mean features of each site, every cell visited once.

    Args:
      encoding: dataset, model and normalisation; the dataset has plates, wells and compounds.
      mesh: the devices.
      variables: of encoders by name, on every device.
      receivers: see `visit`.

    Returns:
      A profile table for each encoder, and one named `intensity`; one row a site, with
      Metadata_CellCount.

    Raises:
      BadData: a well has two compounds, concentrations, MoAs or batches; nothing is embedded then.
    """
    cells = encoding.cells
    sites, index = sites_of(cells.table)
    profiles.check_wells(sites)
    if left_out := int((index < 0).sum()):
        say(f"note: in no profile: {plural(left_out, 'cell')} without plate, well or compound")
    accumulators: dict[str, profiles.WellAccumulator] = {}

    def add(rows: np.ndarray, features: Mapping[str, np.ndarray]) -> None:
        for name, values in features.items():
            if name not in accumulators:
                columns = _columns(name, values.shape[1], cells.channels)
                accumulators[name] = profiles.WellAccumulator(sites, columns)
            accumulators[name].add(values, index[rows])

    visit(encoding, mesh, variables, np.arange(len(cells.table)), add, *receivers)
    return {name: accumulator.table() for name, accumulator in accumulators.items()}


def visit(
    encoding: Encoding,
    mesh: Mesh,
    variables: Mapping[str, Variables],
    rows: np.ndarray,
    *receivers: Receiver,
) -> None:
    """Embeds cells, each once, and hands their features on minibatch by minibatch.

    Args:
      encoding: dataset, model and normalisation.
      mesh: the devices.
      variables: of encoders by name, on every device.
      rows: [N] of the dataset.
      receivers: are called with each minibatch: its rows, features of each encoder and those
        named `intensity`.
    """
    embed = compile_embedding(encoding, mesh)
    size = sharding.round_up(MINIBATCH, mesh)
    process = (jax.process_index(), jax.process_count())
    minibatches = pipeline.sequential_minibatches(
        encoding.cells, rows, minibatch_size=size, process=process
    )
    with Progress(len(rows), process[0] == 0, unit="cell", task="embedded") as progress:
        for real, local in minibatches:
            found = sharding.to_host(embed(variables, sharding.to_global(mesh, local)))
            features = {name: values[: len(real)] for name, values in found.items()}
            for receive in receivers:
                receive(real, features)
            progress.step(units=len(real))


def compile_embedding(encoding: Encoding, mesh: Mesh) -> Callable[..., Features]:
    """A jitted function (variables by name, minibatch) → features [B, D] by name.

    Each encoder sees the normalised crops as they are, with running statistics; `intensity` are
    statistics of the raw ones.
    """

    def embed(variables: Mapping[str, Any], minibatch: Mapping[str, jax.Array]) -> Features:
        images = encoding.resized(encoding.images(minibatch))
        features: Features = {}
        for name, weights in variables.items():
            features[name], _ = encoding.model.apply(weights, images, method="embed", mutable=[])
        return features | {"intensity": intensity_statistics(minibatch["image"])}

    return jax.jit(
        embed,
        in_shardings=(sharding.replicated(mesh), sharding.by_rows(mesh)),
        out_shardings=sharding.by_rows(mesh),
    )


def _evaluate(
    name: str, table: pd.DataFrame, protocol: evaluation.Protocol
) -> evaluation.Evaluation:
    """Scores one table of sites.

    Intensities are standardised by the controls wherever there are two of them: means, deviations
    and percentiles share no scale.
    """
    features = own_features(table)
    wells = profiles.aggregate_wells(table, through=protocol.aggregate, features=features)
    controls = is_control(wells["Metadata_Compound"], protocol.control).sum()
    if name == "intensity" and controls > 1:
        protocol = replace(protocol, standardize="controls")
    return evaluation.evaluate(wells, protocol, features=features)


def _restore(
    workdir: epath.Path, step: str, encoding: Encoding, mesh: Mesh
) -> tuple[int, dict[str, Variables], dict[str, Any]]:
    """The step's number, the variables before and after training, and its progress."""
    if not (workdir / CHECKPOINTS).is_dir():
        raise BadUse(f"no checkpoint in {workdir / CHECKPOINTS}: train first")
    checkpoints = Checkpoints((workdir / CHECKPOINTS).resolve(), read_only=True)
    with contextlib.closing(checkpoints):
        number = checkpoints.find(step)
        # Asked first: arrays of another number of channels cannot even be restored.
        check_channels(checkpoints.progress(number), encoding.cells, f"the run in {workdir}")
        init = jax.jit(encoding.init_variables, out_shardings=sharding.replicated(mesh))
        untrained = init(root_key(encoding.config.seed, mesh))
        trained, progress = checkpoints.restore_part(number, untrained)
    return number, {"trained": trained, "untrained": untrained}, progress


def _columns(name: str, width: int, channels: list[str]) -> list[str]:
    if name != "intensity":
        return profiles.feature_names(width)
    return [f"Intensity_{statistic}_{channel}" for statistic in STATISTICS for channel in channels]
