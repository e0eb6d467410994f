"""Builds a dataset of crops from a source."""

import dataclasses
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import tensorflow_datasets as tfds
from tensorflow_datasets.core import splits as tfds_splits

from cellclr_jax.console import Progress
from cellclr_jax.data.building import pieces
from cellclr_jax.data.building.extraction import CropSettings, cell_features
from cellclr_jax.data.building.manifest import describe_skipped, make_manifest, write_manifest
from cellclr_jax.data.building.pieces import Piece, PieceSummary, WrittenPiece
from cellclr_jax.data.building.plate_light import fit_light, light_files
from cellclr_jax.data.building.versions import (
    finished_pieces,
    room_for_pieces,
    room_for_rebuild,
    swap_in,
)
from cellclr_jax.data.building.workers import (
    map_in_order,
    map_on_beam,
    pipeline_options,
)
from cellclr_jax.data.sources import RAW_CHANNELS
from cellclr_jax.data.sources.plates import RELEASE_COLUMNS
from cellclr_jax.data.sources.source import Source
from cellclr_jax.errors import BadData, BadUse


@dataclasses.dataclass
class CellConfig(tfds.core.BuilderConfig):
    """Which cells, and how they become images."""

    annotated: bool = False
    crops: CropSettings | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a build does.

    Attributes:
      source: the fields.
      settings: everything that decides the content, for the manifest.
      origin: where it comes from, for the manifest.
      illumination: how the light of each plate is estimated (see `illumination.METHODS`), to be
        corrected; '': it is not.
      workers: processes.
      beam_runner: of Apache Beam, instead of processes; '': none.
      beam_options: its flags.
      max_skipped: the share of fields that may be unusable, in [0, 1].
      show: whether progress is shown.
    """

    source: Source
    settings: Mapping[str, Any]
    origin: Mapping[str, Any]
    illumination: str = ""
    workers: int = 1
    beam_runner: str = ""
    beam_options: tuple[str, ...] = ()
    max_skipped: float = 0.01
    show: bool = True


class CellBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builds single cells from fields; its subclasses name datasets."""

    # There is nothing to download; TFDS would otherwise look for a list of checksums, with a
    # package that it does not install.
    url_infos = None

    def __init__(
        self,
        *,
        plan: Plan | None = None,
        data_root: Path = Path(),
        place: Path = Path(),
        finished: Mapping[str, Sequence[WrittenPiece]] | None = None,
        **kwargs: Any,
    ) -> None:
        """Prepares a build.

        Args:
          plan: what to build; None: the dataset is there and is read.
          data_root: where datasets lie, and the lights of plates.
          place: folder for pieces.
          finished: pieces of plates that are taken over from an earlier build.
          **kwargs: `data_dir` and `config` of TFDS.
        """
        self._plan = plan
        self._root, self._place = data_root, place
        self._finished = finished or {}
        self._lights: dict[str, Path] = {}
        super().__init__(file_format="array_record", **kwargs)

    def _create_builder_config(self, builder_config: Any, version: Any) -> Any:
        # TFDS lets a configuration of one's own have a new name only; here 'annotated' stays
        # 'annotated' at another crop size, which the manifest tells.
        if isinstance(builder_config, CellConfig):
            return builder_config
        return super()._create_builder_config(builder_config, version=version)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=cell_features(self.builder_config.crops),
            disable_shuffling=True,
        )

    def _log_download_bytes(self) -> None:
        """Nothing is downloaded."""

    _log_download_done = _log_download_bytes

    def _planned(self) -> Plan:
        """The plan; BadUse where TFDS was asked to build without one."""
        if self._plan is None:
            raise BadUse(
                "this dataset is built from images: "
                "python -m cellclr_jax.build --source=… --input=DIR --data_dir=DIR"
            )
        return self._plan

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples}

    def _generate_examples(
        self, planned: Sequence[Piece], run: Any
    ) -> Iterator[tuple[Piece, PieceSummary]]:
        """Has every piece written, unless it is there."""
        work = functools.partial(
            pieces.write_piece, place=self._place, settings=self.builder_config.crops
        )
        yield from zip(planned, run(work, planned), strict=True)

    def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[Any]:
        """Writes shards, tables and manifest into TFDS's temporary folder."""
        plan = self._planned()
        source = plan.source
        absent = [(field.name, field.absent) for field in source.fields if field.absent]
        # Files that are not there are known before any work.
        self._check_skipped([*source.problems, *absent], source.lost_fields + len(absent))
        run = _runner(plan, download_config)
        planned = self._plan_pieces(plan, run)
        generate = self._split_generators(dl_manager)["train"]
        self._follow(planned, generate(planned, run))
        written = self._in_order(planned)
        template = self._get_filename_template(split_name="train")
        origin = {
            **plan.origin,
            "illumination": {
                **plan.origin.get("illumination", {}),
                **{plate: file.name for plate, file in self._lights.items()},
            },
        }
        write_tables(
            Path(template.data_dir),
            written,
            self.builder_config.crops,
            settings=dict(plan.settings),
            origin=origin,
            problems=source.problems,
        )
        lengths, size = name_shards(written, template)
        return [
            tfds_splits.SplitInfo(
                name="train",
                shard_lengths=lengths,
                num_bytes=size,
                filename_template=template,
            )
        ]

    def _plan_pieces(self, plan: Plan, run: Any) -> list[Piece]:
        """The pieces of all plates but those that are taken over."""
        source = plan.source
        fields = [field for field in source.fields if field.plate not in self._finished]
        if plan.illumination:
            new = dataclasses.replace(source, fields=fields)
            self._lights = light_files(new, plan.illumination, self._root)
            fit_light(new, plan.illumination, self._lights, run, plan.show)
            self._lights = {plate: file for plate, file in self._lights.items() if file.exists()}
        return pieces.plan_pieces(fields, self.builder_config.crops, self._lights)

    def _follow(
        self, planned: Sequence[Piece], written: Iterable[tuple[Piece, PieceSummary]]
    ) -> None:
        """Shows how far the pieces are, and stops where too many fields cannot be used."""
        plan, place = self._planned(), self._place
        there = [pieces.read_summary(piece, place) for piece in planned]
        held = sum(summary.fields for summary in there if summary is not None)
        total = sum(len(piece.fields) for piece in planned)
        if held and plan.show:
            print(f"going on with an earlier build: {held:,} of {total:,} fields are there")
        skipped, lost = list(plan.source.problems), plan.source.lost_fields
        for piece in self._taken_over():
            skipped += problems_of(piece.fields)
            lost += piece.fields["lost"].sum()
        with Progress(total, plan.show) as progress:
            for _, summary in written:
                skipped += summary.problems
                lost += summary.lost
                progress.step(units=summary.fields, cells=summary.cells)
                self._check_skipped(skipped, lost)

    def _taken_over(self) -> list[WrittenPiece]:
        return [piece for plate in self._finished.values() for piece in plate]

    def _in_order(self, planned: Sequence[Piece]) -> list[WrittenPiece]:
        """All pieces, those that were taken over among them, in the order of their plates."""
        new: dict[str, list[WrittenPiece]] = {}
        for piece in planned:
            new.setdefault(piece.plate, []).append(pieces.read_piece(piece, self._place))
        plates = dict.fromkeys(field.plate for field in self._planned().source.fields)
        return [
            piece for plate in plates for piece in self._finished.get(plate) or new.get(plate, [])
        ]

    def _check_skipped(self, skipped: Sequence[tuple[str, str]], lost: float) -> None:
        """Raises BadData where more than the allowed share of the fields is unusable."""
        plan = self._planned()
        total = len(plan.source.fields) + plan.source.lost_fields
        if lost > plan.max_skipped * total:
            named = [{"field": what, "reason": reason} for what, reason in skipped]
            given = sum(len(field.cells) for field in plan.source.fields)
            unit, size = ("images", given / len(plan.source.fields)) if given else ("fields", 1)
            raise BadData(
                f"{lost * size:.0f} of {total * size:.0f} {unit} cannot be used, more than "
                f"--max_skipped={plan.max_skipped:g} allows. "
                + "; ".join(describe_skipped({"skipped": named}))
            )


