"""The microscope and camera: focus, light field, haze, gain, background, noise, 12-bit digits.

These are the nuisances of a screen. They differ between weeks, plates, wells and compounds, and
tell nothing about a mechanism.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

DIGIT = 16  # BBBC021's files hold 12-bit values times 16
HIGHEST = 4095 * DIGIT
READ_NOISE = 36.0  # counts
SHOT_NOISE = 0.55  # variance in counts^2 per count of signal
HAZE_SHARE = 0.07  # of a wide-field image's light that comes from out of focus
HAZE_BLOCK, HAZE_SIGMA = 8, 3.0  # haze is computed in blocks of 8 px; its blur in blocks

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Optics:
    """How one well was imaged; triples are DNA, tubulin, actin.

    Attributes:
      gain: factor on the light of each channel.
      offset: counts of background.
      focus: blur, standard deviation in pixels.
      astigmatism: ratio of the blur in y to the blur in x.
      noise: factor on the camera's noise.
      vignette: share of light lost in the corners, in [0, 1).
      tilt: relative change of light across the field in x and in y.
    """

    gain: Triple = (1.0, 1.0, 1.0)
    offset: Triple = (700.0, 700.0, 850.0)
    focus: Triple = (0.8, 0.8, 0.8)
    astigmatism: float = 1.0
    noise: float = 1.0
    vignette: float = 0.08
    tilt: tuple[float, float] = (0.0, 0.0)


def expose(rng: np.random.Generator, image: np.ndarray, optics: Optics) -> np.ndarray:
    """What the camera records.

    Args:
      rng: draws the noise.
      image: [3, H, W] float32, counts above the background.
      optics: of the well.

    Returns:
      [3, H, W] uint16, multiples of 16 up to 65,520.
    """
    light = _light_field(image.shape[1], image.shape[2], optics)
    digits = np.empty(image.shape, np.uint16)
    uneven = optics.astigmatism**0.5
    for channel, layer in enumerate(image):
        sigma = optics.focus[channel] * uneven, optics.focus[channel] / uneven
        seen = ndimage.gaussian_filter(layer, sigma, truncate=2.5)
        seen += np.float32(HAZE_SHARE) * _haze(seen)
        seen *= light
        seen *= np.float32(optics.gain[channel])
        grain = rng.standard_normal(layer.shape, dtype=np.float32)
        grain *= np.sqrt(np.float32(SHOT_NOISE) * seen + np.float32(READ_NOISE**2))
        grain *= np.float32(optics.noise)
        seen += grain
        seen += np.float32(optics.offset[channel])
        seen *= np.float32(1 / DIGIT)
        digits[channel] = np.clip(np.rint(seen), 0, HIGHEST // DIGIT).astype(np.uint16) * DIGIT
    return digits


def _light_field(height: int, width: int, optics: Optics) -> np.ndarray:
    """Relative illumination [H, W] float32, 1 in the middle without tilt."""
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    tilt = np.float32(0.5 * optics.tilt[0]) * x + np.float32(0.5 * optics.tilt[1]) * y
    return np.maximum(1 + tilt - np.float32(0.5 * optics.vignette) * (x * x + y * y), 0.1)


def _haze(layer: np.ndarray) -> np.ndarray:
    """Light [H, W] spread over tens of pixels: averaged in blocks, blurred, smoothed back up."""
    height, width = layer.shape
    rows = np.add.reduceat(layer, np.arange(0, height, HAZE_BLOCK), axis=0)
    blocks = np.add.reduceat(rows, np.arange(0, width, HAZE_BLOCK), axis=1) / HAZE_BLOCK**2
    blocks = ndimage.gaussian_filter(blocks, HAZE_SIGMA, truncate=2.5)
    wide = np.repeat(blocks, HAZE_BLOCK, axis=1)[:, :width]
    wide = ndimage.uniform_filter1d(wide, HAZE_BLOCK, axis=1)
    full = np.repeat(wide, HAZE_BLOCK, axis=0)[:height]
    return ndimage.uniform_filter1d(full, HAZE_BLOCK, axis=0)
