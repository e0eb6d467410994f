"""The TFDS builder: cells of BBBC021 in array_record shards, without TensorFlow.

TFDS's own writer keeps all records (or, from 1 GB on, temporary files that need TensorFlow) until
the last; this one streams them into the shards, in the fields' order, in constant memory.
"""

import contextlib
import dataclasses
import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import tensorflow_datasets as tfds
from tensorflow_datasets.core import splits as tfds_splits

from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.data.dataset_folder import alone, room_for_rebuild, swap_in
from cellclr_jax.data.extraction import CropSettings, FieldCells, cell_features, extract
from cellclr_jax.data.fields import Field, Source
from cellclr_jax.data.index import DATASET
from cellclr_jax.data.manifest import describe_skipped, make_manifest, write_manifest
from cellclr_jax.data.progress import Progress
from cellclr_jax.data.shards import ShardWriter
from cellclr_jax.data.sources import RAW_CHANNELS

_FINGERPRINT_BYTES = 16


@dataclasses.dataclass
class CellConfig(tfds.core.BuilderConfig):
    """Which cells, and how they are cut (sizes in pixels, channels in stored order)."""

    annotated: bool = True
    crop_size: int = 96
    border: str = "drop"
    min_area: int = 100
    channels: tuple[str, ...] = RAW_CHANNELS


