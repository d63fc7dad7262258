"""Weights & Biases: one run there, without gaps and repeats, whoever is killed when; and no training waits for it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sessions import Rehearsed
from test_artifacts import RUN
from wandb_server import Wandb as Server

from train_cloud.artifacts.wandb import Wandb, rows
from train_cloud.config.artifacts import Wandb as Settings
from train_cloud.sb3.compare import differences

pytest.importorskip("wandb")
pytestmark = pytest.mark.slow

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    folder = tmp_path / "artifacts"
    folder.mkdir()
    return folder


def log_up_to(folder: Path, timesteps: int) -> None:
    lines = [f"{step},{step / 2},\n" for step in range(10, timesteps + 1, 10)]
    (folder / "progress.csv").write_text("timesteps,x,note\n" + "".join(lines))


def session(folder: Path, url: str, mode: str = "online") -> Wandb:
    settings = Settings.model_validate({"project": "p", "base_url": url, "mode": mode, "tags": ["test"]})
    return Wandb(settings, "a-run", folder, folder.parent / "scratch", {"gamma": 0.99})


def points(server: Server) -> list[tuple[int, float]]:
    return [(row["timesteps"], row["x"]) for row in server.history("a-run")]


def expected(until: int) -> list[tuple[int, float]]:
    return [(step, step / 2) for step in range(10, until + 1, 10)]


def wait_for(server: Server, until: int) -> None:
    deadline = time.monotonic() + 120
    while points(server) != expected(until) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert points(server) == expected(until)


def test_one_run_over_sessions_and_kills(server: Server, folder: Path) -> None:
    log_up_to(folder, 90)  # beyond what is committed
    first = session(folder, server.url)
    first.committed(50)
    wait_for(server, 50)
    first.kill()
    log_up_to(folder, 70)
    second = session(folder, server.url)
    second.committed(70)
    second.finish(120)
    assert points(server) == expected(70)
    third = session(folder, server.url)
    third.committed(70)
    third.finish(120)
    assert points(server) == expected(70)
    assert {upsert.get("name") for upsert in server.upserts if upsert.get("name")} == {"a-run"}
    assert server.configs["a-run"]["gamma"] == {"value": 0.99}
    assert any(key.startswith("Basic ") for key in server.keys)
    assert not (folder / "wandb").exists()


def test_segments_make_one_run(server: Server, folder: Path) -> None:
    """The second session is killed: the third one writes what it has not."""
    for until, killed in ((30, False), (60, True), (90, False)):
        log_up_to(folder, until)
        current = session(folder, server.url, "offline")
        if killed:
            current.kill()
            continue
        current.committed(until - 10)
        time.sleep(0.1)
        current.committed(until)
        current.finish(120)
    assert server.operations == []
    segments = sorted((folder / "wandb").iterdir())
    assert segments[0].name.startswith("000000000010-")
    assert segments[-1].name.endswith("-000000000090")
    runs = [str(run) for segment in segments for run in (segment / "wandb").glob("offline-run-*-a-run")]
    assert len(runs) == len(segments)
    command = [sys.executable, "-m", "wandb", "sync", "--yes", "--id", "a-run", "-p", "p", *runs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=_environment(server), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert points(server) == expected(90)


def _environment(server: Server) -> dict[str, str]:
    import os

    return {**os.environ, "WANDB_BASE_URL": server.url}


def test_a_table_as_it_is_written(folder: Path) -> None:
    path = folder / "progress.csv"
    assert list(rows(path, -1, 100)) == []
    path.write_text("timesteps,a,b\n10,1.5,\n20,x,2\n30,1\n4")
    assert list(rows(path, 10, 40)) == [(20, {"b": 2.0}), (30, {"a": 1.0}), (4, {})][:2]


def test_a_run_and_its_twin_without(server: Server, warm: Any, tmp_path: Path) -> None:
    """Killed in between, and trained to the same parameters; the server has what progress.csv has."""
    settings = {"project": "p", "base_url": server.url}
    env = {"WANDB_API_KEY": KEY, "WANDB_CONFIG_DIR": str(tmp_path), "WANDB_CACHE_DIR": str(tmp_path)}
    # Stable-Baselines3 logs every fourth episode.
    episodes = {"id": "Pendulum-v1", "kwargs": {"max_episode_steps": 25}}
    small = {**RUN, "total_timesteps": 430, "environment": episodes}
    run = Rehearsed(warm, tmp_path / "run", {**small, "wandb": settings})
    twin = Rehearsed(warm, tmp_path / "twin", small)
    assert run.session("SIGKILL@250", env=env) == -9, run.log()
    assert run.session(env=env) == 0, run.log()
    assert twin.session() == 0, twin.log()
    assert differences(run.final(), twin.final()) == []
    sent = {row["timesteps"]: row["rollout/ep_rew_mean"] for row in server.history("a-run")}
    assert len(server.history("a-run")) == len(sent)
    assert sent == pytest.approx(dict(twin.scalars()["rollout/ep_rew_mean"])) and len(sent) == 4


def test_nobody_answers(warm: Any, tmp_path: Path) -> None:
    """A warning, and the training goes on to its end."""
    settings = {"project": "p", "base_url": "http://127.0.0.1:9"}
    env = {"WANDB_API_KEY": KEY, "WANDB_CONFIG_DIR": str(tmp_path), "WANDB_CACHE_DIR": str(tmp_path)}
    run = Rehearsed(warm, tmp_path / "run", {**RUN, "total_timesteps": 300, "wandb": settings})
    assert run.session(env=env) == 0, run.log()
    assert "Weights & Biases" in run.log()


def test_without_a_key_it_is_refused(warm: Any, tmp_path: Path) -> None:
    run = Rehearsed(warm, tmp_path, {**RUN, "wandb": {"project": "p"}})
    assert run.session() == 64
    assert "set WANDB_API_KEY" in run.log()
    named = Rehearsed(warm, tmp_path / "named", {**RUN, "secrets": {"A_SECRET": "/x"}})
    assert named.session() == 64
    assert "secrets.A_SECRET: ***: set the environment variable A_SECRET" in named.log(), (
        "a key may have been pasted there"
    )
