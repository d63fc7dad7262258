"""The whole life of a run on this machine, as `make demo` shows it, with a smaller run."""

from __future__ import annotations

import json
import socket
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from stable_baselines3 import SAC
from torch.utils.tensorboard import SummaryWriter

from train_cloud.cli import main
from train_cloud.rehearsal.systemd import Machine

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
def test_a_run_is_launched_interrupted_killed_resumed_finished_and_cleaned_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    smaller = ("--set", "total_timesteps=1500", "--set", "save_frequency=150")
    assert main(["rehearse", str(EXAMPLES / "pendulum_sac.yaml"), *smaller]) == 0, capfd.readouterr().out
    folder = tmp_path / "rehearsal" / "pendulum-sac"
    report = json.loads((folder / "report.json").read_text())
    assert report["outcome"] == "completed" and report["timesteps"] == 1500
    first, second, third = report["sessions"]
    assert [session["ended_by"] for session in report["sessions"]] == ["notice", "kill", "completed"]
    assert len({session["instance_id"] for session in report["sessions"]}) == 3
    assert first["last_timestep"] == second["first_timestep"] > 450
    assert second["last_timestep"] > third["first_timestep"] == second["committed_timesteps"]
    assert all(session["boot_seconds"] > 0 and session["resume_seconds"] > 0 for session in report["sessions"])
    assert 0 < first["notice_to_commit_seconds"] < 120
    assert second["notice_to_commit_seconds"] is third["notice_to_commit_seconds"] is None
    assert report["timesteps_repeated_after_notice"] == 0
    assert report["timesteps_repeated_after_kill"] == second["last_timestep"] - third["first_timestep"]
    assert 0 < report["timesteps_repeated_after_kill"] <= report["bound"]
    assert report["bit_identical_to_uninterrupted"] is True and report["differences"] == []
    assert report["exact"] is True and report["exact_evidence"] in ("proved", "not contradicted")
    assert report["final_desired_capacity"] == 0
    assert report["resources_left_after_destroy"] == []
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "tensorboard").glob("*tfevents*"))
    assert SAC.load(folder / "model" / "model.zip").num_timesteps == 1500
    told = capfd.readouterr().out
    for words in ("spot interruption notice", "gone without a notice", "session 3 goes on at", "desired capacity is 0"):
        assert words in told


def test_the_tensorboard_unit_serves_the_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    units = tmp_path / "units"
    units.mkdir()
    unit = Path(__file__).parents[1] / "systemd" / "train-cloud-tensorboard.service"
    assert "--port 6006" in unit.read_text()
    (units / unit.name).write_text(unit.read_text().replace("--port 6006", f"--port {port}"))
    state = tmp_path / "state"
    with SummaryWriter(str(state / "artifacts" / "tensorboard")) as writer:
        writer.add_scalar("rollout/ep_rew_mean", -5.0, 100)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "worker.env").write_text(f"TRAIN_CLOUD_STATE_DIR={state}\n")
    paths = {"/opt/train-cloud/venv/bin": str(Path(sys.executable).parent), "/etc/train-cloud": str(tmp_path / "etc")}
    with Machine(units, tmp_path / "run", paths=paths) as machine:
        machine.start(unit.name)
        url = f"http://127.0.0.1:{port}/data/plugin/scalars/tags"
        deadline = time.monotonic() + 120
        tags: dict[str, dict[str, object]] = {}
        while not tags and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    tags = json.loads(answer.read())
            except OSError:
                time.sleep(0.2)
        assert "rollout/ep_rew_mean" in tags.get(".", {}), machine.journal()


def test_bad_input_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["rehearse", str(EXAMPLES / "pendulum_sac.yaml"), "--set", "save_frequency=0"]) == 64
    assert not list(tmp_path.iterdir())
