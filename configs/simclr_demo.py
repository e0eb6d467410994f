"""SimCLR with a small convolutional network on simulated plates: minutes on two CPU cores.

bash launch/demo.sh
"""

import ml_collections

from cellclr_jax import default_config


def get_config() -> ml_collections.ConfigDict:
    """A four-layer network on 48×48 views."""
    config = default_config.get_config()
    config.image_size = 48
    config.model.encoder = "cnn"
    config.model.encoder_settings.widths = (32, 64, 96, 128)
    config.model.encoder_settings.norm = "batch"
    config.model.head.norm = "batch"
    config.model.head.width = 64
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.scaling = "constant"
    config.optimizer.weight_decay = 1e-4
    config.schedule.warmup_epochs = 0.5
    config.minibatch_size = 256
    config.epochs = 6
    config.checkpoint.keep_every_epochs = 0
    return config
