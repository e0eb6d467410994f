"""What a cell's pixels take of the disk and of a core's time, by the way they are stored.

    python tests/bench/codec_sizes.py [--cells=1024] [--data_dir=DIR --dataset=annotated]

Every way is written to an array_record file, one record a chunk, and read back in random order, on
one core and with the file in the system's cache; what counts is the processor's time. Without
--data_dir the cells come from simulated plates, which are built in a temporary folder.

The error of a way that loses something is told in units of the camera's noise at each pixel, as the
simulator has it (or as it fits BBBC021's own images).
"""

import argparse
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from array_record.python import array_record_module
from simulated_cells import build_simulated
from tensorflow_datasets.proto import tf_example_pb2

from cellclr_jax.data import dataset
from cellclr_jax.simulation.camera import READ_NOISE, SHOT_NOISE, Optics

READER = "readahead_buffer_size:0,max_parallelism:0"
SECONDS = 1.0  # that a rate is measured, at least
REPEATS = 3
# What is worth having: to read at this share of the fastest's rate at least, and among those to
# need hardly more room than the smallest.
AS_FAST, AS_SMALL = 0.2, 1.05


@dataclass(frozen=True)
class Codec:
    """Pixels to a feature of a record and back, and how array_record packs the record.

    `plain` codecs are TFDS's own: any program reads such a dataset through it, without TensorFlow.
    """

    name: str
    packing: str
    encode: Callable[[np.ndarray, Any], None]
    decode: Callable[[Any, np.ndarray], None]
    plain: bool


def as_bytes(
    name: str,
    packing: str,
    encode: Callable[[np.ndarray], bytes],
    decode: Callable[[bytes, np.ndarray], None],
    plain: bool = False,
) -> Codec:
    """A codec whose feature is one string of bytes."""
    return Codec(
        f"{name}, {packing}",
        packing,
        lambda image, feature: feature.bytes_list.value.append(encode(image)),
        lambda feature, out: decode(feature.bytes_list.value[0], out),
        plain,
    )


def to_numbers(image: np.ndarray, feature: Any) -> None:
    """TFDS's encoding='none': each pixel a number of one to three bytes, and a tag."""
    feature.int64_list.value.extend(image.reshape(-1).tolist())


def from_numbers(feature: Any, out: np.ndarray) -> None:
    """Undoes `to_numbers`."""
    out[...] = np.fromiter(feature.int64_list.value, out.dtype, out.size).reshape(out.shape)


def raw(image: np.ndarray) -> bytes:
    """The pixels as they lie in memory: TFDS's encoding='bytes'."""
    return image.tobytes()


def from_raw(content: bytes, out: np.ndarray) -> None:
    """Undoes `raw`."""
    out[...] = np.frombuffer(content, out.dtype).reshape(out.shape)


def zipped(image: np.ndarray) -> bytes:
    """TFDS's encoding='zlib'."""
    return zlib.compress(image.tobytes())


def from_zipped(content: bytes, out: np.ndarray) -> None:
    """Undoes `zipped`."""
    from_raw(zlib.decompress(content), out)


def png(image: np.ndarray) -> bytes:
    """A 16-bit PNG of three channels."""
    return bytes(imagecodecs.png_encode(image))


def from_png(content: bytes, out: np.ndarray) -> None:
    """Undoes `png`."""
    out[...] = imagecodecs.png_decode(content)


def shuffled(image: np.ndarray) -> bytes:
    """Blosc2: all first bits of the pixels, then all second ones, …, packed by LZ4."""
    return imagecodecs.blosc2_encode(
        image.tobytes(), level=1, compressor="lz4", shuffle="bitshuffle", typesize=2
    )


def from_shuffled(content: bytes, out: np.ndarray) -> None:
    """Undoes `shuffled`."""
    from_raw(imagecodecs.blosc2_decode(content), out)


def scaled(image: np.ndarray) -> bytes:
    """Each channel's lowest and highest value (float32), then its pixels in 256 steps between."""
    low = image.min((0, 1)).astype(np.float32)
    high = image.max((0, 1)).astype(np.float32)
    steps = (image - low) * (255 / np.maximum(high - low, 1)) + np.float32(0.5)
    return low.tobytes() + high.tobytes() + steps.astype(np.uint8).tobytes()


def from_scaled(content: bytes, out: np.ndarray) -> None:
    """Undoes `scaled` as far as that can be."""
    channels = out.shape[-1]
    low, high = np.frombuffer(content, np.float32, 2 * channels).reshape(2, channels)
    steps = np.frombuffer(content, np.uint8, offset=8 * channels).reshape(out.shape)
    np.rint(steps * ((high - low) / np.float32(255)) + low, out=out, casting="unsafe")


