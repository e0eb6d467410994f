"""Contrastive losses; an alias of `cellclr_jax.objectives.nt_xent`."""

from cellclr_jax.objectives.nt_xent import contrast, normalize_rows, nt_xent

__all__ = ["contrast", "normalize_rows", "nt_xent"]
