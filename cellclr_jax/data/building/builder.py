"""Builds a TFDS dataset of single cells from a source of images.

A build has two stages. Extraction finds and cuts the cells of all fields, in many processes or on a
cluster, and stores them as pieces (see `pieces.py`), from which a killed build resumes. A TFDS
builder then reads the finished cells: `_info` describes the features, `_shard_iterators_per_split`
gives one generator per shard, `_generate_examples` yields the (key, example) pairs of one shard,
and `download_and_prepare` writes the shards.

The builder is TFDS's `ShardBasedBuilder`, which keeps the order of its input: row i of
`cells.parquet` describes record i. (A `GeneratorBasedBuilder` sorts records by key, and more than
1 GB of them through temporary files that need TensorFlow.) Two more hooks of TFDS are overridden:
`_example_writer` sets the compression and the order of a record's features, so that equal cells
give equal bytes; `_download_and_prepare` writes several shards in parallel, which TFDS does only
with Beam: encoding and compression take half as long as extraction.
"""

import contextlib
import dataclasses
import functools
import io
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.core import splits as tfds_splits
from tensorflow_datasets.core import writer as tfds_writer

from cellclr_jax import files
from cellclr_jax.console import Progress
from cellclr_jax.data import dataset
from cellclr_jax.data.building import manifest, pieces
from cellclr_jax.data.building.extraction import CropSettings
from cellclr_jax.data.building.pieces import ExtractedCells, Piece, problems_of
from cellclr_jax.data.building.plate_light import fit_lights
from cellclr_jax.data.building.versions import finished_cells, new_version, pieces_folder
from cellclr_jax.data.building.workers import map_in_order, map_on_beam, pipeline_options
from cellclr_jax.data.columns import COLUMNS
from cellclr_jax.data.sources.source import CellGroup, Field, Source
from cellclr_jax.errors import BadData, BadUse

# One record per chunk, so that random access decompresses only one record. The lowest level of zstd
# compresses noisy 16-bit pixels as well as higher levels (TFDS's default is 3), 7 times faster.
_SHARD_OPTIONS = "group_size:1,zstd:1"
# Cells that one process encodes and compresses while another process starts.
_CELLS_A_WORKER = 4_000


class CellBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Single-cell images, with the labels and metadata that came with them."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 - TFDS's own attribute
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS's own attribute
        tfds.core.BuilderConfig(name="all", description="All cells."),
        tfds.core.BuilderConfig(
            name="annotated", description="Wells with a mechanism of action, and controls."
        ),
    ]
    # There are no downloads. Otherwise TFDS would search a list of checksums, which needs a package
    # that it does not install.
    url_infos = None

    def __init__(
        self, dataset: str, crops: CropSettings, extracted: Sequence[ExtractedCells], **kwargs: Any
    ) -> None:
        """Prepares to write a dataset.

        Args:
          dataset: its name.
          crops: how the cells were extracted.
          extracted: the finished cells in order.
          **kwargs: `workers` (processes that write shards), `show` (whether to show progress), and
            `data_dir` and `config` of TFDS.
        """
        self.name = dataset
        self._crops, self._extracted = crops, extracted
        self._workers, self._show = kwargs.pop("workers"), kwargs.pop("show")
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=cell_features(self._crops),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: Any
    ) -> dict[str, list[Callable[[], Iterator[tuple[str, dict[str, Any]]]]]]:
        shards = [one for one in self._extracted if len(one.cells)]
        return {"train": [functools.partial(self._generate_examples, one) for one in shards]}

    @staticmethod
    def _generate_examples(extracted: ExtractedCells) -> Iterator[tuple[str, dict[str, Any]]]:
        for example in extracted.examples():
            yield example["cell_id"], example

    def _example_writer(self) -> tfds_writer.ExampleWriter:
        return _RecordWriter(self.info.file_format)

    def _download_and_prepare(
        self, dl_manager: Any, download_config: tfds.download.DownloadConfig | None = None
    ) -> None:
        if download_config and download_config.beam_runner:
            super()._download_and_prepare(dl_manager, download_config)
            return
        shards = self._shard_iterators_per_split(dl_manager)["train"]
        template = self._get_filename_template(split_name="train")
        paths = [
            template.sharded_filepath(shard_index=number, num_shards=len(shards))
            for number in range(len(shards))
        ]
        work = functools.partial(_write_shard, crops=self._crops, writer=self._example_writer())
        lengths = []
        with Progress(len(shards), self._show, unit="shard", task="written") as progress:
            for length in map_in_order(work, list(zip(paths, shards, strict=True)), self._workers):
                lengths.append(length)
                progress.step()
        split = tfds.core.SplitInfo(
            name="train",
            shard_lengths=lengths,
            num_bytes=sum(Path(path).stat().st_size for path in paths),
            filename_template=template,
        )
        self.info.set_splits(tfds_splits.SplitDict([split]))


