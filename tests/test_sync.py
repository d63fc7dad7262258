"""A folder of results and what lies in the store for it: changed under the sync, killed, resumed, refused."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from train_cloud.artifacts.sync import Sync
from train_cloud.artifacts.uploads import MANIFEST, Uploads, read_uploads
from train_cloud.cli import main
from train_cloud.errors import CorruptCheckpoint, Fenced, StoreForbidden, StoreUnavailable
from train_cloud.store import ObjectStore, open_store

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.fixture
def store(store_root: str) -> ObjectStore:
    return open_store(f"{store_root}/there")


def write(folder: Path, **files: bytes | str) -> None:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def objects(store: ObjectStore) -> dict[str, bytes]:
    return {info.key: bytes(store.get(info.key).body) for info in store.list() if info.key != MANIFEST}


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / MANIFEST
    }


def check_manifest(store: ObjectStore, *, pending: bool = False) -> Uploads:
    """The manifest names what the listing names, each once, with its length and digest.

    :param pending: an upload may be under way: then an object may also be as it was announced, or not yet there
    """
    read = read_uploads(store)
    assert read is not None
    manifest, found = read[0], objects(store)
    names = [upload.local_path for upload in manifest.uploaded_files]
    assert names == sorted(set(names))
    assert manifest.total_files == len(names)
    assert manifest.total_size_bytes == sum(upload.size_bytes for upload in manifest.uploaded_files)
    announced = {upload.local_path: upload for upload in manifest.pending}
    if not pending:
        assert not announced
        assert set(names) == set(found)
    assert set(names) <= set(found) <= set(names) | set(announced)
    for name, body in found.items():
        versions = {
            (upload.size_bytes, upload.sha256)
            for upload in (manifest.by_path().get(name), announced.get(name))
            if upload is not None
        }
        assert (len(body), hashlib.sha256(body).hexdigest()) in versions, name
    return manifest


class Counting:  # a FileStore; what it does not have itself is its store's
    """Counts what travels into a store, and fails where it is told to."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.url = store.url
        self.puts: list[tuple[str, int]] = []
        self.before_put: Callable[[str], None] = lambda key: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def put(self, key: str, body: bytes | bytearray | memoryview) -> str:
        self.before_put(key)
        self.puts.append((key, len(body)))
        return self.store.put(key, body)

    def _chunks(self, key: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.puts.append((key, len(chunk)))
            yield chunk

    def stream(self, key: str, chunks: Iterator[bytes]) -> str:
        return self.store.stream(key, self._chunks(key, chunks))  # type: ignore[attr-defined, no-any-return]

    def extend(self, key: str, tail: Iterator[bytes], etag: str) -> str:
        return self.store.extend(key, self._chunks(key, tail), etag)  # type: ignore[attr-defined, no-any-return]

    def tail(self, key: str, start: int) -> bytes:
        return self.store.tail(key, start)  # type: ignore[attr-defined, no-any-return]

    def taken(self) -> dict[str, int]:
        taken: dict[str, int] = {}
        for key, size in self.puts:
            taken[key] = taken.get(key, 0) + size
        self.puts.clear()
        return taken


# ------------------------------------------------------------------------------------------------- what lies there then


def test_a_folder_arrives(store: ObjectStore, folder: Path) -> None:
    write(folder, a="1", videos__hard__x="2" * 100, empty="", **{"a name": "3", "ümlaut": "4", ".hidden": "5"})
    write(folder, **{"part.unfinished": "no"})
    (folder / "dangling").symlink_to("/nonexistent")
    sync = Sync(store, folder, name="first")
    assert sync.everything()
    expected = files(folder)
    del expected["part.unfinished"]
    assert objects(store) == expected
    manifest = check_manifest(store)
    assert manifest.experiment_name == "first"
    assert json.loads((folder / MANIFEST).read_text()) == json.loads(bytes(store.get(MANIFEST).body))


def test_the_manifests_schema(s3_root: str, folder: Path) -> None:
    """What users of the predecessor parse, by name."""
    write(folder, sub__a="1")
    store = open_store(f"{s3_root}/there")
    Sync(store, folder, name="first").everything()
    manifest = json.loads(bytes(store.get(MANIFEST).body))
    bucket = s3_root.split("/")[2]
    upload = manifest["uploaded_files"][0]
    stamps = [manifest.pop("created_at"), manifest.pop("updated_at"), upload.pop("timestamp")]
    assert all(stamp.endswith("+00:00") for stamp in stamps)
    manifest.pop("version")
    assert manifest == {
        "experiment_name": "first",
        "bucket": bucket,
        "base_prefix": "prefix/there/",
        "dry_run": False,
        "uploaded_files": [
            {
                "local_path": "sub/a",
                "s3_key": "prefix/there/sub/a",
                "size_bytes": 1,
                "sha256": hashlib.sha256(b"1").hexdigest(),
            }
        ],
        "total_files": 1,
        "total_size_bytes": 1,
        "pending": [],
        "writer": [0, 0],
    }


def test_only_what_changed_travels(store: ObjectStore, folder: Path) -> None:
    counting = Counting(store)
    sync = Sync(counting, folder, name="first")
    write(folder, a="1", b="2", c="3")
    sync.everything()
    assert counting.taken() == {"a": 1, "b": 1, "c": 1}
    sync.everything()
    assert counting.taken() == {}
    write(folder, a="x", b="2", new="4")  # b is written again and the same
    os.utime(folder / "c", (0, 0))
    created = check_manifest(store).created_at
    sync.everything()
    assert counting.taken() == {"a": 1, "new": 1}
    assert check_manifest(store).created_at == created
    # Another process knows by the digests.
    Sync(counting, folder, name="first").everything()
    assert counting.taken() == {}


def test_a_change_within_the_clocks_tick_is_seen(store: ObjectStore, folder: Path) -> None:
    write(folder, a="1")
    times = (folder / "a").stat()
    sync = Sync(store, folder, name="first")
    sync.everything()
    write(folder, a="2")
    os.utime(folder / "a", ns=(times.st_atime_ns, times.st_mtime_ns))
    sync.everything()
    assert objects(store) == {"a": b"2"}


def test_a_large_file_that_grows_is_not_sent_again(store: ObjectStore, folder: Path) -> None:
    counting = Counting(store)
    sync = Sync(counting, folder, name="first")
    body = random.Random(1).randbytes(18 * MIB)
    write(folder, log=body, small="1")
    sync.everything()
    assert counting.taken() == {"log": 18 * MIB, "small": 1}
    for _ in range(3):
        with (folder / "log").open("ab") as file:
            file.write(b"some lines\n" * 100)
        sync.everything()
        assert counting.taken() == {"log": 1100}
        assert objects(store) == files(folder)
    with (folder / "log").open("r+b") as file:  # it grows, and is not the same any more
        file.write(b"!")
        file.seek(0, 2)
        file.write(b"more")
    sync.everything()
    assert counting.taken()["log"] == 18 * MIB + 3300 + 4
    assert objects(store) == files(folder)
    os.truncate(folder / "log", 9 * MIB)
    sync.everything()
    with (folder / "log").open("ab") as file:
        file.write(b"y" * 10)
    counting.taken()
    sync.everything()
    assert counting.taken() == {"log": 10}
    assert objects(store) == files(folder)
    check_manifest(store)


def test_somebody_else_wrote_the_object_that_grows(store: ObjectStore, folder: Path) -> None:
    sync = Sync(store, folder, name="first")
    write(folder, log=b"a" * 9 * MIB)
    sync.everything()
    store.put("log", b"b" * 9 * MIB)
    write(folder, log=b"a" * 9 * MIB + b"tail")
    sync.everything()
    assert objects(store) == files(folder)
    check_manifest(store)


def test_what_goes_here_stays_there_until_it_is_forgotten(store: ObjectStore, folder: Path) -> None:
    sync = Sync(store, folder, name="first")
    write(folder, a="1", b="2")
    sync.everything()
    shutil.rmtree(folder)
    folder.mkdir()
    sync.everything()
    assert set(objects(store)) == {"a", "b"}
    sync.forget(["a", "never there"])
    assert set(objects(store)) == {"b"}
    check_manifest(store)


def test_files_that_move_under_the_sync(store: ObjectStore, folder: Path) -> None:
    """Written, rewritten, truncated, renamed and removed all the while: at the end all is right."""
    over = threading.Event()

    def disturb() -> None:
        chance = random.Random(3)
        while not over.is_set():
            path = folder / f"f{chance.randrange(12)}"
            kind = chance.randrange(5)
            if kind == 0:
                path.unlink(missing_ok=True)
            elif kind == 1 and path.exists():
                path.rename(folder / f"g{chance.randrange(4)}")
            elif kind == 2 and path.exists():
                os.truncate(path, chance.randrange(100))
            else:
                with path.open("ab") as file:
                    file.write(chance.randbytes(chance.choice([10, 1000, 17 * MIB if path.name == "f1" else 5])))
                if path.stat().st_size > 40 * MIB:
                    path.unlink()
            time.sleep(0.002)

    thread = threading.Thread(target=disturb)
    thread.start()
    sync = Sync(store, folder, name="first")
    try:
        for _ in range(5):
            sync.everything()
    finally:
        over.set()
        thread.join()
    sync.everything()
    sync.check()
    assert files(folder).items() <= objects(store).items()
    assert sync.check() == []
    sync.everything()
    check_manifest(store)


def test_a_file_ahead_of_the_others(store: ObjectStore, folder: Path) -> None:
    """While a pass sends much, one file overtakes it, and what the pass had read of it before does not come back."""
    write(folder, **{f"f{number:02}": "x" * number for number in range(20)})
    write(folder, events="short")
    counting = Counting(store)
    sync = Sync(counting, folder, name="first")
    sync.begin()

    def overtake(key: str) -> None:
        if key == "f03":
            counting.before_put = lambda key: None
            write(folder, events="short and long")
            overtaking = threading.Thread(target=sync.now, args=([folder / "events"],))
            overtaking.start()
            overtaking.join(30)
            assert not overtaking.is_alive()
            assert bytes(store.get("events").body) == b"short and long"
            check_manifest(store, pending=True)

    counting.before_put = overtake
    sync.everything()
    assert objects(store) == files(folder)
    check_manifest(store)


# ----------------------------------------------------------------------------------------------------------- it ends


class Died(BaseException):
    pass


class Dying:
    """Dies at the n-th write, before it or after it."""

    def __init__(self, store: ObjectStore, at: int, after: bool) -> None:
        self.store, self.at, self.after = store, at, after
        self.url = store.url

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self.store, name)
        if name not in {"put", "create", "swap", "delete", "stream", "extend"}:
            return verb

        def write(*arguments: Any) -> Any:
            self.at -= 1
            if self.at == 0 and not self.after:
                raise Died
            done = verb(*arguments)
            if self.at <= 0:
                raise Died
            return done

        return write


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 12))
def test_killed_at_any_write(folder_root: str, folder: Path, at: int, after: bool) -> None:
    """At each moment each object is one that the manifest names; the next session finds it all, whatever it finds on
    its disk.
    """
    store = open_store(f"{folder_root}/there")
    write(folder, a="1", b="2", old="3", growing="g" * 9 * MIB)
    Sync(store, folder, name="first", writer=(1, 0)).everything()
    write(folder, a="one", c="4", growing="g" * 9 * MIB + "h")
    try:
        sync = Sync(Dying(store, at, after), folder, name="first", writer=(2, 0))
        sync.everything()
        sync.forget(["old"])
        pytest.fail("it did not die") if at < 8 else None
    except Died:
        pass
    if "old" not in _manifest(store).by_path():
        store.delete(["old"])  # it is taken out of the manifest first, and deleted then
    check_manifest(store, pending=True)
    shutil.rmtree(folder)
    folder.mkdir()
    write(folder, a="one", d="5")
    third = Sync(store, folder, name="first", writer=(3, 0))
    third.everything()
    assert check_manifest(store).writer == (3, 0)
    assert objects(store)["a"] == b"one" and objects(store)["d"] == b"5"


