"""Builds a dataset of single cells, from plates of images or from images of single cells.

{usage}

PLATES of BBBC021 is a folder of plate folders or of plates' zips as downloaded (several,
separated by commas), with BBBC021_v1_image.csv and BBBC021_v1_moa.csv in it or above it; --download
fetches them from BBBC021's public address. Plates of other labs are --source=plates; --dry_run
shows what they hold. The dataset appears as <data_dir>/<name>/<config>/<version> when it is
complete, and includes a quality page. A stopped build resumes. Building a finished dataset again
adds plates that are new in the input.
"""

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from cellclr_jax import cli, files
from cellclr_jax.data import sources
from cellclr_jax.data.sources import SOURCES
from cellclr_jax.errors import BadUse

if TYPE_CHECKING:
    from cellclr_jax.data.building.extraction import CropSettings
    from cellclr_jax.data.sources.source import Request, Source

FLAGS = flags.FLAGS

# Input and output.
flags.DEFINE_enum("source", next(iter(SOURCES)), list(SOURCES), "Kind of input.")
flags.DEFINE_string(
    "input",
    "",
    "Folders or zips to read, separated by commas, e.g. --input=Week1,Week2. With --download or "
    "--source=simulated: the folder to write plates to (default: a folder in --data_dir).",
)
flags.DEFINE_string("data_dir", "data", "Folder in which datasets are stored.")
flags.DEFINE_enum(
    "config",
    "annotated",
    ["annotated", "all"],
    "Wells to include: those with a mechanism of action and DMSO controls, or all.",
)
flags.DEFINE_list(
    "plates", [], "Include only these plates, e.g. --plates=Week1_22123,Week1_22141. Default: all."
)
flags.DEFINE_list(
    "channels",
    [],
    "Channel names, e.g. --channels=dna,actin,tubulin. Plates: the order in which to store them. "
    "Images of single cells: their names in the files' order. Default: the source's.",
)

# Running a build.
flags.DEFINE_integer(
    "workers", 0, "Number of processes; 0: as many as cores and free memory allow.", 0
)
flags.DEFINE_float(
    "max_skipped", 0.01, "Stop if a larger share of the fields is unusable, from 0 to 1.", 0, 1
)
flags.DEFINE_bool("overwrite", False, "Replace a finished dataset instead of keeping it.")
flags.DEFINE_bool("dry_run", False, "Only print what the plates hold, without reading images.")
flags.DEFINE_bool("qc", False, "Only write the quality page of a finished dataset again.")
flags.DEFINE_string(
    "beam_runner",
    "",
    "Build with this runner of Apache Beam instead of processes, e.g. --beam_runner=FlinkRunner.",
)
flags.DEFINE_multi_string(
    "beam_option", [], "An option for Beam, e.g. --beam_option=--region=us-east1. Repeatable."
)

# Files with several images.
flags.DEFINE_enum(
    "pages",
    "",
    ["", "channels", "cells"],
    "Meaning of several images or pages in one TIFF: channels of a cell, or cells.",
)
flags.DEFINE_string(
    "z", "", "Plane to use from a z-stack, counted from 1, e.g. --z=3; or max: maximum projection."
)

# Downloading BBBC021.
flags.DEFINE_bool("download", False, "Download BBBC021 into --input first.")
flags.DEFINE_string("url", "", "Download from this address, with the same files as BBBC021's.")
flags.DEFINE_integer("downloads", 4, "Number of simultaneous downloads.", 1, 16)

# Tables.
flags.DEFINE_string(
    "image_csv", None, "Image table. Default: BBBC021_v1_image.csv in the input or above it."
)
flags.DEFINE_string(
    "moa_csv",
    None,
    "Table of mechanisms of action. Default: BBBC021_v1_moa.csv in the input or above it.",
)
flags.DEFINE_bool(
    "exact_names",
    False,
    "Treat names in tables as different if they differ only by case, spaces or dashes, and words "
    "such as NA as names.",
)
flags.DEFINE_string(
    "centers",
    None,
    "Use nuclei from a CellProfiler CSV or a folder of DeepProfiler locations instead of finding "
    "them, e.g. --centers=Nuclei.csv.",
)

