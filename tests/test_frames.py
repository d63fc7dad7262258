"""``train_cloud.frames``: the same batches with any number of workers, after any interruption, from anywhere."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from fault_proxy import FaultProxy, refusal
from pictures import digests, key, picture, write_pictures
from until import until

from train_cloud import open_store
from train_cloud.config import load_run_file
from train_cloud.data.frames import Frames, frames
from train_cloud.data.index import build, difference, load
from train_cloud.data.order import epoch_order, members, scattered
from train_cloud.data.pack import pack
from train_cloud.data.source import Source
from train_cloud.data.upload import upload
from train_cloud.errors import BucketMissing, DataChanged, DataError, InputError, StoreError, StoreForbidden

COUNT = 50
BATCHES = 17
"""Of 8: two epochs of 7 and a part of a third."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures", COUNT)


@pytest.fixture
def bucket_url(folder: Path, s3_root: str) -> str:
    upload(folder, s3_root)
    return s3_root


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Frames]]:
    made: list[Frames] = []

    def frames_of(url: str | Path, **options: Any) -> Frames:
        defaults = {"batch_size": 8, "seed": 3, "workers": 0, "tensors": False, "cache": tmp_path / "cache"}
        found = frames(str(url), **{**defaults, **options})
        made.append(found)
        return found

    yield frames_of
    for one in made:
        one.close()


def shifted(image: Any, generator: np.random.Generator) -> Any:
    return np.roll(image, int(generator.integers(8)), axis=2)


def jittered(image: Any) -> Any:
    """As torchvision's transforms do: from the global generators."""
    return image + np.uint8(random.randrange(50)) + np.uint8(np.random.randint(50))


def test_batches_are_the_same_with_any_number_of_workers_from_anywhere(
    make: Callable[..., Frames], folder: Path, bucket_url: str, tmp_path: Path
) -> None:
    plain = make(folder, augment=shifted)
    expected = digests(plain, BATCHES)
    assert len(set(expected)) == BATCHES
    assert (plain.epoch, plain.position, plain.batches_per_epoch, plain.samples) == (2, 3, 7, COUNT)
    for url in (folder.as_uri(), bucket_url, bucket_url):  # the third time from the cache
        for workers in (0, 2):
            other = make(url, workers=workers, augment=shifted)
            assert digests(other, BATCHES) == expected, (url, workers)
            assert other.identity == plain.identity
            other.close()
    seen = make(bucket_url)
    digests(seen, BATCHES)
    assert seen.statistics().requests == 0


@pytest.mark.parametrize("at", [1, 6, 7, 8, 13])
def test_a_resume_at_any_step_goes_on_with_the_next_batch(make: Callable[..., Frames], folder: Path, at: int) -> None:
    expected = digests(make(folder, augment=jittered), BATCHES)
    first = make(folder, augment=jittered)
    assert digests(first, at) == expected[:at]
    state = first.state_dict()
    first.close()
    second = make(folder, augment=jittered)
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert digests(second, BATCHES - at) == expected[at:]
    second.load_state_dict(state)  # back, while it has read ahead
    assert digests(second, BATCHES - at) == expected[at:]


def test_augmentation_leaves_the_training_its_own_generators(make: Callable[..., Frames], folder: Path) -> None:
    random.seed(1)
    before = random.getstate()
    next(make(folder, augment=jittered))
    assert random.getstate() == before


def test_each_epoch_has_every_sample_once_and_another_order(make: Callable[..., Frames], folder: Path) -> None:
    data = make(folder, decode=None)
    epochs = []
    for _ in range(2):
        keys: list[str] = []
        for batch in data.rest_of_epoch():
            assert batch == [(folder / name).read_bytes() for name in data.keys]
            keys += data.keys
        epochs.append(keys)
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == [key(number) for number in range(COUNT)]


def test_ranks_share_each_global_batch(make: Callable[..., Frames], folder: Path) -> None:
    alone, halves = make(folder, decode=None, batch_size=8), []
    for rank in range(2):
        halves.append(make(folder, decode=None, batch_size=4, rank=rank, ranks=2))
    for _ in range(6):
        assert next(alone) == next(halves[0]) + next(halves[1])
    assert halves[0].batches_per_epoch == COUNT // 8


