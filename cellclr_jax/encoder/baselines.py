"""Baselines without training: intensity statistics, principal components of pixels, cell counts."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from cellclr_jax.augment import resize_all
from cellclr_jax.data.columns import is_control
from cellclr_jax.encoder.load import CellEncoder
from cellclr_jax.encoder.preprocessing import normalized
from cellclr_jax.profiling.feature_columns import own_features

_PERCENTILES = (1, 25, 50, 75, 99)
# Statistics of each channel, in this order.
STATISTICS = ("Mean", "Deviation", *(f"Percentile{percent}" for percent in _PERCENTILES))


def intensity_statistics(images: np.ndarray) -> np.ndarray:
    """Computes mean, standard deviation and percentiles (1, 25, 50, 75, 99) of each channel.

    A percentile p is the smallest value that at least p % of the pixels do not exceed.

    Args:
      images: [B, H, W, C] uint8 or uint16 raw intensities.

    Returns:
      [B, 7 · C] float32, in the units of the images; all channels of the first statistic first.
    """
    channels = np.moveaxis(images, -1, 1).reshape(len(images), images.shape[-1], -1)
    pixels = channels.shape[2]
    ranks = [max(math.ceil(percent / 100 * pixels) - 1, 0) for percent in _PERCENTILES]
    # NumPy's stable sort of 8 or 16 bits is a radix sort, several times faster than the others.
    percentiles = np.sort(channels, axis=2, kind="stable")[:, :, ranks]
    moments = [moment(axis=2, dtype=np.float32) for moment in (channels.mean, channels.std)]
    found = [*moments, *np.moveaxis(percentiles, 2, 0)]
    return np.concatenate(found, axis=1, dtype=np.float32)


COMPONENTS = 64
"""Principal components of the pixels; fewer if there are fewer cells or pixels."""
# Cells that the components are fitted on; more cells change the first components only slightly.
_CELLS = 2_000
# Side of the resized crops in pixels: linear differences between treatments are coarse.
_SIDE = 32
_SEED = 0


class PixelComponents(NamedTuple):
    """A projection of crops on principal components.

    Attributes:
      mean: [P] float32, over crops, of each pixel and channel.
      directions: [P, K] float32, orthonormal, sorted by falling variance.
    """

    mean: jax.Array
    directions: jax.Array


def fit_pixel_components(encoding: CellEncoder) -> PixelComponents:
    """Fits principal components on a fixed random sample of a dataset's cells.

    The result is the same in every process.
    """
    from sklearn.decomposition import PCA

    count = len(encoding.cells.table)
    drawn = np.random.default_rng(_SEED).choice(count, min(_CELLS, count), replace=False)
    crops = jax.jit(partial(normalized, settings=encoding.preprocessing))(
        encoding.cells.read(np.sort(drawn))
    )
    pixels = np.asarray(jax.jit(_flat)(crops))
    components = min(COMPONENTS, *pixels.shape)
    with np.errstate(invalid="ignore"):  # shares of a variance of 0
        model = PCA(components, svd_solver="randomized", random_state=_SEED).fit(pixels)
    directions = model.components_.T.astype(np.float32)
    return PixelComponents(jnp.asarray(model.mean_, jnp.float32), jnp.asarray(directions))


def pixel_features(images: jax.Array, components: PixelComponents) -> jax.Array:
    """Projects crops on the principal components.

    Args:
      images: [B, H, W, C] float32, normalised.
      components: of the dataset.

    Returns:
      [B, K] float32.
    """
    return (_flat(images) - components.mean[None]) @ components.directions


def _flat(images: jax.Array) -> jax.Array:
    """Resizes crops; returns their pixels [B, P]."""
    return resize_all(images, min(_SIDE, *images.shape[1:3])).reshape(len(images), -1)


FEATURES = ["CellCount_Cosine", "CellCount_Sine"]


def count_profiles(wells: pd.DataFrame, control: str) -> pd.DataFrame:
    """Turns cell counts into profiles whose cosine is highest for counts with a ratio near 1.

    Maps the logarithm of the count to an angle between 0 and 90°; cosine and sine of the angle are
    the profile. If every plate has controls, counts are divided by the mean count of the plate's
    controls first.

    Args:
      wells: one row a well: Metadata_Plate, Metadata_Compound, Metadata_CellCount (at least 1).
      control: the controls' compound.

    Returns:
      The metadata of the wells and `FEATURES`.
    """
    counts = wells["Metadata_CellCount"].to_numpy(np.float64)
    controls = is_control(wells["Metadata_Compound"], control)
    of_controls = wells["Metadata_CellCount"].where(controls).groupby(wells["Metadata_Plate"])
    by_plate = of_controls.transform("mean").to_numpy(np.float64)
    if np.isfinite(by_plate).all():
        counts = counts / by_plate
    logarithm = np.log(counts)
    span = np.ptp(logarithm)
    angle = np.pi / 2 * (logarithm - logarithm.min()) / (span if span > 0 else 1.0)
    features = dict(zip(FEATURES, (np.cos(angle), np.sin(angle)), strict=True))
    return wells.drop(columns=own_features(wells)).assign(**features)
