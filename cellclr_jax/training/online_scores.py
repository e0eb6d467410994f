"""Scores of the evaluation during training, on a fixed subset of the cells.

They have fewer cells than the evaluation: they show a trend, not the quality of a run.
"""

from collections.abc import Callable
from functools import cached_property

import jax
import numpy as np
import pandas as pd
from jax.sharding import Mesh

from cellclr_jax import devices
from cellclr_jax.console import echo
from cellclr_jax.data import minibatches
from cellclr_jax.data.columns import is_control
from cellclr_jax.encoder.apply import MINIBATCH, compile_embedding
from cellclr_jax.encoder.load import CellEncoder, Variables
from cellclr_jax.errors import BadData
from cellclr_jax.profiling import evaluation, profiles
from cellclr_jax.profiling.profiles import has_treatments, sites_of
from cellclr_jax.profiling.single_cells import Sample, draw_sample, evaluate_cells
from cellclr_jax.training.setup import Experiment

# Memory of the subset's crops on the hosts: 19,000 crops of 96×96×3 in 16 bits.
_MOST_BYTES = 2**30
_SEED = 0
# Without the random forest, which takes longest.
_CLASSIFIERS = ("knn", "logistic")
_ONLINE = "online"
# Suffixes of scores by correction.
_ENDINGS = {"none": "", "whitening": "_whitening", "tvn": "_tvn"}


