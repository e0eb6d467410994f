"""A run of nine short steps whose programs compile in seconds."""

from cellclr_jax import default_config


def get_config():
    config = default_config.get_config()
    config.image_size = 16
    config.views = {
        "flip_horizontal": {"probability": 0.5},
        "add_noise": {"deviation": (0.0, 0.1), "probability": 0.5},
    }
    config.validation_fraction = 0.2
    config.model.encoder = "cnn"
    config.model.cnn.widths = (8, 8)
    config.model.cnn.norm = "batch"
    config.model.head.width = 16
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.scaling = "constant"
    config.schedule.warmup_epochs = 0.5
    config.minibatch_size = 64
    config.epochs = 3
    config.log_every = 1
    return config
