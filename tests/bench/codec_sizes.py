"""Compares storage formats of crops by bytes on disk and reading time.

    python tests/bench/codec_sizes.py [--cells=1024] [--data_dir=DIR --dataset=annotated]

Each format is written to an array_record file, one record a chunk, and read back in random order on
one core, with the file in the page cache. Time is processor time. Without --data_dir the cells come
from simulated plates, which are built in a temporary folder.

The error of a lossy format is given in units of the simulated camera's noise at each pixel, which
is fitted to images of BBBC021.
"""

import argparse
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
from array_record.python import array_record_module
from simulated_cells import build_simulated
from tensorflow_datasets.proto import tf_example_pb2

from cellclr_jax.data import dataset
from cellclr_jax.simulation.camera import READ_NOISE, SHOT_NOISE, Optics

READER = "readahead_buffer_size:0,max_parallelism:0"
SECONDS = 1.0  # shortest measurement of a rate
REPEATS = 3


class Codec(NamedTuple):
    """A storage format: encoder, decoder and the packing of array_record."""

    name: str
    packing: str
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, np.ndarray], None]


def from_raw(content: bytes, out: np.ndarray) -> None:
    """Inverts `tobytes`, TFDS's encoding='bytes'."""
    out[...] = np.frombuffer(content, out.dtype).reshape(out.shape)


def from_zipped(content: bytes, out: np.ndarray) -> None:
    """Inverts TFDS's encoding='zlib'."""
    from_raw(zlib.decompress(content), out)


def from_png(content: bytes, out: np.ndarray) -> None:
    """Decodes a 16-bit PNG of three channels."""
    out[...] = imagecodecs.png_decode(content)


def scaled(image: np.ndarray) -> bytes:
    """Encodes each channel's minimum and maximum (float32) and its pixels in 256 steps between."""
    low = image.min((0, 1)).astype(np.float32)
    high = image.max((0, 1)).astype(np.float32)
    steps = (image - low) * (255 / np.maximum(high - low, 1)) + np.float32(0.5)
    return low.tobytes() + high.tobytes() + steps.astype(np.uint8).tobytes()


def from_scaled(content: bytes, out: np.ndarray) -> None:
    """Inverts `scaled` approximately."""
    channels = out.shape[-1]
    low, high = np.frombuffer(content, np.float32, 2 * channels).reshape(2, channels)
    steps = np.frombuffer(content, np.uint8, offset=8 * channels).reshape(out.shape)
    np.rint(steps * ((high - low) / np.float32(255)) + low, out=out, casting="unsafe")


CODECS = (
    *(
        Codec("uint16", packing, np.ndarray.tobytes, from_raw)
        for packing in ("uncompressed", "zstd:1", "brotli")
    ),
    Codec("uint16 zlib", "uncompressed", lambda image: zlib.compress(image.tobytes()), from_zipped),
    Codec("uint16 PNG", "uncompressed", lambda x: bytes(imagecodecs.png_encode(x)), from_png),
    Codec("uint8 scaled", "zstd:1", scaled, from_scaled),
)


def write(codec: Codec, images: np.ndarray, path: Path) -> float:
    """Stores images; returns bytes a cell."""
    writer = array_record_module.ArrayRecordWriter(str(path), f"group_size:1,{codec.packing}")
    for image in images:
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(codec.encode(image))
        writer.write(example.SerializeToString())
    writer.close()
    return path.stat().st_size / len(images)


def read(codec: Codec, path: Path, rows: np.ndarray, out: np.ndarray) -> None:
    """Reads rows, one at a time, into an array."""
    reader = array_record_module.ArrayRecordReader(str(path), options=READER)
    for row in rows.tolist():
        (record,) = reader.read([row])
        feature = tf_example_pb2.Example.FromString(record).features.feature["image"]
        codec.decode(feature.bytes_list.value[0], out[row])
    reader.close()


def reading_rate(codec: Codec, path: Path, cells: int, out: np.ndarray) -> float:
    """Measures the highest rate in cells a second."""
    rng, best = np.random.default_rng(0), 0.0
    for _ in range(REPEATS):
        done, began = 0, time.process_time()
        while (seconds := time.process_time() - began) < SECONDS / REPEATS:
            read(codec, path, rng.permutation(cells), out)
            done += cells
        best = max(best, done / seconds)
    return best


def error_in_noise(images: np.ndarray, found: np.ndarray) -> float:
    """Computes the RMS error in units of the camera's noise."""
    signal = np.maximum(images - np.float32(Optics().offset), 0)
    noise = np.sqrt(np.float32(SHOT_NOISE) * signal + np.float32(READ_NOISE**2))
    return float(np.sqrt(np.mean(((found.astype(np.float32) - images) / noise) ** 2)))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=1024)
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--dataset", default="annotated")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data_dir = settings.data_dir or build_simulated(Path(folder))
        source = dataset.open_images(dataset.find_dataset(data_dir, settings.dataset))
        chosen = np.random.default_rng(0).permutation(len(source))[: settings.cells]
        images = source.read(chosen)
        # All threads started from now on share one core.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        print(f"{len(images):,} cells of {'×'.join(map(str, images.shape[1:]))} {images.dtype}")
        for codec in CODECS:
            path, out = Path(folder) / "records", np.zeros_like(images)
            size = write(codec, images, path)
            rate = reading_rate(codec, path, len(images), out)
            print(
                f"{codec.name + ', ' + codec.packing:28s} {size:8,.0f} bytes {rate:9,.0f} read/s  "
                f"error {error_in_noise(images, out):.2f} of the camera's noise",
                flush=True,
            )


if __name__ == "__main__":
    main()
