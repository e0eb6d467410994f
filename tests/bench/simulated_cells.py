"""Builds cells of simulated plates with the build command, for benchmarks that need pixels."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build_simulated(folder: Path, crop_size: int = 96, *flags: str) -> Path:
    """Simulates two plates of 1024×1280×3 fields (once) and builds their cells, about 4,500.

    Args:
      folder: where plates and datasets are written.
      crop_size: side of a crop in pixels.
      flags: further flags of `build`, such as --simulator=height=512,width=640.

    Returns:
      A data folder with the dataset `annotated`.
    """
    data_dir = folder / f"data_{crop_size}"
    command = [sys.executable, "-m", "cellclr_jax.build", "--source=simulated", "--weeks=2"]
    command += ["--plates_per_week=1", f"--input={folder / 'release'}"]
    command += [f"--data_dir={data_dir}", f"--crop_size={crop_size}", *flags]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return data_dir
