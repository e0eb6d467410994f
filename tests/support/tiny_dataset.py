"""Writes a small finished dataset without a build: shards, tables and manifest of random cells."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

# Cells of each shard: several shards, with more cells than one task reads.
SHARDS = (30, 20, 7)
CELLS = sum(SHARDS)
SIDE = 12


def random_images(dtype=np.uint16, channels=3, seed=0):
    """Draws images [CELLS, SIDE, SIDE, channels] over the whole range of their type."""
    high = np.iinfo(dtype).max
    rng = np.random.default_rng(seed)
    return rng.integers(0, high, (CELLS, SIDE, SIDE, channels), dtype, endpoint=True)


def write_dataset(data_dir, images, *, masks=None, name="single_cells/all", columns=None):
    """Writes a dataset with metadata `columns` by name; returns its folder."""
    builder, config = name.split("/")
    folder = Path(data_dir, builder, config, "1.0.0")
    folder.mkdir(parents=True)
    cells = pd.DataFrame(
        {"cell_id": [f"cell {i}" for i in range(len(images))]}
        | (columns or {})
        | {"x": np.float32(np.nan), "y": np.float32(np.nan)}
    )
    cells.to_parquet(folder / "cells.parquet", index=False)
    fields = {"field": ["here"], "cells": [len(images)], "problem": [""], "digest": ["00"]}
    pd.DataFrame(fields).to_parquet(folder / "fields.parquet", index=False)
    records = _write_shards(folder, builder, images, masks, cells["cell_id"])
    manifest = {
        "settings": {},
        "origin": {},
        "image": {"shape": list(images.shape[1:]), "dtype": images.dtype.name, "channels": []},
        "columns": list(columns or {}),
        "counts": {"cells": len(images)},
        "skipped": [],
        "fingerprint": hashlib.blake2b(b"".join(records), digest_size=16).hexdigest(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _write_shards(folder, builder, images, masks, ids):
    """Writes shards and TFDS's description of them; returns the records."""
    kinds = {
        "image": tfds.features.Tensor(shape=images.shape[1:], dtype=images.dtype, encoding="bytes"),
        "cell_id": tfds.features.Text(),
    }
    if masks is not None:
        kinds["mask"] = tfds.features.Tensor(
            shape=masks.shape[1:], dtype=np.dtype(np.uint8), encoding="bytes"
        )
    features = tfds.features.FeaturesDict(kinds)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    records = []
    for i, image in enumerate(images):
        example = {"image": image, "cell_id": ids[i]}
        if masks is not None:
            example["mask"] = masks[i]
        encoded = serializer.get_tf_example(features.encode_example(example))
        records.append(encoded.SerializeToString(deterministic=True))
    rest = iter(records)
    for number, size in enumerate(SHARDS):
        path = folder / f"{builder}-train.array_record-{number:05d}-of-{len(SHARDS):05d}"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,zstd:1")
        for _ in range(size):
            writer.write(next(rest))
        writer.close()
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[
            tfds.core.SplitInfo(
                name="train", shard_lengths=list(SHARDS), num_bytes=sum(map(len, records)),
                filename_template=None,
            )
        ],
        check_data=False,
    )  # fmt: skip
    return records


def metadata(count=CELLS):
    """Makes metadata of cells: consecutive cells are in different wells; cell 3 has no well."""
    wells = np.arange(count) % 8
    compounds = np.array(["DMSO", "DMSO", "NA", "007", "a", "b", "c", "d"])[wells].astype(object)
    names = np.array([f"B{well:02d}" for well in range(8)])[wells].astype(object)
    names[3] = None
    return {
        "plate": np.where(wells < 4, "Week1_1", "Week2_1"),
        "well": names,
        "site": np.arange(count) % 3,
        "batch": np.where(wells < 4, "Week1", "Week2"),
        "compound": compounds,
        "concentration": np.where(compounds == "DMSO", 0.0, 0.3),
        "moa": np.array(["DMSO", "DMSO", "m", "n", "m", "n", "m", "n"])[wells],
        "label": np.where(np.arange(count) % 2, "bright", None),
    }


def name_channels(folder, channels=("dna", "tubulin", "actin")):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["image"]["channels"] = list(channels)
    path.write_text(json.dumps(manifest))
