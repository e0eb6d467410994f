"""Implements the published host chain of 2021: albumentations, or OpenCV where that has changed.

Every operation takes a generator and an RGB image [H, W, 3], uint8 or float32 in [0, 1].
"""

import runpy
from collections.abc import Callable
from pathlib import Path

import albumentations
import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

Operation = Callable[[np.random.Generator, np.ndarray], np.ndarray]

# The same chain by operations of `augment`, from the config of the published recipe.
_RECIPE = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "simclr_paper.py"))
_CONFIG = _RECIPE["get_config"]("cnn")
ON_DEVICE = {name: _CONFIG.views[name].to_dict() for name in _CONFIG.operations}


def wrap_transform(transform: albumentations.BasicTransform) -> Operation:
    """Wraps a transform of albumentations, which draws from its own generator, seeded once."""
    transform.set_random_seed(0)
    return lambda _, image: transform(image=image)["image"]


def crop() -> Operation:
    """Makes RandomResizedCrop(96, 96), of whole pixels, without antialiasing."""
    return wrap_transform(albumentations.RandomResizedCrop((96, 96), p=1.0))


def flip() -> Operation:
    """Makes HorizontalFlip()."""
    return wrap_transform(albumentations.HorizontalFlip(p=0.5))


def jitter(probability: float = 0.8, **strengths: float) -> Operation:
    """Makes ColorJitter() with the defaults of 2021; `strengths` by name replace 0.2."""
    given = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.2) | strengths
    return wrap_transform(albumentations.ColorJitter(**given, p=probability))


def blur(probability: float = 0.5) -> Operation:
    """Makes GaussianBlur of 9 taps by OpenCV, as in 2021."""

    def operation(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        if rng.random() >= probability:
            return image
        return cv2.GaussianBlur(image, (9, 9), sigmaX=rng.uniform(0.1, 2.0))

    return operation


def rotate_quarter() -> Operation:
    """Makes RandomRotate90()."""

    def operation(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        return np.rot90(image, int(rng.integers(0, 4))) if rng.random() < 0.5 else image

    return operation


def gray() -> Operation:
    """Makes RandomGrayscale of probability 0.2."""
    return wrap_transform(albumentations.ToGray(p=0.2))


def center_crop(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Crops a centred square of random side and resizes it to the image's side."""
    side = image.shape[0]
    kept = max(1, int(side * rng.uniform(0.08, 1.0)))
    start = (side - kept) // 2
    box = image[start : start + kept, start : start + kept]
    return cv2.resize(box, (side, side), interpolation=cv2.INTER_LINEAR)


def moved_points(
    rng: np.random.Generator, side: int, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the elastic transform's affine map: three points (x, y), and their new positions."""
    center, half = side // 2, side // 3
    points = center + half * np.array([[1, 1], [1, -1], [-1, -1]], np.float32)
    return points, (points + rng.uniform(-reach, reach, (3, 2))).astype(np.float32)


def field(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draws the elastic transform's displacements along one axis, in pixels: alpha 1, sigma 50."""
    return gaussian_filter(rng.uniform(-1, 1, (side, side)), 50).astype(np.float32)


def elastic(probability: float = 0.5, reach: float = 50.0) -> Operation:
    """Makes ElasticTransform() of 2021: an affine map, then a field."""

    def operation(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        if rng.random() >= probability:
            return image
        side, border = image.shape[0], cv2.BORDER_REFLECT_101
        if reach:
            matrix = cv2.getAffineTransform(*moved_points(rng, side, reach))
            image = cv2.warpAffine(image, matrix, (side, side), borderMode=border)
        x, y = np.meshgrid(np.arange(side), np.arange(side))
        columns, rows = x + field(rng, side), y + field(rng, side)
        columns, rows = columns.astype(np.float32), rows.astype(np.float32)
        return cv2.remap(image, columns, rows, cv2.INTER_LINEAR, borderMode=border)

    return operation


def chain() -> Operation:
    """Makes the chain of all operations, in the published order."""
    parts = (crop(), flip(), elastic(), jitter(), blur())

    def operation(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        for part in parts:
            image = part(rng, image)
        return image

    return operation
