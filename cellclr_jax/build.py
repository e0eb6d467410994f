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

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from cellclr_jax import cli
from cellclr_jax.errors import BadUse

if TYPE_CHECKING:
    from cellclr_jax.data.building.extraction import CropSettings
    from cellclr_jax.data.sources.source import (
        Request,
        Source,
    )

FLAGS = flags.FLAGS
SOURCES = ("raw", "crops", "deepprofiler", "folder", "simulated")

flags.DEFINE_enum("source", "raw", SOURCES, "Where cells come from.")
flags.DEFINE_list(
    "input",
    [],
    "Folders or zips. Where plates are downloaded or simulated to; by default into --data_dir.",
)
flags.DEFINE_string("data_dir", "data", "Where datasets lie.")
flags.DEFINE_enum(
    "config", "annotated", ["annotated", "all"], "Wells with an MoA and DMSO, or all."
)
flags.DEFINE_list("plates", [], "These plates alone.")
flags.DEFINE_list(
    "channels",
    [],
    "Names of the channels: plates are stored in this order, images of single cells have it.",
)
flags.DEFINE_integer("workers", 0, "Processes; 0: as many as cores and memory allow.", 0)
flags.DEFINE_float("max_skipped", 0.01, "Share of the fields that may be unusable.", 0, 1)
flags.DEFINE_bool("overwrite", False, "Builds again where there is a finished dataset.")
flags.DEFINE_bool("qc", False, "Only writes the quality page of a finished dataset again.")
flags.DEFINE_string("beam_runner", "", "Builds with Apache Beam: DirectRunner, FlinkRunner, …")
flags.DEFINE_multi_string("beam_option", [], "A flag of Beam's, such as --beam_option=--region=r.")

# Plates.
flags.DEFINE_bool("download", False, "Raw: fetches BBBC021 into --input first.")
flags.DEFINE_string("url", "", "Download: another address that holds the same files.")
flags.DEFINE_integer("downloads", 4, "Download: files at once.", 1, 16)
flags.DEFINE_string("image_csv", None, "The image table, if not in the input or above it.")
flags.DEFINE_string("moa_csv", None, "The MoA table, if not in the input or above it.")
flags.DEFINE_integer("crop_size", 96, "Side of a stored crop in pixels.", 8, 1024)
flags.DEFINE_enum("border", "drop", ["drop", "pad", "shift"], "Cells whose crop leaves the field.")
flags.DEFINE_integer("min_area", 100, "Smaller nuclei are debris, in pixels.", lower_bound=1)
flags.DEFINE_enum(
    "illumination",
    "none",
    ["none", "regression", "median"],
    "Divides the light of each plate and channel out of its fields, estimated from the cells of "
    "all of them, or as a smoothed median over them, as CellProfiler does.",
)
flags.DEFINE_string("centers", None, "Nuclei from a CellProfiler CSV or DeepProfiler locations.")
flags.DEFINE_enum(
    "masks", "none", ["none", "keep", "zero"], "Stores the cell's mask, or zeroes all around it."
)
flags.DEFINE_integer("cell_radius", 30, "Masks: a cell's reach around its nucleus, in pixels.", 0)

# Images of single cells.
flags.DEFINE_string("labels_csv", None, "Folder: a table with a row an image.")
flags.DEFINE_list("label_columns", [], "Folder: its columns, such as file=path,label=cell_type.")
flags.DEFINE_enum(
    "fit",
    "resize",
    ["resize", "pad", "exact"],
    "What becomes of images of another size: resized with their aspect kept; widened by repeating "
    "their border, or cut; refused.",
)

# Simulated plates.
flags.DEFINE_integer("seed", None, "Simulated: seed.", lower_bound=0)
flags.DEFINE_integer("weeks", None, "Simulated: weeks (batches).", lower_bound=2)
flags.DEFINE_integer("plates_per_week", None, "Simulated: plates a week.", lower_bound=1)
flags.DEFINE_integer("sites", None, "Simulated: fields a well.", lower_bound=1)
flags.DEFINE_list("simulator", [], "Simulated: other settings, such as height=512,width=640.")

