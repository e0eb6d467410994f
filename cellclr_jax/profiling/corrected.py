"""Well profiles under each correction that a protocol asks for."""

from collections.abc import Callable
from functools import partial

import numpy as np

from cellclr_jax.cli import BadData
from cellclr_jax.profiling import correction
from cellclr_jax.profiling.protocol import CORRECTIONS, Protocol


def corrected_profiles(
    values: np.ndarray, is_control: np.ndarray, batches: np.ndarray, protocol: Protocol
) -> dict[str, np.ndarray | str]:
    """The profiles under each correction of the protocol, or why it cannot be fitted.

    Args:
      values: [N, D] float64, one row a well.
      is_control: [N] bool.
      batches: [N] names; '' where none is known.
      protocol: which corrections, and their λ.

    Returns:
      By name, in the order of `CORRECTIONS`: [N, K] float64, or a reason.
    """
    ridge, relative = protocol.regularization, protocol.relative_regularization
    whiten = partial(correction.whiten, values, is_control, regularization=ridge, relative=relative)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "none": lambda: correction.none(values),
        "whitening": whiten,
        "pca_whitening": partial(whiten, to_rank=True),
        "tvn": lambda: _aligned(found.get("whitening"), whiten, is_control, batches, protocol),
    }
    found: dict[str, np.ndarray | str] = {}
    for name in (name for name in CORRECTIONS if name in protocol.corrections):
        try:
            found[name] = ways[name]()
        except BadData as error:
            found[name] = str(error)
    return found


def _aligned(
    whitened: np.ndarray | str | None,
    whiten: Callable[[], np.ndarray],
    is_control: np.ndarray,
    batches: np.ndarray,
    protocol: Protocol,
) -> np.ndarray:
    """TVN of profiles that may have been whitened already."""
    if not isinstance(whitened, np.ndarray):
        whitened = whiten()
    if not any(batches):
        # Aligning one nameless batch with itself would repeat whitening under TVN's name.
        raise BadData("no batch is known")
    return correction.coral(
        whitened,
        is_control,
        batches,
        regularization=protocol.regularization,
        relative=protocol.relative_regularization,
    )
