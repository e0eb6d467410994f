"""Small pictures of the light of each plate: the illumination functions of its channels."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cellclr_jax.data.quality.look import SCALE

# The longer side of a channel's picture in pixels, and the space between channels.
_SIDE, _GAP = 96, 4
# The scale spans these percentiles of all plates.
_SPAN = (0.5, 99.5)


@dataclass(frozen=True)
class Light:
    """Pictures [h, C * w] by plate as PNG data URIs, and the light at the ends of the colours."""

    pictures: dict[str, str]
    low: float
    high: float


def draw_light(illumination: Mapping[str, np.ndarray]) -> Light:
    """Draws illumination functions, all in the same colours.

    Args:
      illumination: [h, w, C] by plate, the light relative to its mean; at least one.
    """
    from matplotlib import colormaps
    from PIL import Image

    drawn = {plate: _resize(np.asarray(gain)) for plate, gain in illumination.items()}
    values = np.concatenate([gain.ravel() for gain in drawn.values()])
    low, high = np.percentile(values, _SPAN)
    pictures = {}
    for plate, gain in drawn.items():
        share = np.clip((gain - low) / max(high - low, 1e-6), 0, 1)
        space = np.full((len(gain), _GAP, 4), 255, np.uint8)
        parts = [colormaps[SCALE.lower()](plane, bytes=True) for plane in np.moveaxis(share, -1, 0)]
        spaced = [piece for part in parts for piece in (part, space)][:-1]
        buffer = io.BytesIO()
        Image.fromarray(np.concatenate(spaced, axis=1)[..., :3]).save(buffer, "PNG", optimize=True)
        pictures[plate] = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Light(pictures, float(low), float(high))


def _resize(gain: np.ndarray) -> np.ndarray:
    """[h, w, C] float32 whose longer side is that of a picture."""
    from PIL import Image

    scale = _SIDE / max(gain.shape[:2])
    size = (max(1, round(scale * gain.shape[1])), max(1, round(scale * gain.shape[0])))
    planes = [
        Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR)
        for plane in np.moveaxis(gain.astype(np.float32), -1, 0)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)