_SIMULATOR = ("seed", "weeks", "plates_per_week", "sites")
_SIMULATED = (*_SIMULATOR, "simulator")
_DOWNLOAD = ("download", "url", "downloads")
_CUT = ("border", "min_area", "illumination", "masks", "cell_radius")
_TABLES = ("image_csv", "moa_csv")
_LABELS = ("labels_csv", "label_columns")
# Flags that decide nothing for a source: whoever sets one expects something that will not happen.
_UNUSED = {
    "raw": (*_SIMULATED, *_LABELS, "fit"),
    "crops": (*_SIMULATED, *_LABELS, *_DOWNLOAD, *_CUT, "centers", "crop_size", "fit"),
    "deepprofiler": (*_SIMULATED, *_LABELS, *_DOWNLOAD, *_CUT, *_TABLES, "centers", "config"),
    "folder": (*_SIMULATED, *_DOWNLOAD, *_CUT, *_TABLES, "centers", "config"),
    "simulated": (*_TABLES, *_LABELS, *_DOWNLOAD, "centers", "fit"),
}
# Sources that are no plates in BBBC021's layout.
OWN_IMAGES = ("deepprofiler", "folder")


def check_flags() -> None:
    """Raises BadUse for what absl's own checks cannot see."""
    unused = [f"--{name}" for name in _UNUSED[FLAGS.source] if FLAGS[name].present]
    if unused:
        raise BadUse(f"{', '.join(unused)}: --source={FLAGS.source} does not use it")
    for name in ("plates", "channels"):
        given: list[str] = getattr(FLAGS, name)
        if FLAGS[name].present and not all(given or [""]):
            raise BadUse(f"--{name}={','.join(given)}: a name is empty")
    if FLAGS["cell_radius"].present and FLAGS.masks == "none":
        raise BadUse("--cell_radius says nothing without --masks=keep or --masks=zero")
    if len(set(FLAGS.channels)) != len(FLAGS.channels):
        raise BadUse(f"--channels={','.join(FLAGS.channels)}: a channel is named twice")
    if FLAGS.masks != "none" and FLAGS.centers:
        raise BadUse(
            f"--masks={FLAGS.masks} needs the nuclei's outlines, --centers={FLAGS.centers} has "
            "their centres alone"
        )
    if FLAGS.centers and FLAGS["min_area"].present:
        raise BadUse(f"--min_area says nothing beside --centers={FLAGS.centers}")
    idle = [f"--{name}" for name in ("url", "downloads") if FLAGS[name].present]
    if idle and not FLAGS.download:
        raise BadUse(f"{', '.join(idle)}: without --download it says nothing")
    if FLAGS.download and len(FLAGS.input) > 1:
        raise BadUse("--download fetches into one --input folder")
    if FLAGS.beam_option and not FLAGS.beam_runner:
        raise BadUse("--beam_option says nothing without --beam_runner")


def request_flags() -> "Request":
    """What the flags ask of a source."""
    from cellclr_jax.data.building import workers
    from cellclr_jax.data.sources.source import Request

    return Request(
        inputs=inputs(),
        channels=tuple(FLAGS.channels),
        image_csv=_path("image_csv"),
        moa_csv=_path("moa_csv"),
        labels_csv=_path("labels_csv"),
        label_columns=_label_columns(),
        centers=_path("centers"),
        annotated=FLAGS.config == "annotated",
        plates=tuple(FLAGS.plates),
        simulation=simulation() if FLAGS.source == "simulated" else {},
        workers=FLAGS.workers or workers.usable_workers(),
        overwrite=FLAGS.overwrite,
    )


def inputs() -> tuple[Path, ...]:
    """The input paths; what is simulated or downloaded has a place of its own."""
    if FLAGS.input:
        return tuple(Path(path) for path in FLAGS.input)
    if FLAGS.source == "simulated":
        return (Path(FLAGS.data_dir) / "simulated_release",)
    return (Path(FLAGS.data_dir) / "plates",) if FLAGS.download else ()


def crop_settings(source: "Source") -> "CropSettings":
    """How the cells of a source become images."""
    from cellclr_jax.data.building.extraction import CropSettings

    return CropSettings(
        size=source.crop_size or FLAGS.crop_size,
        channels=source.channels,
        columns=source.columns,
        dtype=source.dtype,
        border=FLAGS.border,
        min_area=FLAGS.min_area,
        masks=FLAGS.masks,
        cell_radius=FLAGS.cell_radius,
        layout=source.layout,
        fit=FLAGS.fit if FLAGS.source in OWN_IMAGES else "exact",
    )