class Bbbc021(tfds.core.GeneratorBasedBuilder):
    """Single cells of BBBC021, or of plates in its layout."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 - TFDS's own attribute
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS's own attribute
        CellConfig(name="annotated", description="Wells with a mechanism of action, and DMSO."),
        CellConfig(name="all", description="All wells.", annotated=False),
    ]

    # There is nothing to download; TFDS would otherwise look for a list of checksums, with a
    # package that it does not install.
    url_infos = None

    def __init__(
        self,
        *,
        source: Source | None = None,
        provenance: dict[str, Any] | None = None,
        workers: int = 1,
        max_skipped: float = 0.01,
        progress: bool = True,
        **kwargs: Any,
    ) -> None:
        """Prepares a build.

        Args:
          source: the fields; needed to build.
          provenance: where they come from, for the manifest: 'settings' and 'origin'.
          workers: processes that read fields.
          max_skipped: the share of fields that may be unusable, in [0, 1].
          progress: shows a bar (lines, where the console is a file).
          **kwargs: `data_dir` and `config` of TFDS.
        """
        self._source = source
        self._provenance = provenance or {"settings": {}, "origin": {}}
        self._workers = workers
        self._max_skipped = max_skipped
        self._show = progress
        super().__init__(file_format="array_record", **kwargs)

    def _create_builder_config(self, builder_config: Any, version: Any) -> Any:
        # TFDS lets a configuration of one's own have a new name only; here 'annotated' stays
        # 'annotated' at another crop size, which the manifest tells.
        if isinstance(builder_config, CellConfig):
            return builder_config
        return super()._create_builder_config(builder_config, version=version)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        return tfds.core.DatasetInfo(
            builder=self,
            description="Single-cell images of BBBC021v1 (MCF-7, three channels, 16 bit).",
            homepage="https://bbbc.broadinstitute.org/BBBC021",
            features=cell_features(config.crop_size, len(config.channels)),
            disable_shuffling=True,
        )

    def _log_download_bytes(self) -> None:
        """Nothing is downloaded."""

    _log_download_done = _log_download_bytes

    def _opened_source(self) -> Source:
        """The source; BadUse where TFDS was asked to build without one."""
        if self._source is None:
            raise BadUse(
                "this dataset is built from plates or crops: "
                "python -m cellclr_jax.build --source=raw --input=PLATES --data_dir=DIR"
            )
        return self._source

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[FieldCells]]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[FieldCells]:
        """Yields the cells of one field after the other (serialised: that is work for many)."""
        config = self.builder_config
        settings = CropSettings(config.crop_size, config.border, config.min_area, config.channels)
        return extract(self._opened_source().fields, settings, self._workers)

    def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[Any]:
        """Writes shards, table and manifest into TFDS's temporary folder."""
        source = self._opened_source()
        # Files that are not there are known before any work.
        absent = [(field.name, field.absent) for field in source.fields if field.absent]
        self._check_skipped([*source.problems, *absent])
        template = self._get_filename_template(split_name="train")
        directory = Path(template.data_dir)
        (results,) = self._split_generators(dl_manager).values()
        shards = ShardWriter(directory)
        with contextlib.closing(shards):
            written = _write_fields(source.fields, results, shards, self._show)
        skipped = [*source.problems, *written.skipped]
        self._check_skipped(skipped)
        table = _cell_table(written.tables, source.image_csv)
        manifest = make_manifest(
            **self._provenance,
            image={
                "shape": list(self.info.features["image"].shape),
                "dtype": "uint16",
                "channels": list(self.builder_config.channels),
            },
            cells=table,
            fields=len(source.fields),
            empty_fields=written.empty,
            skipped=skipped,
            fingerprint=written.digest.hexdigest(),
        )
        write_manifest(directory, manifest, table)
        return [
            tfds_splits.SplitInfo(
                name="train",
                shard_lengths=shards.name_shards(template),
                num_bytes=shards.total_bytes,
                filename_template=template,
            )
        ]

    def _check_skipped(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Raises BadData where more than the allowed share of the fields is unusable."""
        source = self._opened_source()
        total = len(source.fields) + len(source.problems)
        if len(skipped) > self._max_skipped * total:
            named = [{"field": what, "reason": reason} for what, reason in skipped]
            raise BadData(
                f"{len(skipped)} of {total} fields cannot be used, more than "
                f"--max_skipped={self._max_skipped:g} allows. "
                + "; ".join(describe_skipped({"skipped": named}))
            )


@dataclasses.dataclass
class _Written:
    """What is remembered of the fields whose records are in the shards."""

    tables: list[pd.DataFrame] = dataclasses.field(default_factory=list)
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    empty: int = 0
    digest: Any = dataclasses.field(
        default_factory=lambda: hashlib.blake2b(digest_size=_FINGERPRINT_BYTES)
    )


def _write_fields(
    fields: Sequence[Field], results: Iterable[FieldCells], shards: ShardWriter, show: bool
) -> _Written:
    """Writes the cells of all fields, with a progress bar."""
    written = _Written()
    with Progress(len(fields), show) as progress:
        for field, cells in zip(fields, results, strict=True):
            if cells.problem:
                written.skipped.append((field.name, cells.problem))
            elif not cells.records:
                written.empty += 1
            else:
                shards.write(cells.records)
                # A table takes a fraction of the memory of its rows, of which there are millions.
                written.tables.append(pd.DataFrame(cells.rows))
            written.digest.update(cells.digest)
            progress.step(cells=len(cells.records))
    return written


def _cell_table(tables: list[pd.DataFrame], image_csv: str) -> pd.DataFrame:
    """One row a record; BadData where there is none, or two have one id."""
    if not tables:
        raise BadData(
            "no cells were found: are the images what the channels say, the nuclei larger than "
            "--min_area and the fields larger than --crop_size?"
        )
    table = pd.concat(tables, ignore_index=True)
    twice = table["cell_id"][table["cell_id"].duplicated()]
    if len(twice):
        raise BadData(f"{image_csv}: two cells are called {twice.iloc[0]}: a field is listed twice")
    return table


def build(
    data_dir: Path,
    config: CellConfig,
    source: Source,
    provenance: dict[str, Any],
    *,
    workers: int = 1,
    max_skipped: float = 0.01,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Builds a dataset, which appears whole or not at all; a finished one stays as it is.

    Args:
      data_dir: where datasets lie.
      config, source, provenance, workers, max_skipped, progress: see `Bbbc021`.
      overwrite: replaces a finished dataset, which stays as it is until the new one is finished.

    Returns:
      The dataset's folder, <data_dir>/bbbc021/<config>/<version>.

    Raises:
      BadUse: another process builds the same dataset.
      BadData: too many unusable fields, or no cell at all.
    """
    folder = data_dir / DATASET / config.name
    with alone(folder), room_for_rebuild(folder, str(Bbbc021.VERSION), overwrite) as place:
        builder = Bbbc021(
            data_dir=str(place or data_dir),
            config=config,
            source=source,
            provenance=provenance,
            workers=workers,
            max_skipped=max_skipped,
            progress=progress,
        )
        # TFDS makes a folder for downloads, though there are none: elsewhere, for that time.
        with tempfile.TemporaryDirectory() as downloads:
            builder.download_and_prepare(download_dir=downloads)
        if place is not None:
            swap_in(Path(builder.data_dir), folder)
    return folder / Path(builder.data_dir).name