# Cutting cells out of fields.
flags.DEFINE_integer("crop_size", 96, "Side of a stored crop, in pixels.", 8, 1024)
flags.DEFINE_enum(
    "border",
    "drop",
    ["drop", "pad", "shift"],
    "Cells whose crop extends beyond the field: leave them out, mirror the field at its border, or "
    "shift the crop inside.",
)
flags.DEFINE_integer(
    "min_area", 100, "Ignore nuclei with a smaller area, in pixels.", lower_bound=1
)
flags.DEFINE_enum(
    "illumination",
    "none",
    ["none", "regression", "median"],
    "Correct the uneven illumination of each plate and channel, estimated from the cells of all "
    "fields (regression), or as a smoothed median over fields as in CellProfiler (median).",
)
flags.DEFINE_enum(
    "masks",
    "none",
    ["none", "keep", "zero"],
    "Store each cell's mask with its crop (keep), or set pixels outside the cell to 0 (zero).",
)
flags.DEFINE_integer(
    "cell_radius",
    30,
    "For masks: how far a cell reaches from its nucleus, in pixels.",
    lower_bound=0,
)

# Images of single cells.
flags.DEFINE_enum(
    "fit",
    "resize",
    ["resize", "pad", "exact"],
    "Images of another size: scale them, keeping the aspect ratio (resize); repeat or cut their "
    "border (pad); refuse them (exact).",
)

for _entry in SOURCES.values():
    for _option in _entry.options:
        _define = getattr(flags, f"DEFINE_{_option.kind}")
        _define(_option.name, _option.default, _option.help, **_option.limits)

_HELP = {
    "Input and output": ["source", "input", "data_dir", "config", "plates", "channels"],
    "Running a build": [
        "workers",
        "max_skipped",
        "overwrite",
        "dry_run",
        "qc",
        "beam_runner",
        "beam_option",
    ],
    "Cutting cells out of fields": [
        *("crop_size", "border", "min_area", "illumination", "masks", "cell_radius", "centers"),
    ],
    "Tables": ["image_csv", "moa_csv", "exact_names"],
    "Files with several images": ["pages", "z"],
    "Images of single cells": ["fit"],
    "Downloading BBBC021": ["download", "url", "downloads"],
    **{
        f"--source={name}": [option.name for option in entry.options]
        for name, entry in SOURCES.items()
        if entry.options
    },
}

# Flags that decide the content of a dataset, if its source uses them.
_SETTINGS = ("config", "crop_size", "border", "illumination", "masks", "fit", "pages", "z")


def check_flags() -> None:
    """Raises BadUse for combinations of flags that absl does not check."""
    used = _flags_of(sources.entry(FLAGS.source))
    others = dict.fromkeys(name for one in SOURCES.values() for name in _flags_of(one))
    unused = [f"--{name}" for name in others if name not in used and FLAGS[name].present]
    if unused:
        raise BadUse(f"{', '.join(unused)}: --source={FLAGS.source} does not use it")
    for name in ("plates", "channels"):
        names: list[str] = getattr(FLAGS, name)
        if FLAGS[name].present and not all(names or [""]):
            raise BadUse(f"--{name}={','.join(names)}: a name is empty")
    needed = {
        "cell_radius": ("--masks=keep or --masks=zero", FLAGS.masks != "none"),
        "url": ("--download", FLAGS.download),
        "downloads": ("--download", FLAGS.download),
        "beam_option": ("--beam_runner", FLAGS.beam_runner),
    }
    for name, (other, is_set) in needed.items():
        if FLAGS[name].present and not is_set:
            raise BadUse(f"--{name} has no effect without {other}")
    if len(set(FLAGS.channels)) != len(FLAGS.channels):
        raise BadUse(f"--channels={','.join(FLAGS.channels)}: a channel is named twice")
    if FLAGS.masks != "none" and FLAGS.centers:
        raise BadUse(
            f"--masks={FLAGS.masks} needs the nuclei's outlines, --centers={FLAGS.centers} has "
            "only their centres"
        )
    if FLAGS.centers and FLAGS["min_area"].present:
        raise BadUse(f"--min_area has no effect with --centers={FLAGS.centers}")
    if FLAGS.download and len(inputs()) > 1:
        raise BadUse("--download fetches into one --input folder")
    if FLAGS.z not in ("", "max") and not re.fullmatch("[1-9][0-9]{0,5}", FLAGS.z):
        raise BadUse(f"--z={FLAGS.z}: the number of a plane, from 1, or max was expected")


def _flags_of(entry: sources.SourceEntry) -> list[str]:
    return [*entry.flags, *(option.name for option in entry.options)]


