"""Reads fields with nuclei drawn by hand, and scores segmentations.

Every connected region of a true label is a nucleus, also at the border. Drawn regions have as few
as 11 pixels (micronuclei, fragments of dead cells, slivers at the border), while a segmentation
removes objects below a smallest area. `compare` takes that area and ignores smaller true regions,
together with found objects that are mostly inside them. With 0, every region counts.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage import io, measure

SMALLEST = 100  # pixels, the default of `segment_nuclei`


@dataclass(frozen=True)
class Score:
    """Counts over one field or, summed, over several.

    Attributes:
      true, found: objects.
      half, most: pairs of a true and a found object whose intersection over union (IoU) is above
        0.5 and above 0.7; no object is in two such pairs.
      centres: true nuclei that contain the centre of at least one found object.
      splits: true nuclei that contain more than half of each of two or more found objects.
      merges: found objects that contain more than half of each of two or more true nuclei.
    """

    true: int = 0
    found: int = 0
    half: int = 0
    most: int = 0
    centres: int = 0
    splits: int = 0
    merges: int = 0

    def __add__(self, other: "Score") -> "Score":
        names = [field.name for field in fields(self)]
        return Score(*(getattr(self, name) + getattr(other, name) for name in names))

    @property
    def f1_half(self) -> float:
        """F1 of objects at IoU 0.5; 1 without true and found objects."""
        return _f1(self.half, self.true, self.found)

    @property
    def f1_most(self) -> float:
        """F1 of objects at IoU 0.7."""
        return _f1(self.most, self.true, self.found)

    @property
    def precision(self) -> float:
        """Share of the found objects, counting one per true nucleus that contains a centre."""
        return self.centres / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        """Share of the true nuclei that contain the centre of a found object."""
        return self.centres / self.true if self.true else 1.0


def _f1(pairs: int, true: int, found: int) -> float:
    return 2 * pairs / (true + found) if true + found else 1.0


def hand_drawn_fields(folder: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Reads (name, image [H, W] uint16, true labels [H, W]) of all pairs of a TIFF and a PNG."""
    found = []
    for path in sorted(folder.glob("*.tif")):
        # The first channel's values differ between touching nuclei; distant ones may share a value.
        values = io.imread(path.with_suffix(".png"))[..., 0]
        labels = measure.label(values, connectivity=1, background=0)
        found.append((path.stem, io.imread(path), labels))
    return found


def compare(truth: np.ndarray, labels: np.ndarray, smallest: int = 0) -> Score:
    """Scores found `labels` [H, W] against true ones [H, W]; 0 is background in both.

    Args:
      truth, labels: any numbers, one for each object.
      smallest: true objects of fewer pixels are ignored, with found objects mostly inside them.
    """
    both = np.zeros((int(truth.max()) + 1, int(labels.max()) + 1), np.int64)
    np.add.at(both, (truth.ravel(), labels.ravel()), 1)
    true_area, found_area = both.sum(1), both.sum(0)
    true = (true_area >= max(smallest, 1)) & (np.arange(len(true_area)) > 0)
    ignored = (true_area > 0) & ~true
    ignored[0] = False
    found = (found_area > 0) & (2 * both[ignored].sum(0) <= found_area)
    found[0] = False
    held = both[true][:, found]
    areas = true_area[true][:, None], found_area[found][None, :]
    # With an intersection over union above one half, no second pair is possible.
    iou = held / np.maximum(areas[0] + areas[1] - held, 1)
    return Score(
        true=int(true.sum()),
        found=int(found.sum()),
        half=int((iou > 0.5).sum()),
        most=int((iou > 0.7).sum()),
        centres=_centres(truth, labels, true, found),
        splits=int(((2 * held > areas[1]).sum(1) > 1).sum()),
        merges=int(((2 * held > areas[0]).sum(0) > 1).sum()),
    )


def _centres(truth: np.ndarray, labels: np.ndarray, true: np.ndarray, found: np.ndarray) -> int:
    """Counts true objects that contain the centre of a found object."""
    numbers = np.flatnonzero(found)
    if not len(numbers):
        return 0
    rows, columns = np.rint(ndimage.center_of_mass(labels > 0, labels, numbers)).astype(int).T
    hit = np.unique(truth[rows, columns])
    return int(true[hit].sum())
