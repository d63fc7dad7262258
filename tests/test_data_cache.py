"""The cache of the data: its bound, its checksums, what kills leave, and who has to go."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from paths import PYTHONPATH
from pictures import digest, picture, write_pictures
from until import until

from train_cloud.data.cache import Cache, Slots, admitted, layout, used_bytes
from train_cloud.data.frames import frames
from train_cloud.data.index import Index, build
from train_cloud.data.source import Source
from train_cloud.data.upload import upload

SLACK = 1_000_000
"""Bytes over the bound that the folder may take: blocks of the file system, lock files."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures", 60)


@pytest.fixture
def index(folder: Path) -> Index:
    return build(Source(str(folder)).list())


def bodies(folder: Path, index: Index) -> list[bytes]:
    return [(folder / index.key(sample)).read_bytes() for sample in range(index.count)]


def stored(slots: Slots, of: list[bytes]) -> int:
    """How many are there; each of them is what it should be."""
    found = [slots.get(sample) for sample in range(len(of))]
    assert all(body in (None, wanted) for body, wanted in zip(found, of, strict=True))
    return sum(body is not None for body in found)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_what_is_put_is_got_and_the_bound_holds(folder: Path, index: Index, tmp_path: Path, fraction: float) -> None:
    limit = index.nbytes + int(fraction * (index.total + 8 * index.count))
    cache = Cache(tmp_path / "cache", limit)
    slots, all_of_them = cache.open(index), bodies(folder, index)
    for sample, body in enumerate(all_of_them):
        slots.put(sample, body)
    assert abs(stored(slots, all_of_them) - fraction * index.count) <= 3
    data = [path for path in (tmp_path / "cache").rglob("*") if path.name in ("slots", "sums", "index")]
    assert sum(path.stat().st_size for path in data) <= limit
    assert used_bytes(tmp_path / "cache") <= limit + SLACK
    again = Cache(tmp_path / "cache", limit).open(index)
    assert stored(again, all_of_them) == slots.admitted


def test_another_bound_keeps_what_fits(folder: Path, index: Index, tmp_path: Path) -> None:
    counts = []
    for share in (1.0, 0.5, 0.75):
        cache = Cache(tmp_path / "cache", index.nbytes + int(share * (index.total + 8 * index.count)))
        slots = cache.open(index)
        counts.append((stored(slots, bodies(folder, index)), slots.admitted))
        for sample, body in enumerate(bodies(folder, index)):
            slots.put(sample, body)
        cache.close()
    assert counts[0] == (0, 60) and counts[1][0] == counts[1][1] < 40
    assert counts[2][0] == counts[1][1] < counts[2][1], "what the smaller bound had is still there"


def test_no_damaged_byte_is_got(folder: Path, index: Index, tmp_path: Path) -> None:
    slots = Cache(tmp_path / "cache", 10**7).open(index)
    for sample, body in enumerate(bodies(folder, index)):
        slots.put(sample, body)
    assert slots.path is not None
    with slots.path.open("r+b") as file:
        for offset in range(0, index.total, 50):
            file.seek(offset)
            file.write(b"\xaa")
    assert stored(slots, bodies(folder, index)) < 10
    with slots.path.open("r+b") as file:
        file.truncate(100)
    assert stored(slots, bodies(folder, index)) == 0


def test_a_shard_is_kept_whole_or_not_at_all(folder: Path, tmp_path: Path) -> None:
    from train_cloud.data.index import PACKED
    from train_cloud.data.pack import pack

    pack(str(folder), str(tmp_path / "packed"), shard_bytes=1500)
    index = Index((tmp_path / "packed" / PACKED).read_bytes())
    _, ends = layout(index)
    counts = {admitted(index, ends, limit) for limit in range(0, index.total + 8 * index.count + 97, 97)}
    sizes = [len(index.samples_of(shard)) for shard in range(len(index.shards))]
    assert len(counts) == len(sizes) + 1 and max(counts) == index.count


