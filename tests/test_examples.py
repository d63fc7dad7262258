"""The examples: accepted as they are, and all launched by one Terraform stack, interrupted, resumed and finished."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from small_package import with_small_package

from train_cloud.config import RunFile, load_run_file
from train_cloud.platforms.ec2.units import TRAIN
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.instance import Instance
from train_cloud.rehearsal.rehearse import as_launched
from train_cloud.rehearsal.scenario import Scenario
from train_cloud.rehearsal.terraform import Terraform
from train_cloud.rehearsal.timeline import Timeline
from train_cloud.run import layout
from train_cloud.run.head import Head, read_head
from train_cloud.run.session import SessionRecord, read_sessions
from train_cloud.runtime.heartbeat import read_timesteps
from train_cloud.sb3.check import check
from train_cloud.store import open_store

EXAMPLES = Path(__file__).parent.parent / "examples"
F1TENTH = importlib.util.find_spec("f1tenth_gym") is not None

#: What makes each example short: it is rehearsed, not trained. A script decides on its model itself.
SMALL = [
    "hyperparameters.learning_starts=40",
    "hyperparameters.buffer_size=4000",
    "hyperparameters.batch_size=32",
    "hyperparameters.policy_kwargs={net_arch: [32, 32]}",
]
#: Timesteps of each, at the speed of its environment two seconds or more: so a third of them is in mid-run.
TOTAL = 3600
TOTALS = {"pendulum_sac": 1000, "racetrack_sac": 160, "racetrack_multiagent": 160, "spread_multiagent": 800}


def _example(path: Path) -> Any:
    if not path.stem.startswith("f1tenth"):
        return pytest.param(path, id=path.stem)
    marks = [pytest.mark.f1tenth, pytest.mark.skipif(not F1TENTH, reason="f1tenth_gym is not installed")]
    return pytest.param(path, id=path.stem, marks=marks)


ALL = [_example(path) for path in sorted(EXAMPLES.glob("*.yaml"))]
#: One of each kind that a worker has to do with: code of one's own, a script, several agents in an environment from
#: PyPI. One agent in an environment from a package is launched by tests/test_rehearse.py and tests/test_machine.py.
KINDS = ("own_environment", "own_script", "racetrack_multiagent")


class Lived(NamedTuple):
    """What came of one example."""

    error: BaseException | None
    reached: list[int]
    """The last step that each of its machines took."""
    head: Head | None
    sessions: list[SessionRecord]
    capacity: int
    models: list[str]


class Rehearsed(NamedTuple):
    lived: dict[str, Lived]
    """By run id."""
    left: list[str]
    """What was there after the destroy."""


def live(scenario: Scenario) -> None:
    """A notice in mid-run, and the end."""
    first = scenario.boot()
    scenario.reach(first, scenario.config.total_timesteps // 3)
    assert isinstance(first, Instance)
    trainer = first.machine.pid(TRAIN)
    assert trainer is not None, "over before the notice: give it more timesteps"
    # It stands still while the notice is on its way, which takes seconds: so the examples can be this short.
    os.kill(trainer, signal.SIGSTOP)
    try:
        scenario.announce(first)
        scenario.until(first, "the trainer is told to stop", lambda: first.state(TRAIN).active == "deactivating")
    finally:
        os.kill(trainer, signal.SIGCONT)
    scenario.interrupt(first)
    scenario.complete(scenario.boot())


def shortened(path: Path, code: Path | None, folder: Path) -> tuple[Path, RunFile]:
    """The example as it is launched."""
    total = TOTALS.get(path.stem, TOTAL)
    changes = [f"total_timesteps={total}", f"save_frequency={total // 4}"]
    if load_run_file(path).entry_point is None:
        changes += SMALL
    if load_run_file(path).evaluation is not None:
        changes.append("evaluation.episodes=1")
    if code is not None:
        changes.append(f"code.folder={code}")
    folder.mkdir()
    return as_launched(path, config := load_run_file(path, changes), changes, folder), config


@pytest.fixture(scope="module")
def one_of_each_kind(tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    return rehearse([EXAMPLES / f"{name}.yaml" for name in KINDS], tmp_path_factory.mktemp("examples"), one_code=True)


@pytest.fixture(scope="module")
def all_of_them(tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    paths = [path for path in sorted(EXAMPLES.glob("*.yaml")) if F1TENTH or not path.stem.startswith("f1tenth")]
    return rehearse(paths, tmp_path_factory.mktemp("examples"), one_code=False)


def rehearse(paths: list[Path], folder: Path, *, one_code: bool) -> Rehearsed:
    """These examples from one apply, two at a time, with a notice each; then one destroy.

    Terraform takes a second for six files, and uploads the package with each code folder: where all have one, with
    everybody's code in it, there is a fraction as much to wait for.
    """
    code = folder / "code" if one_code else None
    if code is not None:
        for path in paths:
            if (own := load_run_file(path).code.folder) is not None:
                shutil.copytree(path.parent / own, code, dirs_exist_ok=True)
    runs = [shortened(path, code, folder / path.stem) for path in paths]
    with EmbeddedAws(log=folder / "aws.log") as aws, contextlib.ExitStack() as machines:
        terraform = Terraform(folder / "stack", aws)
        if one_code:  # the workers' processes have this package loaded
            with_small_package(folder / "stack", terraform)
        variables = {"run_files": [run_file for run_file, _ in runs], "delete_artifacts_on_destroy": True}
        outputs = terraform.apply(variables)
        lives = {}
        for run_file, config in runs:
            group, timeline = outputs["runs"][config.run_id]["autoscaling_group_name"], Timeline(config.run_id)
            lives[config.run_id] = Scenario(aws, group, config, run_file.parent, timeline, limit=300)
            machines.callback(lives[config.run_id].close)
        with aws.permissions_enforced(), ThreadPoolExecutor(2) as pool:
            ends = {run_id: pool.submit(live, scenario) for run_id, scenario in lives.items()}
        lived = {}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in aws.environment().items():
                patch.setenv(name, value)
            for run_id, scenario in lives.items():
                store = open_store(layout.run_url(outputs["s3_bucket_url"], run_id))
                read = read_head(store)
                lived[run_id] = Lived(
                    ends[run_id].exception(),
                    list(scenario.reached.values()),
                    read[0] if read else None,
                    read_sessions(store),
                    scenario.desired_capacity(),
                    [info.key for info in store.list("artifacts/final/") if info.key.endswith("model.zip")],
                )
        machines.close()
        terraform.destroy()
        return Rehearsed(lived, aws.resources_left())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", KINDS)
def test_launched_interrupted_resumed_and_finished(one_of_each_kind: Rehearsed, name: str) -> None:
    finished(one_of_each_kind, name)
    assert one_of_each_kind.left == []


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", ALL)
def test_all_are_launched_each_with_its_own_code(all_of_them: Rehearsed, path: Path) -> None:
    finished(all_of_them, path.stem)
    assert all_of_them.left == []


def finished(rehearsed: Rehearsed, name: str) -> None:
    total = TOTALS.get(name, TOTAL)
    lived = rehearsed.lived[name.replace("_", "-")]
    if lived.error is not None:
        raise lived.error
    assert lived.head is not None
    assert (lived.head.outcome, lived.head.timesteps, lived.capacity) == ("completed", total, 0)
    before, after = lived.sessions
    assert before.notices and before.end is not None and after.end is not None
    committed = before.end["committed_timesteps"]
    assert lived.reached == [committed, total] and total // 3 <= committed < total
    assert after.end["first_timestep"] == committed
    assert before.start["instance_id"] != after.start["instance_id"]
    assert lived.models


@pytest.mark.slow
@pytest.mark.parametrize(("name", "run_id"), [("one_agent", "pendulum-sac"), ("several_agents", "carts")])
def test_the_package_as_a_library(name: str, run_id: str, tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\nimport {name}\n{name}.main(600)\n")

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(script)],
            cwd=tmp_path,
            env={**os.environ, "TRAIN_CLOUD_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    stopped = start()
    try:
        deadline = time.monotonic() + 100
        while (at := reached(tmp_path / ".train-cloud" / run_id)) < 300:
            assert stopped.poll() is None and time.monotonic() < deadline, (at, stopped.poll())
            time.sleep(0.02)
        stopped.send_signal(signal.SIGINT)
        out, error = stopped.communicate(timeout=100)
    finally:
        stopped.kill()
    assert stopped.returncode == 0 and "the same command goes on from there" in out and "Traceback" not in error, error
    for _ in range(2):  # the second time the run is over, and its model is played once more
        again = start()
        try:
            out, error = again.communicate(timeout=250)
        finally:
            again.kill()
        assert again.returncode == 0, error
        assert "return of one episode" in out


def reached(state_dir: Path) -> int:
    try:
        return read_timesteps(state_dir)
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("path", ALL)
def test_accepted(path: Path) -> None:
    if path.stem.startswith("f1tenth"):  # one track in each process
        command = [sys.executable, "-m", "train_cloud", "validate", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        return
    report = check(load_run_file(path))
    if path.stem != "own_script":
        assert report.choice is not None and report.choice.exact
