"""Frames from S3 on loopback: ``python -m benchmarks.frames [--frames N] [--latency MS] [--rate MB/S] [--rounds N]``.

Prints the table of docs/data.md. What is compared is measured in turns, so that what else the machine does meets both
alike; each figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.objects import Objects
from train_cloud.data.cache import used_bytes
from train_cloud.data.frames import Frames, frames
from train_cloud.data.pack import pack

_BATCH = 64
_CONNECTIONS = 32
_SHARD_BYTES = 2_000_000
"""With few frames as many shards as a large data set has of 16 MB."""
_URL, _PACKED = "s3://bucket/frames", "s3://bucket/packed"


class Figure(NamedTuple):
    """Of one way to read the frames, once each."""

    per_s: float
    """frames a second"""
    cpu_ms: float
    """processor time of this process, a frame"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=4000)
    parser.add_argument("--latency", type=float, default=0.0, help="ms from a request to its answer")
    parser.add_argument("--rate", type=float, default=0.0, help="MB/s of the line; 0: as fast as it goes")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="train-cloud-frames-") as folder:
        data = Path(folder, "data")
        _write(data / "frames", options.frames)
        pack(str(data / "frames"), str(data / "packed"), shard_bytes=_SHARD_BYTES)
        os.environ.update(AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x", AWS_EC2_METADATA_DISABLED="true")
        with Objects(data, latency=options.latency / 1e3, rate=options.rate * 1e6) as server:
            os.environ["AWS_ENDPOINT_URL_S3"] = os.environ["AWS_ENDPOINT_URL"] = server.url
            _Benchmark(data, Path(folder, "cache"), options.frames, options.rounds).run(options.latency, options.rate)


class _Benchmark:
    def __init__(self, data: Path, cache: Path, count: int, rounds: int) -> None:
        self._data, self._cache, self._count, self._rounds = data, cache, count, rounds
        self._keys = sorted(path.relative_to(data).as_posix() for path in (data / "frames").rglob("*.png"))
        random.Random(0).shuffle(self._keys)

    def run(self, latency: float, rate: float) -> None:
        load = os.getloadavg()[0]
        print(
            f"{self._count} frames, {latency:g} ms, load {load:.1f} on {os.cpu_count()} cores; frames/s, CPU ms a frame"
        )
        ways: dict[str, Callable[[], Figure]] = {
            "frames, epoch 1": lambda: self._epoch_1(_URL),
            "obstore alone, 32 threads": self._obstore,
            "frames, packed, epoch 1": lambda: self._epoch_1(_PACKED),
            "obstore alone, whole shards": self._shards,
            "frames, epoch 2, decoded": self._cached,
            "decoding alone": self._decoding,
            "boto3, 32 threads": lambda: self._boto(32),
        }
        if not latency:
            ways["boto3, serial"] = lambda: self._boto(1)
        for module, name, way in (
            ("s3torchconnector", "s3torchconnector, 32 threads", self._connector),
            ("webdataset", "webdataset, tar shards", self._webdataset),
            ("streaming", "mosaicml-streaming, local shards", self._streaming),
        ):
            try:
                import_module(module)
                ways[name] = way
            except ImportError as error:
                print(f"- {name}: left out: {error}")
        found: dict[str, list[Figure]] = {name: [] for name in ways}
        for _ in range(self._rounds):
            for name, way in ways.items():
                found[name].append(way())
        middle = {
            name: Figure(*(statistics.median(values) for values in zip(*figures, strict=True)))
            for name, figures in found.items()
        }
        for name, figure in middle.items():
            print(f"| {name} | {figure.per_s:,.0f} | {figure.cpu_ms:.3f} |")

        def ratio(one: str, other: str) -> float:
            """Of rounds, each of which met the same machine."""
            pairs = zip(found[one], found[other], strict=True)
            return statistics.median(mine.per_s / theirs.per_s for mine, theirs in pairs)

        print(f"epoch 1 / obstore alone: {ratio('frames, epoch 1', 'obstore alone, 32 threads'):.2f}")
        print(f"packed / whole shards: {ratio('frames, packed, epoch 1', 'obstore alone, whole shards'):.2f}")
        print(f"epoch 2 / decoding alone: {ratio('frames, epoch 2, decoded', 'decoding alone'):.2f}")
        cpu = [
            mine.cpu_ms / theirs.cpu_ms
            for mine, theirs in zip(found["frames, epoch 1"], found["boto3, 32 threads"], strict=True)
        ]
        print(f"CPU a frame / boto3's: 1/{1 / statistics.median(cpu):.1f}")
        for fraction in (0.25, 0.5, 0.75):
            rate, used, bound = self._hit_rate(fraction)
            disk = f"{used / 1e6:.2f} MB on the disk, bound {bound / 1e6:.2f}"
            print(f"hit rate with {fraction:.0%} cached: {rate:.3f}; {disk}")

    def _frames(self, url: str, **options: Any) -> Frames:
        defaults = {"decode": None, "tensors": False, "workers": 0, "cache": self._cache}
        return frames(url, _BATCH, 1, connections=_CONNECTIONS, **{**defaults, **options})

    def _epoch_1(self, url: str) -> Figure:
        shutil.rmtree(self._cache, ignore_errors=True)
        with self._frames(url) as data:
            data.samples  # noqa: B018 - listed before the clock starts, as for the others
            return self._timed(lambda: sum(len(batch) for batch in data.rest_of_epoch()))

    def _cached(self) -> Figure:
        with self._frames(_URL) as data:
            list(data.rest_of_epoch())
        with self._frames(_URL, decode="rgb") as data:
            figure = self._timed(lambda: sum(len(batch) for batch in data.rest_of_epoch()))
            assert data.statistics().requests == 0
        return figure

    def _decoding(self) -> Figure:
        bodies = [(self._data / key).read_bytes() for key in self._keys]

        def decode() -> int:
            for body in bodies:
                with Image.open(io.BytesIO(body)) as image:
                    np.asarray(image.convert("RGB"))
            return len(bodies)

        return self._timed(decode)

    def _obstore(self) -> Figure:
        store = _obstore()
        return self._timed(lambda: self._threads(lambda key: len(store.get(key).bytes()), self._keys, 32))

    def _shards(self) -> Figure:
        store = _obstore()
        names = [f"packed/{path.name}" for path in (self._data / "packed").glob("shard-*")]
        return self._timed(lambda: self._threads(lambda key: len(store.get(key).bytes()), names, 4) and self._count)

    def _boto(self, threads: int) -> Figure:
        import boto3
        from botocore.config import Config

        client = boto3.client(
            "s3", region_name="us-east-1", config=Config(max_pool_connections=threads, s3={"addressing_style": "path"})
        )
        keys = self._keys if threads > 1 else self._keys[: len(self._keys) // 8]

        def get(key: str) -> int:
            return len(client.get_object(Bucket="bucket", Key=key)["Body"].read())

        return self._timed(lambda: self._threads(get, keys, threads))

    def _connector(self) -> Figure:
        from s3torchconnector import S3MapDataset

        data = S3MapDataset.from_prefix(
            "s3://bucket/frames/", region="us-east-1", endpoint=os.environ["AWS_ENDPOINT_URL_S3"]
        )
        count = len(data)
        order = list(range(count))
        random.Random(0).shuffle(order)
        return self._timed(lambda: self._threads(lambda at: len(data[at].read()), order, 32))

    def _webdataset(self) -> Figure:
        import webdataset

        shards = self._data.parent / "tar"
        if not shards.exists():
            shards.mkdir()
            with webdataset.ShardWriter(str(shards / "%06d.tar"), maxsize=4e6, verbose=0) as writer:
                for number, key in enumerate(self._keys):
                    writer.write({"__key__": f"{number:08d}", "png": (self._data / key).read_bytes()})
        urls = sorted(str(path) for path in shards.glob("*.tar"))
        data = webdataset.WebDataset(urls, shardshuffle=False).shuffle(1000)
        return self._timed(lambda: sum(1 for _ in data))

    def _streaming(self) -> Figure:
        from streaming import MDSWriter, StreamingDataset

        shards = self._data.parent / "mds"
        if not shards.exists():
            with MDSWriter(out=str(shards), columns={"png": "bytes"}, size_limit="4mb") as writer:
                for key in self._keys:
                    writer.write({"png": (self._data / key).read_bytes()})
        data = StreamingDataset(local=str(shards), shuffle=True, batch_size=_BATCH)
        return self._timed(lambda: sum(1 for _ in data))

    def _hit_rate(self, fraction: float) -> tuple[float, int, int]:
        shutil.rmtree(self._cache, ignore_errors=True)
        with self._frames(_URL) as data:
            index = data._opened()
            bound = index.nbytes + 8 * index.count + int(fraction * index.total)
        shutil.rmtree(self._cache, ignore_errors=True)
        with self._frames(_URL, cache_bytes=bound) as data:
            list(data.rest_of_epoch())
        with self._frames(_URL, cache_bytes=bound) as data:
            for _ in range(data.batches_per_epoch):
                next(data)
            seen = data.statistics()
        return seen.hits / seen.samples, used_bytes(self._cache), bound

    def _threads(self, get: Callable[[Any], int], keys: list[Any], threads: int) -> int:
        with ThreadPoolExecutor(threads) as pool:
            assert all(size > 0 for size in pool.map(get, keys))
        return len(keys)

    def _timed(self, act: Callable[[], int]) -> Figure:
        began, cpu = time.perf_counter(), time.process_time()
        count = act()
        seconds, spent = time.perf_counter() - began, time.process_time() - cpu
        return Figure(count / seconds, 1e3 * spent / count)


def _obstore() -> Any:
    from obstore.store import S3Store

    return S3Store(
        "bucket",
        aws_endpoint_url_s3=os.environ["AWS_ENDPOINT_URL_S3"],
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
        region="us-east-1",
    )


def _write(folder: Path, count: int) -> None:
    """PNGs of about 9 KB, as a game's frames of 84x84 have."""
    for number, body in enumerate(_pictures(count)):
        path = folder / f"game/episode_{number // 100:04d}/frame_{number % 100:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)


def _pictures(count: int) -> Iterator[bytes]:
    generator = np.random.default_rng(0)
    for _ in range(count):
        pixels = generator.integers(0, 256, (84, 84, 3), dtype=np.uint8) & 0x8F
        pixels[::2] = 90
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png", compress_level=1)
        yield file.getvalue()


if __name__ == "__main__":
    main()
