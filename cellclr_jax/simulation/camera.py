"""Camera, illumination and staining of simulated plates."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

DIGIT = 16  # BBBC021's files hold 12-bit values times 16
HIGHEST = 4095 * DIGIT
READ_NOISE = 36.0  # counts
SHOT_NOISE = 0.55  # variance in counts^2 per count of signal
HAZE_SHARE = 0.07  # share of out-of-focus light in a wide-field image
HAZE_BLOCK, HAZE_SIGMA = 8, 3.0  # haze is computed in blocks of 8 px; its blur in blocks

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Optics:
    """Imaging conditions of one well; triples are DNA, tubulin, actin.

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
    """Converts light to the camera's counts: blur, haze, illumination, noise, digitisation.

    Args:
      rng: for the noise.
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
    """Relative illumination [H, W] float32; 1 at the centre if the optics have no tilt."""
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    tilt = np.float32(0.5 * optics.tilt[0]) * x + np.float32(0.5 * optics.tilt[1]) * y
    return np.maximum(1 + tilt - np.float32(0.5 * optics.vignette) * (x * x + y * y), 0.1)


def _haze(layer: np.ndarray) -> np.ndarray:
    """Light [H, W] spread over tens of pixels: averaged in blocks, blurred, upsampled."""
    height, width = layer.shape
    rows = np.add.reduceat(layer, np.arange(0, height, HAZE_BLOCK), axis=0)
    blocks = np.add.reduceat(rows, np.arange(0, width, HAZE_BLOCK), axis=1) / HAZE_BLOCK**2
    blocks = ndimage.gaussian_filter(blocks, HAZE_SIGMA, truncate=2.5)
    wide = np.repeat(blocks, HAZE_BLOCK, axis=1)[:, :width]
    wide = ndimage.uniform_filter1d(wide, HAZE_BLOCK, axis=1)
    full = np.repeat(wide, HAZE_BLOCK, axis=0)[:height]
    return ndimage.uniform_filter1d(full, HAZE_BLOCK, axis=0)


# Gains, noise and density: standard deviations of the natural logarithm, at strength 1.
COMPOUND_GAIN, WEEK_GAIN, PLATE_GAIN, WELL_GAIN = 0.40, 0.20, 0.10, 0.20
COMPOUND_NOISE, WELL_NOISE = 0.90, 0.50
WEEK_DENSITY, COMPOUND_DENSITY, WELL_DENSITY = 0.15, 0.30, 0.35
ASTIGMATISM = 0.48  # of a compound's wells and of a well, the logarithm of the ratio
# Blurs in pixels: of the sharpest well, and the ranges that week, compound and well add.
SHARPEST, WEEK_BLUR, COMPOUND_BLUR, WELL_BLUR = 0.8, 0.35, 1.5, 1.4
# Backgrounds in counts: of the camera (DNA, tubulin, actin), and additions of the levels.
BACKGROUND = (690.0, 680.0, 790.0)
COMPOUND_GLOW, WEEK_BACKGROUND = 500.0, 60.0  # means
WELL_BACKGROUND = 60.0  # standard deviation
DARKEST = 0.7  # smallest background, as a share of the camera's
CHANNEL_FOCUS = 0.15  # relative difference of focus between channels
WEEK_VIGNETTE = (0.1, 0.4)  # share of light lost in the corners
MOST_VIGNETTE = 0.9
WELL_TILT = 0.20  # relative change of light across the field, standard deviation
# Alignment: concentration of the cells' angles; at 2, most lie within 30 degrees of the common one.
COMPOUND_ALIGNMENT, WELL_ALIGNMENT = 2.4, 1.3


@dataclass(frozen=True)
class LevelNuisance:
    """Nuisance of one week, plate or compound on its wells; the defaults have no effect."""

    gain: Triple = (1.0, 1.0, 1.0)
    background: Triple = (0.0, 0.0, 0.0)
    blur: float = 0.0
    noise: float = 1.0
    astigmatism: float = 1.0
    density: float = 1.0
    vignette: float = 0.0
    flow: float = 0.0
    alignment: float = 0.0


def week_nuisance(rng: np.random.Generator, strength: float) -> LevelNuisance:
    """Draws the nuisance of a week on all its plates."""
    return LevelNuisance(
        gain=_gains(rng, WEEK_GAIN * strength),
        background=_triple(rng.exponential(WEEK_BACKGROUND * strength, 3)),
        blur=strength * rng.uniform(0, WEEK_BLUR),
        density=float(rng.lognormal(0, WEEK_DENSITY * strength)),
        vignette=strength * rng.uniform(*WEEK_VIGNETTE),
    )


def plate_nuisance(rng: np.random.Generator, strength: float) -> LevelNuisance:
    """Draws the nuisance of a plate on all its wells."""
    return LevelNuisance(gain=_gains(rng, PLATE_GAIN * strength))


def compound_nuisance(rng: np.random.Generator, strength: float) -> LevelNuisance:
    """Draws the nuisance of a compound on all its wells, apart from its effect on cells."""
    return LevelNuisance(
        gain=_gains(rng, COMPOUND_GAIN * strength),
        background=_triple(rng.exponential(COMPOUND_GLOW * strength, 3)),
        blur=strength * rng.uniform(0, COMPOUND_BLUR),
        noise=float(rng.lognormal(0, COMPOUND_NOISE * strength)),
        astigmatism=float(rng.lognormal(0, ASTIGMATISM * strength)),
        density=float(rng.lognormal(0, COMPOUND_DENSITY * strength)),
        flow=rng.uniform(0, np.pi),
        alignment=strength * rng.exponential(COMPOUND_ALIGNMENT),
    )


def well_conditions(
    rng: np.random.Generator,
    strength: float,
    week: LevelNuisance,
    plate: LevelNuisance,
    compound: LevelNuisance,
) -> tuple[Optics, float, float, float]:
    """Draws the nuisance of a well and combines it with that of its week, plate and compound.

    Args:
      rng: the well's generator.
      strength: of the well's nuisance; 0 removes it, 1 is the demonstration's.
      week, plate, compound: nuisances of the levels above; DMSO has none.

    Returns:
      Imaging conditions of the well; density, flow and alignment of its `Population`.
    """
    gain = np.array(week.gain) * plate.gain * compound.gain * _gains(rng, WELL_GAIN * strength)
    background = rng.normal(0, WELL_BACKGROUND * strength, 3)
    offset = BACKGROUND + background + week.background + compound.background
    blur = SHARPEST + week.blur + compound.blur + strength * rng.uniform(0, WELL_BLUR)
    uneven = rng.uniform(-CHANNEL_FOCUS, CHANNEL_FOCUS, 3) * strength
    tilt = rng.normal(0, WELL_TILT * strength, 2)
    optics = Optics(
        gain=_triple(gain),
        offset=_triple(np.maximum(offset, DARKEST * np.array(BACKGROUND))),
        focus=_triple(blur * (1 + uneven)),
        astigmatism=compound.astigmatism * float(rng.lognormal(0, 0.5 * ASTIGMATISM * strength)),
        noise=compound.noise * float(rng.lognormal(0, WELL_NOISE * strength)),
        vignette=min(MOST_VIGNETTE, week.vignette),
        tilt=(float(tilt[0]), float(tilt[1])),
    )
    density = week.density * compound.density * float(rng.lognormal(0, WELL_DENSITY * strength))
    alignment = compound.alignment + strength * float(rng.exponential(WELL_ALIGNMENT))
    # The direction is the compound's if it aligns its cells, otherwise the well's.
    flow = compound.flow if compound.alignment > 0 else float(rng.uniform(0, np.pi))
    return optics, density, flow, alignment


def _gains(rng: np.random.Generator, sigma: float) -> Triple:
    return _triple(rng.lognormal(0, sigma, 3))


def _triple(values: np.ndarray) -> Triple:
    first, second, third = (float(value) for value in values)
    return first, second, third