def test_the_least_recently_used_data_set_goes_unless_it_is_in_use(tmp_path: Path) -> None:
    indexes = []
    for number in range(3):
        write_pictures(tmp_path / f"data-{number}", 20)
        (tmp_path / f"data-{number}" / "own.png").write_bytes(picture(1000 + number))
        indexes.append(build(Source(str(tmp_path / f"data-{number}")).list()))
    whole = indexes[0].nbytes + indexes[0].total + 8 * indexes[0].count + 600
    root = tmp_path / "cache"

    def there() -> set[int]:
        return {number for number, index in enumerate(indexes) if (root / f"{index.identity}-1").is_dir()}

    for number in (0, 1):
        cache = Cache(root, 2 * whole)
        assert cache.open(indexes[number]).admitted == indexes[number].count
        cache.close()
        os.utime(root / f"{indexes[number].identity}-1", (number, number))
    cache = Cache(root, 2 * whole)
    cache.open(indexes[2])
    assert there() == {1, 2}
    os.utime(root / f"{indexes[2].identity}-1", (0, 0))
    other = Cache(root, 2 * whole)
    other.open(indexes[0])
    assert there() == {0, 2}, "2 is older, and in use"
    third = Cache(root, 2 * whole)
    assert third.open(indexes[1]).admitted == 0, "both are in use: there is no room"
    for one in (cache, other, third):
        one.close()


def test_a_full_disk_is_no_error(folder: Path, index: Index, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slots = Cache(tmp_path / "cache", 10**7).open(index)
    os.close(slots.descriptor)
    slots.descriptor = os.open("/dev/full", os.O_RDWR)
    assert slots.put(0, bodies(folder, index)[0]) is None
    assert "cannot be written: going on without" in caplog.text and slots.get(0) is None


def test_a_fixed_half_hits_half_of_the_time(folder: Path, s3_root: str, tmp_path: Path) -> None:
    upload(folder, s3_root)
    index = build(Source(s3_root).list())
    limit = index.nbytes + (index.total + 8 * index.count) // 2
    with frames(s3_root, 6, 1, decode=None, tensors=False, workers=0, cache=tmp_path / "c", cache_bytes=limit) as data:
        list(data.rest_of_epoch())
    with frames(s3_root, 6, 1, decode=None, tensors=False, workers=0, cache=tmp_path / "c", cache_bytes=limit) as data:
        for _ in range(3):
            list(data.rest_of_epoch())
        seen = data.statistics()
    assert seen.hits / seen.samples > 0.45 and seen.requests <= 0.55 * seen.samples


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_killed_at_any_instant_two_processes_read_nothing_wrong(
    folder: Path, s3_root: str, tmp_path: Path, share: float
) -> None:
    """``TRAIN_CLOUD_KILLS=100 TRAIN_CLOUD_WORKERS=4`` for more of it."""
    kills, workers = (int(os.environ.get(f"TRAIN_CLOUD_{name}", few)) for name, few in (("KILLS", 4), ("WORKERS", 1)))
    batches = max(200, 30 * kills)
    upload(folder, s3_root)
    index = build(Source(s3_root).list())
    limit = index.nbytes + int(share * (index.total + 8 * index.count))
    root, chance = tmp_path / "cache", random.Random(0)

    def start(name: str) -> subprocess.Popen[bytes]:
        script = Path(__file__).parent / "support" / "reading.py"
        arguments = [s3_root, str(root), str(limit), str(tmp_path / name), str(workers), str(batches)]
        return subprocess.Popen([sys.executable, script, *arguments], env={**os.environ, "PYTHONPATH": PYTHONPATH})

    def lines(name: str) -> list[str]:
        path = tmp_path / name
        return path.read_text().splitlines() if path.exists() else []

    processes = {name: start(name) for name in ("one", "two")}
    for number in range(kills):
        name = chance.choice(sorted(processes))
        before = len(lines(name))
        until(lambda: len(lines(name)) > before, f"{name} reads", seconds=120)  # noqa: B023
        time.sleep(chance.uniform(0, 0.2))
        processes[name].send_signal(signal.SIGKILL)
        processes[name].wait()
        assert used_bytes(root) <= limit + SLACK, number
        processes[name] = start(name)
    for process in processes.values():
        assert process.wait(timeout=600) == 0
    expected: dict[str, str] = {}
    with frames(str(folder), 4, 5, tensors=False, workers=0, cache_bytes=0) as plain:
        while len(expected) < batches:
            at = f"{plain.epoch} {plain.position}"
            expected[at] = f"{at} {digest(next(plain))}"
    for name in processes:
        seen = {line.rpartition(" ")[0]: line for line in lines(name)}
        assert set(expected.values()) == set(lines(name)), "every batch, and each time the right one"
        assert len(seen) == batches
    cache = Cache(root, limit)
    slots = cache.open(index)
    assert stored(slots, bodies(folder, index)) == slots.admitted
    assert np.count_nonzero(slots.present(np.arange(index.count))) == slots.admitted
    cache.close()
