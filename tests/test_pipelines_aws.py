"""A pipeline on AWS: what a machine is given, and session after session on the same machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from small_package import with_small_package

from train_cloud.cli import main
from train_cloud.config import load_run_file
from train_cloud.config.code import code_files
from train_cloud.config.pipeline import is_pipeline, load_pipeline
from train_cloud.errors import InputError
from train_cloud.operations.expand_pipeline import LISTING, expand_pipeline
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.terraform import Terraform

BASE: dict[str, Any] = {
    "run_id": "base",
    "algorithm": "ppo",
    "total_timesteps": 240,
    "save_frequency": 48,
    "environment": {"id": "Slow-v0", "module": "slow"},
    "hyperparameters": {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "policy_kwargs": {"net_arch": [4]}},
    "reproducibility": {"replay": "never"},
    "preservation": {"last": 1},
    "code": {"folder": "."},
}
#: A machine's time, not its processor's.
SLOW = """\
import time

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


class Slow(CartPoleEnv):
    def step(self, action):
        time.sleep(0.05)
        return super().step(action)


gymnasium.register("Slow-v0", Slow, max_episode_steps=50)
"""


def write(folder: Path, sessions: int = 3, base: dict[str, Any] | None = None, **last: Any) -> Path:
    folder.mkdir(exist_ok=True)
    YAML().dump({**BASE, **(base or {})}, folder / "base.yaml")
    (folder / "slow.py").write_text(SLOW)
    each = [{"name": f"s{n}", "config": "base.yaml", "use_previous_checkpoint": n > 1} for n in range(1, sessions + 1)]
    path = folder / "pipeline.yaml"
    YAML().dump({"name": "Steps", "threads": 1, "sessions": [*each[:-1], {**each[-1], **last}]}, path)
    return path


def test_expand_writes_one_file_that_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, overrides={"seed": 5}, success_criteria=None)
    made = tmp_path / "pipeline-sessions" / "steps.yaml"
    assert main(["expand", str(path), "--set", "sessions.s1.seed=3"]) == 0
    assert capsys.readouterr().out.split() == [str(made)]
    found, expected = load_pipeline(made), load_pipeline(path, ["sessions.s1.seed=3"])
    assert is_pipeline(made) and found.id == expected.id == "steps"
    assert found.sessions == expected.sessions and found.written == expected.written.model_copy(update={"id": "steps"})
    assert [session.config.seed for session in found.sessions] == [3, 0, 5]
    with pytest.raises(InputError, match="it is a pipeline file"):
        load_run_file(made)
    listing = json.loads((made.parent / LISTING).read_text())
    assert set(listing["sources"]) == {"../pipeline.yaml", "../base.yaml"} and listing["file"] == "steps.yaml"
    assert listing["options"] == "--set sessions.s1.seed=3" and listing["runs"] == ["steps-s1", "steps-s2", "steps-s3"]
    assert code_files(tmp_path) == ["slow.py"], "neither the pipeline nor what was made of it is code"
    # What a machine has is read once more, wherever it lies there.
    assert load_pipeline(expand_pipeline(made)).sessions == expected.sessions


def test_expand_refuses_what_one_machine_cannot_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    for changed, said in (
        ({"code": {"folder": "other"}}, "s3: code: "),
        ({"secrets": {"KEY": "/b"}}, "s3: secrets.KEY: "),
    ):
        path = write(tmp_path, base={"secrets": {"KEY": "/a"}}, overrides=changed)
        assert main(["expand", str(path)]) == 64
        assert said in capsys.readouterr().err and not (tmp_path / "pipeline-sessions").exists()
    (tmp_path / "pipeline-sessions").mkdir()
    (tmp_path / "pipeline-sessions" / "mine.txt").touch()
    assert main(["expand", str(write(tmp_path))]) == 64
    assert "move what is in this folder elsewhere" in capsys.readouterr().err


def test_what_its_sessions_need_is_installed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "requirements.txt").write_text("tabulate\n")
    made = expand_pipeline(write(tmp_path, overrides={"algorithm": "trpo"}))
    assert main(["requirements", str(made)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert sum("sb3-contrib" in line for line in said) == 1 and said.count("-r") == 1


def test_a_person_trains_it_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(write(tmp_path)), "--store", str(tmp_path / "store")]) == 64
    assert "train-cloud pipeline run trains it" in capsys.readouterr().err


def small_stack(folder: Path, aws: EmbeddedAws, **options: Any) -> Terraform:
    """Whose workers are forked here, and run the package that is loaded."""
    return with_small_package(folder, Terraform(folder, aws, **options))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_notice_in_each_session_and_between_two_and_then_capacity_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("train_cloud.rehearsal.pipeline.Terraform", small_stack)
    path = write(tmp_path / "mine")
    assert main(["rehearse", str(path)]) == 0, capsys.readouterr().out
    report = json.loads((tmp_path / "rehearsal" / "steps" / "report.json").read_text())
    assert report["notices"] == ["s1", "between s1 and s2", "s2", "s3"] and report["machines"] == 5
    assert (report["outcome"], report["final_desired_capacity"]) == ("completed", 0)
    for one in report["sessions"].values():
        assert (one["state"], one["timesteps"], one["repeated"], one["differences"]) == ("completed", 240, 0, [])
    # One of the steps from a session to the next was taken by one machine.
    assert list(report["transitions"]) == ["s3"]
    assert report["resources_left_after_destroy"] == []
    assert sorted(file.name for file in path.parent.iterdir()) == ["base.yaml", "pipeline.yaml", "slow.py"]
