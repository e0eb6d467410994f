"""Names that a release of BBBC021 gives to its tables and its controls."""

IMAGE_CSV = "BBBC021_v1_image.csv"
MOA_CSV = "BBBC021_v1_moa.csv"
CONTROL = "DMSO"
