"""Where cells come from: plates of TIFFs, single-cell images of any origin, the simulator.

A source is a list of fields, each with its metadata and the files that hold it. Finding is done
here, once; reading is done elsewhere, by many processes.
"""

from collections.abc import Callable

from cellclr_jax.data.sources.crop_folders import crop_fields
from cellclr_jax.data.sources.deepprofiler import deepprofiler_fields
from cellclr_jax.data.sources.image_folders import folder_fields
from cellclr_jax.data.sources.plates import RAW_CHANNELS, raw_fields, simulated_fields
from cellclr_jax.data.sources.source import (
    Request,
    Source,
)
from cellclr_jax.errors import BadUse

__all__ = ["RAW_CHANNELS", "SOURCES", "Request", "Source", "open_source"]

SOURCES: dict[str, Callable[[Request], Source]] = {
    "raw": raw_fields,
    "crops": crop_fields,
    "deepprofiler": deepprofiler_fields,
    "folder": folder_fields,
    "simulated": simulated_fields,
}


def open_source(name: str, request: Request) -> Source:
    """Finds the fields of a source.

    Args:
      name: a key of `SOURCES`.
      request: where and what.

    Raises:
      BadUse: an unknown source, plate or channel, an input that does not exist.
      BadData: tables or files that do not fit together.
    """
    if name not in SOURCES:
        raise BadUse(f"unknown source {name!r}: one of {', '.join(SOURCES)}")
    return SOURCES[name](request)