def _manifest(store: ObjectStore) -> Uploads:
    read = read_uploads(store)
    assert read is not None
    return read[0]


SEND = """
import sys, random
from pathlib import Path
from train_cloud.artifacts.sync import Sync
from train_cloud.store import open_store
folder = Path(sys.argv[1])
sync = Sync(open_store(sys.argv[2]), folder, name="first", writer=(int(sys.argv[3]), 0))
sync.begin()
print("begun", flush=True)
chance = random.Random(int(sys.argv[3]))
while True:
    for _ in range(3):
        with (folder / f"f{chance.randrange(30)}").open("ab") as file:
            file.write(chance.randbytes(chance.randrange(3000)))
    sync.everything()
"""


@pytest.mark.slow
def test_killed_at_random_instants(s3_root: str, folder: Path) -> None:
    root = f"{s3_root}/there"
    store = open_store(root)
    chance = random.Random(5)
    for session in range(1, 6):
        process = subprocess.Popen(
            [sys.executable, "-c", SEND, str(folder), root, str(session)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(chance.random())
        process.kill()
        process.wait()
        process.stdout.close()
        check_manifest(store, pending=True)
        if session % 2:  # the next one is on another machine
            shutil.rmtree(folder)
            folder.mkdir()
    Sync(store, folder, name="first", writer=(9, 0)).everything()
    check_manifest(store)


def test_a_replaced_writer_writes_no_more(store: ObjectStore, folder: Path, tmp_path: Path) -> None:
    write(folder, a="1")
    old = Sync(store, folder, name="first", writer=(1, 0))
    old.everything()
    other = tmp_path / "other"
    other.mkdir()
    new = Sync(store, other, name="first", writer=(2, 0))
    assert new.restore(lambda name: True) == []
    new.begin()
    assert new.restore(lambda name: True) == ["a"]
    assert files(other) == {"a": b"1"}
    write(folder, a="from the dead")
    with pytest.raises(Fenced):
        old.everything()
    with pytest.raises(Fenced):
        Sync(store, folder, name="first", writer=(1, 1)).everything()
    assert objects(store) == {"a": b"1"}
    write(other, a="2")
    new.everything()
    assert objects(store) == {"a": b"2"}
    check_manifest(store)


def test_what_was_restored_is_not_sent_again(store: ObjectStore, folder: Path, tmp_path: Path) -> None:
    write(folder, a="1", big="b" * 9 * MIB, skipped="2")
    Sync(store, folder, name="first", writer=(1, 0)).everything()
    other = tmp_path / "other"
    other.mkdir()
    counting = Counting(store)
    new = Sync(counting, other, name="first", writer=(2, 0))
    new.begin()
    assert new.restore(lambda name: name != "skipped") == ["a", "big"]
    new.everything()
    assert counting.taken() == {}
    with (other / "big").open("ab") as file:
        file.write(b"more")
    new.everything()
    assert counting.taken() == {"big": 4}
    assert set(objects(store)) == {"a", "big", "skipped"}
    check_manifest(store)


def test_objects_of_before_are_entered(store: ObjectStore, folder: Path) -> None:
    """A run of an older version has no manifest; somebody deleted one object and changed another."""
    store.put("old", b"from before")
    sync = Sync(store, folder, name="first", writer=(1, 0))
    sync.begin()
    assert check_manifest(store).by_path().keys() == {"old"}
    write(folder, a="1", b="2")
    sync.everything()
    store.delete(["a"])
    store.put("b", b"longer")
    assert sorted(sync.check()) == ["a", "b"]
    sync.everything()
    assert objects(store) == {"a": b"1", "b": b"2", "old": b"from before"}
    check_manifest(store)


def test_it_yields_and_goes_on(store: ObjectStore, folder: Path) -> None:
    busy = threading.Event()
    counting = Counting(store)
    sync = Sync(counting, folder, name="first", yields=busy.is_set)
    write(folder, a="1", b="22", c="333")
    counting.before_put = lambda key: busy.set() if key == "a" else None
    assert not sync.everything()
    assert set(objects(store)) == {"a"}
    check_manifest(store, pending=True)
    assert not sync.everything()
    assert not sync.everything(urgent=True, until=time.monotonic() - 1)
    assert set(objects(store)) == {"a"}
    assert sync.everything(urgent=True)
    assert objects(store) == files(folder)
    check_manifest(store)


@pytest.mark.parametrize("error", [StoreUnavailable, StoreForbidden])
def test_what_the_store_refuses_is_an_error_and_sent_the_next_time(
    folder_root: str, folder: Path, error: type[Exception]
) -> None:
    counting = Counting(open_store(f"{folder_root}/there"))
    sync = Sync(counting, folder, name="first")
    write(folder, a="1", b="22")

    def refuse(key: str) -> None:
        if key == "b":
            raise error("on purpose")

    counting.before_put = refuse
    with pytest.raises(error, match="on purpose"):
        sync.everything()
    check_manifest(counting.store, pending=True)
    counting.before_put = lambda key: None
    assert sync.everything()
    assert objects(counting.store) == files(folder)
    check_manifest(counting.store)


def test_a_manifest_that_is_none(store: ObjectStore, folder: Path) -> None:
    store.put(MANIFEST, b'{"experiment_name": 3}')
    write(folder, a="1")
    with pytest.raises(CorruptCheckpoint, match=MANIFEST):
        Sync(store, folder, name="first", alone=False).everything()
    assert objects(store) == {}


# ------------------------------------------------------------------------------------------------------- the command


def test_no_link_leads_out_of_the_folder(
    store: ObjectStore, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "elsewhere", private="not for the store", deep__file="neither")
    write(folder, own="mine", deep__own="mine too")
    (folder / "inside").symlink_to(folder / "deep" / "own")
    (folder / "relative").symlink_to("deep/own")
    (folder / "outside").symlink_to(tmp_path / "elsewhere" / "private")
    (folder / "deep" / "up").symlink_to("../../elsewhere/private")
    (folder / "below").symlink_to(tmp_path / "elsewhere")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    syncing = Sync(store, folder, name="linked")
    for _ in range(2):
        syncing.everything()
    assert set(objects(store)) == {"own", "deep/own", "inside", "relative"}
    said = [record.getMessage() for record in caplog.records]
    for name in ("outside", "deep/up", "below"):
        assert sum(f"{name} is not sent" in line for line in said) == 1


def test_the_command(s3_root: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"{s3_root}/any"
    store = open_store(url)
    store.put("of somebody else", b"x")
    write(folder, a="1", sub__b="22")
    assert main(["sync", str(folder), url, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["dry_run"] and planned["total_size_bytes"] == 3
    assert [upload["local_path"] for upload in planned["uploaded_files"]] == ["a", "sub/b"]
    assert list(objects(store)) == ["of somebody else"]
    assert not (folder / MANIFEST).exists()
    assert main(["sync", str(folder), url]) == 0
    assert "2 files, 0.0 MB" in capsys.readouterr().out
    assert objects(store) == {**files(folder), "of somebody else": b"x"}
    manifest = _manifest(store)
    assert manifest.by_path().keys() == {"a", "sub/b"} and manifest.experiment_name == "results"
    assert main(["sync", str(folder), url, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["uploaded_files"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["absent", "STORE"], 64, "DIR: 'absent': name an existing folder"),
        (["DIR", "ftp://x/y"], 64, "store: 'ftp://x/y'"),
        (["DIR", "s3://no-such-bucket-anywhere/x"], 1, "no-such-bucket-anywhere does not exist"),
        (["DIR", "STORE", "--seconds", "0"], 64, "--seconds"),
        (["DIR", "INSIDE"], 64, "it lies inside of DIR"),
        (["DIR", "file://INSIDE"], 64, "it lies inside of DIR"),
        (["DIR", "DIR"], 64, "it lies inside of DIR"),
    ],
)
def test_the_command_refuses(
    aws_endpoint: str,
    folder: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(folder, a="1")
    names = {"DIR": str(folder), "STORE": str(tmp_path / "store"), "INSIDE": str(folder / "a" / "store")}
    names["file://INSIDE"] = f"file://{names['INSIDE']}"
    assert main(["sync", *(names.get(argument, argument) for argument in arguments)]) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["line\nbreak", "back\\slash"])
def test_a_file_that_cannot_be_sent_is_an_error_after_all_others(
    folder_root: str, folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, a="1", z="2", **{name: "3"})
    assert main(["sync", str(folder), f"{folder_root}/there"]) == 1
    assert "could not be sent" in capsys.readouterr().err
    store = open_store(f"{folder_root}/there")
    assert objects(store) == {"a": b"1", "z": b"2"}
    check_manifest(store)


def test_the_command_follows_until_it_is_told_to_end(s3_root: str, folder: Path) -> None:
    url = f"{s3_root}/any"
    store = open_store(url)
    write(folder, a="1")
    command = [sys.executable, "-m", "train_cloud", "sync", str(folder), url, "--follow", "--seconds", "0.2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for expected in ("1", "22", "333"):
            write(folder, a=expected)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and objects(store).get("a") != expected.encode():
                assert process.poll() is None
                time.sleep(0.05)
            assert objects(store)["a"] == expected.encode()
        write(folder, last="x")
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0 and "2 files" in said
    assert objects(store) == files(folder)
    check_manifest(store)