def request_flags() -> "Request":
    """Makes the request to the source from the flags."""
    from cellclr_jax.data.building import workers
    from cellclr_jax.data.sources.source import Request

    return Request(
        inputs=inputs(),
        channels=tuple(FLAGS.channels),
        image_csv=_path("image_csv"),
        moa_csv=_path("moa_csv"),
        centers=_path("centers"),
        annotated=FLAGS.config == "annotated",
        plates=tuple(FLAGS.plates),
        pages=FLAGS.pages,
        z=FLAGS.z,
        options={
            option.name: FLAGS[option.name].value for option in sources.entry(FLAGS.source).options
        },
        workers=FLAGS.workers or workers.usable_workers(),
        overwrite=FLAGS.overwrite,
        exact_names=FLAGS.exact_names,
    )


def inputs() -> tuple[Path, ...]:
    """Returns the input paths; simulated and downloaded plates have a default."""
    if FLAGS.input:
        return _paths(FLAGS.input)
    default = "plates" if FLAGS.download else sources.entry(FLAGS.source).default_input
    return (Path(FLAGS.data_dir) / default,) if default else ()


def _paths(text: str) -> tuple[Path, ...]:
    """Splits paths at commas, but not within the name of an existing file or folder."""
    parts, paths = text.split(","), []
    while parts:
        names = [",".join(parts[:count]).strip() for count in range(len(parts), 0, -1)]
        name = next((name for name in names if name and Path(name).exists()), names[-1])
        if not name:
            raise BadUse(f"--input={text}: a name is empty")
        paths.append(Path(name))
        del parts[: name.count(",") + 1]
    return tuple(paths)


def crop_settings(source: "Source") -> "CropSettings":
    """Returns the settings for extracting the cells of a source."""
    from cellclr_jax.data.building.extraction import CropSettings

    return CropSettings(
        size=source.crop_size or FLAGS.crop_size,
        channels=source.channels,
        columns=source.columns,
        dtype=source.dtype,
        nuclei=source.nuclei,
        border=FLAGS.border,
        min_area=FLAGS.min_area,
        masks=FLAGS.masks,
        cell_radius=FLAGS.cell_radius,
        fit=FLAGS.fit if "fit" in sources.entry(FLAGS.source).flags else "exact",
    )


def settings(request: "Request", channels: tuple[str, ...]) -> dict[str, Any]:
    """Returns all settings, apart from the input, that determine the dataset's content."""
    entry = sources.entry(FLAGS.source)
    used = [name for name in _SETTINGS if name in entry.flags]
    if "min_area" in entry.flags and not FLAGS.centers:
        used.append("min_area")
    if "cell_radius" in entry.flags and FLAGS.masks != "none":
        used.append("cell_radius")
    return {
        "source": FLAGS.source,
        "channels": list(channels),
        **{name: FLAGS[name].value for name in used},
        **{option.name: FLAGS[option.name].value for option in entry.options if option.decides},
        **({"exact_names": True} if FLAGS.exact_names else {}),
        **({"nuclei": "from a table" if FLAGS.centers else "found"} if entry.whole_fields else {}),
        **sources.source_settings(FLAGS.source, request),
    }


def _path(name: str) -> Path | None:
    """Returns the path in a flag, None if it is not set; BadUse if the file does not exist."""
    value: str | None = FLAGS[name].value
    if not value:
        return None
    path = Path(value)
    if not path.exists():
        raise BadUse(f"--{name}={path}: no such file")
    return path


def main() -> None:
    """Builds the dataset that the flags describe, unless it exists."""
    check_flags()
    data_dir = Path(FLAGS.data_dir)
    if FLAGS.qc:
        _write_page(_find_built(data_dir))
        return
    if FLAGS.download:
        from cellclr_jax.data.download import download_release
        from cellclr_jax.data.tables.bbbc021 import RELEASE_URL

        files.make_writable(data_dir, "--data_dir")
        (folder,) = inputs()
        url = FLAGS.url or RELEASE_URL
        download_release(folder, plates=FLAGS.plates, url=url, parallel=FLAGS.downloads)
    request = request_flags()
    entry = sources.entry(FLAGS.source)
    if FLAGS.dry_run:
        from cellclr_jax.data.sources.plates import describe

        print(describe(sources.open_source(FLAGS.source, request)))
        return
    # If the settings decide the content, the input may have been deleted since.
    input_unneeded = entry.settings and _built_before(data_dir)
    source = None if input_unneeded else sources.open_source(FLAGS.source, request)

    from cellclr_jax.data import dataset
    from cellclr_jax.data.building import manifest
    from cellclr_jax.data.building.versions import locked

    with locked(data_dir / entry.dataset / _config_name()):
        # Checked again under the lock, since another build may just have finished.
        built = _built_before(data_dir)
        if built and not _lacks_plates(built, request, source):
            _keep(built)
            return
        files.make_writable(data_dir, "--data_dir")
        source = source or sources.open_source(FLAGS.source, request)
        path = _build(data_dir, source, request, built)
        print(manifest.summarize(dataset.read_manifest(path), dataset.read_cells(path)))
        print(f"built {path}")
        _write_page(path)


