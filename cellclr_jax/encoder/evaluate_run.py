"""Scores a run and its baselines on the cells of a dataset, in one pass over the cells.

Baselines are the encoder before training, intensities of each channel, principal components of
pixels, and cell counts. Profiles are scored if the dataset has treatments, single cells if it has
labels or no treatments.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from etils import epath
from jax.sharding import Mesh

from cellclr_jax import devices
from cellclr_jax.console import echo
from cellclr_jax.data.columns import control_spelling, is_control
from cellclr_jax.encoder import baselines
from cellclr_jax.encoder.apply import restore, site_profiles, visit
from cellclr_jax.encoder.load import CellEncoder, Variables, make_cell_encoder
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import is_local, make_writable
from cellclr_jax.pages.crop_strips import treatment_pictures
from cellclr_jax.profiling import report
from cellclr_jax.profiling.evaluation import Evaluation, evaluate
from cellclr_jax.profiling.feature_columns import own_features
from cellclr_jax.profiling.profiles import aggregate_wells, has_treatments
from cellclr_jax.profiling.protocol import AUTO, Options, Protocol
from cellclr_jax.profiling.single_cells import (
    CellEvaluation,
    KeptCells,
    Sample,
    cell_settings,
    draw_sample,
    evaluate_cells,
)
from cellclr_jax.run_folder import (
    as_json,
    converted_from,
    describe_dataset,
    environment,
    origin_of,
    read_config,
)
from cellclr_jax.training.log.metrics_file import METRICS_LOG

# Kinds of features, those of the run first; single cells have no cell count.
_FEATURES = ("trained", "untrained", "intensity", "pixels")
_PROFILES = (*_FEATURES, "cell_count")


def evaluate_run(
    workdir: epath.PathLike,
    *,
    step: str = "last",
    data_dir: str | Path | None = None,
    data_access: str = "shards",
    out: str | Path | None = None,
    overwrite: bool = False,
    protocol: Protocol,
    options: Options | None = None,
) -> None:
    """Scores a checkpoint and its baselines, and writes tables, figures and the report.

    Args:
      workdir: of the run.
      step: `last`, `best` (by validation loss) or a number.
      data_dir: of the dataset; None takes the run's.
      data_access: how crops are read (see `dataset.open_images`), whatever the run used.
      out: folder of the results; None takes <workdir>/eval/<step>.
      overwrite: replaces an evaluation with other settings.
      protocol: settings of the evaluation (see `_evaluate` for those of the baselines).
      options: what is computed and written in addition to the scores.

    Raises:
      BadUse: no such run, checkpoint, dataset or column of labels; `out` has other settings.
      BadData: a file cannot be read.
    """
    workdir, options = epath.Path(workdir), options or Options()
    if out is None and not is_local(workdir):
        raise BadUse(f"{workdir} is no folder of this machine: name the folder to write, --out=DIR")
    config = read_config(workdir)
    config.update(data_dir=str(data_dir or config.data_dir), data_access=data_access)
    encoding, mesh = make_cell_encoder(config), devices.make_mesh()
    number, variables, progress = restore(workdir, step, encoding, mesh)
    details = _details(encoding, progress, number, step, named=out is not None)
    table = encoding.cells.table
    treated = has_treatments(table, protocol.control)
    sample = draw_sample(table, with_treatments=treated, label=options.label)
    folder = Path(workdir / "eval" / str(number) if out is None else out)
    protocol = _with_spelling(protocol, table)
    settings = None if sample is None else cell_settings(sample, options.hold_out)
    report.check_settings(folder, protocol, details, settings, overwrite=overwrite)
    if jax.process_index() == 0:
        make_writable(folder, "--out")
        _note_unused(treated, sample, protocol, options)
    scored, cells = _score(encoding, mesh, variables, treated, sample, protocol, options)
    if jax.process_index() == 0:
        results = _collected(scored, cells, details, _background(workdir, encoding, protocol))
        report.write_evaluation(folder, results, options=options, overwrite=overwrite)
        print(f"written to {folder}")


def _with_spelling(protocol: Protocol, table: pd.DataFrame) -> Protocol:
    """Replaces the controls' name by its spelling in the dataset."""
    if "compound" not in table:
        return protocol
    names = table["compound"].fillna("")
    return replace(protocol, control=control_spelling(names, protocol.control))


def _details(
    encoding: CellEncoder, progress: Mapping[str, Any], number: int, step: str, *, named: bool
) -> dict[str, Any]:
    """Describes checkpoint and dataset; notes a dataset that the run was not trained on.

    Raises:
      BadUse: the run was trained on another dataset, and no output folder is named.
    """
    details = {
        "step": number,
        "checkpoint": step,
        "cells": len(encoding.cells.table),
        **describe_dataset(encoding.cells),
        "trained_on": origin_of(progress),
    }
    if source := converted_from(progress):
        echo(f"note: {source}: no run was trained on this dataset")
    elif details["dataset"] != details["trained_on"]:
        if not named:
            raise BadUse(
                f"{encoding.cells.directory} is not what the run was trained on: name the "
                "folder to write, --out=DIR"
            )
        echo("note: this is not the dataset that the run was trained on")
    return details


