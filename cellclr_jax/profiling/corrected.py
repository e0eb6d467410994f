"""Well profiles under each correction that a protocol asks for."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from cellclr_jax.cli import BadData
from cellclr_jax.profiling import correction, correction_libraries
from cellclr_jax.profiling.protocol import CORRECTIONS, Protocol


def corrected_profiles(
    values: np.ndarray, is_control: np.ndarray, batches: np.ndarray, protocol: Protocol
) -> Iterator[tuple[str, np.ndarray | str]]:
    """The profiles under each correction of the protocol, or why it cannot be fitted.

    Args:
      values: [N, D] float64, one row a well.
      is_control: [N] bool.
      batches: [N] names; '' where none is known.
      protocol: which corrections, and their λ.

    Yields:
      (name, [N, K] float64 or a reason), in the order of `CORRECTIONS`. The array of a correction
      is overwritten when the next one is asked for: of large tables there is room for few copies.
    """
    ridge, relative = protocol.regularization, protocol.relative_regularization
    whiten_once = partial(
        correction.whiten, values, is_control, regularization=ridge, relative=relative
    )
    whitened: np.ndarray | None = None

    def whiten() -> np.ndarray:
        nonlocal whitened
        if whitened is None:
            whitened = whiten_once()
        return whitened

    def tvn() -> np.ndarray:
        nonlocal whitened
        profiles, whitened = whiten(), None
        correction_libraries.check_known(batches)
        return correction.coral(
            profiles, is_control, batches, regularization=ridge, relative=relative, out=profiles
        )

    ways: dict[str, Callable[[], np.ndarray]] = {
        "none": lambda: correction.none(values),
        "pca_whitening": partial(whiten_once, to_rank=True),
        "whitening": whiten,
        "tvn": tvn,
        "harmony": lambda: correction_libraries.harmony(values, batches),
        "combat": lambda: correction_libraries.combat(values, batches),
    }
    for name in (name for name in CORRECTIONS if name in protocol.corrections):
        try:
            profiles: np.ndarray | str = ways[name]()
        except BadData as error:
            profiles = str(error)
        yield name, profiles
