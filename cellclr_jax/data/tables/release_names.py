"""Names that a release of BBBC021 gives to its files and its controls, and where it lies."""

IMAGE_CSV = "BBBC021_v1_image.csv"
MOA_CSV = "BBBC021_v1_moa.csv"
CONTROL = "DMSO"
# A plate's zip is called so, then comes the plate.
ZIP_PREFIX = "BBBC021_v1_images_"
RELEASE_URL = "https://data.broadinstitute.org/bbbc/BBBC021"