def test_a_split_is_decided_by_the_key_alone(make: Callable[..., Frames], folder: Path) -> None:
    parts: dict[str, set[str]] = {}
    for split in ("train", "validation"):
        data = make(folder, split=split, decode=None, shuffle=False)
        parts[split] = {name for _ in data.rest_of_epoch() for name in data.keys}
    assert not parts["train"] & parts["validation"]
    assert len(parts["train"] | parts["validation"]) == COUNT
    write_pictures(folder, COUNT + 30)
    data = make(folder, split="validation", decode=None)
    grown = {name for _ in data.rest_of_epoch() for name in data.keys}
    assert parts["validation"] <= grown and not grown & parts["train"]
    by_folder = make(folder, split=(0, 0.5), split_by="folder", decode=None)
    folders = {name.rpartition("/")[0]: 0 for _ in by_folder.rest_of_epoch() for name in by_folder.keys}
    assert by_folder.samples == 20 * len(folders)


def test_decoding_of_ones_own_has_the_key_and_may_return_several_things(
    make: Callable[..., Frames], folder: Path
) -> None:
    data = make(folder, workers=1, decode=lambda body, name: {"size": len(body), "label": name, "pair": (1.5, [1])})
    for _ in range(9):
        batch = next(data)
        assert batch["label"] == data.keys
        assert batch["size"].tolist() == [(folder / name).stat().st_size for name in data.keys]
        assert batch["pair"][0].dtype == np.float64 and batch["pair"][1] == [[1]] * len(data.keys)


def test_tensors_and_sizes(make: Callable[..., Frames], folder: Path) -> None:
    import torch

    batch = next(make(folder, tensors=True, size=(4, 5)))
    assert isinstance(batch, torch.Tensor) and batch.dtype == torch.uint8 and batch.shape == (8, 3, 4, 5)
    assert next(make(folder, decode="gray")).shape == (8, 1, 6, 8)


def test_packed_data_are_the_same_samples(make: Callable[..., Frames], bucket_url: str, s3_root: str) -> None:
    out = f"{s3_root}-packed"
    done = pack(bucket_url, out, shard_bytes=2000)
    assert done.samples == COUNT and done.shards > 3 and done.kept == 0
    assert pack(bucket_url, out, shard_bytes=2000).kept == done.shards
    plain, packed = make(bucket_url, decode=None), make(out, decode=None, shuffle_shards=2)
    in_order = {name: body for batch in plain.rest_of_epoch() for name, body in zip(plain.keys, batch, strict=True)}
    for workers, cache_bytes in ((0, 0), (0, "1 MB"), (2, "1 MB"), (1, 7000)):
        again = make(out, decode=None, augment=lambda x: x, workers=workers, cache_bytes=cache_bytes, shuffle_shards=2)
        seen: dict[str, bytes] = {}
        for batch in again.rest_of_epoch():
            seen.update(zip(again.keys, batch, strict=True))
        assert seen == in_order, (workers, cache_bytes)
        if workers == 0 and cache_bytes:
            assert again.statistics().requests == done.shards, "each shard once"
        again.close()
    digests(packed, 5)
    state = packed.state_dict()
    rest = digests(packed, BATCHES)
    again = make(out, decode=None, shuffle_shards=2)
    again.load_state_dict(state)
    assert digests(again, BATCHES) == rest


