"""Builds a dataset of single cells from plates of images.

  python -m cellclr_jax.build --source=raw --input=PLATES --data_dir=DIR
  python -m cellclr_jax.build --source=crops --input=CROPS --data_dir=DIR
  python -m cellclr_jax.build --source=simulated --data_dir=DIR

PLATES is a folder of plate folders or of plates' zips as downloaded (several, separated by
commas), with BBBC021_v1_image.csv and BBBC021_v1_moa.csv in it or above it. The dataset appears
as DIR/bbbc021/<config>/<version>, whole or not at all.
"""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from cellclr_jax import cli

if TYPE_CHECKING:
    from cellclr_jax.data.fields import Request, Source

FLAGS = flags.FLAGS

flags.DEFINE_string("source", "raw", "Where cells come from: raw, crops or simulated.")
flags.DEFINE_list("input", [], "Folders or zips; simulated: where its release is written.")
flags.DEFINE_string("data_dir", None, "Where datasets lie.")
flags.DEFINE_enum(
    "config", "annotated", ["annotated", "all"], "Wells with an MoA and DMSO, or all."
)
flags.DEFINE_integer("crop_size", 96, "Side of a crop in pixels (crops: their own).", 8, 1024)
flags.DEFINE_enum("border", "drop", ["drop", "pad", "shift"], "Cells whose crop leaves the field.")
flags.DEFINE_integer("min_area", 100, "Smaller nuclei are debris, in pixels.", lower_bound=1)
flags.DEFINE_list(
    "channels", [], "Stored order; default dna,tubulin,actin (crops: dna,actin,tubulin)."
)
flags.DEFINE_integer("workers", 0, "Processes; 0: one for each core.", lower_bound=0)
flags.DEFINE_float("max_skipped", 0.01, "Share of the fields that may be unusable.", 0, 1)
flags.DEFINE_string("image_csv", None, "The image table, if not in the input or above it.")
flags.DEFINE_string("moa_csv", None, "The MoA table, if not in the input or above it.")
flags.DEFINE_list("plates", [], "These plates alone.")
flags.DEFINE_integer("seed", None, "Simulated: seed.", lower_bound=0)
flags.DEFINE_integer("weeks", None, "Simulated: weeks (batches).", lower_bound=1)
flags.DEFINE_integer("plates_per_week", None, "Simulated: plates a week.", lower_bound=1)
flags.DEFINE_integer("sites", None, "Simulated: fields a well.", lower_bound=1)
flags.DEFINE_list("simulator", [], "Simulated: other settings, such as height=512,width=640.")
flags.DEFINE_bool("overwrite", False, "Builds again where there is a finished dataset.")

_SIMULATOR_FLAGS = ("seed", "weeks", "plates_per_week", "sites")


def main() -> None:
    """Builds the dataset that the flags describe, or finds it built."""
    from cellclr_jax.data import index, manifest, sources

    _check_flags(tuple(sources.SOURCES))
    data_dir = Path(FLAGS.data_dir)
    settings = _settings(FLAGS.channels or list(sources.default_channels(FLAGS.source)))
    if not FLAGS.overwrite and _is_built(data_dir, settings):
        return
    request = sources.Request(
        inputs=_inputs(data_dir),
        channels=tuple(FLAGS.channels),
        image_csv=Path(FLAGS.image_csv) if FLAGS.image_csv else None,
        moa_csv=Path(FLAGS.moa_csv) if FLAGS.moa_csv else None,
        annotated=FLAGS.config == "annotated",
        plates=tuple(FLAGS.plates),
        simulation=settings["simulation"],
        workers=_workers(),
    )
    source = sources.open_source(FLAGS.source, request)
    path = _build(data_dir, source, request, settings)
    print(manifest.summarize(index.read_manifest(path), index.read_cells(path)))
    print(f"built {path}")


def _build(data_dir: Path, source: "Source", request: "Request", settings: dict[str, Any]) -> Path:
    """Builds from an opened source."""
    from cellclr_jax.data import bbbc021

    config = bbbc021.CellConfig(
        name=FLAGS.config,
        annotated=request.annotated,
        crop_size=source.crop_size or FLAGS.crop_size,
        border=FLAGS.border,
        min_area=FLAGS.min_area,
        channels=source.channels,
    )
    origin = {
        "inputs": [str(path.absolute()) for path in request.inputs],
        "image_csv": source.image_csv,
        "moa_csv": source.moa_csv,
        "absent_plates": source.absent_plates,
    }
    return bbbc021.build(
        data_dir,
        config,
        source,
        {"settings": settings, "origin": origin},
        workers=request.workers,
        max_skipped=FLAGS.max_skipped,
        overwrite=FLAGS.overwrite,
    )


def _check_flags(known: tuple[str, ...]) -> None:
    """Raises BadUse for what absl's own checks cannot see."""
    if FLAGS.source not in known:
        raise cli.BadUse(f"--source={FLAGS.source}: there are {', '.join(known)}")
    if not FLAGS.data_dir:
        raise cli.BadUse("--data_dir=DIR is needed: where datasets lie")
    if len(set(FLAGS.channels)) != len(FLAGS.channels):
        raise cli.BadUse(f"--channels={','.join(FLAGS.channels)}: a channel is named twice")


def _settings(channels: list[str]) -> dict[str, Any]:
    """What decides the content of the dataset, as the manifest tells it."""
    cut = {
        "crop_size": FLAGS.crop_size,
        "border": FLAGS.border,
        "min_area": FLAGS.min_area,
    }
    return {
        "source": FLAGS.source,
        "config": FLAGS.config,
        "channels": channels,
        "plates": sorted(FLAGS.plates),
        **(cut if FLAGS.source != "crops" else {}),
        "simulation": _simulation() if FLAGS.source == "simulated" else {},
    }


def _simulation() -> dict[str, Any]:
    """All settings of the simulator: its defaults, then --simulator, then the flags."""
    from cellclr_jax.data.simulator import SimulatorSettings

    settings = dataclasses.asdict(SimulatorSettings())
    given = dict(text.partition("=")[::2] for text in FLAGS.simulator)
    given |= {name: FLAGS[name].value for name in _SIMULATOR_FLAGS if FLAGS[name].value is not None}
    for name, value in given.items():
        if name not in settings:
            raise cli.BadUse(f"--simulator={name}: there are {', '.join(settings)}")
        try:
            settings[name] = type(settings[name])(value)
        except ValueError as error:
            raise cli.BadUse(f"--simulator={name}={value}: {error}") from error
    return settings


def _is_built(data_dir: Path, settings: dict[str, Any]) -> bool:
    """Says so where the dataset is finished; BadUse where it was built with other settings."""
    from cellclr_jax.data import index, manifest

    try:
        path = index.find_dataset(data_dir, FLAGS.config)
    except cli.BadUse:
        return False
    built = index.read_manifest(path)
    other = manifest.differences(built["settings"], settings)
    if other:
        raise cli.BadUse(
            f"{path} was built otherwise: {'; '.join(other)}. --overwrite builds it again, "
            "another --data_dir keeps both"
        )
    print(f"already built: {path} ({built['counts']['cells']:,} cells); --overwrite rebuilds")
    return True


def _inputs(data_dir: Path) -> tuple[Path, ...]:
    """The input paths; the simulator has a place of its own."""
    if FLAGS.source == "simulated" and not FLAGS.input:
        return (data_dir / "simulated_release",)
    return tuple(Path(path) for path in FLAGS.input)


def _workers() -> int:
    """The number of processes."""
    if FLAGS.workers:
        return int(FLAGS.workers)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    cli.run(main, __doc__)
