"""The published recipe without the mistakes of its code (see `simclr_paper.py`).

python -m cellclr_jax.main --config=configs/simclr_paper_corrected.py --workdir=runs/corrected \
    --config.data_dir=DIR                     # where cellclr_jax.build put BBBC021

Encoders, ImageNet weights and hardware as in that config. Result: not run on BBBC021 yet.
"""

import runpy
from pathlib import Path

import ml_collections

_published = runpy.run_path(str(Path(__file__).with_name("simclr_paper.py")))["get_config"]


def get_config(encoder: str = "resnet50") -> ml_collections.ConfigDict:
    """The published recipe, corrected.

    Args:
      encoder: cnn, resnet18, resnet50 or resnet101.
    """
    config: ml_collections.ConfigDict = _published(encoder)
    # Scales each channel separately, and not by its brightest pixel.
    config.normalization.method = "zscore"
    config.normalization.bits = 0
    config.normalization.legacy_invert = False
    config.normalization.mean = ()
    config.normalization.deviation = ()
    # An elastic deformation instead of an affine map, and independent jitter of the stains.
    config.views.elastic = {"displacement": 0.8, "smoothness": 5.0, "probability": 0.5}
    config.operations = (
        "random_resized_crop",
        "flip_horizontal",
        "elastic",
        "jitter_channels",
        "gaussian_blur",
    )
    # After the constant epochs a cosine that ends with the run.
    config.schedule.legacy_per_epoch = False
    config.optimizer.decayed = "kernels"
    # λ = 1 is meaningful if features have unit variance over the controls.
    config.evaluation.standardize = "controls"
    return config
