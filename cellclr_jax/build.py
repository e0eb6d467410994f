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
from typing import TYPE_CHECKING

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
    # The settings decide what is simulated; its plates may have been deleted since.
    enough = FLAGS.source == "simulated" and not FLAGS.overwrite and _find_built(data_dir)
    source = None if enough else _open_source(request)

    from cellclr_jax.data.building.cell_builder import dataset_folder_of
    from cellclr_jax.data.building.dataset_folder import alone

    # Decided by whoever is alone: another build may have come to its end a moment ago.
    with alone(dataset_folder_of(_builder_class(), data_dir, _config_name())):
        built = None if FLAGS.overwrite else _find_built(data_dir)
        if built and not _is_to_be_extended(built, source):
            _tidy(built)
            return
        path = _build(data_dir, source or _open_source(request), request, built)
        _summarize(path)
        _write_page(path)


def _open_source(request: "Request") -> "Source":
    """The fields that the flags name; simulated ones are painted where they are not there."""
    from cellclr_jax.data import sources

    return sources.open_source(FLAGS.source, request)


def _download() -> None:
    """Fetches the plates into the input folder."""
    from cellclr_jax.data.download.release import download_release
    from cellclr_jax.data.tables.release_names import RELEASE_URL

    (folder,) = build_flags.inputs()
    download_release(
        folder, plates=FLAGS.plates, url=FLAGS.url or RELEASE_URL, parallel=FLAGS.downloads
    )


def _build(data_dir: Path, source: "Source", request: "Request", extended: Path | None) -> Path:
    """Builds from an opened source, with the plates of a finished dataset if there is one."""
    from cellclr_jax.data import index
    from cellclr_jax.data.building import cell_builder, manifest
    from cellclr_jax.data.building.contents import describe_contents

    for note in source.notes:
        print(f"note: {note}", flush=True)
    if source.absent_plates:
        print(manifest.describe_absent(source.absent_plates), flush=True)
    lights = index.read_manifest(extended)["origin"].get("illumination", {}) if extended else {}
    plan = cell_builder.Plan(
        source,
        settings=build_flags.settings(source.channels),
        origin={
            "inputs": [str(path.absolute()) for path in request.inputs],
            "tables": dict(source.tables),
            "absent_plates": source.absent_plates,
            "contents": describe_contents(source),
            "illumination": lights,
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
        _builder_class(),
        data_dir,
        config,
        plan,
        replace=FLAGS.overwrite,
        extend=extended is not None,
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


def _is_to_be_extended(path: Path, source: "Source | None") -> bool:
    """Whether a finished dataset lacks plates that a source holds.

    Args:
      path: of the dataset.
      source: None: the settings alone decide.

    Raises:
      BadUse: it was built with other settings, or from something else, or by another version.
    """
    from cellclr_jax.data import index
    from cellclr_jax.data.building import contents, manifest
    from cellclr_jax.data.counting import plural
    from cellclr_jax.data.sources import RAW_CHANNELS

    told = index.read_manifest(path)
    if told.get("format") != manifest.FORMAT:
        _refuse_other(path, ["another version of this software wrote it"])
    channels = source.channels if source else tuple(FLAGS.channels) or RAW_CHANNELS
    _refuse_other(path, manifest.differences(told["settings"], build_flags.settings(channels)))
    if source is None:
        return False
    built, held = told["origin"].get("contents", {}), contents.describe_contents(source)
    if not contents.is_extension(built, held):
        _refuse_other(path, contents.contents_differences(built, held))
        return False
    if told.get("made_by") != manifest.MADE_BY:
        _refuse_other(path, ["another version of this software cut its cells"])
    new = contents.added_plates(built, held)
    print(f"adding {len(new)} to the {plural(len(built), 'plate')} of {path}", flush=True)
    return True


def _refuse_other(path: Path, differences: list[str]) -> None:
    """Raises BadUse where a finished dataset is not the one that is asked for."""
    if differences:
        raise cli.BadUse(
            f"{path} was built otherwise: {'; '.join(differences)}. --overwrite builds it again, "
            "another --data_dir keeps both"
        )


def _tidy(path: Path) -> None:
    """Says that there is nothing to do, and does what a kill at the very end has left undone."""
    from cellclr_jax.data import index
    from cellclr_jax.data.building.dataset_folder import forget_pieces
    from cellclr_jax.data.counting import plural
    from cellclr_jax.data.quality_page import PAGE

    manifest = index.read_manifest(path)
    forget_pieces(path.parent, manifest["settings"])
    cells = plural(manifest["counts"]["cells"], "cell")
    print(f"already built: {path} ({cells}); --overwrite rebuilds")
    if not (path / PAGE).exists():
        _write_page(path)


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

    names = index.read_manifest(path)["origin"].get("illumination") or {}
    page = write_quality_page(path, plate_light.read_gains(names, Path(FLAGS.data_dir)))
    print(f"look at it: {page}")


if __name__ == "__main__":
    cli.run(main, __doc__)
