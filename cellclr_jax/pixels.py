"""Principal components of pixels: what a linear view of the crops tells, without a network."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cellclr_jax.augment import resize
from cellclr_jax.encoding import Encoding

COMPONENTS = 64
"""Of the pixels' variance; fewer where there are fewer cells or pixels."""
# Cells that the components are fitted on: more change what the first of them look like by little.
_CELLS = 2_000
# The side of the crops, in pixels: what tells treatments apart linearly is coarse.
_SIDE = 32
_SEED = 0


class PixelComponents(NamedTuple):
    """What turns crops into components.

    Attributes:
      mean: [P] float32, the mean of the P pixels and channels.
      directions: [P, K] float32, orthonormal, the one of the largest variance first.
    """

    mean: jax.Array
    directions: jax.Array


def fit_pixel_components(encoding: Encoding) -> PixelComponents:
    """Fits principal components on a fixed draw of a dataset's cells.

    Every process that calls it gets the same.

    Args:
      encoding: its cells and their normalisation.
    """
    from sklearn.decomposition import PCA

    count = len(encoding.cells.table)
    drawn = np.random.default_rng(_SEED).choice(count, min(_CELLS, count), replace=False)
    crops = jax.jit(encoding.images)(encoding.cells.read(np.sort(drawn)))
    pixels = np.asarray(jax.jit(_flat)(crops))
    components = min(COMPONENTS, *pixels.shape)
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