def _write_shard(
    job: tuple[Any, Callable[[], Iterable[tuple[str, dict[str, Any]]]]],
    *,
    crops: CropSettings,
    writer: tfds_writer.ExampleWriter,
) -> int:
    """Writes one shard, given as (path, generator), and returns its number of records."""
    path, examples = job
    features = cell_features(crops)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    return tfds_writer.ShardWriter(features, serializer, writer).write(examples(), path)


def cell_features(settings: CropSettings) -> tfds.features.FeaturesDict:
    """Returns the features of the record of one cell.

    `image` is stored as raw bytes: the shards' compression makes it as small as zlib would, and
    reading is several times faster.
    """
    kinds = {str: np.object_, int: np.int32, float: np.float32}
    shape = (settings.size, settings.size)
    features = {
        "image": tfds.features.Tensor(
            shape=(*shape, len(settings.channels)),
            dtype=np.dtype(settings.dtype),
            encoding="bytes",
        ),
        "cell_id": tfds.features.Text(doc="<field>/<number in it>, or the name of its file"),
        "x": tfds.features.Scalar(np.float32, doc="Column of the nucleus, NaN if unknown"),
        "y": tfds.features.Scalar(np.float32, doc="Row of the nucleus, NaN if unknown"),
    }
    if settings.masks == "keep":
        features["mask"] = tfds.features.Tensor(
            shape=shape,
            dtype=np.dtype(np.uint8),
            encoding="bytes",
            doc="2 in the nucleus, 1 in the rest of the cell, 0 elsewhere",
        )
    for name in settings.columns:
        kind = COLUMNS[name]
        features[name] = tfds.features.Text() if kind is str else tfds.features.Scalar(kinds[kind])
    return tfds.features.FeaturesDict(features)


class _RecordWriter(tfds_writer.ExampleWriter):
    """Writes array_record files; equal examples give equal bytes."""

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> None:
        """Writes the serialised examples of one shard; OSError if the disk is full."""
        from array_record.python import array_record_module
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            writer = array_record_module.ArrayRecordWriter(str(path), _SHARD_OPTIONS)
            for _, content in examples:
                # Sorts keys; the order of a protocol buffer's map is otherwise undefined.
                example = tf_example_pb2.Example.FromString(content)
                writer.write(example.SerializeToString(deterministic=True))
            writer.close()
        except (RuntimeError, ValueError) as error:  # raised by array_record for a full disk
            folder = Path(path).parent
            free = shutil.disk_usage(folder).free / 1e9
            raise OSError(f"cannot write to {folder} ({free:.1f} GB free): {error}") from error


@dataclasses.dataclass(frozen=True)
class Plan:
    """Input and settings of a build.

    Attributes:
      source: the images.
      dataset: name of the TFDS dataset.
      config: 'annotated' or 'all'.
      crops: how to extract cells.
      settings: everything that decides the content, for the manifest.
      origin: the input, for the manifest.
      illumination: method to estimate and correct the illumination of each plate (see
        `illumination.METHODS`); '': no correction.
      workers: processes.
      beam_runner: of Apache Beam, instead of processes; '': none.
      beam_options: flags of Beam.
      max_skipped: allowed share of unusable fields, in [0, 1].
      show: whether to show progress.
    """

    source: Source
    dataset: str
    config: str
    crops: CropSettings
    settings: Mapping[str, Any]
    origin: Mapping[str, Any]
    illumination: str = ""
    workers: int = 1
    beam_runner: str = ""
    beam_options: tuple[str, ...] = ()
    max_skipped: float = 0.01
    show: bool = True


