"""The published recipe of arXiv 2103.16670 on BBBC021 with its quirks, each a separate setting.

python -m cellclr_jax.convert --input=resnet50-0676ba61.pth --workdir=weights/resnet50  # ImageNet
python -m cellclr_jax.main --config=configs/simclr_paper.py --workdir=runs/paper \
    --config.data_dir=DIR                     # where cellclr_jax.build put BBBC021

Other encoders by the config's argument: configs/simclr_paper.py:resnet18, :resnet101 (with their
weights in weights/<name>), :cnn (from random weights). Differences of the published code from the
paper, with the flag that turns each off (`simclr_paper_corrected.py` turns off all of them):

- pixels inverted by mistake: --config.normalization.legacy_invert=False
  --config.normalization.mean='(0.257,0.2636,0.2732)', the means without inversion;
- a joint minimum and maximum of z-scored channels: --config.normalization.method=percentile, of
  each plate (the corrected recipe uses zscore, to which the colour jitter does not apply);
- an elastic deformation that is a strong affine map with a negligible displacement field:
  --config.views.elastic.affine=0.0 --config.views.elastic.displacement=0.8
  --config.views.elastic.smoothness=5.0;
- jitter of hue and saturation, with stains treated as red, green and blue:
  --config.operations='("random_resized_crop","flip_horizontal","elastic","jitter_channels","gaussian_blur")';
- a cosine stepped once per epoch, with the number of steps per epoch as its period:
  --config.schedule.legacy_per_epoch=False;
- L2 penalty on biases and on scales of norms: --config.optimizer.decayed=kernels;
- whitening and TVN with λ = 1, although features vary far less:
  --config.evaluation.standardize=controls, or `eval --standardize=controls`;
- a sampler, for training with all DMSO, meant to draw treatments equally often, which exhausts the
  rare ones: off by default, --config.sampling=weighted turns it on.

Hardware: one GPU (256 cells a step), or a Cloud TPU. Result: not run on BBBC021
yet; 96 % NSC and 95 % NSCB are inferred from the differences that the abstract gives.
"""

import ml_collections

from cellclr_jax import default_config

ENCODERS = ("cnn", "resnet18", "resnet50", "resnet101")


def get_config(encoder: str = "resnet50") -> ml_collections.ConfigDict:
    """The published recipe.

    Args:
      encoder: of `ENCODERS`.
    """
    if encoder not in ENCODERS:
        raise ValueError(f"unknown encoder {encoder!r}: choose one of {', '.join(ENCODERS)}")
    config = default_config.get_config()
    _set_crops(config)
    _set_views(config)

    small = encoder == "cnn"
    config.model.encoder = encoder
    config.model.head.width = 64 if small else 256
    config.init.workdir = "" if small else f"weights/{encoder}"

    config.temperature = 0.1
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 3e-4
    config.optimizer.scaling = "constant"
    config.optimizer.weight_decay = 1e-5
    config.optimizer.decayed = "all"
    config.schedule.warmup_epochs = 0.0
    config.schedule.hold_epochs = 10.0
    config.schedule.legacy_per_epoch = True
    config.minibatch_size = 256
    config.epochs = 600
    config.validation_fraction = 0.05
    config.sampling = "uniform"  # weighted, for training with all DMSO

    config.evaluation.standardize = "none"
    config.evaluation.regularization = 1.0
    config.evaluation.relative_regularization = False
    return config


def _set_crops(config: ml_collections.ConfigDict) -> None:
    """Crops as they were stored and read; the means are those of inverted crops."""
    config.image_size = 96
    config.normalization.method = "zscore_minmax"
    config.normalization.bits = 8
    config.normalization.legacy_invert = True
    config.normalization.mean = (0.7469, 0.7403, 0.7307)
    config.normalization.deviation = (0.1548, 0.1594, 0.1706)


def _set_views(config: ml_collections.ConfigDict) -> None:
    """Albumentations of 2021 with their defaults; `operations` selects those of the recipe."""
    config.views = {
        "random_resized_crop": {"area": (0.08, 1.0), "aspect": (3 / 4, 4 / 3)},
        "center_crop": {"fraction": (0.5, 0.5)},  # random: (0.08, 1.0)
        "flip_horizontal": {"probability": 0.5},
        "rotate_quarter": {"probability": 0.375},  # 0.5, with a quarter of the turns by 0 degrees
        # The displacement of noise smoothed over 50 pixels within a crop of 96, in pixels.
        "elastic": {
            "affine": 50.0,
            "displacement": 0.0064,
            "smoothness": 75.0,
            "probability": 0.5,
        },
        "color_jitter": {
            "brightness": 0.2,
            "contrast": 0.2,
            "saturation": 0.2,
            "hue": 0.2,
            "probability": 0.8,
        },
        "jitter_channels": {"brightness": 0.2, "contrast": 0.2, "probability": 0.8},
        "grayscale": {"weights": (0.299, 0.587, 0.114), "probability": 0.2},
        "gaussian_blur": {"sigma": (0.1, 2.0), "kernel": 9, "probability": 0.5},
    }
    config.operations = (
        "random_resized_crop",
        "flip_horizontal",
        "elastic",
        "color_jitter",
        "gaussian_blur",
    )
