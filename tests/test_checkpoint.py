"""Checkpoints: lossless, verified, whole at every instant."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

from train_cloud.checkpoint import Committer, Kept, compaction, find, read_manifest, restore
from train_cloud.checkpoint.format import Filled, contents_of, drop_successors, join, pack, unpack
from train_cloud.checkpoint.manifest import Manifest, Segment, Stream, encoded
from train_cloud.checkpoint.preserve import preserved
from train_cloud.config import Preservation
from train_cloud.envs.pickling import content_name
from train_cloud.errors import CorruptCheckpoint, Fenced, InputError, ObjectMissing, StoreUnavailable, TrainCloudError
from train_cloud.run import layout
from train_cloud.run.head import Lease, Reference, Token, read_head
from train_cloud.snapshot import Array, Part, Rows, Snapshot
from train_cloud.store import ObjectStore, open_store

CAPACITY = 50
SUCCESSORS = {"after": "before"}


@pytest.fixture
def store(store_root: str) -> ObjectStore:
    return open_store(layout.run_url(store_root, "a-run"))


@pytest.fixture
def folder(folder_root: str) -> ObjectStore:
    return open_store(layout.run_url(folder_root, "a-run"))


def columns(first: int, last: int) -> dict[str, Array]:
    """Rows of two environments, of which the first ends an episode at every seventh row."""
    number = np.arange(first, last)
    before = np.stack([number, -number], axis=1).astype(np.float32)[..., None] * np.ones(3, np.float32)
    after = np.stack([number + 1, -number - 1], axis=1).astype(np.float32)[..., None] * np.ones(3, np.float32)
    after[number % 7 == 0, 0] = np.nan
    return {"before": before, "after": after, "reward": (number / 3).astype(np.float32)[:, None] * np.ones((1, 2))}


def large(timesteps: int) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays that are stored by their content, and its names. One never changes, one is now this, now that."""
    arrays = {"prices": np.arange(1000.0), "season": np.full((8, 50), timesteps // 30 % 2, np.float32)}
    arrays["of another environment"] = arrays["prices"].reshape(10, 100)
    return arrays, {name: content_name(array.reshape(-1).view(np.uint8).data) for name, array in arrays.items()}


def snapshot(timesteps: int, first: int = 0) -> Snapshot:
    """At ``timesteps``, with the rows since ``first``; everything in it follows from the timesteps."""
    arrays, contents = large(timesteps)
    arrays |= {"weight": np.full((4, 5), timesteps, np.float32), "step": np.array(timesteps)}
    first = max(first, timesteps - CAPACITY)
    middle = (first + timesteps) // 2
    chunks = [(start, columns(start, stop)) for start, stop in ((first, middle), (middle, timesteps))]
    return Snapshot(
        timesteps,
        {
            "model": Part(arrays, b"state", contents),
            "lock": Part(blob=b"torch==2\n"),
        },
        {"replay": Rows(first, timesteps, CAPACITY, chunks, SUCCESSORS)},
        {"run_id": "a-run"},
    )


def check(store: ObjectStore, at: int | None = None) -> int:
    """Restore what the head names, and compare it with what it was made from."""
    read = read_head(store)
    assert read is not None and read[0].manifest is not None
    found = restore(store, find(store, read[0].manifest, at))
    timesteps = found.timesteps
    assert at is not None or timesteps == read[0].timesteps
    assert (found.parts["model"].arrays["weight"] == timesteps).all()
    assert found.parts["model"].arrays["step"] == timesteps
    arrays, contents = large(timesteps)
    assert found.parts["model"].contents == contents and set(found.parts) == {"model", "lock"}
    for name, array in arrays.items():
        assert np.array_equal(found.parts["model"].arrays[name], array), name
    assert found.parts["model"].blob == b"state" and found.parts["lock"].blob == b"torch==2\n"
    rows = found.streams["replay"]
    assert (rows.first, rows.last, rows.capacity) == (max(0, timesteps - CAPACITY), timesteps, CAPACITY)
    expected = columns(rows.first, rows.last)
    at_row = rows.first
    for first, chunk in rows.chunks:
        assert first == at_row
        at_row += len(chunk["reward"])
        for name, column in chunk.items():
            part = expected[name][first - rows.first : at_row - rows.first]
            assert column.tobytes() == np.ascontiguousarray(part).tobytes(), name
    assert at_row == timesteps
    return timesteps


def begin(store: ObjectStore, session: int = 1, **options: Any) -> Committer:
    lease = Lease.take(store, Token(session, 0), f"i-{session}")
    manifest = read_manifest(store, lease.head.manifest) if lease.head.manifest else None
    return Committer(store, lease, manifest, **options)


def commit(committer: Committer, timesteps: int, first: int, **facts: Any) -> None:
    made = snapshot(timesteps, first)
    committer.submit(replace(made, facts={**made.facts, **facts}))
    committer.wait()


def newest(store: ObjectStore) -> Manifest:
    read = read_head(store)
    assert read is not None and read[0].manifest is not None
    return read_manifest(store, read[0].manifest)


def named(store: ObjectStore) -> set[str]:
    """Every object that the head leads to."""
    read = read_head(store)
    assert read is not None and read[0].manifest is not None
    manifest = read_manifest(store, read[0].manifest)
    found = manifest.keys() | {read[0].manifest.key, layout.HEAD}
    for kept in manifest.kept:
        found |= read_manifest(store, kept.manifest).keys(rows=kept.rows) | {kept.manifest.key}
    return found


def stored(store: ObjectStore) -> set[str]:
    return {info.key for info in store.list("")}


@pytest.fixture
def merging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges begin at a few segments."""
    monkeypatch.setattr(compaction, "MANY", 3)
    monkeypatch.setattr(compaction, "FAN_IN", 4)


# ---------------------------------------------------------------------------------------------------------- the format

ARRAYS = hnp.arrays(
    dtype=st.sampled_from([np.float32, np.float64, np.float16, np.uint8, np.int64, np.bool_]),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@given(st.dictionaries(st.text(max_size=8), ARRAYS, max_size=4), st.binary(max_size=100))
@example({name: np.ones(2) for name in ("::blob", "__metadata__", "::", "::::blob", "")}, b"state")
def test_a_part_comes_back_to_the_byte(arrays: dict[str, Array], blob: bytes) -> None:
    found = unpack(pack(Part(arrays, blob)), "key")
    assert found.blob == blob and list(found.arrays) == list(arrays)
    for name, array in arrays.items():
        assert (found.arrays[name].dtype, found.arrays[name].shape) == (array.dtype, array.shape)
        assert found.arrays[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", ["U5", "S3", ">f4", "c16", "g", "M8[s]"])
def test_types_that_safetensors_has_not(dtype: str) -> None:
    arrays = {"odd": np.zeros((2, 3), dtype), "plain": np.arange(3.0), "bytes": np.ones(5, np.uint8)}
    found = unpack(pack(Part(arrays, b"state")), "key")
    assert found.arrays["odd"].dtype == arrays["odd"].dtype and found.arrays["odd"].shape == (2, 3)
    for name, array in arrays.items():
        assert found.arrays[name].tobytes() == array.tobytes()
    assert found.arrays["plain"].flags.aligned


def test_any_reader_of_safetensors_opens_a_part(tmp_path: Path) -> None:
    part = snapshot(10).parts["model"]
    own = {name: array for name, array in part.arrays.items() if name not in part.contents}
    there = {**own, "flags": np.array([True, False]), "half": np.ones(3, np.float16), "none": np.zeros((0, 2))}
    (tmp_path / "part").write_bytes(pack(Part({**part.arrays, **there}, part.blob, part.contents)))
    read = load_file(tmp_path / "part")
    assert read.pop("::blob").tobytes() == part.blob
    assert read.keys() == there.keys()
    for name, array in there.items():
        assert read[name].dtype == array.dtype and read[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("name", ["part-1.bin", "part-2.bin"])
def test_parts_of_earlier_versions_are_read(name: str) -> None:
    """As versions before 2026-11-28 wrote them: without contents, and with one."""
    prices = np.arange(4, dtype=np.int64)
    asked = []

    def content(of: str) -> memoryview:
        asked.append(of)
        return memoryview(prices.tobytes())

    body = memoryview((Path(__file__).parent / "old_checkpoint" / name).read_bytes())
    part = unpack(body, "key", content)
    assert part.blob == b"blob"
    assert part.arrays["weights"].tolist() == [[0, 1, 2], [3, 4, 5]] and part.arrays["weights"].dtype == np.float32
    assert part.arrays["flags"].tolist() == [True, False] and part.arrays["empty"].shape == (0, 3)
    if name == "part-2.bin":
        assert asked == ["abc123"] and contents_of(body, "key") == {"abc123"}
        assert part.contents == {"prices": "abc123"} and part.arrays["prices"].tolist() == prices.tolist()
        with pytest.raises(CorruptCheckpoint, match="names contents"):
            unpack(body, "key")


@pytest.mark.parametrize(
    "body", [b"", b"short", bytes(64), b"\xff" * 64, b"\x02" + bytes(7) + b"{}", b"\x04" + bytes(7) + b"null"]
)
def test_what_is_no_part_is_refused(body: bytes) -> None:
    with pytest.raises(CorruptCheckpoint, match="is not a train-cloud part"):
        unpack(memoryview(body), "key")


@given(st.integers(1, 6), st.integers(1, 3), st.data())
def test_successors_come_back_to_the_byte(rows: int, environments: int, data: st.DataObject) -> None:
    values = st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf")])
    shape = (rows, environments, 2)
    before = data.draw(hnp.arrays(np.float32, shape, elements=values))
    after = data.draw(hnp.arrays(np.float32, shape, elements=values))
    whole = {"before": before, "after": after}
    skip = data.draw(st.integers(0, rows - 1))
    found = Filled(drop_successors(whole, SUCCESSORS), SUCCESSORS, skip)
    assert {name: (a.shape, a.tobytes()) for name, a in found.items()} == {
        name: (a[skip:].shape, a[skip:].tobytes()) for name, a in whole.items()
    }
    start = data.draw(st.integers(0, rows - skip))
    piece = slice(start, data.draw(st.integers(start, rows - skip)))
    for name, array in whole.items():
        target = np.empty_like(array[skip:][piece])
        found.copy(name, piece, target)
        assert target.tobytes() == array[skip:][piece].tobytes()


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 3), st.data())
def test_joined_segments_are_what_one_would_have_been(
    lengths: list[int], environments: int, data: st.DataObject
) -> None:
    values = st.sampled_from([0.0, -0.0, 1.0, float("nan")])
    shape = (sum(lengths), environments, 2)
    whole = {name: data.draw(hnp.arrays(np.float32, shape, elements=values)) for name in ("before", "after")}
    whole["reward"] = data.draw(hnp.arrays(np.float16, shape[:2], elements=values))
    begins = np.cumsum([0, *lengths])
    pieces = [
        drop_successors({name: a[begin : begin + length] for name, a in whole.items()}, SUCCESSORS)
        for begin, length in zip(begins, lengths, strict=False)
    ]
    assert bytes(pack(Part(join(pieces, SUCCESSORS)))) == bytes(pack(Part(drop_successors(whole, SUCCESSORS))))


def test_segments_with_different_columns_are_not_joined() -> None:
    with pytest.raises(ValueError, match="reward"):
        join([{"reward": np.zeros(1)}, {}], {})


def test_successors_halve_a_segment() -> None:
    whole = columns(0, 1000)
    stored = drop_successors(whole, SUCCESSORS)
    assert sum(a.nbytes for a in stored.values()) < 0.7 * sum(a.nbytes for a in whole.values())


def test_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="'x'"):
        pack(Part({"x": np.array([object()])}))


# ------------------------------------------------------------------------------------------------- commit and restore


def test_checkpoints_build_on_each_other_and_old_ones_go(store: ObjectStore) -> None:
    committer = begin(store, policy=Preservation(last=3))
    for timesteps in range(10, 210, 10):
        commit(committer, timesteps, timesteps - 10)
        assert check(store) == timesteps
    for at in (180, 190):
        assert check(store, at) == at
    with pytest.raises(InputError, match="180, 190, 200"):
        check(store, 170)
    keys = [info.key for info in store.list("")]
    assert sum(key.endswith("manifest.json") for key in keys) == 3
    assert len([key for key in keys if key.startswith(layout.REPLAY)]) <= 2 * (CAPACITY // 10 + 3)


def test_a_manifest_is_encoded_as_pydantic_does_it_and_nothing_twice() -> None:
    def segment(number: int) -> Segment:
        return Segment(first=9 * number, last=9 * number + 9, key=f"s{number}", size=7, crc64nvme=2**63 + number)

    def manifest(first: int, last: int) -> Manifest:
        segments = tuple(map(segment, range(first, last)))
        kept = (Kept(timesteps=4, manifest=Reference(key="kept", size=1, crc64nvme=1, hmac="ab"), rows=last % 2 == 0),)
        facts = {"streams": {}, "kept": [], "facts": '"segments":[]', "none": float("nan"), "ü": [1, {"a": None}]}
        return Manifest(
            timesteps=9 * last, session=1, restart=0, created="now", kept=kept, facts=facts,
            parts={name: Reference(key=name, size=1, crc64nvme=3) for name in ("model", "streams", "kept")},
            streams={name: Stream(capacity=9, last=9 * last, successors={"b": "a"}, segments=segments)
                     for name in ("replay", "segments")},
        )  # fmt: skip

    known: dict[str, bytes] = {}
    for each in (manifest(0, 5), manifest(2, 6), manifest(2, 7)):
        before = dict(known)
        assert encoded(each, known) == each.model_dump_json().encode()
        assert all(known[key] is before[key] for key in known.keys() & before.keys())
    assert known.keys() == {"s2", "s3", "s4", "s5", "s6", "kept False"}
    assert '"first":18' in known["s2"].decode()


def test_an_unchanged_part_is_sent_once(store: ObjectStore) -> None:
    committer = begin(store)
    commit(committer, 10, 0)
    commit(committer, 20, 10)
    assert sum(info.key.endswith("/lock") for info in store.list("")) == 1
    assert sum(info.key.endswith("/model") for info in store.list("")) == 2


@pytest.mark.parametrize(("last", "zeros", "ones"), [(1, [10, 60], [30, 90]), (9, [10, 60], [30])])
def test_a_content_is_sent_once(store: ObjectStore, last: int, zeros: list[int], ones: list[int]) -> None:
    """The season is 0 before 30, 1 before 60, and 0 again: sent again where no checkpoint has it any more."""
    sent: dict[str, list[int]] = {}
    before: set[str] = set()
    committer = begin(store, policy=Preservation(last=last))
    for timesteps in range(10, 100, 10):
        commit(committer, timesteps, timesteps - 10)
        assert check(store) == timesteps
        there = {key for key in stored(store) if f"/{layout.CONTENT}" in key}
        assert there <= named(store)
        for key in there - before:
            sent.setdefault(key.rpartition("-")[2], []).append(timesteps)
        before = there
        if timesteps in (20, 50, 70):
            committer = begin(store, timesteps, policy=Preservation(last=last))
    assert sent == {"8000": [10], "1600": sorted(zeros + ones)}


def test_a_content_that_comes_back_after_it_was_deleted(store: ObjectStore) -> None:
    committer = begin(store, policy=Preservation(last=1))
    for timesteps in (10, 20, 30, 40, 50, 60, 70):
        commit(committer, timesteps, timesteps - 10)
        assert check(store) == timesteps
        seasons = [key for key in stored(store) if key.endswith("-1600")]
        assert len(seasons) == 1


def test_the_outcome_travels_in_the_same_swap(store: ObjectStore) -> None:
    committer = begin(store)
    committer.submit(snapshot(10), outcome="completed")
    committer.wait()
    read = read_head(store)
    assert read is not None and (read[0].outcome, read[0].timesteps, read[0].seq) == ("completed", 10, 1)


def test_the_next_session_goes_on_and_sweeps_orphans(store: ObjectStore) -> None:
    commit(begin(store, 1), 10, 0)
    orphan = layout.segment_key("replay", 10, 20, Token(1, 0), 9)
    newer = layout.segment_key("replay", 10, 20, Token(7, 0), 1)
    foreign = layout.CHECKPOINTS + "notes.txt"
    for key in (orphan, newer, foreign):
        store.put(key, b"x")
    commit(begin(store, 2), 20, 10)
    assert check(store) == 20
    keys = {info.key for info in store.list("")}
    assert orphan not in keys, "an older token's object that nothing names is garbage"
    assert {newer, foreign} <= keys, "a newer worker's and a stranger's objects are not ours to delete"


def test_a_stale_worker_cannot_commit(store: ObjectStore) -> None:
    old = begin(store, 1)
    commit(old, 10, 0)
    new = begin(store, 2)
    old.submit(snapshot(20, 10))
    with pytest.raises(Fenced):
        old.wait()
    with pytest.raises(Fenced):
        _ = old.busy
    commit(new, 30, 10)
    assert check(store) == 30


@pytest.mark.parametrize("what", ["manifest.json", "/model", "/lock", "/content/", "replay/"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_a_damaged_object_is_never_restored(store: ObjectStore, what: str, damage: str) -> None:
    commit(begin(store), 10, 0)
    before = read_head(store)
    key = next(info.key for info in store.list("") if what in info.key)
    body = bytearray(store.get(key).body)
    if damage == "flip":
        body[len(body) // 2] ^= 1
    elif damage == "truncate":
        body = body[:-1]
    elif damage == "empty":
        body = bytearray()
    if damage == "delete":
        store.delete([key])
    else:
        store.put(key, bytes(body))
    with pytest.raises(CorruptCheckpoint, match=key.rsplit("/", 1)[1]):
        check(store)
    assert read_head(store) == before


# ------------------------------------------------------------------------------------------------------ preservation


def entry(timesteps: int, episode_return: float | None = None, *, rows: bool = True) -> Kept:
    reference = Reference(key=str(timesteps), size=0, crc64nvme=0)
    return Kept(timesteps=timesteps, manifest=reference, rows=rows, episode_return=episode_return)


@pytest.mark.parametrize(
    ("policy", "returns", "staying"),
    [
        # of the checkpoints at 10, 20, … with these returns, those that stay beside the last; "-": without its rows
        ({}, [None] * 6, "50 40"),
        ({"last": 1}, [None] * 6, ""),
        ({"last": 9}, [None] * 4, "30 20 10"),
        ({"last": 1, "every": 20}, [None] * 7, "-60 -40 -20"),
        ({"last": 2, "every": 25}, [None] * 9, "80 -50 -30"),
        ({"last": 1, "every": 1000}, [None] * 6, ""),
        ({"last": 1, "best": True}, [None] * 3, ""),
        ({"last": 1, "best": True}, [3, 1, 5, 2], "-30"),
        ({"last": 1, "best": True}, [3, 1, 3, 2], "-10"),
        ({"last": 1, "best": True}, [3, 1, 5, 6], ""),
        ({"last": 1, "best": True}, [3, 1, 5, 5], "-30"),
        ({"last": 1, "best": True}, [3, None, None], "-10"),
        ({"last": 2, "best": True}, [3, 1, 2], "20 -10"),
        ({"last": 3, "best": True}, [3, 1, 2], "20 10"),
    ],
)
def test_the_policy(policy: dict[str, Any], returns: list[float | None], staying: str) -> None:
    kept: tuple[Kept, ...] = ()
    for number, value in enumerate(returns[:-1], start=1):
        kept = (entry(10 * number, value), *preserved(Preservation(**policy), value, kept))
    kept = preserved(Preservation(**policy), returns[-1], kept)
    assert " ".join(f"{'' if k.rows else '-'}{k.timesteps}" for k in kept) == staying


def test_rows_that_are_gone_do_not_come_back_with_a_larger_policy() -> None:
    kept = preserved(Preservation(last=9), None, [entry(30), entry(20, rows=False)])
    assert [k.rows for k in kept] == [True, False]


@pytest.mark.parametrize("at", [20, 40, 30])
def test_what_is_kept_for_long_is_kept_without_its_rows(store: ObjectStore, at: int) -> None:
    committer = begin(store, policy=Preservation(last=1, every=20, best=True))
    for timesteps in range(10, 210, 10):
        commit(committer, timesteps, timesteps - 10, episode_return=9.0 if timesteps == 30 else 1.0)
    read = read_head(store)
    assert read is not None and read[0].manifest is not None
    kept = {old.timesteps: old for old in newest(store).kept}
    assert kept.keys() == {20, 30, *range(40, 200, 20)} and not any(old.rows for old in kept.values())
    assert kept[30].episode_return == 9
    found = restore(store, find(store, read[0].manifest, at))
    assert found.timesteps == at and (found.parts["model"].arrays["weight"] == at).all()
    rows = found.streams["replay"]
    assert (rows.capacity, rows.last, list(rows.chunks)) == (CAPACITY, 0, [])
    assert stored(store) == named(store)


def test_500_checkpoints_stay_within_the_policys_bound(folder: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # thousands of files, and no power cut
    committer = begin(folder, policy=Preservation(last=3, every=500, best=True))
    sizes = []
    for timesteps in range(10, 5010, 10):
        commit(committer, timesteps, timesteps - 10, episode_return=float(timesteps % 770))
        if timesteps % 250 == 0:
            sizes.append([info.size for info in folder.list("")])
    assert {old.timesteps for old in newest(folder).kept if not old.rows} == {760, *range(500, 5000, 500)}
    assert [check(folder, at) for at in (5000, 4990, 4980)] == [5000, 4990, 4980]
    assert stored(folder) == named(folder)
    lean = 9 + 1
    segments = 2 * (CAPACITY // 10 + 3)
    assert max(map(len, sizes)) <= len(["head", "lock", "prices", "season 0", "season 1"]) + 2 * (3 + lean) + segments
    assert max(map(sum, sizes)) <= sum(sizes[0]) + lean * 5000, "no rows beyond those of the newest three"


def test_a_kept_checkpoint_that_cannot_be_read_is_named_no_longer_and_the_run_goes_on(folder: ObjectStore) -> None:
    commit(begin(folder, 1), 10, 0)
    (broken,) = (key for key in stored(folder) if key.endswith("manifest.json"))
    committer = begin(folder, 2)
    folder.put(broken, b"{}")
    for timesteps in (20, 30, 40):
        commit(committer, timesteps, timesteps - 10)
        assert check(folder) == timesteps
    assert broken not in stored(folder) and stored(folder) == named(folder)


# ------------------------------------------------------------------------------------------------------------- merging


def test_a_million_rows_saved_by_the_thousand_are_few_objects() -> None:
    """The sizes alone, as the committer would go on; every row is sent again at most twice."""
    live: list[Segment] = []
    sent = again = 0
    for number in range(3000):
        first = 1000 * number
        live = [s for s in live if s.last > first + 1000 - 1_000_000]
        live.append(Segment(key="k", size=110_000, crc64nvme=0, first=first, last=first + 1000))
        sent += 110_000
        assert len(live) <= compaction.MANY + 1
        chosen = compaction.due(live)
        if chosen:
            size = sum(s.size for s in chosen)
            assert 1 < len(chosen) <= compaction.FAN_IN and size <= compaction.MERGED_BYTES
            at = live.index(chosen[0])
            assert live[at : at + len(chosen)] == list(chosen)
            both = Segment(
                key="k",
                size=size,
                crc64nvme=0,
                first=chosen[0].first,
                last=chosen[-1].last,
                merged=chosen[0].merged + 1,
            )
            live[at : at + len(chosen)] = [both]
            again += size
    assert sum(s.last - s.first for s in live) <= 1_000_000 + compaction.MERGED_BYTES / 110
    assert again <= 2 * sent


@pytest.mark.parametrize(
    ("size", "amount"), [(compaction.MERGED_BYTES // 2, 0), (compaction.MERGED_BYTES // 2 - 1, 2), (1, 32)]
)
def test_large_segments_are_left_alone(size: int, amount: int) -> None:
    live = [Segment(key="k", size=size, crc64nvme=0, first=n, last=n + 1) for n in range(compaction.MANY + 1)]
    assert len(compaction.due(live)) == amount
    assert compaction.due(live[: compaction.MANY]) == ()


@pytest.mark.usefixtures("merging")
def test_merged_segments_hold_the_same_rows_and_what_they_replace_goes(store: ObjectStore) -> None:
    committer = begin(store)
    levels: set[int] = set()
    for timesteps in range(4, 300, 4):
        commit(committer, timesteps, timesteps - 4)
        assert check(store) == timesteps
        segments = newest(store).streams["replay"].segments
        levels |= {segment.merged for segment in segments}
        assert len(segments) <= 14, "of 26 without merging"
    assert [check(store, at) for at in (288, 292)] == [288, 292]
    assert {0, 1} <= levels and committer.merged_bytes > 0
    compaction.MANY = 1000  # put back by the fixture
    commit(begin(store, 2), 300, 296)
    assert stored(store) == named(store), "what a merge has left unnamed is swept by the next session"


@pytest.mark.usefixtures("merging")
def test_nothing_is_merged_while_somebody_waits(folder: ObjectStore) -> None:
    waiting = True
    committer = begin(folder, urgent=lambda: waiting)
    for timesteps in range(4, 40, 4):
        commit(committer, timesteps, timesteps - 4)
    assert committer.merged_bytes == 0
    waiting = False
    committer.submit(snapshot(40, 36), outcome="completed")
    committer.wait()
    assert committer.merged_bytes == 0, "nobody commits after the end"


@pytest.mark.usefixtures("merging")
@pytest.mark.parametrize("error", ["outage", "corruption"])
def test_a_merge_that_fails_costs_nothing(folder: ObjectStore, error: str, caplog: pytest.LogCaptureFixture) -> None:
    class Partial:
        """Segments cannot be read."""

        url, away = folder.url, True

        def __getattr__(self, verb: str) -> Callable[..., object]:
            def get(key: str) -> object:
                if self.away and key.startswith(layout.REPLAY):
                    if error == "outage":
                        raise StoreUnavailable("503")
                    return replace(folder.get(key), body=b"other bytes")
                return folder.get(key)

            return get if verb == "get" else getattr(folder, verb)

    flaky = Partial()
    committer = begin(flaky)  # type: ignore[arg-type]
    for timesteps in range(4, 40, 4):
        commit(committer, timesteps, timesteps - 4)
    assert committer.merged_bytes == 0 and check(folder) == 36
    assert "503" in caplog.text if error == "outage" else "cannot be restored" in caplog.text
    flaky.away = False
    for timesteps in range(40, 80, 4):
        commit(committer, timesteps, timesteps - 4)
    assert committer.merged_bytes > 0 and check(folder) == 76


# ------------------------------------------------------------------------------------------------- death and outages


class Died(BaseException):
    """The process is gone at this instant."""


class Interposed:
    """A store that does something of its own at each verb. ``at`` counts the verbs that write."""

    def __init__(self, store: ObjectStore, act: Callable[[int, str, Callable[[], object]], object]) -> None:
        self.url, self._store, self._act, self.count = store.url, store, act, 0
        self._lock = threading.Lock()

    def __getattr__(self, verb: str) -> Callable[..., object]:
        real = getattr(self._store, verb)
        if verb not in ("put", "create", "swap", "delete"):
            return real  # type: ignore[no-any-return]

        def interpose(*arguments: object) -> object:
            with self._lock:
                self.count += 1
                return self._act(self.count, verb, lambda: real(*arguments))

        return interpose


def work(store: ObjectStore, session: int, until: int) -> Iterator[int]:
    """What a session does: go on from the head, commit every ten, with three kept."""
    committer = begin(store, session, policy=Preservation(last=2))
    read = read_head(store)
    assert read is not None
    for timesteps in range(read[0].timesteps + 10, until + 1, 10):
        commit(committer, timesteps, timesteps - 10)
        yield timesteps


@pytest.mark.parametrize("many", [1, 1000])
@pytest.mark.parametrize("when", ["before", "after"])
def test_death_at_every_write_leaves_a_whole_checkpoint(
    folder: ObjectStore, when: str, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies before or after each single write of a session in turn; the next session always goes on from a whole one."""
    monkeypatch.setattr(compaction, "FAN_IN", 2)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    session, deaths = 0, 0
    for fatal in range(1, 26):
        monkeypatch.setattr(compaction, "MANY", many)
        for info in list(folder.list("")):
            folder.delete([info.key])
        session = 1

        def act(count: int, verb: str, write: Callable[[], object], fatal: int = fatal) -> object:
            if count > fatal or (count == fatal and when == "before"):
                raise Died
            result = write()
            if count == fatal:
                raise Died
            return result

        done = [0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "unraisablehook", lambda hook: None)  # the dying thread has nobody to tell
            try:
                done.extend(work(Interposed(folder, act), session, 40))  # type: ignore[arg-type]
            except Died:
                deaths += 1
        read = read_head(folder)
        reached = read[0].timesteps if read else 0
        assert reached in (done[-1], done[-1] + 10), "the commit in flight is there whole, or the one before it"
        if reached:
            assert check(folder) == reached
        assert list(work(folder, session + 1, 50))[-1] == 50 and check(folder) == 50
        monkeypatch.setattr(compaction, "MANY", 1000)
        commit(begin(folder, session + 2), 60, 50)
        assert stored(folder) == named(folder), "nothing is lost and nothing is left over"
    assert deaths > 20


@pytest.mark.parametrize("happens", [True, False])
def test_an_outage_delays_a_commit_and_nothing_else(folder: ObjectStore, happens: bool) -> None:
    def act(count: int, verb: str, write: Callable[[], object]) -> object:
        if count in (2, 5, 8) and verb != "delete":
            if happens:
                write()
            raise StoreUnavailable("503 Slow Down")
        return write()

    for timesteps in work(Interposed(folder, act), 1, 30):  # type: ignore[arg-type]
        assert check(folder) == timesteps


def test_a_commit_that_is_tried_again_writes_the_same_bytes(folder: ObjectStore) -> None:
    """The swap may have happened before its reply was lost: other bytes now would spoil what the head names."""
    lost: list[str] = []

    class Deaf:
        url = folder.url

        def __getattr__(self, verb: str) -> Callable[..., object]:
            def put(key: str, body: bytes) -> object:
                assert key not in stored(folder) or bytes(folder.get(key).body) == bytes(body), key
                return folder.put(key, body)

            def swap(key: str, body: bytes, etag: str) -> object:
                result = folder.swap(key, body, etag)
                if not lost and b'"timesteps": 20' in body:
                    lost.append(key)
                    raise StoreUnavailable("reset")
                return result

            def get(key: str) -> object:
                if lost == [layout.HEAD]:
                    lost.append(key)
                    raise StoreUnavailable("still away")
                return folder.get(key)

            verbs: dict[str, Callable[..., object]] = {"put": put, "swap": swap, "get": get}
            return verbs.get(verb) or getattr(folder, verb)

    holds = [(), (10,), ()]  # what was waited for at the second commit's first try is over at its next one
    committer = begin(Deaf(), policy=Preservation(last=1), hold=lambda: holds.pop())  # type: ignore[arg-type]
    commit(committer, 10, 0)
    commit(committer, 20, 10)
    assert lost == [layout.HEAD, layout.HEAD] and check(folder) == 20
    assert [kept.timesteps for kept in newest(folder).kept] == [10]


def test_at_a_deadline_an_unreachable_store_is_an_error_and_the_former_head_stands(folder: ObjectStore) -> None:
    commit(begin(folder), 10, 0)
    away = threading.Event()

    def act(count: int, verb: str, write: Callable[[], object]) -> object:
        if away.is_set():
            raise StoreUnavailable("no route")
        return write()

    committer = begin(Interposed(folder, act), 2)  # type: ignore[arg-type]
    away.set()
    committer.submit(snapshot(20, 10))
    with pytest.raises(StoreUnavailable):
        committer.wait(time.monotonic() + 0.5)
    assert check(folder) == 10


def assert_(held: bool) -> None:
    assert held


def test_one_commit_at_a_time(folder: ObjectStore) -> None:
    gate = threading.Event()
    committer = begin(folder, before_head=lambda: assert_(gate.wait(10)))
    committer.submit(snapshot(10))
    assert committer.busy
    with pytest.raises(AssertionError):
        committer.submit(snapshot(20, 10))
    gate.set()
    committer.wait()
    still: bool = committer.busy
    assert not still
    assert check(folder) == 10


def test_errors_are_in_the_tree() -> None:
    for error in (CorruptCheckpoint, Fenced, ObjectMissing, StoreUnavailable):
        assert issubclass(error, TrainCloudError)
