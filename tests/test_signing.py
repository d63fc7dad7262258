"""Checkpoints with a keyed checksum: nothing that may be a pickle is read before it was compared."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train_cloud.checkpoint import Committer, read_manifest, restore
from train_cloud.checkpoint.format import crc64nvme, pack
from train_cloud.checkpoint.signing import VARIABLE
from train_cloud.cli import main
from train_cloud.config import parse_run_file
from train_cloud.errors import CorruptCheckpoint, InputError
from train_cloud.run.head import Lease, Token, read_head
from train_cloud.snapshot import Part, Snapshot
from train_cloud.store import ObjectStore, open_store

KEY = "a key of more than sixteen bytes"


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path / "store" / "runs" / "signed"))


def commit(store: ObjectStore) -> None:
    parts = {"model": Part(arrays={"w": np.ones(3)}, blob=pickle.dumps("state")), "run": Part(blob=b"run_id: signed\n")}
    committer = Committer(store, Lease.take(store, Token(1, 0), "somebody"), None)
    committer.submit(Snapshot(100, parts, facts={"identity": {}}))
    committer.wait()


def restored(store: ObjectStore) -> Snapshot:
    read = read_head(store)
    assert read is not None and read[0].manifest is not None
    return restore(store, read_manifest(store, read[0].manifest))


@pytest.fixture
def signed(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv(VARIABLE, "MY_KEY")
    commit(store)
    return store


def test_without_a_key_nothing_is_written_of_it(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    commit(store)
    assert not any(b"hmac" in bytes(store.get(info.key).body) for info in store.list())
    assert restored(store).timesteps == 100


def test_what_was_signed_is_restored(signed: ObjectStore) -> None:
    assert pickle.loads(restored(signed).parts["model"].blob) == "state"


def test_a_forged_part_with_the_right_crc_is_refused(signed: ObjectStore) -> None:
    """All that anybody can compute without the key is right: manifest and head name the forged bytes."""
    read = read_head(signed)
    assert read is not None and read[0].manifest is not None
    manifest = read_manifest(signed, read[0].manifest)
    body = memoryview(pack(Part(blob=pickle.dumps("evil"))))
    part = manifest.parts["model"].model_copy(update={"size": len(body), "crc64nvme": crc64nvme(body)})
    signed.put(part.key, body)
    forged = manifest.model_copy(update={"parts": {**manifest.parts, "model": part}})
    with pytest.raises(CorruptCheckpoint, match="is not signed with the key in MY_KEY: it was forged, or the key"):
        restore(signed, forged)
    text = memoryview(forged.model_dump_json().encode())
    signed.put(read[0].manifest.key, text)
    reference = read[0].manifest.model_copy(update={"size": len(text), "crc64nvme": crc64nvme(text)})
    with pytest.raises(CorruptCheckpoint, match="MY_KEY"):
        read_manifest(signed, reference)
    with pytest.raises(CorruptCheckpoint, match="is not signed, and signing_key asks for it"):
        read_manifest(signed, reference.model_copy(update={"hmac": None}))


def test_an_object_of_another_place_is_refused(signed: ObjectStore, tmp_path: Path) -> None:
    """The signature is over the run and the place, too."""
    other = open_store(str(tmp_path / "store" / "runs" / "other"))
    for info in signed.list():
        other.put(info.key, bytes(signed.get(info.key).body))
    with pytest.raises(CorruptCheckpoint, match="MY_KEY"):
        restored(other)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "is signed: set TRAIN_CLOUD_SIGNED_WITH to the name of the variable that holds its key"),
        ({VARIABLE: "MY_KEY", "MY_KEY": "quite another, and long enough"}, "is not signed with the key in MY_KEY"),
        ({VARIABLE: "MY_KEY", "MY_KEY": "short"}, "it has fewer than 16 bytes"),
        ({VARIABLE: "MY_KEY"}, "it is not set"),
    ],
)
def test_a_wrong_or_missing_key_is_one_line(
    signed: ObjectStore,
    variables: dict[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in (VARIABLE, "MY_KEY"):
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["export", "signed", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]) in (1, 64)
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and KEY not in err
    assert not (tmp_path / "out").exists()


def test_status_needs_no_key(
    signed: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delenv("MY_KEY")
    assert main(["status", "signed", "--store", str(tmp_path / "store"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["damaged"] is None


def test_the_key_is_one_of_the_secrets() -> None:
    run: dict[str, Any] = {
        "run_id": "a", "algorithm": "ppo", "total_timesteps": 10, "save_frequency": 5,
        "environment": {"id": "CartPole-v1"}, "signing_key": "MY_KEY",
    }  # fmt: skip
    with pytest.raises(InputError, match="signing_key: 'MY_KEY': add this name to secrets"):
        parse_run_file(run)
    assert parse_run_file({**run, "secrets": {"MY_KEY": "/mine/key"}}).signing_key == "MY_KEY"