def build(plan: Plan, data_dir: Path, *, replace: bool = False, extend: bool = False) -> Path:
    """Builds a dataset, which appears only when it is complete. A killed build resumes.

    The caller holds the lock of the dataset's folder (`versions.locked`).

    Args:
      plan: input and settings.
      data_dir: where datasets are stored.
      replace: replaces a finished dataset, which stays until the new one is complete.
      extend: as `replace`, but reuses the cells of the finished dataset.

    Returns:
      The dataset's folder, <data_dir>/<dataset>/<config>/<version>.

    Raises:
      BadUse: the dataset exists and is neither replaced nor extended, the source lacks a plate of
        the extended dataset, or an unknown Beam runner.
      BadData: too many unusable fields, or no cells.
    """
    folder = data_dir / plan.dataset / plan.config
    version = str(CellBuilder.VERSION)
    if (folder / version).exists() and not (replace or extend):
        raise BadUse(f"{folder / version} exists already: --overwrite replaces it")
    finished = finished_cells(folder / version) if extend else {}
    if lacking := finished.keys() - {field.plate for field in plan.source.fields}:
        raise BadUse(
            f"the input lacks {', '.join(sorted(lacking))} of the dataset to extend: use an input "
            "with all of its plates"
        )
    with pieces_folder(folder, plan.settings) as scratch, new_version(folder, version) as new:
        extracted, lights = extract(plan, data_dir, scratch, finished)
        _check_cells(extracted)
        written = _write_dataset(plan, extracted, new)
        _write_tables(plan, extracted, lights, written)
        written.rename(new / version)
    return folder / version


def extract(
    plan: Plan, data_dir: Path, scratch: Path, finished: Mapping[str, list[ExtractedCells]]
) -> tuple[list[ExtractedCells], dict[str, Path]]:
    """Runs the first stage: extracts all cells of the source, in order.

    Args:
      plan: input and settings.
      data_dir: for the illumination of plates.
      scratch: folder of pieces; existing pieces are reused.
      finished: already extracted cells by plate.

    Returns:
      The cells, and the file of each corrected plate's illumination.

    Raises:
      BadData: too many unusable fields.
    """
    source = plan.source
    absent = [(field.name, field.absent) for field in source.fields if field.absent]
    # Missing files are known before any image is read.
    _check_skipped(plan, [*source.problems, *absent], source.lost_fields + len(absent))
    run: Callable[..., Iterable[Any]]
    if plan.beam_runner:
        options = pipeline_options(plan.beam_options)
        run = functools.partial(map_on_beam, runner=plan.beam_runner, options=options)
    else:
        run = functools.partial(map_in_order, workers=plan.workers)
    fields = [field for field in source.fields if field.plate not in finished]
    lights: dict[str, Path] = {}
    if plan.illumination:
        plates = [field for field in fields if isinstance(field, Field)]
        lights = fit_lights(
            plates, source.channels, plan.illumination, data_dir, run=run, show=plan.show
        )
    planned = pieces.plan_pieces(fields, plan.crops, lights)
    reused = [cells for plate in finished.values() for cells in plate]
    by_plate = dict(finished)
    for piece, cells in zip(planned, _written(plan, planned, scratch, run, reused), strict=True):
        by_plate.setdefault(piece.plate, []).append(cells)
    order = dict.fromkeys(field.plate for field in source.fields)
    return [cells for plate in order for cells in by_plate[plate]], lights


def _written(
    plan: Plan,
    planned: Sequence[Piece],
    scratch: Path,
    run: Callable[..., Iterable[ExtractedCells]],
    reused: Iterable[ExtractedCells],
) -> Iterator[ExtractedCells]:
    """Writes the pieces, shows progress, and stops at too many unusable fields."""
    done = sum(len(piece.fields) for piece in planned if (scratch / piece.key).exists())
    total = sum(len(piece.fields) for piece in planned)
    if done and plan.show:
        print(f"resuming an earlier build: {done:,} of {total:,} fields are done")
    skipped, lost = list(plan.source.problems), plan.source.lost_fields
    for cells in reused:
        skipped += problems_of(cells.fields)
        lost += cells.fields["lost"].sum()
    work = functools.partial(pieces.write_piece, folder=scratch, settings=plan.crops)
    with Progress(total, plan.show) as progress:
        for cells in run(work, planned):
            skipped += problems_of(cells.fields)
            lost += cells.fields["lost"].sum()
            progress.step(units=len(cells.fields), cells=len(cells.cells))
            _check_skipped(plan, skipped, lost)
            yield cells


