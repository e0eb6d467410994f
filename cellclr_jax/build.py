"""Builds a dataset of single cells from plates of images.

  python -m cellclr_jax.build --source=raw --input=PLATES --data_dir=DIR
  python -m cellclr_jax.build --source=crops --input=CROPS --data_dir=DIR
  python -m cellclr_jax.build --source=simulated --data_dir=DIR

PLATES is a folder of plate folders or of plates' zips as downloaded (several, separated by
commas), with BBBC021_v1_image.csv and BBBC021_v1_moa.csv in it or above it. The dataset appears
as DIR/bbbc021/<config>/<version>, whole or not at all.
"""

import dataclasses
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
flags.DEFINE_integer("crop_size", 96, "Side of a crop in pixels (not for crops).", 8, 1024)
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
flags.DEFINE_integer("weeks", None, "Simulated: weeks (batches).", lower_bound=2)
flags.DEFINE_integer("plates_per_week", None, "Simulated: plates a week.", lower_bound=1)
flags.DEFINE_integer("sites", None, "Simulated: fields a well.", lower_bound=1)
flags.DEFINE_list("simulator", [], "Simulated: other settings, such as height=512,width=640.")
flags.DEFINE_bool("overwrite", False, "Builds again where there is a finished dataset.")

_SIMULATOR_FLAGS = ("seed", "weeks", "plates_per_week", "sites")
# Flags that decide nothing for a source: whoever sets one expects something that will not happen.
_TABLE_FLAGS = ("image_csv", "moa_csv")
_CUT_FLAGS = ("crop_size", "border", "min_area")
_UNUSED_FLAGS = {
    "raw": (*_SIMULATOR_FLAGS, "simulator"),
    "crops": (*_SIMULATOR_FLAGS, "simulator", *_CUT_FLAGS),
    "simulated": _TABLE_FLAGS,
}
# Sources that are announced and not there yet.
_LATER_SOURCES = ("deepprofiler", "folder")


def main() -> None:
    """Builds the dataset that the flags describe, or finds it built."""
    from cellclr_jax.data import index, manifest, pool, sources

    _check_flags(tuple(sources.SOURCES))
    data_dir = Path(FLAGS.data_dir)
    settings = _settings(FLAGS.channels or list(sources.default_channels(FLAGS.source)))
    built = None if FLAGS.overwrite else _built(data_dir, settings)
    # The settings decide simulated cells; their plates may have been deleted since.
    if built and FLAGS.source == "simulated":
        _say_built(built)
        return
    request = sources.Request(
        inputs=_inputs(data_dir),
        channels=tuple(FLAGS.channels),
        image_csv=Path(FLAGS.image_csv) if FLAGS.image_csv else None,
        moa_csv=Path(FLAGS.moa_csv) if FLAGS.moa_csv else None,
        annotated=FLAGS.config == "annotated",
        plates=tuple(FLAGS.plates),
        simulation=settings["simulation"],
        workers=FLAGS.workers or pool.usable_cores(),
        overwrite=FLAGS.overwrite,
    )
    source = sources.open_source(FLAGS.source, request)
    if built:
        _check_input(built, source)
        _say_built(built)
        return
    if source.absent_plates:
        print(manifest.describe_absent(source.absent_plates), flush=True)
    path = _build(data_dir, source, request, settings)
    print(manifest.summarize(index.read_manifest(path), index.read_cells(path)))
    print(f"built {path}")


def _build(data_dir: Path, source: "Source", request: "Request", settings: dict[str, Any]) -> Path:
    """Builds from an opened source."""
    from cellclr_jax.data import bbbc021
    from cellclr_jax.data.contents import describe_contents

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
        "contents": describe_contents(source),
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
    if FLAGS.source in _LATER_SOURCES:
        raise cli.BadUse(
            f"--source={FLAGS.source}: this source is not there yet; there are {', '.join(known)}"
        )
    if FLAGS.source not in known:
        raise cli.BadUse(f"--source={FLAGS.source}: there are {', '.join(known)}")
    unused = [f"--{name}" for name in _UNUSED_FLAGS[FLAGS.source] if FLAGS[name].present]
    if unused:
        raise cli.BadUse(f"{', '.join(unused)}: --source={FLAGS.source} does not use it")
    if not FLAGS.data_dir:
        raise cli.BadUse("--data_dir=DIR is needed: where datasets lie")
    if len(set(FLAGS.channels)) != len(FLAGS.channels):
        raise cli.BadUse(f"--channels={','.join(FLAGS.channels)}: a channel is named twice")


def _settings(channels: list[str]) -> dict[str, Any]:
    """What decides the content of the dataset, as the manifest tells it."""
    cut = {name: FLAGS[name].value for name in _CUT_FLAGS}
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


def _built(data_dir: Path, settings: dict[str, Any]) -> Path | None:
    """The finished dataset, None where there is none; BadUse where it has other settings."""
    from cellclr_jax.data import index, manifest

    try:
        path = index.find_dataset(data_dir, FLAGS.config)
    except cli.BadUse:
        return None
    _refuse_other(path, manifest.differences(index.read_manifest(path)["settings"], settings))
    return path


def _check_input(path: Path, source: "Source") -> None:
    """Raises BadUse where a finished dataset was built from something else than a source holds."""
    from cellclr_jax.data import index
    from cellclr_jax.data.contents import contents_differences, describe_contents

    built = index.read_manifest(path)["origin"].get("contents", {})
    _refuse_other(path, contents_differences(built, describe_contents(source)))


def _refuse_other(path: Path, differences: list[str]) -> None:
    """Raises BadUse where a finished dataset is not the one that is asked for."""
    if differences:
        raise cli.BadUse(
            f"{path} was built otherwise: {'; '.join(differences)}. --overwrite builds it again, "
            "another --data_dir keeps both"
        )


def _say_built(path: Path) -> None:
    """Says that there is nothing to do."""
    from cellclr_jax.data import index

    cells = index.read_manifest(path)["counts"]["cells"]
    print(f"already built: {path} ({cells:,} cells); --overwrite rebuilds")


def _inputs(data_dir: Path) -> tuple[Path, ...]:
    """The input paths; the simulator has a place of its own."""
    if FLAGS.source == "simulated" and not FLAGS.input:
        return (data_dir / "simulated_release",)
    return tuple(Path(path) for path in FLAGS.input)


if __name__ == "__main__":
    cli.run(main, __doc__)
