"""Applies the restored encoder of a run to every cell of a dataset."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pandas as pd
from etils import epath
from jax.sharding import Mesh

from cellclr_jax import devices
from cellclr_jax.console import Progress, echo, plural
from cellclr_jax.data import minibatches
from cellclr_jax.encoder.baselines import (
    STATISTICS,
    PixelComponents,
    intensity_statistics,
    pixel_features,
)
from cellclr_jax.encoder.load import CellEncoder, Variables
from cellclr_jax.encoder.preprocessing import normalized, preprocess
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling import profiles
from cellclr_jax.profiling.profiles import sites_of
from cellclr_jax.run_folder import check_channels
from cellclr_jax.training.checkpoints import CHECKPOINTS, Checkpoints
from cellclr_jax.training.initial_weights import START, read_initial_weights

# Cells of a minibatch; a forward pass needs less memory than training.
MINIBATCH = 512
# Cells of a CPU device: the activations of more cells exceed its cache, which doubles the time.
_CPU_CELLS = 32

Features = dict[str, jax.Array]
# Called with the rows [b] of a minibatch and their features [b, D] by name.
Receiver = Callable[[np.ndarray, Mapping[str, np.ndarray]], None]


def restore(
    workdir: epath.Path, step: str, encoding: CellEncoder, mesh: Mesh
) -> tuple[int, dict[str, Variables], dict[str, Any]]:
    """Reads the encoder of a checkpoint.

    Args:
      workdir: of the run.
      step: `last`, `best` (by validation loss) or a number.
      encoding: of the run's config, with the dataset to embed.
      mesh: the devices.

    Returns:
      (the step, variables by name: `trained`, `untrained`; the checkpoint's progress).

    Raises:
      BadUse: there is no such checkpoint, or the dataset has other channels.
      BadData: the checkpoint cannot be read.
    """
    if not (workdir / CHECKPOINTS).is_dir():
        raise BadUse(f"no checkpoint in {workdir / CHECKPOINTS}: train first")
    checkpoints = Checkpoints((workdir / CHECKPOINTS).resolve(), read_only=True)
    with contextlib.closing(checkpoints):
        number = checkpoints.find(step)
        # Checked first: arrays of another number of channels cannot be restored.
        check_channels(checkpoints.progress(number), encoding.cells, f"the run in {workdir}")
        init = jax.jit(encoding.init_variables, out_shardings=devices.replicated(mesh))
        untrained = init(devices.root_key(encoding.config.seed, mesh))
        trained, progress = checkpoints.restore_part(number, untrained)
    started = _initial_variables(encoding, untrained, progress)
    return number, {"trained": trained, "untrained": started}, progress


def _initial_variables(
    encoding: CellEncoder, random: Variables, progress: Mapping[str, Any]
) -> Variables:
    """Returns the initial variables of a run, random or of another run."""
    if (start := progress.get(START)) is None:
        return random
    config = encoding.config
    settings = {**config.init, "step": start["step"]}
    try:
        found = read_initial_weights(settings, config.model.encoder, random, encoding.cells)
        if found is None or found.provenance() != start:
            raise BadData(f"{settings['workdir']} holds other weights now")
    except (BadUse, BadData) as error:
        echo(f"note: the initial weights are missing; a random encoder replaces them: {error}")
        return random
    return found.in_place_of(random)


def site_profiles(
    encoding: CellEncoder,
    mesh: Mesh,
    variables: Mapping[str, Variables],
    *receivers: Receiver,
    pixels: PixelComponents | None = None,
) -> dict[str, pd.DataFrame]:
    """Computes mean features of each site in one pass over the cells.

    Args:
      encoding: dataset, model and normalisation; the dataset has plates, wells and compounds.
      mesh: the devices.
      variables: of encoders by name, on every device.
      receivers: see `visit`.
      pixels: see `visit`.

    Returns:
      A profile table for each encoder, one named `intensity`, and one named `pixels` if `pixels`
      is not None; one row a site, with Metadata_CellCount.

    Raises:
      BadData: a well has two compounds, concentrations, MoAs or batches; checked before embedding.
    """
    cells = encoding.cells
    sites, index = sites_of(cells.table)
    profiles.check_wells(sites)
    if left_out := int((index < 0).sum()):
        echo(f"note: in no profile: {plural(left_out, 'cell')} without plate, well or compound")
    accumulators: dict[str, profiles.WellAccumulator] = {}

    def add(rows: np.ndarray, features: Mapping[str, np.ndarray]) -> None:
        for name, values in features.items():
            if name not in accumulators:
                columns = _columns(name, values.shape[1], cells.channels)
                accumulators[name] = profiles.WellAccumulator(sites, columns)
            accumulators[name].add(values, index[rows])

    rows = np.arange(len(cells.table))
    visit(encoding, mesh, variables, rows, add, *receivers, pixels=pixels)
    return {name: accumulator.table() for name, accumulator in accumulators.items()}


def visit(
    encoding: CellEncoder,
    mesh: Mesh,
    variables: Mapping[str, Variables],
    rows: np.ndarray,
    *receivers: Receiver,
    intensities: bool = True,
    pixels: PixelComponents | None = None,
    chunk_cells: int | None = None,
) -> None:
    """Embeds cells, each once, and passes the features of each minibatch to the receivers.

    Args:
      encoding: dataset, model and normalisation.
      mesh: the devices.
      variables: of encoders by name, on every device.
      rows: [N] of the dataset.
      receivers: called for each minibatch with its rows and features by name.
      intensities: whether to compute features named `intensity`.
      pixels: components of the dataset, for features named `pixels`; None for none.
      chunk_cells: a minibatch ends after every `chunk_cells` rows, so that the features of a chunk
        do not depend on earlier rows; None: only after the last row.
    """
    embed = compile_embedding(encoding, mesh, pixels=pixels)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    size = min(MINIBATCH, _CPU_CELLS * mesh.size) if on_cpu else MINIBATCH
    size = devices.round_up(size, mesh)
    dataset = _WithIntensities(**vars(encoding.cells)) if intensities else encoding.cells
    process = (jax.process_index(), jax.process_count())
    step = chunk_cells or max(len(rows), 1)
    with Progress(len(rows), process[0] == 0, unit="cell", task="embedded") as progress:
        for start in range(0, len(rows), step):
            read = minibatches.sequential_minibatches(
                dataset, rows[start : start + step], minibatch_size=size, process=process
            )
            for real, local in read:
                found = devices.to_host(embed(variables, devices.to_global(mesh, local)))
                features = {name: values[: len(real)] for name, values in found.items()}
                for receive in receivers:
                    receive(real, features)
                progress.step(units=len(real))


class _WithIntensities(minibatches.Cells):
    """Adds the statistics of intensities to the minibatches of a dataset.

    The reading threads compute them, because NumPy's sort takes a tenth of the time of XLA's on
    CPUs; the compiled function returns them unchanged.
    """

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Reads cells as `Cells.read` does, and adds `intensity` [b, 7 · C] float32."""
        minibatch = super().read(rows)
        return minibatch | {"intensity": intensity_statistics(minibatch["image"])}


def compile_embedding(
    encoding: CellEncoder, mesh: Mesh, *, pixels: PixelComponents | None = None
) -> Callable[..., Features]:
    """Returns a jitted function (variables by name, minibatch) → features [B, D] by name.

    Encoders embed the normalised crops without augmentation, with running statistics. `pixels` are
    principal components of the normalised crops, unless the argument is None; `intensity` is that
    of the minibatch, if it has one.
    """

    def embed(
        variables: Mapping[str, Any],
        pixels: PixelComponents | None,
        minibatch: Mapping[str, jax.Array],
    ) -> Features:
        images = preprocess(minibatch, encoding.preprocessing)
        features: Features = {}
        for name, weights in variables.items():
            features[name], _ = encoding.model.apply(weights, images, method="embed", mutable=[])
        if "intensity" in minibatch:
            features["intensity"] = minibatch["intensity"]
        if pixels is not None:
            crops = normalized(minibatch, encoding.preprocessing)
            features["pixels"] = pixel_features(crops, pixels)
        return features

    everywhere, rows = devices.replicated(mesh), devices.by_rows(mesh)
    jitted = jax.jit(embed, in_shardings=(everywhere, everywhere, rows), out_shardings=rows)
    return lambda variables, minibatch: jitted(variables, pixels, minibatch)


def _columns(name: str, width: int, channels: list[str]) -> list[str]:
    if name == "pixels":
        return profiles.feature_names(width, "PixelComponent")
    if name != "intensity":
        return profiles.feature_names(width)
    return [f"Intensity_{statistic}_{channel}" for statistic in STATISTICS for channel in channels]