def _note_unused(
    treated: bool, sample: Sample | None, protocol: Protocol, options: Options
) -> None:
    """Notes settings that have no effect on this dataset."""
    if not treated and protocol != Protocol():
        echo("note: there are no treatments to score: settings of profiles have no effect")
    if sample is None and options.hold_out != AUTO:
        echo("note: no classes of cells are predicted (--label): --hold_out has no effect")


def _score(
    encoding: CellEncoder,
    mesh: Mesh,
    variables: Mapping[str, Variables],
    treated: bool,
    sample: Sample | None,
    protocol: Protocol,
    options: Options,
) -> tuple[dict[str, Evaluation], CellEvaluation | None]:
    """Embeds the cells once; scores profiles by name if there are treatments, and the sample."""
    kept = KeptCells(np.empty(0, np.int64) if sample is None else sample.rows)
    pixels = baselines.fit_pixel_components(encoding)
    scored: dict[str, Evaluation] = {}
    if treated:
        tables = site_profiles(encoding, mesh, variables, kept.add, pixels=pixels)
        tables["cell_count"] = tables["trained"]
        scored = _evaluate_all(tables, protocol, options)
    else:
        visit(encoding, mesh, variables, kept.rows, kept.add, pixels=pixels)
    if sample is None:
        return scored, None
    if sample.label_column and jax.process_index() == 0:
        echo(f"predicting the {sample.label_column} of {len(kept.rows):,} cells")
    features = {name: kept.features[name] for name in _FEATURES}
    return scored, evaluate_cells(sample, features, hold_out=options.hold_out)


def _collected(
    scored: Mapping[str, Evaluation],
    cells: CellEvaluation | None,
    details: dict[str, Any],
    background: Mapping[str, Any],
) -> report.Results:
    """Collects the results for the report, and prints the scores."""
    own, rest = scored.get("trained"), {n: e for n, e in scored.items() if n != "trained"}
    results = report.Results(own, baselines=rest, cells=cells, details=details, **background)
    if results.evaluation is not None:
        report.print_scores(results.evaluation, baselines=results.baselines)
    if results.cells is not None:
        report.print_cells(results.cells)
    return results


def _background(workdir: epath.Path, encoding: CellEncoder, protocol: Protocol) -> dict[str, Any]:
    """Collects pictures, training history and provenance for `report.Results`."""
    history = None
    with contextlib.suppress(OSError, ValueError):  # the log may be missing or incomplete
        lines = (workdir / METRICS_LOG).read_text().splitlines()
        history = pd.DataFrame([json.loads(line) for line in lines])
    manifest = {
        name: value
        for name, value in encoding.cells.manifest.items()
        if isinstance(value, (str, int, float, bool))
    }
    provenance = {
        "config": as_json(encoding.config),
        "data": {"folder": str(encoding.cells.directory), **manifest},
        **environment(),
    }
    pictures = treatment_pictures(encoding.cells, protocol.control)
    return {"pictures": pictures, "history": history, "provenance": provenance}


def _evaluate_all(
    tables: Mapping[str, pd.DataFrame], protocol: Protocol, options: Options
) -> dict[str, Evaluation]:
    """Scores profiles of sites by name; a baseline that cannot be scored becomes a note."""
    own = _evaluate("trained", tables["trained"], protocol, options)
    scored = {"trained": own}
    for name in _PROFILES[1:]:
        try:
            scored[name] = _evaluate(name, tables[name], protocol, options)
        except BadData as error:
            own.notes.append(f"the baseline {name} is left out: {error}")
    return scored


def _evaluate(name: str, table: pd.DataFrame, protocol: Protocol, options: Options) -> Evaluation:
    """Scores profiles of sites; measures are computed only for the trained encoder.

    Intensities are standardised by the controls if there are at least two, because means,
    deviations and percentiles have different scales. Cell counts are neither standardised nor
    corrected.
    """
    features = own_features(table)
    wells = aggregate_wells(table, through=protocol.aggregate, features=features)
    if name == "cell_count":
        wells, features = baselines.count_profiles(wells, protocol.control), baselines.FEATURES
        protocol = replace(protocol, standardize="none", robust=False, corrections=("none",))
    controls = is_control(wells["Metadata_Compound"], protocol.control).sum()
    if name == "intensity" and controls > 1 and protocol.standardize == "none":
        protocol = replace(protocol, standardize="controls")
    # Spellings of names were merged by the build, unless its flags said otherwise.
    score = partial(evaluate, features=features, exact_names=True)
    if name == "trained":
        return score(wells, protocol, measures=options.measures, show_progress=True)
    if (np.ptp(wells[features].to_numpy(np.float64), axis=0) == 0).all():
        raise BadData("all wells have the same features")
    return score(wells, protocol)