class OnlineScore:
    """Scores of up to `config.online.cells` cells, the same ones each time.

    In a dataset with treatments, the cells are spread evenly over all wells of annotated compounds
    and controls; their mean profiles, z-scored by the controls if there are at least two control
    wells, give NSC and NSCB. A k-NN classifier predicts the class of a cell (its label, else MoA,
    else compound) from cells of other plates, or at least of other wells. Without treatments and
    classes there is no score.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh) -> None:
        self._encoding: CellEncoder = experiment.encoder
        self._mesh = mesh
        self._every = experiment.config.online.every_epochs
        self._last_epoch = experiment.config.epochs
        self._noted: set[str] = set()
        table, self._control = experiment.encoder.cells.table, experiment.config.control
        treated = has_treatments(table, self._control)
        cells, requested = experiment.encoder.cells, experiment.config.online.cells
        bytes_each = int(np.prod(cells.image_shape)) * cells.image_dtype.itemsize
        size = min(requested, max(_MOST_BYTES // bytes_each, 1))
        if size < min(requested, len(table)):
            self._note(f"scores of {requested:,} cells", f"{size:,} fill {_MOST_BYTES >> 20} MiB")
        if treated:
            self._rows = spread_over_wells(table, size, control=self._control)
        else:
            self._rows = _draw_classes(table, size, self._control).rows
        subset = table.iloc[self._rows].reset_index(drop=True)
        self._sites = sites_of(subset) if treated else None
        self._sample = _draw_classes(subset, size, self._control)
        if not (treated or self._sample.label_column):
            self._note("scores", "the dataset has neither labels nor treatments")
            self._every = 0

    def due(self, epoch: int) -> bool:
        """Whether an epoch is scored: every `config.online.every_epochs`-th and the last one."""
        return bool(self._every) and (epoch % self._every == 0 or epoch == self._last_epoch)

    def score(self, variables: Variables) -> dict[str, float]:
        """Embeds the subset with the variables and scores it; every process of the run calls it.

        Returns:
          Shares in [0, 1]: `nsc`, `nscb`, the same with `_whitening` and `_tvn`, and the balanced
          accuracy `knn_label`, `knn_moa` or `knn_compound`. An undefined score is left out, and the
          reason is printed once.
        """
        features = self._features(variables)
        found: dict[str, float] = {}
        for name, score in (("nsc", self._score_treatments), ("k-NN", self._score_cells)):
            try:
                found |= score(features)
            except BadData as error:  # must not end the training
                self._note(name, str(error))
        return found

    def _features(self, variables: Variables) -> np.ndarray:
        """Returns the embeddings of the subset, [K, D] float32."""
        parts = [
            devices.to_host(self._embed(variables, devices.to_global(self._mesh, local)))
            for local in self._minibatches
        ]
        return np.concatenate(parts)[: len(self._rows)]

    @cached_property
    def _minibatches(self) -> list[dict[str, np.ndarray]]:
        """This process's share of the subset's minibatches, read once."""
        read = minibatches.sequential_minibatches(
            self._encoding.cells,
            self._rows,
            minibatch_size=devices.round_up(MINIBATCH, self._mesh),
            process=(jax.process_index(), jax.process_count()),
        )
        return [local for _, local in read]

    @cached_property
    def _embed(self) -> Callable[..., jax.Array]:
        """Function (variables, minibatch) → embeddings, compiled once."""
        embed = compile_embedding(self._encoding, self._mesh)
        return jax.jit(
            lambda variables, minibatch: embed({_ONLINE: variables}, minibatch)[_ONLINE],
            in_shardings=(devices.replicated(self._mesh), devices.by_rows(self._mesh)),
            out_shardings=devices.by_rows(self._mesh),
        )

    def _score_treatments(self, features: np.ndarray) -> dict[str, float]:
        if self._sites is None:
            return {}
        sites, index = self._sites
        names = profiles.feature_names(features.shape[1])
        accumulator = profiles.WellAccumulator(sites, names)
        accumulator.add(features, index)
        wells = profiles.aggregate_wells(accumulator.table(), features=names)
        controls = is_control(wells["Metadata_Compound"], self._control).sum()
        protocol = evaluation.Protocol(
            standardize="controls" if controls > 1 else "none", control=self._control
        )
        scored = evaluation.evaluate(wells, protocol, features=names, exact_names=True).scores
        found = {}
        for correction, ending in _ENDINGS.items():
            for kind in ("nsc", "nscb"):
                score = getattr(scored[correction], kind)
                if score.accuracy is None:
                    self._note(kind + ending, score.undefined)
                else:
                    found[kind + ending] = score.accuracy
        return found

    def _score_cells(self, features: np.ndarray) -> dict[str, float]:
        if not self._sample.label_column:
            return {}
        name = f"knn_{self._sample.label_column}"
        evaluated = evaluate_cells(
            self._sample, {_ONLINE: features[self._sample.rows]}, classifiers=_CLASSIFIERS
        )
        if evaluated.undefined:
            self._note(name, evaluated.undefined)
            return {}
        return {name: evaluated.probes[_ONLINE].scores["knn"].balanced_accuracy}

    def _note(self, what: str, reason: str) -> None:
        """Prints once, on the first process, why a score is undefined."""
        if what not in self._noted and jax.process_index() == 0:
            echo(f"no online {what}: {reason}")
        self._noted.add(what)


def spread_over_wells(cells: pd.DataFrame, size: int, *, control: str) -> np.ndarray:
    """Draws cells evenly from all wells with scored profiles, the same ones each time.

    The second cell of a well is drawn after the first cell of every well. With more wells than
    cells to draw, the second well of a treatment in a batch comes after the first well of every
    treatment in every batch; the controls count as a treatment.

    Args:
      cells: one row per cell, with plate, well, batch, compound, concentration and moa.
      size: largest number of cells to draw.
      control: compound name of the controls.

    Returns:
      [K] int, ascending row numbers; cells without a well or with a compound without a MoA are
      never drawn.
    """
    sites, index = sites_of(cells)
    scored = is_control(sites["Metadata_Compound"], control) | (sites["Metadata_MoA"] != "")
    wells = sites.groupby(["Metadata_Plate", "Metadata_Well"]).ngroup().to_numpy()
    by = ["Metadata_Batch", "Metadata_Compound", "Metadata_Concentration"]
    treatments = sites.groupby(by, dropna=False).ngroup().to_numpy()
    rows = np.random.default_rng(_SEED).permutation(len(cells))
    rows = rows[(index[rows] >= 0) & scored.to_numpy()[index[rows]]]
    drawn = pd.DataFrame({"well": wells[index[rows]], "treatment": treatments[index[rows]]})
    first = drawn.drop_duplicates("well")
    rank_of_well = first.groupby("treatment").cumcount().set_axis(first["well"])
    turn = drawn.groupby("well").cumcount().to_numpy()
    order = np.lexsort((drawn["well"].map(rank_of_well).to_numpy(), turn))
    return np.sort(rows[order[:size]])


def _draw_classes(cells: pd.DataFrame, size: int, control: str) -> Sample:
    """Draws the cells for the k-NN classifier; controls have no MoA."""
    if {"moa", "compound"} <= set(cells):
        controls = is_control(cells["compound"].fillna(""), control)
        cells = cells.assign(moa=cells["moa"].mask(controls, ""))
    sample = draw_sample(cells, with_treatments=False, size=size)
    assert sample is not None  # only treatments may be too few
    return sample