# --- what goes wrong


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size: 0: give a whole number of at least 1"),
        ({"cache_bytes": "20 parsec"}, "cache_bytes: '20 parsec': give bytes, for example 20 GB"),
        ({"cache_bytes": "900000 TB"}, "cache_bytes: '900000 TB': the disk of .* has room for"),
        ({"cache_bytes": 1, "max_cache_size": 1}, "max_cache_size: 1: give this or cache_bytes"),
        ({"split": "trian"}, "split: 'trian': give train or validation"),
        ({"split": (0.5, 0.5)}, "split: .*: give train or validation"),
        ({"on_bad": "ignore"}, "on_bad: 'ignore': give raise or skip"),
        ({"decode": "jpeg"}, "decode: 'jpeg': give rgb, gray, None, a function or module:function"),
        ({"decode": "os:nothing"}, "decode: 'os:nothing': it cannot be imported"),
        ({"decode": None, "size": 3}, "size: 3: only for decode"),
        ({"workers": -1}, "workers: -1: give a number of processes"),
        ({"rank": 2, "ranks": 2}, "rank: 2: give a number from 0 to 1"),
        ({"include": "*.jpg"}, "there are no objects that match '\\*.jpg' below it"),
        ({"batch_size": 51, "drop_last": True}, "batch_size: 51: give at most 50"),
        ({"split": (0, 1e-9)}, "split: .*: none of the 50 samples is in it"),
    ],
)
def test_bad_arguments_name_field_and_fix(
    make: Callable[..., Frames], folder: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        next(make(folder, **options))


def test_what_is_not_there_is_said(make: Callable[..., Frames], s3_root: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there are no objects below it: correct the URL"):
        next(make(s3_root))
    with pytest.raises(InputError, match="there is no such folder"):
        next(make(tmp_path / "absent"))
    with pytest.raises(BucketMissing, match="create it, or correct its name"):
        next(make("s3://no-such-bucket-here/frames"))
    with pytest.raises(InputError, match="the environment variable S3_BUCKET_NAME_X is not set"):
        make("s3://${S3_BUCKET_NAME_X}/frames")
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").glob("*-1"))


def test_the_bucket_may_come_from_the_environment(
    make: Callable[..., Frames], bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_BUCKET_NAME", bucket_url.split("/")[2])
    assert make("s3://${S3_BUCKET_NAME}/prefix").samples == COUNT


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_or_left_out_each_time(
    make: Callable[..., Frames], folder: Path, workers: int
) -> None:
    whole = (folder / key(7)).read_bytes()
    (folder / key(7)).write_bytes(whole[:-30])
    (folder / key(30)).write_bytes(b"")
    data = make(folder, workers=workers)
    with pytest.raises(DataError, match=r"frame_0(07|10).png: it is (a damaged|no) image.*on_bad='skip'"):
        list(data.rest_of_epoch())
    skipping = make(folder, workers=workers, on_bad="skip")
    expected, sizes = [], []
    for _ in range(BATCHES):
        batch = next(skipping)
        expected.append(batch.tobytes())
        sizes.append(len(batch))
    assert sum(sizes[:7]) == COUNT - 2 and set(skipping.skipped) == {key(7), key(30)}
    for at in range(7):
        again = make(folder, workers=workers and at % 3, on_bad="skip")
        for _ in range(at):
            next(again)
        other = make(folder, workers=0, on_bad="skip")
        other.load_state_dict(again.state_dict())
        assert [next(other).tobytes() for _ in range(9)] == expected[at : at + 9]
        again.close()
        other.close()


def test_what_is_no_image_at_all_is_not_left_out_silently(make: Callable[..., Frames], folder: Path) -> None:
    for number in range(COUNT):
        (folder / key(number)).write_text("text")
    with pytest.raises(DataError, match=r"none of the 8 objects of a batch can be decoded.*include"):
        next(make(folder, on_bad="skip"))


def test_sizes_that_differ_name_both(make: Callable[..., Frames], folder: Path) -> None:
    for number in range(0, COUNT, 2):
        (folder / key(number)).write_bytes(picture(number, 7, 8))
    with pytest.raises(InputError, match=r"\.png is 3x[67]x8, .*\.png is 3x[67]x8': give size=\(height, width\)"):
        list(make(folder).rest_of_epoch())
    assert next(make(folder, size=5)).shape == (8, 3, 5, 5)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_ones_own_code_is_not_a_damaged_image(
    make: Callable[..., Frames], folder: Path, workers: int
) -> None:
    def wrong(body: bytes) -> Any:
        return undefined(body)  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(NameError, match="undefined"):
        next(make(folder, decode=wrong, on_bad="skip", workers=workers))


def test_a_changed_object_is_refused_by_name(
    make: Callable[..., Frames], bucket_url: str, s3_root: str, folder: Path
) -> None:
    data = make(bucket_url, cache_bytes=0)
    next(data)
    store = open_store(s3_root)
    store.put(key(11), picture(1000))
    store.delete([key(12)])
    with pytest.raises(DataChanged, match=r"frame_01[12].png has changed since it was listed, or is gone"):
        for _ in range(14):
            next(data)


def test_at_a_resume_new_objects_are_left_out_and_changed_ones_named(
    make: Callable[..., Frames], bucket_url: str, s3_root: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make(bucket_url)
    digests(data, 3)
    state = data.state_dict()
    expected = digests(data, 9)
    store = open_store(s3_root)
    time.sleep(1.1)  # S3 tells times in seconds
    store.put("game/new.png", picture(999))
    another_machine = make(bucket_url, cache=tmp_path / "elsewhere")
    with caplog.at_level(logging.WARNING):
        another_machine.load_state_dict(state)
    assert "1 objects are new" in caplog.text and "game/new.png" in caplog.text
    assert digests(another_machine, 9) == expected
    store.put(key(11), picture(1000))
    with pytest.raises(DataChanged, match=r"2 objects were written since \(game/.*\), and 1 of then are"):
        make(bucket_url, cache=tmp_path / "third").load_state_dict(state)


def test_other_arguments_than_the_checkpoints_are_refused(make: Callable[..., Frames], folder: Path) -> None:
    state = make(folder).state_dict()
    with pytest.raises(InputError, match="batch_size: 9: it was 8 in the checkpoint"):
        make(folder, batch_size=9).load_state_dict(state)
    with pytest.raises(InputError, match="seed: 4: it was 3"):
        make(folder, seed=4).load_state_dict(state)


def test_without_s3_a_local_folder_is_read_only_where_it_is_named(
    make: Callable[..., Frames], folder: Path, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = digests(make(bucket_url), 5)
    state = make(bucket_url).state_dict()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(folder))
    with pytest.raises(StoreForbidden, match="there are no AWS credentials"):
        next(make(bucket_url))
    data = make(bucket_url, local=folder)
    assert digests(data, 5) == expected and data.url == str(folder)
    (folder / key(3)).unlink()
    with pytest.raises(DataChanged, match="is not what it was at the checkpoint"):
        make(bucket_url, local=folder, cache=folder.parent / "none").load_state_dict(state)


# --- a network that is one


@pytest.fixture
def network(bucket_url: str, aws_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    proxy = FaultProxy(aws_endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    yield proxy
    proxy.close()


FAULTS = {
    "cut in the middle": lambda exchange: exchange.answer(exchange.forward(), first=40),
    "reset": lambda exchange: exchange.reset(),
    "throttled": lambda exchange: exchange.answer(refusal(503, "SlowDown")),
    "expired": lambda exchange: exchange.answer(refusal(400, "ExpiredToken")),
    "damaged": lambda exchange: exchange.answer(
        (found := exchange.forward())._replace(body=bytes([found.body[0] ^ 1]) + found.body[1:])
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_network_does_is_waited_out_and_no_wrong_byte_arrives(
    make: Callable[..., Frames], folder: Path, bucket_url: str, network: FaultProxy, fault: str
) -> None:
    expected = digests(make(folder), 9)
    data = make(bucket_url, connections=4)
    assert data.samples == COUNT  # listed
    network.arm(r"get frame_.*", FAULTS[fault], times=5)
    assert digests(data, 9) == expected
    assert sum(kind.startswith("get frame_") for kind in network.seen) >= COUNT + 5


def test_a_store_that_never_comes_back_is_named(
    make: Callable[..., Frames], bucket_url: str, network: FaultProxy
) -> None:
    data = make(bucket_url, wait_s=1.0)
    assert data.samples == COUNT
    network.arm(r"get frame_.*", FAULTS["expired"], times=float("inf"))
    with pytest.raises(StoreError, match="renew the AWS credentials"):
        next(data)


def test_closing_ends_what_waits_for_a_store(make: Callable[..., Frames], bucket_url: str, network: FaultProxy) -> None:
    data = make(bucket_url)
    assert data.samples == COUNT
    network.arm(r"get frame_.*", FAULTS["expired"], times=float("inf"))
    seconds: list[float] = []

    def give_up(so_far: float) -> None:
        seconds.append(so_far)
        if so_far > 0.5:
            raise TimeoutError

    data.while_waiting = give_up
    with pytest.raises(TimeoutError):
        next(data)
    began = time.monotonic()
    data.close()
    assert seconds and time.monotonic() - began < 15
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("train-cloud data")]


def test_killed_workers_are_replaced_and_nothing_changes(make: Callable[..., Frames], folder: Path) -> None:
    expected = digests(make(folder, batch_size=2), 150)
    data = make(folder, batch_size=2, workers=2)
    found, killed = [], 0
    for number in range(150):
        found += digests(data, 1)
        if number % 30 == 10:
            until(lambda: len(data._running().pids()) == 2, "both workers run")
            os.kill(data._running().pids()[number % 2], signal.SIGKILL)
            killed += 1
    assert found == expected and killed == 5


# --- the parts


def test_an_index_is_the_same_whatever_the_order_and_says_what_differs(folder: Path, tmp_path: Path) -> None:
    records = list(Source(str(folder)).list())
    index = build(records)
    assert build(reversed(records)).identity == index.identity
    index.save(tmp_path / "index")
    loaded = load(tmp_path / "index")
    assert loaded is not None and loaded.identity == index.identity
    assert [(loaded.key(at), loaded.etag(at)) for at in range(COUNT)] == [
        (one.key, one.etag) for one in sorted(records)
    ]
    body = bytearray((tmp_path / "index").read_bytes())
    body[-3] ^= 1
    (tmp_path / "index").write_bytes(body)
    assert load(tmp_path / "index") is None
    others = [records[0]._replace(etag="x" * 32), *records[2:], records[1]._replace(key="new.png")]
    told = difference(index, build(others))
    assert told == (f"1 has changed ({records[0].key}), 1 is gone ({records[1].key}), 1 is new (new.png)")


def test_orders_are_functions_of_seed_and_epoch(folder: Path) -> None:
    index = build(Source(str(folder)).list())
    everything = members(index, (0.0, 1.0), "key")
    order = epoch_order(index, everything, 3, 5, shuffle=True, window=8)
    assert order.tolist() == np.random.default_rng([3, 5]).permutation(COUNT).tolist()
    assert sorted(scattered(1000).tolist()) == list(range(1000))
    assert scattered(1000)[:4].tolist() == scattered(1000).tolist()[:4]


def test_a_local_folder_is_hashed_once(
    make: Callable[..., Frames], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(folder).samples == COUNT
    again = make(folder)
    monkeypatch.setattr(Source, "list", lambda self: pytest.fail("it was listed again"))
    assert again.samples == COUNT
    monkeypatch.undo()
    write_pictures(folder, COUNT + 1)
    assert make(folder).samples == COUNT + 1


def test_an_upload_goes_on_where_it_broke_off(folder: Path, s3_root: str) -> None:
    calls: list[tuple[int, int]] = []
    first = upload(folder, s3_root, each=lambda done, of, size: calls.append((done, of)))
    assert first.sent == COUNT and calls[-1] == (COUNT, COUNT)
    (folder / key(1)).write_bytes(picture(77))
    (folder / ".hidden").write_text("x")
    second = upload(folder, s3_root)
    assert (second.sent, second.kept, second.files) == (1, COUNT - 1, COUNT)
    assert bytes(open_store(s3_root).get(key(1)).body) == picture(77)


def test_a_large_file_is_known_again_by_the_tag_of_its_parts(tmp_path: Path, s3_root: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "large").write_bytes(os.urandom(17 << 20))
    assert upload(tmp_path / "data", s3_root).sent == 1
    assert upload(tmp_path / "data", s3_root).kept == 1


def test_objects_whose_tags_are_no_md5_are_taken_as_they_are(
    make: Callable[..., Frames], folder: Path, bucket: str, tmp_path: Path
) -> None:
    client = boto3.client("s3")
    for number in range(COUNT):
        client.put_object(Bucket=bucket, Key=f"kms/{key(number)}", Body=picture(number), ServerSideEncryption="aws:kms")
    assert digests(make(f"s3://{bucket}/kms"), 9) == digests(make(folder), 9)


EXAMPLE = Path(__file__).parents[1] / "examples" / "vqvae" / "run.yaml"


def test_a_run_file_names_the_folders_that_its_worker_reads() -> None:
    assert load_run_file(EXAMPLE, ["data=[s3://bucket/frames]"]).data == ("s3://bucket/frames",)
    for value in ("frames", "https://bucket/frames", "s3://B/x"):
        with pytest.raises(InputError, match=r"data.0: .*: give s3://bucket/prefix"):
            load_run_file(EXAMPLE, [f"data=[{value}]"])
    pendulum = EXAMPLE.parents[1] / "pendulum_sac.yaml"
    with pytest.raises(InputError, match=r"data: .*: only a script of your own reads it"):
        load_run_file(pendulum, ["data=[s3://bucket/frames]"])
