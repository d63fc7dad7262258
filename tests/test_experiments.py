"""Experiments on one machine: real processes, killed at any instant; each run ends as it would have alone."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML
from until import until

from train_cloud.checkpoint import read_manifest, restore
from train_cloud.cli import main
from train_cloud.config import load_experiment
from train_cloud.experiments.estimate import Pace, estimates, measured
from train_cloud.experiments.processes import last_words, shortly
from train_cloud.experiments.standing import Standing, failures_in_a_row, standings
from train_cloud.operations.cancel import cancel
from train_cloud.platforms.local import KEEP_CANCELLED, Local
from train_cloud.run import layout
from train_cloud.run.head import Head, Lease, Token, conclude, read_head
from train_cloud.run.session import SessionRecord, read_sessions
from train_cloud.runtime.evaluations import model_checksum
from train_cloud.runtime.heartbeat import read_timesteps
from train_cloud.store import open_store

BASE: dict[str, Any] = {
    "run_id": "base",
    "algorithm": "ppo",
    "total_timesteps": 1536,
    "save_frequency": 512,
    "environment": {"id": "CartPole-v1"},
    "hyperparameters": {"n_steps": 128, "batch_size": 32, "n_epochs": 4, "policy_kwargs": {"net_arch": [8]}},
    "evaluation": {"episodes": 1, "max_steps": 50},
    "reproducibility": {"replay": "never"},
    "preservation": {"last": 1},
}
EXPERIMENT: dict[str, Any] = {
    "experiment": "nets",
    "base": "base.yaml",
    "vary": {"net": {"small_net": {}, "large": {"hyperparameters.policy_kwargs.net_arch": [16]}}},
    "seeds": [1, 2],
    "max_parallel": 2,
}
IDS = ("nets-small-net-s1", "nets-small-net-s2", "nets-large-s1", "nets-large-s2")


def write(folder: Path, run_file: dict[str, Any] | None = None, **changed: Any) -> Path:
    folder.mkdir(exist_ok=True)
    YAML().dump({**BASE, **(run_file or {})}, folder / "base.yaml")
    path = folder / "experiment.yaml"
    YAML().dump({**EXPERIMENT, **changed}, path)
    return path


def command(path: Path, *options: str) -> list[str]:
    places = ["--store", str(path.parent / "store"), "--state-dir", str(path.parent / "state")]
    return [sys.executable, "-m", "train_cloud", "train", str(path), *places, *options]


def train(path: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(path, *options), env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )


def begin(path: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command(path, *options), stderr=subprocess.PIPE, text=True)


def head(path: Path, run_id: str) -> Head | None:
    read = read_head(open_store(layout.run_url(str(path.parent / "store"), run_id)))
    return read[0] if read is not None else None


def sessions(path: Path, run_id: str) -> list[SessionRecord]:
    return read_sessions(open_store(layout.run_url(str(path.parent / "store"), run_id)))


def outcomes(path: Path, run_ids: Sequence[str] = IDS) -> list[str | None]:
    found = [head(path, run_id) for run_id in run_ids]
    return [None if one is None else one.outcome for one in found]


def parameters(path: Path, run_id: str) -> tuple[int, str]:
    """Of the model that a run ended with."""
    store = open_store(layout.run_url(str(path.parent / "store"), run_id))
    read = read_head(store)
    assert read is not None and read[0].manifest is not None
    snapshot = restore(store, read_manifest(store, read[0].manifest), parts={"model"})
    return read[0].timesteps, model_checksum(snapshot.parts["model"])


def results(path: Path) -> dict[str, Any]:
    """``all_results.json`` without its times."""
    found: dict[str, Any] = json.loads((path.parent / "store/experiments/nets/all_results.json").read_text())
    runs = {run_id: {**run, "at": None} for run_id, run in found["runs"].items()}
    return {**found, "runs": runs, "created_at": None, "updated_at": None}


def reached(path: Path, run_id: str) -> int:
    try:
        return read_timesteps(path.parent / "state" / run_id)
    except OSError:
        return 0


def wait_for(process: subprocess.Popen[str], condition: Callable[[], object], what: str) -> None:
    """While an experiment is trained."""

    def come() -> bool:
        assert process.poll() is None, process.communicate()[1]
        return bool(condition())

    until(come, what)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write(tmp_path_factory.mktemp("uninterrupted"))
    done = train(path)
    assert done.returncode == 0, done.stderr
    assert outcomes(path) == ["completed"] * 4
    return path


@pytest.mark.slow
def test_each_run_ends_as_it_would_have_alone(uninterrupted: Path, tmp_path: Path) -> None:
    assert main(["expand", str(uninterrupted), "--out", str(tmp_path)]) == 0
    path = tmp_path / "nets-large-s2.yaml"
    assert train(path, TRAIN_CLOUD_THREADS="1", OMP_NUM_THREADS="1").returncode == 0
    assert parameters(path, "nets-large-s2") == parameters(uninterrupted, "nets-large-s2")
    assert len({parameters(uninterrupted, run_id) for run_id in IDS}) == 4


def whole_tree(process: subprocess.Popen[str]) -> list[psutil.Process]:
    above = psutil.Process(process.pid)
    return [above, *above.children(recursive=True)]


@pytest.mark.slow
def test_killed_and_stopped_at_any_instant_it_ends_the_same(uninterrupted: Path, tmp_path: Path) -> None:
    path = write(tmp_path)
    # The whole tree is killed while two runs are trained.
    process = begin(path)
    wait_for(process, lambda: max(reached(path, IDS[0]), reached(path, IDS[1])) > 700, "700 timesteps")
    for each in whole_tree(process):
        each.kill()
    process.wait()
    assert "completed" not in outcomes(path)

    # This process alone is killed: those that train notice, and stop with a commit.
    process = begin(path)
    wait_for(process, lambda: reached(path, IDS[0]) > 1100, "1,100 timesteps")
    tree = whole_tree(process)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(tree[1:], timeout=120)
    assert not alive
    stopped = sessions(path, IDS[0])[-1]
    assert stopped.end is not None and stopped.end["ended_by"] in ("signal", "completed")

    # Ctrl-C, once one run is over: the same command goes on, and what is over is not begun again.
    process = begin(path)
    wait_for(process, lambda: "completed" in outcomes(path) and reached(path, IDS[2]) > 0, "a run's end, and the next")
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 75, said
    over = [run_id for run_id, outcome in zip(IDS, outcomes(path), strict=True) if outcome == "completed"]
    assert 0 < len(over) < 4
    before = {run_id: len(sessions(path, run_id)) for run_id in over}

    done = train(path)
    assert done.returncode == 0, done.stderr
    assert outcomes(path) == ["completed"] * 4
    assert {run_id: len(sessions(path, run_id)) for run_id in over} == before
    for run_id in IDS:
        assert parameters(path, run_id) == parameters(uninterrupted, run_id)
    assert results(path) == results(uninterrupted)


@pytest.mark.slow
def test_a_run_that_cannot_save_says_so_and_goes_on_by_itself(tmp_path: Path) -> None:
    """No file may have more than 1.5 MB, for a while; the model has more. It is what a full disk does."""
    network = {"n_steps": 128, "batch_size": 128, "n_epochs": 1, "policy_kwargs": {"net_arch": [512, 512]}}
    path = write(tmp_path, {"hyperparameters": network, "evaluation": None}, vary={}, seeds=[1])
    process = begin(path)
    most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1_500_000, most))  # which its children inherit
    assert process.stderr is not None
    said = next((line for line in process.stderr if "cannot save" in line), "")
    assert "nets-s1: training, at" in said and "cannot save, and tries again: " in said and "File too large" in said

    def lifted() -> bool:
        """A process may begin between two looks, or end."""
        limited = 0
        for each in whole_tree(process):
            with contextlib.suppress(ProcessLookupError):
                limited += resource.prlimit(each.pid, resource.RLIMIT_FSIZE, (most, most))[0] != most
        return not limited

    until(lifted, "no process has the limit any more")
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    assert outcomes(path, ["nets-s1"]) == ["completed"]


FAILING = """
import os
from stable_baselines3.common.callbacks import BaseCallback

