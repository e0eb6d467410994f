"""The TFDS builder of anybody's single-cell images."""

import tensorflow_datasets as tfds

from cellclr_jax.data.building.cell_builder import CellBuilder, CellConfig
from cellclr_jax.data.extraction import CropSettings


class SingleCells(CellBuilder):
    """Single-cell images of any origin, with the labels and metadata that came with them."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 - TFDS's own attribute
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS's own attribute
        CellConfig(name="all", description="All images.", crops=CropSettings(96, ("grey",), ()))
    ]
