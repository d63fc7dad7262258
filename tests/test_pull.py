"""Results come home: whole, verified, resumed; also while a worker writes them, and into TensorBoard."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from test_sync import files, write
from torch.utils.tensorboard import SummaryWriter

from train_cloud.artifacts.experiment import enter_config, enter_result, experiment_url
from train_cloud.artifacts.sync import Sync
from train_cloud.artifacts.tensorboard import read_scalars
from train_cloud.artifacts.uploads import MANIFEST
from train_cloud.cli import main
from train_cloud.errors import CorruptCheckpoint, InputError
from train_cloud.report.pull import Following, pull
from train_cloud.run import layout
from train_cloud.store import ObjectStore, StoredObject, open_store


@pytest.fixture
def there(store_root: str) -> ObjectStore:
    """The artifacts of ``a-run``."""
    return open_store(f"{layout.run_url(store_root, 'a-run')}/artifacts")


@pytest.fixture
def folder(tmp_path: Path, there: ObjectStore) -> Path:
    """What the run has left."""
    folder = tmp_path / "results"
    folder.mkdir()
    write(folder, final_model="m" * 1000, videos__easy__1="v", videos__hard__1="w", logs__session="l")
    Sync(there, folder, name="a-run", writer=(1, 0)).everything()
    return folder


def test_everything_comes_home_once(store_root: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "home"
    done = pull(store_root, "a-run", out=out)
    assert (done.fetched, done.kept, done.unverified) == (4, 0, ())
    assert files(out) == files(folder)
    (out / "videos" / "easy" / "1").unlink()
    write(out, final_model="m" * 999 + "n", mine="kept")
    done = pull(store_root, "a-run", out=out)
    assert (done.fetched, done.kept) == (2, 2)
    assert files(out) == {**files(folder), "mine": b"kept"}


@pytest.mark.parametrize(
    ("what", "names"),
    [
        (["videos"], ["videos/easy/1", "videos/hard/1"]),
        (["videos/hard/", "final_model"], ["final_model", "videos/hard/1"]),
        (["**/1"], ["videos/easy/1", "videos/hard/1"]),
    ],
)
def test_only_what_is_asked_for(
    store_root: str, folder: Path, tmp_path: Path, what: list[str], names: list[str]
) -> None:
    pull(store_root, "a-run", out=tmp_path / "home", what=what)
    assert sorted(files(tmp_path / "home")) == names


def test_what_is_not_there(store_root: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are: final_model, logs/, videos/"):
        pull(store_root, "a-run", out=tmp_path / "home", what=["video"])
    with pytest.raises(InputError, match="no artifacts"):
        pull(store_root, "another", out=tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_a_damaged_object_is_never_written(store_root: str, there: ObjectStore, folder: Path, tmp_path: Path) -> None:
    there.put("logs/session", b"L")
    with pytest.raises(CorruptCheckpoint, match="logs/session is not what"):
        pull(store_root, "a-run", out=tmp_path / "home")
    assert "logs/session" not in files(tmp_path / "home")


def test_a_worker_writes_meanwhile(
    store_root: str, there: ObjectStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time the log is fetched it is another one than the manifest said a moment ago."""
    sync = Sync(there, folder, name="a-run", writer=(1, 0))
    turns = iter(("more", "and more"))
    kind = type(there)
    get = kind.get

    def interposed(self: Any, key: str) -> StoredObject:
        if key == "logs/session" and (text := next(turns, None)) is not None:
            write(folder, logs__session=text)
            sync.everything()
        return get(self, key)

    monkeypatch.setattr(kind, "get", interposed)
    pull(store_root, "a-run", out=tmp_path / "home", what=["logs"])
    assert files(tmp_path / "home")["logs/session"] in (b"more", b"and more")


def test_a_run_of_before_has_no_manifest(store_root: str, there: ObjectStore, folder: Path, tmp_path: Path) -> None:
    there.delete([MANIFEST])
    done = pull(store_root, "a-run", out=tmp_path / "home")
    assert done.unverified == tuple(sorted(files(folder)))
    assert files(tmp_path / "home") == files(folder)


def test_the_command(store_root: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "home")
    assert main(["pull", "a-run", "--store", store_root, "--what", "videos", "--out", out]) == 0
    assert "2 files fetched" in capsys.readouterr().out
    assert main(["pull", f"{store_root}/runs/a-run", "--out", out]) == 0
    assert "2 files fetched (0.0 MB), 2 there already" in capsys.readouterr().out
    assert main(["pull", "a-run", "--store", store_root, "--what", "nonsense"]) == 64
    assert main(["tensorboard", "nobody", "--store", store_root]) == 64


# --------------------------------------------------------------------------------------------------------- TensorBoard


def test_event_files_grow_in_place(there: ObjectStore, folder: Path, tmp_path: Path) -> None:
    sync = Sync(there, folder, name="a-run", writer=(1, 0))
    following = Following({"a-run": there, "b-run": open_store(f"{there.url}-of-nobody")}, tmp_path / "board")
    assert following.update() == 0
    writer = SummaryWriter(str(folder / "tensorboard"))
    for step in (1, 2, 3):
        writer.add_scalar("x", step, step)
        writer.flush()
        sync.everything()
        before = [path.stat().st_ino for path in (tmp_path / "board").rglob("*tfevents*")]
        assert following.update() > 0
        after = [path.stat().st_ino for path in (tmp_path / "board").rglob("*tfevents*")]
        assert before in ([], after)
        assert read_scalars(tmp_path / "board" / "a-run")["x"] == [(at, float(at)) for at in range(1, step + 1)]
        assert following.update() == 0
    writer.close()
    (path,) = (folder / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes()[:150])  # the next session has cut it
    sync.everything()
    following.update()
    assert [path.stat().st_size for path in (tmp_path / "board").rglob("*tfevents*")] == [150]


@pytest.mark.slow
def test_tensorboard_shows_the_store(folder_root: str, tmp_path: Path) -> None:
    there = open_store(f"{layout.run_url(folder_root, 'a-run')}/artifacts")
    folder = tmp_path / "results"
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        writer.add_scalar("curve", 0.5, 1)
    Sync(there, folder, name="a-run").everything()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "train_cloud", "tensorboard", "a-run", "--store", folder_root]
    process = subprocess.Popen([*command, "--port", str(port), "--seconds", "0.5"])
    found: dict[str, Any] = {}
    try:
        deadline = time.monotonic() + 120
        while "a-run" not in found and time.monotonic() < deadline:
            assert process.poll() is None
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/plugin/scalars/tags", timeout=10) as reply:
                    found = json.loads(reply.read())
            except OSError:
                time.sleep(0.3)
        assert list(found["a-run"]) == ["curve"]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# ---------------------------------------------------------------------------------------------------------- experiments


def test_runs_of_an_experiment_write_its_files_together(store_root: str) -> None:
    def run(number: int) -> None:
        name = f"run-{number}"
        enter_config(store_root, "sweep", name, {"seed": number})
        result = {"outcome": "completed" if number else "stopped", "episode_return": float(number), "timesteps": 10}
        enter_result(store_root, "sweep", name, result)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(5)
    store = open_store(experiment_url(store_root, "sweep"))
    config = json.loads(bytes(store.get("config.json").body))
    assert {name: entry["seed"] for name, entry in config["runs"].items()} == {f"run-{n}": n for n in range(6)}
    results = json.loads(bytes(store.get("all_results.json").body))
    assert list(results["runs"]) == [f"run-{n}" for n in range(6)]
    assert results["summary"] == {"runs": 6, "completed": 5, "mean_return": 2.5, "std_return": pytest.approx(1.8708287)}