def _build(data_dir: Path, source: "Source", request: "Request", extended: Path | None) -> Path:
    """Builds from an opened source; reuses the cells of the dataset `extended`, if given."""
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
        dataset=sources.entry(FLAGS.source).dataset,
        config=_config_name(),
        crops=crop_settings(source),
        settings=settings(request, source.channels),
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
    return builder.build(plan, data_dir, replace=FLAGS.overwrite, extend=extended is not None)


def _config_name() -> str:
    return FLAGS.config if "config" in sources.entry(FLAGS.source).flags else "all"


def _find_built(data_dir: Path) -> Path:
    """Finds the finished dataset that the flags name; BadUse if there is none."""
    from cellclr_jax.data import dataset

    return dataset.find_dataset(data_dir, f"{sources.entry(FLAGS.source).dataset}/{_config_name()}")


def _built_before(data_dir: Path) -> Path | None:
    """Finds the finished dataset to keep or extend; None without one or with --overwrite."""
    with contextlib.suppress(BadUse):
        return None if FLAGS.overwrite else _find_built(data_dir)
    return None


def _lacks_plates(path: Path, request: "Request", source: "Source | None") -> bool:
    """Whether a finished dataset lacks plates that a source has.

    Args:
      path: of the dataset.
      request: to the source.
      source: None if only the settings decide the content.

    Raises:
      BadUse: it was built with other settings, from another input, or by another version.
    """
    from cellclr_jax.console import plural
    from cellclr_jax.data import dataset
    from cellclr_jax.data.building import manifest

    record = dataset.read_manifest(path)
    if record.get("format") != manifest.FORMAT:
        raise BadUse(
            f"{path} was built by an older version of this software: use another --data_dir, or "
            "--overwrite to build it again"
        )
    current_settings = settings(request, source.channels if source else ())
    _refuse_other(path, files.differences(record["settings"], current_settings))
    if source is None:
        return False
    built, current = record["origin"].get("contents", {}), manifest.describe_contents(source)
    if not manifest.is_extension(built, current):
        _refuse_other(path, manifest.contents_differences(built, current))
        return False
    if record.get("made_by") != manifest.MADE_BY:
        _refuse_other(path, ["its cells were extracted by another version of this software"])
    new = manifest.added_plates(built, current)
    print(f"adding {len(new)} to the {plural(len(built), 'plate')} of {path}", flush=True)
    return True


def _refuse_other(path: Path, differences: list[str]) -> None:
    """Raises BadUse if a finished dataset differs from the requested one."""
    if differences:
        raise BadUse(
            f"{path} exists with other settings or input: {'; '.join(differences)}. Use "
            "--overwrite to build it again, or another --data_dir to keep both"
        )


def _keep(path: Path) -> None:
    """Prints that the dataset exists; finishes what a killed build left undone."""
    from cellclr_jax.console import plural
    from cellclr_jax.data import dataset
    from cellclr_jax.data.building.versions import remove_pieces
    from cellclr_jax.data.quality.page import PAGE

    manifest = dataset.read_manifest(path)
    remove_pieces(path.parent, manifest["settings"])
    cells = plural(manifest["counts"]["cells"], "cell")
    print(f"already built: {path} ({cells}); --overwrite rebuilds")
    if not (path / PAGE).exists():
        _write_page(path)


def _write_page(path: Path) -> None:
    """Writes the quality page of a finished dataset."""
    from cellclr_jax.data import dataset
    from cellclr_jax.data.building import plate_light
    from cellclr_jax.data.quality.page import write_quality_page

    names = dataset.read_manifest(path)["origin"].get("illumination") or {}
    page = write_quality_page(path, plate_light.read_gains(names, Path(FLAGS.data_dir)))
    print(f"quality page: {page}")


def help_text() -> str:
    """Returns the text of `--help`, with the command for each source."""
    usage = [
        f"  python -m cellclr_jax.build --source={name} {entry.arguments}".rstrip()
        for name, entry in SOURCES.items()
    ]
    return __doc__.format(usage="\n".join(usage))


if __name__ == "__main__":
    cli.run(main, help_text(), groups=_HELP)