def build(
    builder_class: type[CellBuilder],
    data_dir: Path,
    config: CellConfig,
    plan: Plan,
    *,
    replace: bool = False,
    extend: bool = False,
) -> Path:
    """Builds a dataset, which appears whole or not at all; whoever calls is `alone` in its folder.

    A build that was killed goes on where it was.

    Args:
      builder_class: names the dataset.
      data_dir: where datasets lie.
      config: which cells, and how they are cut.
      plan: what to do.
      replace: puts it in the place of a finished dataset, which stays until the new one is there.
      extend: the same, with the plates of the finished one taken over as they are.

    Returns:
      The dataset's folder, <data_dir>/<builder>/<config>/<version>.

    Raises:
      BadUse: the dataset is there and neither replaced nor extended, or an unknown Beam runner.
      BadData: too many unusable fields, or no cell at all.
    """
    folder = dataset_folder_of(builder_class, data_dir, config.name)
    version = str(builder_class.VERSION)
    if (folder / version).exists() and not (replace or extend):
        raise BadUse(f"{folder / version} is there already: --overwrite replaces it")
    finished = _taken_over(folder / version, plan.source) if extend else {}
    make = functools.partial(builder_class, config=config, plan=plan, data_root=data_dir)
    beam = _beam_config(plan)
    with (
        room_for_pieces(folder, plan.settings) as place,
        room_for_rebuild(folder, version, replace or extend) as room,
    ):
        builder = make(data_dir=str(room or data_dir), place=place, finished=finished)
        _prepare(builder, beam)
        if room is not None:
            swap_in(Path(builder.data_dir), folder)
    return folder / version


def dataset_folder_of(builder_class: type[CellBuilder], data_dir: Path, config: str) -> Path:
    """The folder of a dataset's versions."""
    return data_dir / builder_class.name / config


