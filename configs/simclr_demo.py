"""SimCLR with the paper's small network on simulated plates: minutes on two CPU cores.

bash launch/demo.sh

Hardware: two CPU cores. Result: see the README's table.
"""

import ml_collections

from cellclr_jax import default_config


def get_config() -> ml_collections.ConfigDict:
    """A four-layer network on 40×40 views, invariant to random differences between wells."""
    config = default_config.get_config()
    config.image_size = 40
    config.views.gaussian_blur.probability = 0.7  # focus
    config.views.add_noise.deviation = (0.0, 0.3)  # noise
    config.views.jitter_channels.contrast = 0.6  # staining
    config.model.encoder = "cnn"
    config.model.cnn.norm = "batch"
    config.model.head.norm = "batch"
    config.model.head.width = 64
    config.temperature = 0.2
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.scaling = "constant"
    config.optimizer.weight_decay = 1e-4
    config.schedule.warmup_epochs = 0.25
    config.minibatch_size = 256
    config.epochs = 3
    config.checkpoint.keep_every_epochs = 0
    return config