def settings(channels: tuple[str, ...]) -> dict[str, Any]:
    """What decides the content of the dataset beside its input, as the manifest tells it."""
    cut = [
        "border",
        "illumination",
        "masks",
        *([] if FLAGS.centers else ["min_area"]),
        *([] if FLAGS.masks == "none" else ["cell_radius"]),
    ]
    used = {
        "raw": ["config", "crop_size", *cut],
        "crops": ["config"],
        "deepprofiler": ["crop_size", "fit"],
        "folder": ["crop_size", "fit"],
        "simulated": ["config", "crop_size", *cut],
    }[FLAGS.source]
    simulated = {"simulation": simulation(), "plates": sorted(FLAGS.plates)}
    return {
        "source": FLAGS.source,
        "channels": list(channels),
        **{name: FLAGS[name].value for name in used},
        **({"nuclei": "from a table" if FLAGS.centers else "found"} if "border" in used else {}),
        **(simulated if FLAGS.source == "simulated" else {}),
    }


def simulation() -> dict[str, Any]:
    """All settings of the simulator: its defaults, then --simulator, then the flags."""
    from cellclr_jax.simulation import SimulatorSettings

    values = dataclasses.asdict(SimulatorSettings())
    given = dict(text.partition("=")[::2] for text in FLAGS.simulator)
    given |= {name: FLAGS[name].value for name in _SIMULATOR if FLAGS[name].value is not None}
    for name, value in given.items():
        if name not in values:
            raise BadUse(f"--simulator={name}: there are {', '.join(values)}")
        kind = type(values[name])
        try:
            values[name] = kind(value)
        except ValueError as error:
            raise BadUse(
                f"--simulator={name}={value}: a value like {values[name]!r} was expected"
            ) from error
    return values


def _path(name: str) -> Path | None:
    """A flag that names a file, which must be there."""
    given = FLAGS[name].value
    if not given:
        return None
    path = Path(given)
    if not path.exists():
        raise BadUse(f"--{name}={path}: no such file")
    return path


def _label_columns() -> dict[str, str]:
    """--label_columns by what each column is."""
    from cellclr_jax.data.columns import COLUMNS

    given: dict[str, str] = {}
    for text in FLAGS.label_columns:
        name, _, column = text.partition("=")
        if name not in ("file", *COLUMNS) or not column:
            raise BadUse(
                f"--label_columns={text}: <what>=<column> was expected, what is one of file, "
                f"{', '.join(COLUMNS)}"
            )
        given[name] = column
    return given


if TYPE_CHECKING:
    from cellclr_jax.data.building.builder import CellBuilder
    from cellclr_jax.data.sources.source import (
        Request,
        Source,
    )


def main() -> None:
    """Builds the dataset that the flags describe, or finds it built."""
    check_flags()
    data_dir = Path(FLAGS.data_dir)
    if FLAGS.qc:
        _write_page(_built_dataset(data_dir))
        return
    if FLAGS.download:
        _download()
    request = request_flags()
    # The settings decide what is simulated; its plates may have been deleted since.
    enough = FLAGS.source == "simulated" and not FLAGS.overwrite and _find_built(data_dir)
    source = None if enough else _open_source(request)

    from cellclr_jax.data.building.builder import dataset_folder_of
    from cellclr_jax.data.building.versions import locked

    # Decided by whoever is alone: another build may have come to its end a moment ago.
    with locked(dataset_folder_of(_builder_class(), data_dir, _config_name())):
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
    from cellclr_jax.data.download import download_release
    from cellclr_jax.data.tables.bbbc021 import RELEASE_URL

    (folder,) = inputs()
    download_release(
        folder, plates=FLAGS.plates, url=FLAGS.url or RELEASE_URL, parallel=FLAGS.downloads
    )


