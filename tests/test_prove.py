"""``prove``: real trainings, interrupted and resumed in fresh processes; what no checkpoint keeps is named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import PYTHONPATH
from ruamel.yaml import YAML
from sessions import Rehearsed

from train_cloud.errors import InputError
from train_cloud.operations.prove import _Kind, prove
from train_cloud.run.session import read_sessions
from train_cloud.runtime.proof_session import VARIABLE, Trial

pytestmark = pytest.mark.slow

PPO = {"n_steps": 50, "batch_size": 25, "n_epochs": 2, "policy_kwargs": {"net_arch": [8]}}


def line(hidden: str = "", **changes: Any) -> dict[str, Any]:
    environment = {"id": "Line-v0", "module": "hidden", "kwargs": {"hidden": hidden}, "state": "pickle"}
    run = {"algorithm": "ppo", "seed": 3, "total_timesteps": 600, "save_frequency": 150, "environment": environment}
    return {**run, "hyperparameters": PPO, **changes}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([PYTHONPATH, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("TRAIN_CLOUD_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path, run: dict[str, Any]) -> Path:
    path = folder / "run.yaml"
    YAML().dump({"run_id": "a-run", **run}, path)
    return path


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "train_cloud", *arguments], capture_output=True, text=True, timeout=300
    )


def test_a_clean_run_of_several_agents_is_equal_and_leaves_nothing(folder: Path) -> None:
    run = written(
        folder,
        {
            "algorithm": "sac_multiagent",
            "total_timesteps": 100_000,
            "save_frequency": 10_000,
            "environment": {"id": "several_agents:walkers"},
            "hyperparameters": {"learning_starts": 40, "batch_size": 16, "buffer_size": 1000,
                                "policy_kwargs": {"net_arch": [8]}},
        },
    )  # fmt: skip
    done = command("prove", str(run), "--steps", "130")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "130 timesteps without interruption, and with SIGTERM at step 49 and SIGKILL at step 89" in done.stdout
    assert "equal         parameters, optimisers, replay buffer" in done.stdout
    counted = re.search(r"after resumes ([\d,]+) attributes are what they were\n", done.stdout)
    assert counted is not None and int(counted[1].replace(",", "")) > 2000, done.stdout
    assert "updates" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["run.yaml", "tmp"]
    assert not [path for path in (folder / "tmp").iterdir() if path.name.startswith("train-cloud")]


def test_what_no_checkpoint_keeps_is_named_by_step_and_layer(folder: Path) -> None:
    done = command("prove", str(written(folder, line("count"))), "--steps", "330")
    assert done.returncode == 1, done.stderr + done.stdout
    named = re.search(r"since step (\d+): the environment's reward differs from the uninterrupted run", done.stderr)
    assert named is not None and 123 < int(named[1]) <= 201, done.stderr
    assert "differs       state." in done.stdout and re.search(r"differs       and \d+ more", done.stdout)
    assert re.search(r"not the same  variables\['HIDDEN_STEPS'\]: .* after the resume", done.stdout), done.stdout
    assert "Traceback" not in done.stderr


def test_states_may_have_objects_of_the_user_s_own_classes(folder: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "watching_code.py").write_text(
        "from stable_baselines3.common.callbacks import BaseCallback\n"
        "class Seen:\n    def __init__(self): self.steps = 0\n"
        "class Watch(BaseCallback):\n"
        "    def _on_step(self):\n"
        "        self.seen = getattr(self, 'seen', [])\n"
        "        if self.n_calls % 10 == 0: self.seen.append(Seen()); self.seen[-1].steps = self.n_calls\n"
        "        return True\n"
    )
    run = {**line("steps"), "code": {"folder": "code"}, "callbacks": ["watching_code:Watch"]}
    proof = prove(written(folder, run), steps=120, quick=True)
    assert proof.equal, proof


def test_a_run_that_does_not_repeat_itself_is_told_from_one_that_is_not_resumed_exactly(folder: Path) -> None:
    proof = prove(written(folder, line("process")), steps=120, quick=True)
    assert not proof.equal and not proof.reproducible
    assert proof.first is not None and (proof.first.timesteps, proof.first.layers[0]) == (1, "reward")
    assert proof.interruptions == (("SIGTERM", 69),)


def test_validate_proves_too(folder: Path) -> None:
    changes = ["callbacks=[hidden:Anneals]", "hyperparameters.n_steps=100"]
    done = command(
        "validate", str(written(folder, line())), "--prove", *(part for c in changes for part in ("--set", c))
    )
    assert done.returncode == 1, done.stderr + done.stdout
    assert "it can be trained" in done.stdout
    assert "the parameters differ from the uninterrupted run" in done.stderr


@pytest.mark.parametrize(
    ("changes", "steps", "words"),
    [
        ({"seeds": [1, 2], "seed": None}, None, "seeds: [1, 2]"),
        ({"initial_model": "run:other"}, None, "export that model"),
        ({}, 10, "at least 20"),
        ({"save_frequency": 0}, None, "save_frequency"),
    ],
)
def test_what_cannot_be_proved_is_refused_in_one_line(
    folder: Path, changes: dict[str, Any], steps: int | None, words: str
) -> None:
    run = {name: value for name, value in line(**changes).items() if value is not None}
    with pytest.raises(InputError, match=words.replace("[", r"\[")):
        prove(written(folder, run), steps=steps)
    assert sorted(path.name for path in folder.iterdir()) == ["run.yaml", "tmp"]


def test_what_a_session_refuses_is_refused_in_its_words(folder: Path) -> None:
    done = command("prove", str(written(folder, line(environment={"id": "Nowhere-v0"}))), "--steps", "60")
    assert done.returncode == 64 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("train-cloud: environment.id: 'Nowhere-v0': "), done.stderr


@pytest.mark.parametrize(
    ("kind", "steps", "quick"),
    [
        (_Kind(rollout=2048), 4097, 2049),
        (_Kind(rollout=5), 1000, 300),
        (_Kind(starts=100), 1000, 300),
        (_Kind(starts=100, episode=1000), 1100, 300),
        (_Kind(starts=10_000), 10_500, 10_100),
        (_Kind(starts=1_000_000), 20_000, 20_000),
        (_Kind(script=True), 5000, 5000),
    ],
)
def test_the_default_is_small_and_large_enough(kind: _Kind, steps: int, quick: int) -> None:
    assert (kind.steps(False), kind.steps(True)) == (steps, quick)


@pytest.mark.parametrize(
    ("rollout", "timesteps", "interruptions"),
    [
        (0, 1000, (("SIGTERM", 371), ("SIGKILL", 681))),
        (2048, 4097, (("SIGTERM", 2805), ("SIGKILL", 4977))),
        (50, 300, (("SIGTERM", 111), ("SIGKILL", 205))),
        (100, 101, (("SIGKILL", 137),)),
        (300, 120, (("SIGTERM", 45), ("SIGKILL", 81))),
    ],
)
def test_it_is_interrupted_where_there_is_something_to_resume_from(
    rollout: int, timesteps: int, interruptions: tuple[tuple[str, int], ...]
) -> None:
    kind = _Kind(rollout=rollout)
    assert kind.interruptions(timesteps, False) == interruptions
    assert kind.interruptions(timesteps, True) == interruptions[:1]


def test_a_session_of_a_proof_is_told_by_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Trial.from_environment() is None
    trial = Trial(Path("digests"), 15, 7)
    monkeypatch.setenv(VARIABLE, trial.text())
    assert Trial.from_environment() == trial


def killed_and_resumed(warm: Any, folder: Path, hidden: str) -> Rehearsed:
    run = Rehearsed(warm, folder, line(hidden, callbacks=["hidden:Waits", "interrupting:InterruptAt"]))
    head = folder / "store" / "runs" / "a-run" / "head.json"
    assert run.session("SIGKILL@280", env={"HEAD_FILE": str(head)}) == -9, run.log()
    assert run.session() == 0, run.log()
    return run


def test_steps_that_a_kill_makes_a_session_compute_again_are_compared(warm: Any, tmp_path: Path) -> None:
    clean = killed_and_resumed(warm, tmp_path / "clean", "")
    progress = read_sessions(clean.store)[1].progress
    assert progress is not None and progress["exact"] and progress["digests"]["compared"] >= 50
    assert progress["exact_evidence"] == clean.final().facts["exact_evidence"] == "not contradicted"

    run = killed_and_resumed(warm, tmp_path / "run", "count")
    first, second = (record.progress or {} for record in read_sessions(run.store))
    assert first["exact"] and first["exact_evidence"] == "not contradicted"
    assert not second["exact"] and second["exact_evidence"] == "no"
    expected = second["exact_because"]
    named = re.fullmatch(r"since step (\d+): the environment's reward differs from what .* computed.*", expected)
    assert named is not None and 150 < int(named[1]) <= 201, expected
    facts = run.final().facts
    assert (facts["exact"], facts["exact_because"], facts["exact_evidence"]) == (False, expected, "no")