def _taken_over(finished: Path, source: Source) -> dict[str, list[WrittenPiece]]:
    """Pieces of a finished dataset by plate; BadUse where the source lacks one of its plates."""
    taken = finished_pieces(finished)
    if lacking := taken.keys() - {field.plate for field in source.fields}:
        raise BadUse(f"the input has nothing of {', '.join(sorted(lacking))}, which is extended")
    return taken


def _beam_config(plan: Plan) -> tfds.download.DownloadConfig:
    """What TFDS is told of Apache Beam, if that is used."""
    if not plan.beam_runner:
        return tfds.download.DownloadConfig()
    options = pipeline_options(plan.beam_options)
    return tfds.download.DownloadConfig(beam_runner=plan.beam_runner, beam_options=options)


def _prepare(builder: CellBuilder, how: tfds.download.DownloadConfig) -> None:
    """Has TFDS build."""
    # It makes a folder for downloads, though there are none: elsewhere, for that time.
    with tempfile.TemporaryDirectory() as downloads:
        builder.download_and_prepare(download_dir=downloads, download_config=how)


def _runner(plan: Plan, download_config: Any) -> Any:
    """`map` for what is to be done: in processes of this machine, or on a cluster."""
    if download_config.beam_runner:
        return functools.partial(
            map_on_beam,
            runner=download_config.beam_runner,
            options=download_config.beam_options,
        )
    return functools.partial(map_in_order, workers=plan.workers)


_CROPS = CropSettings(96, RAW_CHANNELS, RELEASE_COLUMNS)


class Bbbc021(CellBuilder):
    """Single-cell images of BBBC021v1 (MCF-7, three channels, 16 bit), or of plates like it."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 - TFDS's own attribute
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS's own attribute
        CellConfig(
            name="annotated",
            description="Wells with a mechanism of action, and DMSO.",
            annotated=True,
            crops=_CROPS,
        ),
        CellConfig(name="all", description="All wells.", crops=_CROPS),
    ]


class SingleCells(CellBuilder):
    """Single-cell images of any origin, with the labels and metadata that came with them."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 - TFDS's own attribute
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS's own attribute
        CellConfig(name="all", description="All images.", crops=CropSettings(96, ("grey",), ()))
    ]


_FINGERPRINT_BYTES = 16


def write_tables(
    directory: Path,
    written: Sequence[WrittenPiece],
    crops: CropSettings,
    *,
    settings: dict[str, Any],
    origin: dict[str, Any],
    problems: Sequence[tuple[str, str]],
) -> None:
    """Writes the tables of cells and fields, and the manifest.

    Args:
      directory: of the dataset.
      written: all its pieces, in order.
      crops: how they were cut.
      settings, origin: for the manifest.
      problems: (what, reason) of files that belong to no field.

    Raises:
      BadData: there is no cell, or two have one id.
    """
    fields = pd.concat([piece.fields for piece in written], ignore_index=True)
    cells = _cell_table([piece.cells for piece in written if piece.shard is not None])
    fingerprint = hashlib.blake2b(digest_size=_FINGERPRINT_BYTES)
    for text in fields["digest"]:
        fingerprint.update(bytes.fromhex(text))
    manifest = make_manifest(
        settings=settings,
        origin=origin,
        image={
            "shape": [crops.size, crops.size, len(crops.channels)],
            "dtype": crops.dtype,
            "channels": list(crops.channels),
        },
        columns=list(crops.columns),
        cells=cells,
        fields=fields,
        skipped=[*problems, *problems_of(fields)],
        fingerprint=fingerprint.hexdigest(),
        pieces=[(piece.plate, len(piece.cells), len(piece.fields)) for piece in written],
    )
    write_manifest(directory, manifest, cells, fields)


def name_shards(written: Sequence[WrittenPiece], template: Any) -> tuple[list[int], int]:
    """Gives the shards of pieces TFDS's names; they keep their own as well.

    Args:
      written: pieces in order.
      template: of TFDS, for names of shards.

    Returns:
      The numbers of records of the shards, and their bytes together.
    """
    shards = [(piece.shard, len(piece.cells)) for piece in written if piece.shard is not None]
    size = 0
    for number, (shard, _) in enumerate(shards):
        _link(shard, template.sharded_filepath(shard_index=number, num_shards=len(shards)))
        size += shard.stat().st_size
    return [length for _, length in shards], size


def problems_of(fields: pd.DataFrame) -> list[tuple[str, str]]:
    """(field, reason) of the fields that gave none of their cells, or not all of them."""
    bad = fields[fields["problem"] != ""]
    return list(zip(bad["field"], bad["problem"], strict=True))


def _cell_table(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """One row a record; BadData where there is none, or two have one id."""
    if not tables:
        raise BadData(
            "no cells were found: are the images what the channels say, the nuclei larger than "
            "--min_area and the fields larger than --crop_size?"
        )
    table = pd.concat(tables, ignore_index=True)
    twice = table["cell_id"][table["cell_id"].duplicated()]
    if len(twice):
        raise BadData(f"two cells are called {twice.iloc[0]}: a field is listed twice")
    return table


def _link(source: Path, target: Any) -> None:
    """A second name for a file, or a copy where the file system knows no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