def _build(data_dir: Path, source: "Source", request: "Request", extended: Path | None) -> Path:
    """Builds from an opened source, with the plates of a finished dataset if there is one."""
    from cellclr_jax.data import dataset
    from cellclr_jax.data.building import builder, manifest
    from cellclr_jax.data.building.manifest import describe_contents

    for note in source.notes:
        print(f"note: {note}", flush=True)
    if source.absent_plates:
        print(manifest.describe_absent(source.absent_plates), flush=True)
    lights = dataset.read_manifest(extended)["origin"].get("illumination", {}) if extended else {}
    plan = builder.Plan(
        source,
        settings=settings(source.channels),
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
    config = builder.CellConfig(
        name=_config_name(),
        annotated=request.annotated,
        crops=crop_settings(source),
    )
    return builder.build(
        _builder_class(),
        data_dir,
        config,
        plan,
        replace=FLAGS.overwrite,
        extend=extended is not None,
    )


def _builder_class() -> "type[CellBuilder]":
    """What names the dataset."""
    if FLAGS.source in OWN_IMAGES:
        from cellclr_jax.data.building.builder import SingleCells

        return SingleCells
    from cellclr_jax.data.building.builder import Bbbc021

    return Bbbc021


def _config_name() -> str:
    return "all" if FLAGS.source in OWN_IMAGES else FLAGS.config


def _built_dataset(data_dir: Path) -> Path:
    """The finished dataset that the flags name; BadUse where there is none."""
    from cellclr_jax.data import dataset

    return dataset.find_dataset(data_dir, f"{_builder_class().name}/{_config_name()}")


def _find_built(data_dir: Path) -> Path | None:
    """The finished dataset, None where there is none."""
    try:
        return _built_dataset(data_dir)
    except BadUse:
        return None


def _is_to_be_extended(path: Path, source: "Source | None") -> bool:
    """Whether a finished dataset lacks plates that a source holds.

    Args:
      path: of the dataset.
      source: None: the settings alone decide.

    Raises:
      BadUse: it was built with other settings, or from something else, or by another version.
    """
    from cellclr_jax.console import plural
    from cellclr_jax.data import dataset
    from cellclr_jax.data.building import manifest
    from cellclr_jax.data.sources import RAW_CHANNELS

    told = dataset.read_manifest(path)
    if told.get("format") != manifest.FORMAT:
        _refuse_other(path, ["another version of this software wrote it"])
    channels = source.channels if source else tuple(FLAGS.channels) or RAW_CHANNELS
    _refuse_other(path, manifest.differences(told["settings"], settings(channels)))
    if source is None:
        return False
    built, held = told["origin"].get("contents", {}), manifest.describe_contents(source)
    if not manifest.is_extension(built, held):
        _refuse_other(path, manifest.contents_differences(built, held))
        return False
    if told.get("made_by") != manifest.MADE_BY:
        _refuse_other(path, ["another version of this software cut its cells"])
    new = manifest.added_plates(built, held)
    print(f"adding {len(new)} to the {plural(len(built), 'plate')} of {path}", flush=True)
    return True


def _refuse_other(path: Path, differences: list[str]) -> None:
    """Raises BadUse where a finished dataset is not the one that is asked for."""
    if differences:
        raise BadUse(
            f"{path} was built otherwise: {'; '.join(differences)}. --overwrite builds it again, "
            "another --data_dir keeps both"
        )


def _tidy(path: Path) -> None:
    """Says that there is nothing to do, and does what a kill at the very end has left undone."""
    from cellclr_jax.console import plural
    from cellclr_jax.data import dataset
    from cellclr_jax.data.building.versions import forget_pieces
    from cellclr_jax.data.quality.page import PAGE

    manifest = dataset.read_manifest(path)
    forget_pieces(path.parent, manifest["settings"])
    cells = plural(manifest["counts"]["cells"], "cell")
    print(f"already built: {path} ({cells}); --overwrite rebuilds")
    if not (path / PAGE).exists():
        _write_page(path)


def _summarize(path: Path) -> None:
    """Prints what came of a build."""
    from cellclr_jax.data import dataset
    from cellclr_jax.data.building import manifest

    print(manifest.summarize(dataset.read_manifest(path), dataset.read_cells(path)))
    print(f"built {path}")


def _write_page(path: Path) -> None:
    """Writes the quality page of a finished dataset."""
    from cellclr_jax.data import dataset
    from cellclr_jax.data.building import plate_light
    from cellclr_jax.data.quality.page import write_quality_page

    names = dataset.read_manifest(path)["origin"].get("illumination") or {}
    page = write_quality_page(path, plate_light.read_gains(names, Path(FLAGS.data_dir)))
    print(f"look at it: {page}")


if __name__ == "__main__":
    cli.run(main, __doc__)
