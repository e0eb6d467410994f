"""Look before you train: measures of every field, the fields that stand out, and their pictures.

`measures` are taken while a dataset is built, everything else reads the finished dataset.
"""

from cellclr_jax.data.quality.measures import columns_of, measure_crops, measure_field

__all__ = ["columns_of", "measure_crops", "measure_field"]
