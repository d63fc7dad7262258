"""What lies in a store and is not ours, or is damaged: it is ignored, said once, and deleted with its run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from sessions import Rehearsed
from test_repair import damage
from test_rollback import Worker, keys
from test_train import RUN

from train_cloud.artifacts.sync import run_sync
from train_cloud.artifacts.uploads import MANIFEST, read_uploads
from train_cloud.cli import main
from train_cloud.report.status import run_ids, statuses
from train_cloud.run import layout
from train_cloud.run.session import end_session, read_session, read_sessions
from train_cloud.store import open_store
from train_cloud.store.protocol import RESERVED

#: Below the run's folder, as a raw key of S3, or a file of a folder store where its file system can have one.
OF_THE_RUN = {
    "a marker of the run's folder": ("", b""),
    "a marker of sessions": ("sessions/", b""),
    "a marker of an empty folder": ("artifacts/plots/", b""),
    "a marker within artifacts": ("artifacts/videos/", b""),
    "two slashes": ("artifacts//notes.txt", b"x"),
    "two slashes at the end": ("checkpoints//", b""),
    "a foreign session": ("sessions/notes/progress.json", b"{}"),
    "a foreign record": ("sessions/000001/comment.txt", b"well done"),
    "a number beyond": ("sessions/999999/readme.md", b"#"),
    "a marker of a session": ("sessions/000001/", b""),
    "no progress": ("sessions/000001/progress.json", b""),
    "half a start": ("sessions/000001/start.json", b'{"session": 1, "started": '),
    "an empty end": ("sessions/000001/end.json", b""),
    "a list for a notice": ("sessions/000001/notice-1.json", b"[]"),
    "words for numbers": ("sessions/000001/progress.json", b'{"timesteps": "many", "seconds": null, "price": 3}'),
    "a backslash": ("artifacts/a\\b", b"x"),
    "a line break": ("artifacts/two\nlines", b"x"),
    "a desktop's file": (".DS_Store", b"\0\0\0\1Bud1"),
    "another": ("sessions/desktop.ini", b"[.ShellClassInfo]"),
    "among checkpoints": ("checkpoints/backup/manifest.json", b"{}"),
    "among segments": ("replay/mine.npz", b"PK"),
    "an evaluation": ("evaluations/best.json", b"{"),
    "an override": ("overrides-old.json", b"{"),
    "letters of all kinds": ("artifacts/Ünï côdé ☃ %20?#.txt", b"x"),
    "a damaged manifest of uploads": (f"artifacts/{MANIFEST}", b'{"uploaded_files": ['),
}
BESIDE = {
    "a marker of runs": ("runs/", b""),
    "a folder that is no run's": ("runs/My Notes/todo.txt", b"x"),
    "a folder that could be one's": ("runs/backup/copy.tar", b"x"),
    "a run without a name": ("runs//x", b"x"),
    "a file": ("runs/.DS_Store", b"x"),
}


class Place:
    """A store root whose raw names can be written, of either kind."""

    def __init__(self, root: str, aws_endpoint: str) -> None:
        self.root = root
        self.bucket, _, self.prefix = root.removeprefix("s3://").partition("/")
        self.client = boto3.client("s3", endpoint_url=aws_endpoint) if root.startswith("s3://") else None

    def put(self, name: str, body: bytes) -> bool:
        """Whether such a store can have it."""
        if self.client is not None:
            if "\n" in name:
                return False  # moto serves no path with one
            self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}", Body=body)
            return True
        path = Path(self.root, name)
        if "//" in name:
            return False
        if name.endswith("/") or not name:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        return True

    def names(self) -> set[str]:
        """Everything that lies there, by its raw name."""
        if self.client is None:
            root = Path(self.root)
            return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=f"{self.prefix}/").get("Contents", [])
        return {each["Key"].removeprefix(f"{self.prefix}/") for each in found}


@pytest.fixture
def place(store_root: str, aws_endpoint: str) -> Place:
    return Place(store_root, aws_endpoint)


@pytest.mark.parametrize("what", [*OF_THE_RUN, *BESIDE])
def test_a_run_is_listed_gone_on_with_pulled_and_deleted(
    place: Place, tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = Worker(place.root, tmp_path).work(20)
    worker.end()
    folder = tmp_path / "state" / "artifacts"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    run_sync(worker.store, tmp_path / "state", "a-run", (1, 0)).everything()
    name, body = BESIDE[what] if what in BESIDE else (f"runs/a-run/{OF_THE_RUN[what][0]}", OF_THE_RUN[what][1])
    if not place.put(name, body):
        return
    beside = place.names() if what in BESIDE else set()
    caplog.clear()

    assert run_ids(place.root)[0] == "a-run"
    (found,) = statuses(place.root, run_ids(place.root))
    assert (found.run_id, found.committed_timesteps) == ("a-run", 20)
    assert found.state == ("running" if what == "an empty end" else "interrupted"), found
    assert main(["status", "--store", place.root, "--json"]) == 0
    assert [each["run_id"] for each in json.loads(capfd.readouterr().out)] == ["a-run"]
    read_sessions(worker.store)
    said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == len(set(said)) <= 1, "once, whoever looks how often"

    following = Worker(place.root, tmp_path)
    assert following.session.number == 2, "what is no session's takes no number"
    following.work(40)
    sync = run_sync(following.store, tmp_path / "state", "a-run", (2, 0))
    (folder / "more.txt").write_text("more")
    assert sync.everything()
    following.end()
    out = tmp_path / "out"
    assert main(["pull", "a-run", "--store", place.root, "--out", str(out)]) == 0
    assert (out / "notes.txt").read_text() == "mine" and (out / "more.txt").exists()
    assert not (out / RESERVED).exists()

    assert main(["delete", "a-run", "--store", place.root, "--yes", "--force"]) == 0
    left = {name for name in place.names() if RESERVED not in name}
    assert not {name for name in left if name.startswith("runs/a-run/")}
    assert left == {name for name in beside if not name.startswith("runs/a-run/") and RESERVED not in name}
    if not place.root.startswith("s3://"):
        assert not Path(place.root, "runs", "a-run").exists()


@pytest.mark.slow
def test_a_store_full_of_them_trains(warm: Any, place: Place, tmp_path: Path) -> None:
    run = Rehearsed(warm, tmp_path / "run", {**RUN, "experiment": "group"}, root=place.root)
    assert run.session("SIGTERM@150") == 75
    for name, body in [(f"runs/a-run/{name}", body) for name, body in OF_THE_RUN.values()] + list(BESIDE.values()):
        place.put(name, body)
    for name in ("config.json", "all_results.json"):
        place.put(f"experiments/group/{name}", b'{"runs": [')
    assert run.session() == 0, run.log()
    assert run.head().outcome == "completed"
    result = json.loads(bytes(open_store(f"{place.root}/experiments/group").get("all_results.json").body))
    assert result["runs"]["a-run"]["outcome"] == "completed"
    out = tmp_path / "page.html"
    assert main(["report", "a-run", "--store", place.root, "--out", str(out)]) == 0
    assert main(["status", "a-run", "--store", place.root]) == 0
    assert main(["delete", "a-run", "--store", place.root, "--yes"]) == 0
    assert not {name for name in place.names() if name.startswith("runs/a-run/")}


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda store: store.put(layout.HEAD, b""), "is not a head, or damaged"),
        (lambda store: damage(store, layout.HEAD), "is not a head, or damaged"),
        (lambda store: store.delete([layout.HEAD]), "head.json is missing"),
        (lambda store: store.put(layout.progress_key(1), b'{"price": {"spot": "cheap"}}'), "makes no sense"),
    ],
)
def test_one_damaged_run_is_one_row(
    folder_root: str, tmp_path: Path, break_it: Callable[[Any], None], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for run_id in ("a-run", "b-run", "c-run"):
        Worker(folder_root, tmp_path, run_id=run_id).work(20)
    break_it(open_store(layout.run_url(folder_root, "b-run")))
    assert main(["status", "--store", folder_root]) == 0
    shown = capfd.readouterr().out
    assert all(run_id in shown for run_id in ("a-run", "b-run", "c-run")) and shown.count("damaged") == 1
    assert main(["status", "--store", folder_root, "--json"]) == 0
    _, broken, _ = json.loads(capfd.readouterr().out)
    assert (broken["run_id"], broken["state"]) == ("b-run", "damaged") and says in broken["damaged"]


def test_what_cannot_be_deleted_is_named(folder_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Worker(folder_root, tmp_path).work(20).end()
    folder = Path(folder_root, "runs", "a-run")
    (folder / "outside").symlink_to(tmp_path)
    (folder / "nowhere").symlink_to("/nowhere/at/all")
    assert main(["delete", "a-run", "--store", folder_root, "--yes", "--force"]) == 0
    assert not folder.exists() and tmp_path.exists(), "a link goes, what it leads to stays"

    Worker(folder_root, tmp_path).work(20).end()
    busy = folder / "busy"
    busy.mkdir()
    rmdir = Path.rmdir
    unlink = __import__("os").unlink

    def refused(path: Any, *arguments: Any, **options: Any) -> None:
        if str(path).endswith("stays"):
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, *arguments, **options)

    (busy / "back\\slash-stays").write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr("os.unlink", refused)
        assert main(["delete", "a-run", "--store", folder_root, "--yes", "--force"]) == 1
    assert (busy / "back\\slash-stays").exists() and rmdir is not None


def test_a_session_says_how_each_of_its_processes_ended(folder_root: str, tmp_path: Path) -> None:
    worker = Worker(folder_root, tmp_path).work(20)
    for restart, ended_by in ((0, "failure"), (1, "failure"), (10, "completed")):
        session = worker.session.model_copy(update={"restart": restart})
        end_session(worker.store, session, ended_by=ended_by, last_timestep=20)
        end_session(worker.store, session, ended_by="twice", last_timestep=30)
        record = read_session(worker.store, 1)
        assert record is not None and record.end is not None
        assert (record.end["ended_by"], record.end["restart"]) == (ended_by, restart)


def test_a_damaged_manifest_of_uploads_is_written_anew(store_root: str, tmp_path: Path) -> None:
    worker = Worker(store_root, tmp_path)
    folder = tmp_path / "state" / "artifacts"
    folder.mkdir(parents=True)
    (folder / "one.txt").write_text("1")
    run_sync(worker.store, tmp_path / "state", "a-run", (1, 0)).everything()
    worker.store.put(f"artifacts/{MANIFEST}", b"{}")
    (folder / "two.txt").write_text("2")
    assert run_sync(worker.store, tmp_path / "state", "a-run", (2, 0)).everything()
    read = read_uploads(open_store(f"{worker.store.url}/artifacts"))
    assert read is not None and sorted(read[0].by_path()) == ["one.txt", "two.txt"]


def test_a_folder_store_keeps_its_lock_out_of_what_people_take_home(folder_root: str, tmp_path: Path) -> None:
    worker = Worker(folder_root, tmp_path)
    open_store(f"{worker.store.url}/artifacts").put("videos/a.mp4", b"x")
    open_store(f"{folder_root}/experiments/group").put("config.json", b"{}")
    hidden = {path.relative_to(folder_root).as_posix() for path in Path(folder_root).rglob(RESERVED)}
    assert hidden == {RESERVED, f"runs/a-run/{RESERVED}"}
    assert keys(worker.store) >= {"artifacts/videos/a.mp4"}
