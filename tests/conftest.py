"""Eight CPU devices for every test, strict array semantics, and the folder of real data."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real BBBC021 data; a test that needs it is skipped where it is not."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("CELLCLR_SHARED", beside))
    if not (folder / "data" / "bbbc021").is_dir():
        pytest.skip(f"no real data at {folder}: set CELLCLR_SHARED to where data/bbbc021 lies")
    return folder
