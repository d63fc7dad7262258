"""Scripts of the user's own, with the habits that they have when nobody runs them but Python."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import PYTHONPATH
from sessions import Rehearsed

from train_cloud.cli import main
from train_cloud.config import load_run_file
from train_cloud.errors import InputError
from train_cloud.run.session import read_sessions

BEGIN = """\
import argparse, multiprocessing, os, signal, sys, time
import gymnasium
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
import interrupting, train_cloud


def train(*callbacks, **more):
    run = train_cloud.run_file()
    small = {"n_steps": 50, "batch_size": 50, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}}
    model = PPO("MlpPolicy", "CartPole-v1", seed=1, **small)
    own = [interrupting.InterruptAt(), train_cloud.checkpoints(), *callbacks]
    model.learn(run.total_timesteps, callback=own, **more)
    return model


class At(BaseCallback):
    def __init__(self, do):
        super().__init__()
        self.do = do

    def _on_step(self):
        if self.num_timesteps == 75:
            self.do()
        return True
"""
AS_A_PROGRAM = """
parser = argparse.ArgumentParser()
parser.add_argument("--env")
parser.add_argument("--lr", type=float)
arguments = parser.parse_args()  # as it is imported


def square(number):
    return number * number


if __name__ == "__main__":
    assert (arguments.env, arguments.lr) == ("Cart Pole", 1e-3), arguments
    assert os.path.basename(sys.argv[0]) == "script.py" and sys.path[0] == os.path.dirname(sys.argv[0])
    if hasattr(os, "fork"):
        with multiprocessing.get_context("fork").Pool(2) as pool:  # whose processes are ended by SIGTERM
            assert pool.map(square, [2, 3]) == [4, 9]
    os.chdir("/")
    train()
    sys.exit(0)
"""


@pytest.fixture
def script(warm: Any, tmp_path: Path) -> Any:
    """Makes a run of a script's text."""

    def make(text: str, entry_point: str = "script:main", **more: Any) -> Rehearsed:
        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "script.py").write_text(BEGIN + text)
        settings = {"total_timesteps": 150, "save_frequency": 50, "entry_point": entry_point, **more}
        return Rehearsed(warm, tmp_path, {**settings, "code": {"folder": "code"}})

    return make


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["--env 'Cart Pole' --lr 1e-3", ["--env", "Cart Pole", "--lr", "0.001"]])
def test_a_program_has_its_own_arguments(script: Any, arguments: Any) -> None:
    run = script(AS_A_PROGRAM, "script.py", arguments=arguments)
    assert main(["validate", str(run.run_file)]) == 0
    assert run.session("SIGTERM@70") == 75, run.log()
    assert run.session() == 0, run.log()
    assert run.head().outcome == "completed" and run.head().timesteps == 150


