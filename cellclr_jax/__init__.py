"""CellCLR: contrastive learning of single-cell phenotypes in JAX."""

__version__ = "0.1.0"
