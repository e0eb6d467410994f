"""Profiles without training: intensity statistics, principal components of pixels, cell counts."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from cellclr_jax.augment import resize
from cellclr_jax.data.columns import is_control
from cellclr_jax.encoder.load import CellEncoder
from cellclr_jax.encoder.preprocessing import normalized
from cellclr_jax.profiling.feature_columns import own_features

_PERCENTILES = (1, 25, 50, 75, 99)
# What is computed of each channel, in this order.
STATISTICS = ("Mean", "Deviation", *(f"Percentile{percent}" for percent in _PERCENTILES))


def intensity_statistics(images: np.ndarray) -> np.ndarray:
    """Mean, standard deviation and percentiles (1, 25, 50, 75, 99) of each channel of each crop.

    A percentile is the smallest value that so many pixels do not exceed.

    Args:
      images: [B, H, W, C] uint8 or uint16 raw intensities.

    Returns:
      [B, 7 · C] float32, in the units of the images; statistic by statistic, channels within.
    """
    channels = np.moveaxis(images, -1, 1).reshape(len(images), images.shape[-1], -1)
    pixels = channels.shape[2]
    places = [max(math.ceil(percent / 100 * pixels) - 1, 0) for percent in _PERCENTILES]
    # A stable sort of so few bits is a radix sort, several times as fast as any other.
    percentiles = np.sort(channels, axis=2, kind="stable")[:, :, places]
    moments = [moment(axis=2, dtype=np.float32) for moment in (channels.mean, channels.std)]
    found = [*moments, *np.moveaxis(percentiles, 2, 0)]
    return np.concatenate(found, axis=1, dtype=np.float32)


COMPONENTS = 64
"""Principal components of the pixels; fewer if there are fewer cells or pixels."""
# Cells that the components are fitted on: more change the first components by little.
_CELLS = 2_000
# The side of the crops, in pixels: what tells treatments apart linearly is coarse.
_SIDE = 32
_SEED = 0


class PixelComponents(NamedTuple):
    """A projection of crops on principal components.

    Attributes:
      mean: [P] float32, the mean of the P pixels and channels.
      directions: [P, K] float32, orthonormal, the one of the largest variance first.
    """

    mean: jax.Array
    directions: jax.Array


def fit_pixel_components(encoding: CellEncoder) -> PixelComponents:
    """Fits principal components on a fixed draw of a dataset's cells.

    Every process computes the same.

    Args:
      encoding: its cells and their normalisation.
    """
    from sklearn.decomposition import PCA

    count = len(encoding.cells.table)
    drawn = np.random.default_rng(_SEED).choice(count, min(_CELLS, count), replace=False)
    crops = jax.jit(partial(normalized, settings=encoding.preprocessing))(
        encoding.cells.read(np.sort(drawn))
    )
    pixels = np.asarray(jax.jit(_flat)(crops))
    components = min(COMPONENTS, *pixels.shape)
    with np.errstate(invalid="ignore"):  # of the share of a variance that may be 0
        model = PCA(components, svd_solver="randomized", random_state=_SEED).fit(pixels)
    directions = model.components_.T.astype(np.float32)
    return PixelComponents(jnp.asarray(model.mean_, jnp.float32), jnp.asarray(directions))


def pixel_features(images: jax.Array, components: PixelComponents) -> jax.Array:
    """The components of each crop.

    Args:
      images: [B, H, W, C] float32, normalised.
      components: of the dataset.

    Returns:
      [B, K] float32.
    """
    return (_flat(images) - components.mean[None]) @ components.directions


def _flat(images: jax.Array) -> jax.Array:
    """[B, P] pixels of small copies of the crops."""
    side = min(_SIDE, *images.shape[1:3])
    small = jax.vmap(lambda image: resize(image, side))(images)
    return small.reshape(len(images), -1)


FEATURES = ["CellCount_Cosine", "CellCount_Sine"]


def count_profiles(wells: pd.DataFrame, control: str) -> pd.DataFrame:
    """Turns numbers of cells into profiles whose cosine ranks wells by how near the numbers are.

    A single number has no direction. Its logarithm, laid out as an angle between 0 and 90°, has
    one, and the nearest by cosine is the nearest by ratio. Numbers are divided by the mean of the
    plate's controls first, where every plate has some.

    Args:
      wells: one row a well: Metadata_Plate, Metadata_Compound, Metadata_CellCount (at least 1).
      control: the controls' compound.

    Returns:
      The wells' metadata and `FEATURES`.
    """
    counts = wells["Metadata_CellCount"].to_numpy(np.float64)
    controls = is_control(wells["Metadata_Compound"], control)
    usual = wells["Metadata_CellCount"].where(controls).groupby(wells["Metadata_Plate"])
    by_plate = usual.transform("mean").to_numpy(np.float64)
    if np.isfinite(by_plate).all():
        counts = counts / by_plate
    logarithm = np.log(counts)
    span = np.ptp(logarithm)
    angle = np.pi / 2 * (logarithm - logarithm.min()) / (span if span > 0 else 1.0)
    features = dict(zip(FEATURES, (np.cos(angle), np.sin(angle)), strict=True))
    return wells.drop(columns=own_features(wells)).assign(**features)
