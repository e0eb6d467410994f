"""What a build is asked for."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow_datasets as tfds

from cellclr_jax.data.extraction import CropSettings
from cellclr_jax.data.fields import Source


@dataclasses.dataclass
class CellConfig(tfds.core.BuilderConfig):
    """Which cells, and how they become images."""

    annotated: bool = False
    crops: CropSettings | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a build does.

    Attributes:
      source: the fields.
      settings: everything that decides the content, for the manifest.
      origin: where it comes from, for the manifest.
      illumination: how the light of each plate is estimated (see `illumination.METHODS`), to be
        corrected; '': it is not.
      workers: processes.
      beam_runner: of Apache Beam, instead of processes; '': none.
      beam_options: its flags.
      max_skipped: the share of fields that may be unusable, in [0, 1].
      show: whether progress is shown.
    """

    source: Source
    settings: Mapping[str, Any]
    origin: Mapping[str, Any]
    illumination: str = ""
    workers: int = 1
    beam_runner: str = ""
    beam_options: tuple[str, ...] = ()
    max_skipped: float = 0.01
    show: bool = True
