"""Sessions: numbers are taken once, restarts keep them, records are not doubled."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from train_cloud.run import layout
from train_cloud.run.session import (
    Session,
    begin_session,
    end_session,
    local_session,
    read_sessions,
    record_notice,
    write_progress,
)
from train_cloud.store import ObjectStore, open_store


@pytest.fixture
def store(store_root: str) -> ObjectStore:
    return open_store(layout.run_url(store_root, "a-run"))


def begin(store: ObjectStore, state_dir: Path, boot_id: str = "boot", *, persist: bool = True) -> Session:
    return begin_session(store, state_dir, instance_id="i-1", boot_id=boot_id, details={"zone": "a"}, persist=persist)


def test_a_boot_keeps_its_session_and_the_next_boot_takes_another(store: ObjectStore, tmp_path: Path) -> None:
    assert [begin(store, tmp_path).token for _ in range(3)] == [(1, 0), (1, 1), (1, 2)]
    assert begin(store, tmp_path, "next boot").token == (2, 0)
    assert begin(store, tmp_path / "another machine").token == (3, 0)
    assert local_session(tmp_path, "boot") is None
    local = local_session(tmp_path, "next boot")
    assert local is not None and local.number == 2


def test_on_a_laptop_each_call_is_a_session(store: ObjectStore, tmp_path: Path) -> None:
    assert [begin(store, tmp_path, persist=False).token for _ in range(2)] == [(1, 0), (2, 0)]


def test_machines_that_begin_at_once_get_different_numbers(store: ObjectStore, tmp_path: Path) -> None:
    numbers: list[int] = []
    barrier = threading.Barrier(6)

    def run(machine: int) -> None:
        barrier.wait(10)
        numbers.append(begin(store, tmp_path / str(machine), f"boot {machine}").number)

    threads = [threading.Thread(target=run, args=(machine,)) for machine in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(numbers) == len(set(numbers)) == 6


def test_records(store: ObjectStore, tmp_path: Path) -> None:
    session = begin(store, tmp_path)
    notice = {"kind": "spot", "time": "2026-01-01T00:00:00+00:00"}
    first = record_notice(store, session, notice)
    assert record_notice(store, session, notice) == first
    assert record_notice(store, session, {**notice, "kind": "rebalance"}) != first
    write_progress(store, session, timesteps=5)
    write_progress(store, session, timesteps=6)
    end_session(store, session, ended_by="notice", last_timestep=7)
    end_session(store, session, ended_by="failed", last_timestep=8)
    begin(store, tmp_path, "next")
    one, two = read_sessions(store)
    assert (one.number, one.start["instance_id"], one.start["zone"]) == (1, "i-1", "a")
    assert one.progress is not None and one.progress["timesteps"] == 6
    assert one.end is not None and (one.end["ended_by"], one.end["last_timestep"]) == ("notice", 7)
    assert [notice["kind"] for notice in one.notices] == ["spot", "rebalance"]
    assert (two.number, two.end, two.notices) == (2, None, [])