def _check_skipped(plan: Plan, skipped: Sequence[tuple[str, str]], lost: float) -> None:
    """Raises BadData if more than the allowed share of the fields is unusable."""
    fields = plan.source.fields
    total = len(fields) + plan.source.lost_fields
    if lost > plan.max_skipped * total:
        named = [{"field": name, "reason": reason} for name, reason in skipped]
        images = sum(len(field.cells) for field in fields if isinstance(field, CellGroup))
        unit, size = ("images", images / len(fields)) if images else ("fields", 1)
        raise BadData(
            f"{lost * size:.0f} of {total * size:.0f} {unit} cannot be used, more than "
            f"--max_skipped={plan.max_skipped:g} allows. "
            + "; ".join(manifest.describe_skipped({"skipped": named}))
        )


def _check_cells(extracted: Sequence[ExtractedCells]) -> None:
    """Raises BadData if there are no cells, or an id is not unique."""
    ids = pd.concat([one.cells["cell_id"] for one in extracted if len(one.cells)] or [pd.Series()])
    if not len(ids):
        raise BadData(
            "no cells were found: check that --channels names the images correctly, that nuclei "
            "are larger than --min_area, and fields larger than --crop_size"
        )
    twice = ids[ids.duplicated()]
    if len(twice):
        raise BadData(f"two cells have the id {twice.iloc[0]}: a field is listed twice")


def _write_dataset(plan: Plan, extracted: Sequence[ExtractedCells], folder: Path) -> Path:
    """Writes shards and their description into `folder` by TFDS; returns their path."""
    total = sum(len(one.cells) for one in extracted)
    download = tfds.download.DownloadConfig()
    if plan.beam_runner:
        options = pipeline_options(plan.beam_options)
        download = dataclasses.replace(download, beam_runner=plan.beam_runner, beam_options=options)
    # TFDS needs a download folder and reports a download, although there are none.
    with contextlib.redirect_stdout(io.StringIO()):
        builder = CellBuilder(
            plan.dataset,
            plan.crops,
            extracted,
            # Starting a process takes seconds.
            workers=min(plan.workers, 1 + total // _CELLS_A_WORKER),
            show=plan.show,
            data_dir=str(folder),
            config=plan.config,
        )
        builder.download_and_prepare(
            download_dir=str(folder / "downloads"), download_config=download
        )
    return Path(builder.data_dir)


def _write_tables(
    plan: Plan,
    extracted: Sequence[ExtractedCells],
    lights: Mapping[str, Path],
    directory: Path,
) -> None:
    """Writes the tables of cells and fields and the manifest; equal input gives equal files."""
    cells = pd.concat([one.cells for one in extracted if len(one.cells)], ignore_index=True)
    fields = pd.concat([one.fields for one in extracted], ignore_index=True)
    crops, source = plan.crops, plan.source
    skipped = [*source.problems, *problems_of(fields)]
    counts = {
        "cells": len(cells),
        "fields": len(fields),
        "fields_without_cells": int(((fields["cells"] == 0) & (fields["problem"] == "")).sum()),
        "fields_skipped": len(skipped),
    }
    kinds = manifest.count_kinds(cells[list(crops.columns)])
    corrected = {plate: file.name for plate, file in lights.items()}
    record = {
        "format": manifest.FORMAT,
        "made_by": manifest.MADE_BY,
        "settings": dict(plan.settings),
        "origin": {
            **plan.origin,
            "illumination": plan.origin.get("illumination", {}) | corrected,
            "left_out": source.left_out,
        },
        "image": {
            "shape": [crops.size, crops.size, len(crops.channels)],
            **manifest.describe_images(fields, crops.channels, crops.dtype, source.planes),
        },
        "columns": list(crops.columns),
        "counts": counts | {f"{kind}s": count for kind, count in kinds.items()},
        "skipped": [{"field": name, "reason": reason} for name, reason in skipped],
        "fingerprint": files.digest(*fields["digest"]),
        "versions": manifest.package_versions(),
    }
    cells.to_parquet(directory / dataset.CELLS, index=False)
    fields.to_parquet(directory / dataset.FIELDS, index=False)
    files.write_json(directory / dataset.MANIFEST, record)
