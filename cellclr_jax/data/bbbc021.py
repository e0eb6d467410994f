"""The TFDS builder of BBBC021: single cells of its plates, or of plates in its layout."""

import tensorflow_datasets as tfds

from cellclr_jax.data.building.cell_builder import CellBuilder, CellConfig
from cellclr_jax.data.extraction import CropSettings
from cellclr_jax.data.sources import RAW_CHANNELS
from cellclr_jax.data.tables.release_tables import RELEASE_COLUMNS

_CROPS = CropSettings(96, RAW_CHANNELS, RELEASE_COLUMNS)


class Bbbc021(CellBuilder):
    """Single-cell images of BBBC021v1 (MCF-7, three channels, 16 bit), or of plates like it."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 - TFDS's own attribute
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS's own attribute
        CellConfig(
            name="annotated",
            description="Wells with a mechanism of action, and DMSO.",
            annotated=True,
            crops=_CROPS,
        ),
        CellConfig(name="all", description="All wells.", crops=_CROPS),
    ]