LEAVES = {
    "with an error after its training": (
        "def main():\n    train()\n    sys.exit(3)\n",
        "calls sys.exit(3) in script.py",
    ),
    "with words": (
        "def main():\n    train()\n    sys.exit('no such\\nfile')\n",
        "calls sys.exit(no such file) in script.py",
    ),
    "in the middle": (
        "def main():\n    train(At(lambda: sys.exit()))\n",
        "calls sys.exit() in script.py, line 27, before its training was over",
    ),
    "in argparse": (
        "def main():\n    argparse.ArgumentParser().parse_args()\n",
        "before its training was over: see what it says above; its arguments stand under arguments in the run file",
    ),
    "catching all": (
        "def main():\n    try:\n        train(At(lambda: 1 / 0))\n    except Exception:\n        pass\n",
        "the script returned at 75 of 150, before its training was over",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", LEAVES)
def test_how_it_left_is_recorded(script: Any, how: str) -> None:
    text, reason = LEAVES[how]
    run = script(text, arguments=["--unknown"])
    assert run.session() == 1, run.log()
    assert reason in (run.head().reason or "")
    assert run.head().outcome is None and "Traceback" not in (run.head().reason or "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        # its own handlers, and what they raise
        "def main():\n    signal.signal(signal.SIGTERM, lambda *_: sys.exit())\n    train(At(lambda: time.sleep(2)))\n",
        "def main():\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    train(At(lambda: time.sleep(2)))\n",
        # what ends the training is caught
        "def main():\n    try:\n        train()\n    except BaseException as error:\n        print(error)\n",
    ],
)
def test_a_signal_stops_it_where_it_goes_on(script: Any, text: str) -> None:
    run = script(text)
    assert run.session("SIGTERM@85") == 75, run.log()
    assert run.head().timesteps == 100
    sessions = read_sessions(run.store)
    assert sessions[0].end is not None and sessions[0].end["ended_by"] == "signal"
    assert run.session() == 0, run.log()
    assert run.head().outcome == "completed"


def test_one_that_leaves_when_it_is_imported_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "leaves.py").write_text("import sys\n\n\nsys.exit('set MY_PROJECT first')\n")
    (tmp_path / "run.yaml").write_text(
        "run_id: leaves\ntotal_timesteps: 10\nsave_frequency: 5\nentry_point: leaves:main\ncode: {folder: .}\n"
    )
    assert main(["validate", str(tmp_path / "run.yaml")]) == 64
    said = capsys.readouterr().err
    assert said.startswith("train-cloud: entry_point: 'leaves:main': importing") and "set MY_PROJECT first" in said
    environment = "{id: CartPole-v1, wrappers: ['leaves:Wrapper']}"
    changed = ["--set", "entry_point=null", "--set", "algorithm=ppo", "--set", f"environment={environment}"]
    assert main(["validate", str(tmp_path / "run.yaml"), *changed]) == 64
    assert "environment.wrappers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "field", "fix"),
    [
        ({"entry_point": "train"}, "entry_point", "that ends in .py: train:main, or train.py"),
        ({"entry_point": "/abs/train.py"}, "entry_point", "a file below code.folder"),
        ({"entry_point": "../train.py"}, "entry_point", "a file below code.folder"),
        ({"entry_point": "other.py"}, "entry_point", "there is no such file below code.folder"),
        ({"entry_point": "a.py", "code": {}}, "entry_point", "name the folder that it lies in"),
        ({"entry_point": "broken.py"}, "entry_point", "broken.py, line 1 cannot be read"),
        ({"entry_point": "a:main", "arguments": "--x 'y"}, "arguments", "as in a shell: No closing quotation"),
        ({"entry_point": "a:main", "arguments": ["--lr", 1e-3]}, "arguments.1", "give text"),
        ({"arguments": ["x"], "algorithm": "ppo", "environment": {"id": "CartPole-v1"}}, "arguments", "only a script"),
    ],
)  # fmt: skip
def test_bad_entry_points(tmp_path: Path, settings: dict[str, Any], field: str, fix: str) -> None:
    from train_cloud.config import parse_run_file
    from train_cloud.sb3.script import prepare

    (tmp_path / "a.py").write_text("")
    (tmp_path / "broken.py").write_text("def (:\n")
    values = {"run_id": "a", "total_timesteps": 10, "save_frequency": 5, "code": {"folder": "."}, **settings}
    with pytest.raises(InputError) as caught:
        prepare(parse_run_file(values, base=tmp_path))
    assert caught.value.field == field and fix in caught.value.fix, caught.value


def test_whole_numbers_are_arguments_too(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "run_id: a\ntotal_timesteps: 10\nsave_frequency: 5\nentry_point: a:main\narguments: [--n, 3, --on]\n"
    )
    assert load_run_file(tmp_path / "run.yaml").arguments == ("--n", "3", "--on")
    assert load_run_file(tmp_path / "run.yaml", ["arguments=--n 4"]).arguments == ("--n", "4")


@pytest.mark.slow
def test_its_progress_bar_has_the_terminal(tmp_path: Path) -> None:
    """Two bars on one terminal, ours and SB3's, would wait for each other for ever."""
    (tmp_path / "script.py").write_text(BEGIN + "def main():\n    train(progress_bar=True)\n")
    (tmp_path / "run.yaml").write_text(
        "run_id: bar\ntotal_timesteps: 150\nsave_frequency: 50\nentry_point: script:main\ncode: {folder: .}\n"
    )
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "train_cloud", "train", "run.yaml", "--store", "store"]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "TERM": "xterm", "TRAIN_CLOUD_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(ours, 1 << 16):
                said += piece
        except OSError:  # the other end is closed
            pass
        assert process.wait(60) == 0, said.decode()
    os.close(ours)
    assert b"150/150" in said and b"completed at 150 timesteps" in said
