"""A new source is a class, a function and an entry in the registry."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from support.tiny_release import disc_field

from cellclr_jax.data import dataset, sources
from cellclr_jax.data.sources.source import Field, Source

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class ToyField(Field):
    """A field of four channels, drawn from a seed."""

    seed: int

    def read(self):
        rng = np.random.default_rng(self.seed)
        return np.stack([disc_field(rng, level=500 * (c + 1)) for c in range(4)], axis=-1)

    def fingerprint(self):
        return f"{self.name} {self.seed}"


def toy_plates(request):
    fields = [
        ToyField(f"P1/A{n:02d}/s1", {"plate": "P1", "well": f"A{n:02d}"}, seed=n) for n in (1, 2)
    ]
    channels = ("er", "golgi", "hoechst", "actin")
    return Source(fields, ("plate", "well"), channels, nuclei="hoechst")


TOY = sources.SourceEntry(
    toy_plates, "toys", dataset="toys", flags=("crop_size", "min_area"), whole_fields=True
)


def test_plates_of_any_number_of_channels_become_a_dataset(tmp_path, monkeypatch):
    # Runs this file: the build whose registry has one more entry.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    flags = ("--source=toy", f"--data_dir={tmp_path}", "--crop_size=32", "--workers=1")
    command = [sys.executable, __file__, *flags]
    result = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 0, result.stderr
    assert "2 fields: 0 without cells, 0 skipped" in result.stdout
    path = dataset.find_dataset(tmp_path, "toys/all")
    cells, images = dataset.read_cells(path), dataset.open_images(path)
    assert cells["well"].tolist() == ["A01"] * 4 + ["A02"] * 4
    field = ToyField("", {}, seed=2).read()
    row, column = int(cells["y"][5] + 0.5) - 16, int(cells["x"][5] + 0.5) - 16
    expected = field[row : row + 32, column : column + 32]
    np.testing.assert_array_equal(images.read([5])[0], expected)
    assert dataset.read_manifest(path)["image"]["channels"] == list(toy_plates(None).channels)
    monkeypatch.setitem(sources.SOURCES, "toy", TOY)
    assert "from toys: python -m" in sources.how_to_build("toys", "all", tmp_path)


if __name__ == "__main__":
    sources.SOURCES["toy"] = TOY
    from cellclr_jax import build as binary
    from cellclr_jax import cli

    cli.run(binary.main, binary.help_text())
