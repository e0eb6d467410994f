"""Every setting of an experiment with its default; the files in `configs/` change some of them."""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """The defaults: SimCLR with a ResNet-50 on the annotated wells of BBBC021."""
    config = ml_collections.ConfigDict()
    config.seed = 0

    # Data: where `build` put the dataset, and which of its configs.
    config.data_dir = "data"
    config.dataset = "annotated"
    config.validation_fraction = 0.05
    config.sampling = "uniform"  # or balanced: every treatment equally often

    # zscore, zscore_minmax, percentile (of each plate), fixed (low and high, one per channel).
    config.normalization = ml_collections.ConfigDict({"method": "zscore"})
    config.normalization.percentiles = (1.0, 99.9)
    config.normalization.low = ()
    config.normalization.high = ()

    # Side of what the encoder sees, in training and in evaluation.
    config.image_size = 96
    # Operations of `augment` by name, with their settings; the order is that of augment.OPERATIONS.
    config.views = ml_collections.ConfigDict(
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

    config.model = ml_collections.ConfigDict()
    config.model.encoder = "resnet50"  # cnn, resnet18, resnet50, resnet101
    config.model.dtype = "float32"  # of the computation; parameters are float32
    # Settings of an encoder have its name; those of the others lie idle.
    config.model.cnn = ml_collections.ConfigDict({"widths": (16, 32, 64, 64), "norm": "none"})
    config.model.head = ml_collections.ConfigDict(
        {"depth": 2, "hidden": config_dict.placeholder(int), "width": 128, "norm": "none"}
    )

    config.temperature = 0.1
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "lars"  # lars, adam, adamw, sgd
    config.optimizer.learning_rate = 0.3
    config.optimizer.scaling = "linear"  # by minibatch size: constant, linear, sqrt
    config.optimizer.weight_decay = 1e-6
    config.optimizer.momentum = 0.9
    config.optimizer.trust_coefficient = 0.001
    config.schedule = ml_collections.ConfigDict(
        {"name": "cosine", "warmup_epochs": 10.0, "final": 0.0}
    )
    config.minibatch_size = 4096
    config.epochs = 400

    config.log_every = 20  # steps
    # Saves at the end of each epoch and, where not 0, every `save_every_steps`; beside the last and
    # the best one, the checkpoint of every `keep_every_epochs` stays for good (0: none).
    config.checkpoint = ml_collections.ConfigDict({"save_every_steps": 0, "keep_every_epochs": 100})
    return config