class Fails(BaseCallback):
    def _on_step(self):
        if self.num_timesteps >= 100:
            raise RuntimeError("no luck")
        return True

class Tells(BaseCallback):
    def _on_training_start(self):
        import torch
        variables = ("CUDA_VISIBLE_DEVICES", "OF_THE_RUN", "OMP_NUM_THREADS")
        print("told", torch.get_num_threads(), *(f"{name}={os.environ.get(name)}" for name in variables))

    def _on_step(self):
        return True
"""


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(FAILING)
    vary = {
        "way": {
            "bad": {"callbacks": ["mine:Fails"]},
            "good": {"callbacks": ["mine:Tells"]},
            "cold": {"callbacks": ["mine:Tells"], "env": {"OF_THE_RUN": "yes"}},
        }
    }
    small = {"code": {"folder": "code"}, "total_timesteps": 256, "save_frequency": 256, "evaluation": None}
    path = write(tmp_path, small, vary=vary, seeds=[1], max_attempts=2, max_parallel=3, threads=2)
    names = ["nets-bad-s1", "nets-good-s1", "nets-cold-s1"]
    first = train(path, CUDA_VISIBLE_DEVICES="0,1")
    assert first.returncode == 1
    assert "train-cloud: nets-bad-s1 failed: RuntimeError: no luck" in first.stderr
    assert outcomes(path, names) == [None, "completed", "completed"]
    said = [(tmp_path / "state" / name / "output.log").read_text() for name in names[1:]]
    assert "told 2 CUDA_VISIBLE_DEVICES=1 OF_THE_RUN=None OMP_NUM_THREADS=2" in said[0]
    assert "told 2 CUDA_VISIBLE_DEVICES=0 OF_THE_RUN=yes OMP_NUM_THREADS=2" in said[1]

    assert train(path).returncode == 1
    assert outcomes(path, names[:1]) == ["failed"]
    found = head(path, "nets-bad-s1")
    assert found is not None and str(found.reason).startswith("2 attempts without a new commit; the last: RuntimeError")
    assert results(path)["runs"]["nets-bad-s1"]["outcome"] == "failed"
    third = train(path)
    assert third.returncode == 1 and "failed" in third.stderr
    assert [len(sessions(path, name)) for name in names] == [2, 1, 1]

    (tmp_path / "code" / "mine.py").write_text(FAILING.replace('"no luck"', '"worse luck"'))
    again = train(path, "--continue")
    assert "RuntimeError: worse luck" in again.stderr or "code" in again.stderr


def test_states_follow_from_the_heads(tmp_path: Path) -> None:
    names = ("new", "cancelled", "limited", "own-limit", "failed", "begun", "damaged", "empty")
    vary: dict[str, Any] = {"way": {name: {} for name in names}}
    vary["way"]["own-limit"] = {"limits": {"hours": 1}}
    cells = load_experiment(write(tmp_path, vary=vary, seeds=[1])).cells
    stores = {name: open_store(layout.run_url(str(tmp_path / "store"), f"nets-{name}-s1")) for name in names}
    cancel(str(tmp_path / "store"), "nets-cancelled-s1", begun=False)
    conclude(stores["limited"], "stopped", "limits of the experiment nets: 1 hours are used", session=0, owner="a")
    conclude(stores["own-limit"], "stopped", "limits.hours: 1.0 instance hours are used", session=1, owner="a")
    stores["own-limit"].put(layout.start_key(1), json.dumps({"setup_seconds": 4000}).encode())
    conclude(stores["failed"], "failed", "for good", session=1, owner="a")
    Lease.take(stores["begun"], Token(1, 0), "a")
    stores["damaged"].put(layout.HEAD, b"{")
    stores["empty"].put(layout.start_key(1), b"{}")  # as one that was killed before it had a head

    def states(**options: Any) -> dict[str, str]:
        found = standings(str(tmp_path / "store"), cells, 3, **options)
        return {one.cell.levels["way"]: one.state for one in found}

    expected = {
        "new": "new",
        "cancelled": "cancelled",
        "limited": "open",
        "own-limit": "stopped",
        "failed": "failed",
        "begun": "open",
        "damaged": "failed",
        "empty": "new",
    }
    assert states() == expected
    assert states(train_on=True) == {**expected, "cancelled": "open", "failed": "open"}


def record(number: int, ended_by: str | None, first: int = 0, committed: int = 0) -> SessionRecord:
    end = {"ended_by": ended_by, "first_timestep": first, "committed_timesteps": committed} if ended_by else None
    return SessionRecord(number=number, start={}, end=end)


@pytest.mark.parametrize(
    ("ends", "count"),
    [
        ([], 0),
        ([("failure", 0, 0)], 1),
        ([("failure", 0, 0), ("failure", 0, 0)], 2),
        ([("failure", 0, 0), (None, 0, 0), ("failure", 0, 0)], 2),
        ([("failure", 0, 0), ("failure", 0, 64)], 1),
        ([("failure", 0, 0), ("signal", 0, 64), ("failure", 64, 64)], 1),
        ([("failure", 0, 0), ("signal", 0, 0)], 0),
    ],
)
def test_failures_in_a_row(ends: list[tuple[str | None, int, int]], count: int) -> None:
    assert failures_in_a_row([record(number, *end) for number, end in enumerate(ends)]) == count


@pytest.mark.slow
def test_a_limit_over_all_runs_stops_them_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    path = write(tmp_path, {"total_timesteps": 20_480, "evaluation": None}, seeds=[1], max_parallel=1)
    names = ["nets-small-net-s1", "nets-large-s1"]
    done = train(path, "--set", "limits.hours=0.0004")
    assert done.returncode == 0, done.stderr
    assert outcomes(path, names) == ["stopped", None]
    found = head(path, names[0])
    assert found is not None and found.reason == "limits of the experiment nets: 0.0004 hours are used"
    assert found.timesteps < 20_480
    assert results(path)["runs"][names[0]]["outcome"] == "stopped"
    # Nothing is begun while it stands.
    assert train(path, "--set", "limits.hours=0.0004").returncode == 0
    assert [len(sessions(path, name)) for name in names] == [1, 0]
    done = train(path, "--set", "limits.hours=5", "--set", f"total_timesteps={found.timesteps + 512}")
    assert done.returncode == 0, done.stderr
    assert outcomes(path, names) == ["completed", "completed"]


@pytest.mark.slow
def test_an_override_of_what_a_run_is_trained_with_is_refused(uninterrupted: Path) -> None:
    before = sorted((uninterrupted.parent / "store").rglob("*"))
    done = train(uninterrupted, "--set", "hyperparameters.gamma=0.5")
    assert done.returncode == 64
    assert done.stderr.startswith("train-cloud: nets-small-net-s1: hyperparameters.gamma: 0.5: it was begun with None")
    assert sorted((uninterrupted.parent / "store").rglob("*")) == before


def test_the_experiment_is_trained_by_one_process_in_a_folder(tmp_path: Path) -> None:
    from filelock import FileLock

    path = write(tmp_path)
    (tmp_path / "state" / "nets-experiment").mkdir(parents=True)
    with FileLock(tmp_path / "state" / "nets-experiment" / "train.lock"):
        assert main(["train", str(path), *command(path)[5:]]) == 64
    assert len(load_experiment(path).cells) == 4


@pytest.mark.slow
def test_what_is_cancelled_is_not_trained_on_until_somebody_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vary = {"net": {"first": {"total_timesteps": 200_000}, "second": {}, "third": {}}}
    path = write(tmp_path, {"evaluation": None, "save_frequency": 128}, vary=vary, seeds=[1], max_parallel=1)
    first, second, third = names = [f"nets-{name}-s1" for name in ("first", "second", "third")]
    store = ["--store", str(tmp_path / "store")]
    (tmp_path / "store").mkdir()
    process = begin(path)

    def committed() -> bool:
        found = head(path, first)
        return found is not None and found.timesteps > 0 and reached(path, first) > 300

    wait_for(process, committed, "300 timesteps, and a first commit")
    assert main(["cancel", third, *store]) == 64  # nobody has begun it
    assert "nothing is stored under" in capsys.readouterr().err
    assert main(["cancel", first, *store]) == 0
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said
    assert outcomes(path, names) == ["stopped", "completed", "completed"]
    cancelled = head(path, first)
    assert cancelled is not None and str(cancelled.reason).startswith("cancelled on ") and cancelled.timesteps > 0
    assert results(path)["runs"][first]["outcome"] == "stopped"
    assert train(path).returncode == 0 and len(sessions(path, first)) == 1

    # An experiment is cancelled with the runs that nobody has begun yet.
    vary["net"]["fourth"] = {}
    write(tmp_path, {"evaluation": None, "save_frequency": 128}, vary=vary, seeds=[1], max_parallel=1)
    assert main(["cancel", str(path), *store]) == 0
    assert train(path).returncode == 0
    assert outcomes(path, [*names, "nets-fourth-s1"]) == ["stopped", "completed", "completed", "stopped"]
    assert sessions(path, "nets-fourth-s1") == []
    more = ("--continue", "--set", f"vary.net.first.total_timesteps={cancelled.timesteps + 128}")
    assert train(path, *more).returncode == 0
    assert outcomes(path, [*names, "nets-fourth-s1"]) == ["completed"] * 4
    assert len(sessions(path, second)) == 1


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_cancelled_while_its_process_starts_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    cancelled = cancel(str(tmp_path), "a-run", begun=False)
    store = open_store(layout.run_url(str(tmp_path), "a-run"))
    if not asked:
        monkeypatch.setenv(KEEP_CANCELLED, "1")
    found = Local().reopen(store)
    assert found is not None
    assert (found.outcome, found.reason) == ((None, None) if asked else ("stopped", cancelled.reason))
    # What has ended at a limit is gone on with all the same.
    other = open_store(layout.run_url(str(tmp_path), "other-run"))
    conclude(other, "stopped", "limits.hours: 1 instance hours are used", session=0, owner="a")
    reopened = Local().reopen(other)
    assert reopened is not None and reopened.outcome is None


@pytest.mark.slow
def test_status_logs_and_what_is_pulled(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, store = str(uninterrupted), ["--store", str(uninterrupted.parent / "store")]
    assert main(["status", path, *store]) == 0
    told = capsys.readouterr().out
    assert "experiment nets: 4 of 4 runs completed" in told and "not begun" not in told
    assert main(["logs", "--experiment", "nets", *store]) == 0
    assert capsys.readouterr().out.count("completed at 1536 timesteps") == 4
    assert main(["logs", path, *store, "--follow"]) == 64
    assert main(["status", "--experiment", "others", *store]) == 64
    assert "no run of an experiment of that name has begun" in capsys.readouterr().err

    for how in ([path], ["--experiment", "nets"]):
        out = tmp_path / str(len(how))
        assert main(["pull", *how, *store, "--out", str(out), "--what", "final_model.zip"]) == 0
        assert sorted(str(found.relative_to(out)) for found in out.rglob("*") if found.is_file()) == [
            *("all_results.json", "config.json", "large/seed_1/final_model.zip", "large/seed_2/final_model.zip"),
            *("s3_manifest.json", "small_net/seed_1/final_model.zip", "small_net/seed_2/final_model.zip"),
        ]
        listed = json.loads((out / "s3_manifest.json").read_text())
        files = {one["local_path"]: one for one in listed["uploaded_files"]}
        assert len(files) == listed["total_files"] > 20
        one = files["small_net/seed_2/final_model.zip"]
        assert one["s3_key"].startswith(listed["base_prefix"])
        assert Path(one["s3_key"]).read_bytes() == (out / one["local_path"]).read_bytes()
    stored = uninterrupted.parent / "store/experiments/nets"
    assert {found.name for found in stored.iterdir()} >= {"config.json", "all_results.json", "s3_manifest.json"}
    cells = json.loads((stored / "config.json").read_text())["cells"]
    assert cells[IDS[1]] == {"levels": {"net": "small_net"}, "seed": 2}


@pytest.mark.slow
def test_an_experiment_is_deleted_with_its_runs(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    shutil.copytree(uninterrupted.parent / "store", store)
    (store / "runs/another/artifacts").mkdir(parents=True)
    (store / "runs/another/artifacts/file").write_text("not ours to delete")
    # A run that has nothing of what is asked for yet keeps nobody from the others'.
    (store / "runs" / IDS[0] / "artifacts/final_model.zip").unlink()
    pull = ["pull", "--experiment", "nets", "--store", str(store), "--out", str(tmp_path / "out"), "--what"]
    assert main([*pull, "final_model.zip"]) == 0
    assert len(list((tmp_path / "out").rglob("final_model.zip"))) == 3
    assert main([*pull, "no_such_file"]) == 64

    monkeypatch.setattr("sys.stdin", io.StringIO("other\n"))
    assert main(["delete", "--experiment", "nets", "--store", str(store)]) == 64
    assert (store / "runs" / IDS[0] / "head.json").exists()
    (store / "experiments/nets/config.json").write_text("{")  # the runs themselves know whose they are
    assert main(["delete", "--experiment", "nets", "--store", str(store), "--yes"]) == 0
    assert [found.name for found in (store / "runs").iterdir() if any(found.rglob("*.*"))] == []
    assert (store / "runs/another/artifacts/file").exists()
    assert not (store / "experiments/nets/config.json").exists()


def test_a_damaged_run_keeps_nobody_from_ending_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    store.mkdir()
    named = [str(write(tmp_path)), "--store", str(store)]
    assert main(["cancel", *named]) == 0
    (store / "runs" / IDS[0] / "head.json").write_text("{")
    capsys.readouterr()
    assert main(["cancel", *named]) == 1
    said = capsys.readouterr()
    assert [f"{run_id} is stopped at 0" in said.out for run_id in IDS] == [False, True, True, True]
    assert f"{IDS[0]} is not cancelled: " in said.out and "1 of 4 runs are not cancelled" in said.err

    assert main(["delete", *named, "--yes"]) == 64
    assert f"run: '{IDS[0]}': nothing was deleted: it is damaged" in capsys.readouterr().err
    assert all((store / "runs" / run_id / "head.json").exists() for run_id in IDS)
    assert main(["delete", *named, "--yes", "--force"]) == 0
    assert list(store.rglob("head.json")) == []


@pytest.mark.slow
def test_validate_builds_each_model_once_and_names_a_faulty_run(
    uninterrupted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, store = str(uninterrupted), str(uninterrupted.parent / "store")
    before = sorted(uninterrupted.parent.rglob("*"))
    assert main(["train", path, "--store", store, "--dry-run", "--set", "seeds=[1, 3]"]) == 0
    lines = capfd.readouterr().out.splitlines()
    states = {line.split()[0]: line.split()[4] for line in lines if line.startswith("nets-")}
    assert states == {"nets-small-net-s1": "completed", "nets-small-net-s3": "new"} | {
        "nets-large-s1": "completed",
        "nets-large-s3": "new",
    }
    # How long they take is known here, from those that are trained; what it costs is not.
    assert "time 0:0" in lines[-1] and "dollars unknown" in lines[-1]

    assert main(["validate", path, "--set", "seeds=[7, 8, 9]"]) == 0
    told = capfd.readouterr().out
    assert "nets-small-net-s7: resume exact" in told and "nets: all 6 runs can be trained" in told
    assert "built         2 of them" in told and "time unknown, dollars unknown" in told

    assert main(["validate", path, "--set", "vary.net.large.environment.id=Nowhere-v1"]) == 64
    assert "train-cloud: nets-large-s1: environment.id: 'Nowhere-v1'" in capfd.readouterr().err
    assert sorted(uninterrupted.parent.rglob("*")) == before


def session(number: int, **more: Any) -> SessionRecord:
    start = {"run_file": {"algorithm": "ppo", "environment": {"id": "CartPole-v1"}}, "host": "laptop", **more}
    progress = {"steps_per_second": 100.0 * number, "seconds": 3600.0, "price": start.pop("price", None)}
    return SessionRecord(number=number, start=start, progress=progress)


def test_paces_are_medians_by_machine_environment_and_algorithm() -> None:
    price = {"spot": 0.4, "life_cycle": "spot", "volume": 0.01, "address": 0.005}
    runs = [
        [session(1), session(3), session(2)],
        [session(1, instance_type="g5.xlarge", price=price), session(1, instance_type="g5.xlarge")],
        [session(4, run_file={"algorithm": "sac", "environment": {"id": "CartPole-v1"}})],
        [SessionRecord(number=1, start={})],
    ]
    found = measured(runs)
    assert found == {
        ("laptop", "CartPole-v1", "ppo"): Pace(200.0, None, 3),
        ("g5.xlarge", "CartPole-v1", "ppo"): Pace(100.0, 0.4 + 0.01 + 0.005, 2),
        ("laptop", "CartPole-v1", "sac"): Pace(400.0, None, 1),
    }


def test_what_is_left_is_estimated_and_the_rest_unknown(tmp_path: Path) -> None:
    small, _, large, _ = load_experiment(write(tmp_path, {"total_timesteps": 720_000})).cells
    known = {("g5.xlarge", "CartPole-v1", "ppo"): Pace(100.0, 0.5, 1)}
    found = [Standing(small, "new"), Standing(large, "open", 360_000), Standing(large, "completed", 720_000)]
    assert [(one.hours, one.dollars) for one in estimates(found, known, "g5.xlarge")] == [(2, 1), (1, 0.5), (0, 0)]
    assert {(one.hours, one.dollars) for one in estimates(found, known, "laptop")} == {(None, None)}


def test_only_an_experiment_is_trained_in_parallel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    for option in (["--parallel", "2"], ["--dry-run"]):
        assert main(["train", str(tmp_path / "base.yaml"), "--store", str(tmp_path / "store"), *option]) == 64
        assert f"{option[0]}: " in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (None, None),
        ("at a limit", "at a limit"),
        ("first\nsecond", "first"),
        ("Traceback (most recent call last):\n  File x\n    raise\nValueError: no\n", "ValueError: no"),
        ("Traceback (most recent call last):\n  File x\n    raise\nValueError: no\nBecause\n", "ValueError: no"),
    ],
)
def test_why_a_run_failed_in_one_line(reason: str | None, words: str | None) -> None:
    assert shortly(reason) == words


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", None),
        ("first\nlast\n\n", "last"),
        ("train-cloud: run: no\n", "run: no"),
        ("Traceback (most recent call last):\n  File x\nCudaError: no\nTry this.\n", "CudaError: no"),
        ("Traceback (most recent call last):\n  File x\nCaught: no\ntrain-cloud: the end\n", "the end"),
        ("Traceback (most recent call last):\n  File x\nCaught: no\n" + "more\n" * 50, "more"),
    ],
)
def test_what_a_process_said_last(tmp_path: Path, said: str, words: str | None) -> None:
    (tmp_path / "output.log").write_text(said)
    assert last_words(tmp_path / "output.log") == words
