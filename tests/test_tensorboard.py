"""Event files as SummaryWriter writes them, cut as kills make it necessary, and moved between machines."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.util import tensor_util
from torch.utils.tensorboard import SummaryWriter

from train_cloud.artifacts.tensorboard import cut, pull, read_scalars
from train_cloud.errors import StoreUnavailable
from train_cloud.run.layout import TENSORBOARD
from train_cloud.store import ObjectStore, StoredObject, open_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tensorboard"
    folder.mkdir()
    return folder


def session(folder: Path, number: int, begin: int, end: int, *, every: int = 10, torn: int = 0) -> Path:
    """Logs ``x`` (each step's number, plus the session as a fraction) after ``begin`` up to ``end``; cuts off bytes."""
    writer = SummaryWriter(
        str(folder), purge_step=begin + 1 if begin else None, filename_suffix=f".session-{number:06d}"
    )
    for step in range(begin + every, end + 1, every):
        writer.add_text("note", f"at {step}", step)
        writer.add_scalar("x", step + number / 8, step)
    writer.close()
    (path,) = folder.glob(f"*.session-{number:06d}")
    if torn:
        os.truncate(path, path.stat().st_size - torn)
    return path


def curve(folder: Path) -> list[tuple[int, float]]:
    return read_scalars(folder).get("x", [])


def as_shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """As TensorBoard itself reads the folder."""
    shown = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    shown.Reload()
    return {"x": [(event.step, event.value) for event in shown.Scalars("x")]} if "x" in shown.Tags()["scalars"] else {}


def expected(*pieces: tuple[int, int, int], every: int = 10) -> list[tuple[int, float]]:
    """(session, begin, end) ..."""
    return [(s, s + n / 8) for n, begin, end in pieces for s in range(begin + every, end + 1, every)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("timesteps", [0, 5, 50, 55, 60, 99])
def test_cut_keeps_what_the_head_has(folder: Path, timesteps: int) -> None:
    session(folder, 1, 0, 100)
    assert cut(folder, timesteps)
    assert curve(folder) == expected((1, 0, timesteps))
    assert as_shown(folder).get("x", []) == expected((1, 0, timesteps))
    before = contents(folder)
    assert not cut(folder, timesteps)
    assert contents(folder) == before
    assert not any(b"at 100" in content for content in before.values())


@pytest.mark.parametrize("timesteps", [100, 10**12])
def test_nothing_to_cut_touches_nothing(folder: Path, timesteps: int) -> None:
    path = session(folder, 1, 0, 100)
    before, inode = contents(folder), path.stat().st_ino
    assert not cut(folder, timesteps)
    assert contents(folder) == before
    assert path.stat().st_ino == inode


def test_cut_of_nothing(folder: Path) -> None:
    assert not cut(folder, 100)
    assert not cut(folder / "missing", 100)
    assert read_scalars(folder) == {}


@pytest.mark.parametrize("torn", [1, 4, 20, 40, 90])
def test_a_torn_record_goes(folder: Path, torn: int) -> None:
    session(folder, 1, 0, 100, torn=torn)
    assert cut(folder, 1000)
    assert curve(folder) == expected((1, 0, 90))
    assert any(b"at 100" in content for content in contents(folder).values()) == (torn < 30)
    assert not cut(folder, 1000)


def test_a_flipped_bit_ends_a_file(folder: Path) -> None:
    path = session(folder, 1, 0, 100)
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    assert cut(folder, 1000)
    assert 0 < len(curve(folder)) < 10
    assert curve(folder) == expected((1, 0, 100))[: len(curve(folder))]


def test_sessions_make_one_curve(folder: Path) -> None:
    """Cut at the head at each beginning: no gap, no step twice, whatever each session logged beyond its last commit."""
    session(folder, 1, 0, 130, torn=3)
    assert cut(folder, 100)
    session(folder, 2, 100, 250)
    assert cut(folder, 200)
    session(folder, 3, 200, 200)
    assert not cut(folder, 200)
    session(folder, 4, 200, 300)
    assert not cut(folder, 300)
    whole = expected((1, 0, 100), (2, 100, 200), (4, 200, 300))
    assert curve(folder) == whole
    assert as_shown(folder)["x"] == whole


def test_read_scalars_hides_nothing(folder: Path) -> None:
    session(folder, 1, 0, 130)
    session(folder, 2, 100, 150)
    assert curve(folder) == expected((1, 0, 130), (2, 100, 150))
    assert as_shown(folder)["x"] == expected((1, 0, 100), (2, 100, 150))


def test_what_a_later_session_logged_anew_goes(folder: Path) -> None:
    """A worker that had lost the run may push its file once more, after its successor has cut it."""
    session(folder, 1, 0, 100)
    cut(folder, 100)
    zombie = session(folder, 2, 100, 250)
    lost = zombie.read_bytes()
    cut(folder, 150)
    session(folder, 3, 150, 200)
    zombie.write_bytes(lost)
    assert cut(folder, 200)
    assert curve(folder) == expected((1, 0, 100), (2, 100, 150), (3, 150, 200))


def test_sessions_are_ordered_by_number_not_by_clock(folder: Path) -> None:
    first = session(folder, 1, 0, 100)
    second = session(folder, 2, 100, 200)
    first.rename(folder / "events.out.tfevents.9000000000.host.1.0.session-000001")
    second.rename(folder / "events.out.tfevents.1000000000.host.1.0.session-000002")
    whole = contents(folder)
    assert not cut(folder, 200)
    assert contents(folder) == whole
    assert curve(folder) == expected((1, 0, 100), (2, 100, 200))


def test_folders_are_curves_of_their_own(folder: Path) -> None:
    session(folder / "train", 1, 0, 100)
    session(folder / "eval", 1, 0, 100)
    session(folder / "eval", 2, 60, 100)
    assert cut(folder, 100)
    assert curve(folder / "train") == expected((1, 0, 100))
    assert curve(folder / "eval") == expected((1, 0, 60), (2, 60, 100))


def test_other_events(folder: Path) -> None:
    """Hyperparameters and graphs have no step: they stay. Scalars of newer writers are tensors."""
    writer = SummaryWriter(str(folder))
    writer.add_hparams({"lr": 0.1}, {"final": 1.0}, run_name=".")
    writer.add_histogram("weights", np.ones(2), 7)
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    value = Summary.Value(tag="new", tensor=tensor_util.make_tensor_proto(2.5), metadata=metadata)
    writer._get_file_writer().event_writer.add_event(Event(step=3, summary=Summary(value=[value])))  # type: ignore[no-untyped-call]
    writer.close()
    scalars = {"new": [(3, 2.5)], "final": [(0, 1.0)]}
    assert read_scalars(folder) == scalars
    assert cut(folder, 4)
    assert read_scalars(folder) == scalars
    assert any(b"_hparams_/experiment" in content for content in contents(folder).values())
    assert not any(b"weights" in content for content in contents(folder).values())


CUT = "import sys, pathlib; from train_cloud.artifacts.tensorboard import cut; cut(pathlib.Path(sys.argv[1]), 30_000)"


@pytest.mark.slow
def test_a_killed_cut_leaves_the_old_file_or_the_new_one(folder: Path) -> None:
    path = session(folder, 1, 0, 32_000)
    whole = path.read_bytes()
    assert cut(folder, 30_000)
    short = path.read_bytes()
    path.write_bytes(whole)
    caught, unfinished = 0, path.with_name(".unfinished")
    for turn in range(5):
        process = subprocess.Popen([sys.executable, "-c", CUT, str(folder)])
        while process.poll() is None:
            with suppress(FileNotFoundError):
                if unfinished.stat().st_size > turn * 50_000:
                    process.kill()
                    break
            time.sleep(0.001)
        process.wait()
        assert path.read_bytes() in (whole, short)
        caught += unfinished.exists()
        path.write_bytes(whole)
    assert caught
    assert cut(folder, 30_000)
    assert path.read_bytes() == short
    assert list(contents(folder)) == [path.name]


@pytest.fixture
def store(store_root: str) -> ObjectStore:
    return open_store(f"{store_root}/runs/one")


def sizes(store: ObjectStore) -> dict[str, int]:
    return {info.key: info.size for info in store.list()}


def send(store: ObjectStore, folder: Path) -> None:
    for path in folder.rglob("*tfevents*"):
        store.put(TENSORBOARD + path.relative_to(folder).as_posix(), path.read_bytes())


def test_a_new_machine_goes_on_where_the_head_is(store: ObjectStore, folder: Path) -> None:
    """Two interruptions, each on a new disk."""
    for number, (begin, end, torn) in enumerate([(0, 130, 5), (100, 230, 0), (200, 300, 0)], start=1):
        shutil.rmtree(folder)
        pull(store, folder)
        cut(folder, begin)
        session(folder, number, begin, end, torn=torn)
        send(store, folder)
    assert sizes(store) == {TENSORBOARD + name: len(content) for name, content in contents(folder).items()}
    shutil.rmtree(folder)
    assert pull(store, folder) == {key.removeprefix(TENSORBOARD): size for key, size in sizes(store).items()}
    assert curve(folder) == expected((1, 0, 100), (2, 100, 200), (3, 200, 300))


def test_a_restart_keeps_what_was_not_yet_pushed(store: ObjectStore, folder: Path) -> None:
    path = session(folder, 1, 0, 100)
    whole = path.read_bytes()
    os.truncate(path, 200)
    send(store, folder)
    path.write_bytes(whole)
    pull(store, folder)
    assert path.read_bytes() == whole
    send(store, folder)
    assert list(sizes(store).values()) == [len(whole)]


def test_pull_does_not_trust_a_short_answer(store: ObjectStore, folder: Path) -> None:
    path = session(folder, 1, 0, 100)
    send(store, folder)

    class Overwritten:
        """Somebody writes the object between the LIST and the GET."""

        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def get(self, key: str) -> StoredObject:
            store.put(key, b"short")
            return store.get(key)

    path.unlink()
    with pytest.raises(StoreUnavailable, match="was listed with"):
        pull(Overwritten(), folder)  # type: ignore[arg-type]
    assert contents(folder) == {}
