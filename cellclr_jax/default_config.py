"""Every setting of an experiment with its default; the files in `configs/` change some of them."""

from dataclasses import asdict, fields

import ml_collections
from ml_collections import ConfigDict, config_dict

from cellclr_jax.data.columns import CONTROL
from cellclr_jax.profiling.protocol import Protocol


def get_config() -> ml_collections.ConfigDict:
    """Returns the defaults: SimCLR with a ResNet-50 on the annotated wells of BBBC021."""
    config = ConfigDict()
    config.seed = 0

    # Folder of `build` and name of the dataset: annotated or all (of BBBC021), or
    # <builder>/<config>, such as single_cells/all for images of your own.
    config.data_dir = "data"
    config.dataset = "annotated"
    # shards: crops are read from the shards; mapped: from one memory-mapped file of pixels, which
    # is written next to the shards the first time.
    config.data_access = "shards"
    config.validation_fraction = 0.05
    # uniform: each cell once per epoch; balanced: every treatment equally often; weighted: as in
    # the published code (see data/splits.py).
    config.sampling = "uniform"
    config.control = CONTROL  # compound of the controls
    config.control_fraction = 1.0  # share of control cells in the training set

    config.normalization = _normalization()
    # Side of the encoder's input in pixels, in training and in evaluation.
    config.image_size = 96
    config.views = _views()
    config.operations = ()  # names of the applied `views`; () applies all
    config.model = _model()
    # Work directory (of a run or of `convert`) with the initial weights of the encoder, and with
    # `head` those of the projection head as well; '': random weights.
    config.init = ConfigDict({"workdir": "", "step": "last", "head": False})
    # A key of `objectives.OBJECTIVES`; the settings of an objective have its name.
    config.objective = "nt_xent"
    config.temperature = 0.1
    # Columns of the similarity matrix that are computed at a time; 0: chosen by the hardware.
    config.loss_block_size = 0
    config.optimizer = _optimizer()
    config.schedule = _schedule()
    config.minibatch_size = 4096
    # Cells with activations in memory at a time, by gradient caching; 0: the whole minibatch.
    config.micro_batch_size = 0
    config.epochs = 400

    config.log_every = 20  # steps
    # Scores of up to `cells` cells every `every_epochs` epochs, in addition to the loss; 0: never.
    config.online = ConfigDict({"every_epochs": 0, "cells": 4000})
    # Saves at the end of each epoch and every `save_every_steps` steps (0: not). Keeps the last and
    # the best checkpoints, and that of every `keep_every_epochs`-th epoch (0: none).
    config.checkpoint = ConfigDict({"save_every_steps": 0, "keep_every_epochs": 100})
    config.evaluation = _evaluation()
    _add_objectives(config)
    return config


def _add_objectives(config: ConfigDict) -> None:
    """Adds the settings of each objective that are not settings of the config itself."""
    from cellclr_jax.objectives import OBJECTIVES, SHARED_SETTINGS

    for name, objective in OBJECTIVES.items():
        settings = {f.name: f.default for f in fields(objective) if f.name not in SHARED_SETTINGS}
        if settings:
            config[name] = ConfigDict(settings)


def _normalization() -> ConfigDict:
    """Returns the settings that convert raw intensities to images."""
    settings = ConfigDict()
    settings.method = "zscore"  # zscore_minmax, percentile (of each plate), fixed
    settings.percentiles = (1.0, 99.9)  # for method percentile
    settings.low = ()  # for method fixed, one number per channel
    settings.high = ()
    settings.bits = 0  # 8 rounds images in [0, 1] to 256 levels
    settings.legacy_invert = False  # level x of 256 becomes (256 - x) mod 256
    # The encoder's input is (view - mean) / deviation, one number per channel; (): the view itself.
    settings.mean = ()
    settings.deviation = ()
    return settings


def _views() -> ConfigDict:
    """Operations of `augment` by name; they run in the order of augment.OPERATIONS."""
    return ConfigDict(
        {
            "random_resized_crop": {"area": (0.3, 1.0), "aspect": (0.75, 4 / 3)},
            "flip_horizontal": {"probability": 0.5},
            "flip_vertical": {"probability": 0.5},
            "rotate_quarter": {"probability": 0.75},
            "elastic": {"displacement": 0.8, "smoothness": 5.0, "probability": 0.5},
            "jitter_channels": {
                "brightness": 0.4,
                "contrast": 0.4,
                "offset": 0.2,
                "probability": 0.8,
            },
            "gaussian_blur": {"sigma": (0.1, 2.0), "probability": 0.5},
            "add_noise": {"deviation": (0.0, 0.1), "probability": 0.5},
        }
    )


def _model() -> ConfigDict:
    """Encoder and projection head."""
    settings = ConfigDict()
    settings.encoder = "resnet50"  # cnn, resnet18, resnet50, resnet101
    settings.dtype = "float32"  # of the computation, or bfloat16; parameters are float32
    settings.remat = False  # recompute activations of blocks in the backward pass, to save memory
    # Settings of the encoder of that name; no effect on others.
    settings.cnn = ConfigDict({"widths": (16, 32, 64, 64), "norm": "none"})
    # The projection head; no effect on objectives that define another head, such as vicreg.
    settings.head = ConfigDict({"depth": 2, "width": 128, "norm": "none"})
    settings.head.hidden = config_dict.placeholder(int)  # None: the width of the embeddings
    return settings


def _optimizer() -> ConfigDict:
    """Optimiser of the parameters."""
    settings = ConfigDict()
    settings.name = "lars"  # lars, adam, adamw, sgd
    settings.learning_rate = 0.3
    settings.scaling = "linear"  # by minibatch size: constant, linear, sqrt
    settings.weight_decay = 1e-6
    settings.momentum = 0.9
    settings.trust_coefficient = 0.001
    settings.decayed = "kernels"  # parameters with weight decay; all: biases and norm scales, too
    return settings


def _schedule() -> ConfigDict:
    """Learning rate over the run."""
    settings = ConfigDict()
    settings.name = "cosine"  # or constant
    settings.warmup_epochs = 10.0  # linear rise
    settings.hold_epochs = 0.0  # at the peak after the warm-up
    settings.final = 0.0  # at the end, as a share of the peak
    settings.legacy_per_epoch = False  # the published code's cosine (optimizers.legacy_cosine)
    return settings


def _evaluation() -> ConfigDict:
    """Settings of `eval` that its flags override; profiling/protocol.py explains them."""
    settings = asdict(Protocol())
    del settings["control"], settings["left_out"]
    return ConfigDict(settings)
