"""Image files of any origin: finding them, reading them, bringing them to size."""