CODECS = (
    *(
        as_bytes("uint16 bytes", packing, raw, from_raw, plain=True)
        for packing in ("uncompressed", "snappy", "zstd:1", "zstd:3", "brotli")
    ),
    Codec("uint16 numbers, zstd:1", "zstd:1", to_numbers, from_numbers, plain=True),
    as_bytes("uint16 zlib", "uncompressed", zipped, from_zipped, plain=True),
    as_bytes("uint16 PNG", "uncompressed", png, from_png),
    as_bytes("uint16 Blosc2", "uncompressed", shuffled, from_shuffled),
    as_bytes("uint8 scaled", "uncompressed", scaled, from_scaled),
    as_bytes("uint8 scaled", "zstd:1", scaled, from_scaled),
)


def write(codec: Codec, images: np.ndarray, path: Path) -> tuple[float, float]:
    """Stores images; (bytes a cell, cells a second)."""
    began = time.process_time()
    writer = array_record_module.ArrayRecordWriter(str(path), f"group_size:1,{codec.packing}")
    for image in images:
        example = tf_example_pb2.Example()
        codec.encode(image, example.features.feature["image"])
        writer.write(example.SerializeToString())
    writer.close()
    return path.stat().st_size / len(images), len(images) / (time.process_time() - began)


def read(codec: Codec, path: Path, rows: np.ndarray, out: np.ndarray) -> None:
    """Reads rows, one at a time, into an array."""
    reader = array_record_module.ArrayRecordReader(str(path), options=READER)
    for row in rows.tolist():
        (record,) = reader.read([row])
        feature = tf_example_pb2.Example.FromString(record).features.feature["image"]
        codec.decode(feature, out[row])
    reader.close()


def reading_rate(codec: Codec, path: Path, cells: int, out: np.ndarray) -> float:
    """Cells a second, at best."""
    rng, best = np.random.default_rng(0), 0.0
    for _ in range(REPEATS):
        done, began = 0, time.process_time()
        while (seconds := time.process_time() - began) < SECONDS / REPEATS:
            read(codec, path, rng.permutation(cells), out)
            done += cells
        best = max(best, done / seconds)
    return best


def errors(images: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Root of the mean square, and 99.9th percentile, of the error over the camera's noise."""
    signal = np.maximum(images - np.float32(Optics().offset), 0)
    noise = np.sqrt(np.float32(SHOT_NOISE) * signal + np.float32(READ_NOISE**2))
    error = np.abs(found.astype(np.float32) - images) / noise
    return float(np.sqrt(np.mean(error**2))), float(np.percentile(error, 99.9))


def recommend(sizes: dict[str, float], rates: dict[str, float]) -> str:
    """The fastest to read of those that are about as small as the smallest that is fast enough."""
    fast = [name for name in sizes if rates[name] >= AS_FAST * max(rates.values())]
    small = [name for name in fast if sizes[name] <= AS_SMALL * min(sizes[one] for one in fast)]
    return max(small, key=lambda name: rates[name])


def measure(images: np.ndarray, folder: Path) -> None:
    """Prints the table."""
    print(f"{len(images):,} cells of {'×'.join(map(str, images.shape[1:]))} {images.dtype}")
    print(f"{'':28s} {'bytes':>8s} {'stored/s':>9s} {'read/s':>9s}   error / camera noise")
    sizes, rates = {}, {}
    for codec in CODECS:
        path, out = folder / "records", np.zeros_like(images)
        size, stored = write(codec, images, path)
        rate = reading_rate(codec, path, len(images), out)
        loss = "none"
        if not np.array_equal(out, images):
            loss = "rms {:.2f}, 99.9th percentile {:.2f}".format(*errors(images, out))
        elif codec.plain:
            sizes[codec.name], rates[codec.name] = size, rate
        print(f"{codec.name:28s} {size:8,.0f} {stored:9,.0f} {rate:9,.0f}   {loss}", flush=True)
    print(
        f"TFDS's own, read at {AS_FAST:.0%} of the fastest's rate or more, within "
        f"{AS_SMALL - 1:.0%} of the smallest of these: {recommend(sizes, rates)}"
    )


def main() -> None:
    """Prints the table, and what follows from it."""
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
        # All threads that are started from here on share one core.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        measure(images, Path(folder))


if __name__ == "__main__":
    main()
