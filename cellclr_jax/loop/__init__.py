"""What the training loop of `train` is made of: what feeds, watches, scores and stops it."""
