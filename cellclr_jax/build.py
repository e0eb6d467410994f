"""Builds a dataset of single cells, from plates of images or from images of single cells.

  python -m cellclr_jax.build --source=raw --input=PLATES
  python -m cellclr_jax.build --source=raw --download [--plates=Week1_22123,…]
  python -m cellclr_jax.build --source=crops --input=CROPS
  python -m cellclr_jax.build --source=deepprofiler --input=EXPORT
  python -m cellclr_jax.build --source=folder --input=IMAGES [--labels_csv=FILE]
  python -m cellclr_jax.build --source=simulated

PLATES is a folder of plate folders or of plates' zips as downloaded (several, separated by
commas), with BBBC021_v1_image.csv and BBBC021_v1_moa.csv in it or above it; --download fetches them
from BBBC021's public address. The dataset appears as <data_dir>/<name>/<config>/<version>, whole
or not at all, with a quality page in it. A build that was stopped goes on where it was; one of a
finished dataset adds the plates that are new.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from cellclr_jax import build_flags, cli

if TYPE_CHECKING:
    from cellclr_jax.data.building.cell_builder import CellBuilder
    from cellclr_jax.data.fields import Request, Source

FLAGS = flags.FLAGS


def main() -> None:
    """Builds the dataset that the flags describe, or finds it built."""
    build_flags.check_flags()
    data_dir = Path(FLAGS.data_dir)
    if FLAGS.qc:
        _write_page(_built_dataset(data_dir))
        return
    if FLAGS.download:
        _download()
    request = build_flags.request()
    if FLAGS.source == "simulated" and not FLAGS.overwrite and _simulated_is_built(data_dir):
        return
    from cellclr_jax.data import sources

    source = sources.open_source(FLAGS.source, request)
    extend = False
    if not FLAGS.overwrite and (built := _find_built(data_dir)):
        extend = _is_to_be_extended(built, source)
        if not extend:
            _say_built(built)
            return
    path = _build(data_dir, source, request, extend)
    _summarize(path)
    _write_page(path)


def _download() -> None:
    """Fetches the plates into the input folder."""
    from cellclr_jax.data.download.release import download_release
    from cellclr_jax.data.tables.release_names import RELEASE_URL

    (folder,) = build_flags.inputs()
    download_release(
        folder, plates=FLAGS.plates, url=FLAGS.url or RELEASE_URL, parallel=FLAGS.downloads
    )


def _build(data_dir: Path, source: "Source", request: "Request", extend: bool) -> Path:
    """Builds from an opened source."""
    from cellclr_jax.data.building import cell_builder, manifest
    from cellclr_jax.data.building.contents import describe_contents

    if source.absent_plates:
        print(manifest.describe_absent(source.absent_plates), flush=True)
    plan = cell_builder.Plan(
        source,
        settings=build_flags.settings(source.channels),
        origin={
            "inputs": [str(path.absolute()) for path in request.inputs],
            "tables": dict(source.tables),
            "absent_plates": source.absent_plates,
            "contents": describe_contents(source),
        },
        illumination="" if FLAGS.illumination == "none" else FLAGS.illumination,
        workers=request.workers,
        beam_runner=FLAGS.beam_runner,
        beam_options=tuple(FLAGS.beam_option),
        max_skipped=FLAGS.max_skipped,
    )
    config = cell_builder.CellConfig(
        name=_config_name(),
        annotated=request.annotated,
        crops=build_flags.crop_settings(source),
    )
    return cell_builder.build(
        _builder_class(), data_dir, config, plan, overwrite=FLAGS.overwrite, extend=extend
    )


def _builder_class() -> "type[CellBuilder]":
    """What names the dataset."""
    if FLAGS.source in build_flags.OWN_IMAGES:
        from cellclr_jax.data.single_cells import SingleCells

        return SingleCells
    from cellclr_jax.data.bbbc021 import Bbbc021

    return Bbbc021


def _config_name() -> str:
    return "all" if FLAGS.source in build_flags.OWN_IMAGES else FLAGS.config


def _built_dataset(data_dir: Path) -> Path:
    """The finished dataset that the flags name; BadUse where there is none."""
    from cellclr_jax.data import index

    return index.find_dataset(data_dir, f"{_builder_class().name}/{_config_name()}")


def _find_built(data_dir: Path) -> Path | None:
    """The finished dataset, None where there is none."""
    try:
        return _built_dataset(data_dir)
    except cli.BadUse:
        return None


def _simulated_is_built(data_dir: Path) -> bool:
    """Whether the settings' dataset is there; its plates may have been deleted since."""
    from cellclr_jax.data.sources import RAW_CHANNELS

    built = _find_built(data_dir)
    if built is None:
        return False
    _refuse_other_settings(built, tuple(FLAGS.channels) or RAW_CHANNELS)
    _say_built(built)
    return True


def _is_to_be_extended(path: Path, source: "Source") -> bool:
    """Whether a finished dataset lacks plates that a source holds.

    Raises:
      BadUse: it was built with other settings, or from something else.
    """
    from cellclr_jax.data import index
    from cellclr_jax.data.building import contents

    _refuse_other_settings(path, source.channels)
    built = index.read_manifest(path)["origin"].get("contents", {})
    held = contents.describe_contents(source)
    if contents.is_extension(built, held):
        new = contents.added_plates(built, held)
        print(f"adding {len(new)} to the {len(built)} plates of {path}", flush=True)
        return True
    _refuse_other(path, contents.contents_differences(built, held))
    return False


def _refuse_other_settings(path: Path, channels: tuple[str, ...]) -> None:
    """Raises BadUse where a finished dataset was built with other settings."""
    from cellclr_jax.data import index
    from cellclr_jax.data.building import manifest

    built: dict[str, Any] = index.read_manifest(path)["settings"]
    _refuse_other(path, manifest.differences(built, build_flags.settings(channels)))


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


def _summarize(path: Path) -> None:
    """Prints what came of a build."""
    from cellclr_jax.data import index
    from cellclr_jax.data.building import manifest

    print(manifest.summarize(index.read_manifest(path), index.read_cells(path)))
    print(f"built {path}")


def _write_page(path: Path) -> None:
    """Writes the quality page of a finished dataset."""
    from cellclr_jax.data import index
    from cellclr_jax.data.building import plate_light
    from cellclr_jax.data.quality_page import write_quality_page

    names = index.read_manifest(path)["origin"].get("illumination", {})
    page = write_quality_page(path, plate_light.read_gains(names, Path(FLAGS.data_dir)))
    print(f"look at it: {page}")


if __name__ == "__main__":
    cli.run(main, __doc__)
