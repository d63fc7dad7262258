"""The trial of an environment's state: two instances in two processes of their own, which nothing is shared by."""

from __future__ import annotations

import copy
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import one_only
import psutil
import pytest

from train_cloud.envs.fresh import Crashed, Fresh
from train_cloud.envs.make import CodeFailed, One
from train_cloud.envs.state import Info
from train_cloud.envs.trial import Choice, Trial, choose
from train_cloud.errors import InputError

MODULE = "one_only"


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("OneOnly-v0", "replay"),
        ("ClassCounter-v0", "pickle"),
        ("ModuleCounter-v0", "replay"),
        ("Sets-v0", "pickle"),
    ],
)
def test_what_a_process_shares_is_carried_or_not_there(name: str, provider: str) -> None:
    choice = choose(One(name, MODULE))
    assert (choice.provider, choice.exact) == (provider, True), choice.because
    assert (one_only.ClassCounter.episodes, one_only.LEVELS, one_only.seen) == (0, {"level": 0}, [])


def test_what_close_raises_and_what_cannot_be_copied_is_told() -> None:
    choice = choose(One("Rough-v0", MODULE))
    assert (choice.provider, choice.exact, choice.uncopied) == ("replay", True, ("client",)), choice.because
    (note,) = choice.notes
    assert note.startswith("its close() raises AttributeError: 'NoneType' object has no attribute 'close' (one_only.py")


def test_an_info_hands_on_what_cannot_be_copied() -> None:
    env = one_only.Rough()
    given = {"client": env.client, "past": [1, 2]}
    with pytest.raises(TypeError):
        copy.deepcopy(given)
    info = Info(given, frozenset({"client"}))
    (copied,) = copy.deepcopy([info])
    assert copied == given and copied["client"] is env.client and copied["past"] is not given["past"]
    copied["terminal_observation"] = 3  # as SB3 does
    assert copy.deepcopy(copied)["terminal_observation"] == 3
    assert pickle.loads(pickle.dumps(info)) == {"past": [1, 2]}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Aborts-v0", "was ended by SIGABRT"),
        ("Leaves-v0", "ended with exit code 5 without an answer: the step says: no"),
    ],
)
def test_a_process_that_ends_is_not_ours(name: str, told: str) -> None:
    with pytest.raises(Crashed, match=told):
        choose(One(name, MODULE))


def test_a_wrong_id_is_refused_as_anywhere() -> None:
    with pytest.raises(InputError, match="NoSuch") as caught:
        choose(One("NoSuch-v0", MODULE))
    assert (caught.value.field, caught.value.value) == ("environment.id", "NoSuch-v0")


def test_a_trial_goes_on_in_the_background_without_torch(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "its_own.py").write_text(
        textwrap.dedent("""
        import sys
        import gymnasium
        import one_only
        class Torchless(one_only.Walk):
            def step(self, action):
                assert "torch" not in sys.modules, "torch is loaded"
                return super().step(action)
        gymnasium.register("Torchless-v0", Torchless)
        """)
    )
    trial = Trial(One("Torchless-v0", "its_own"), folder=str(folder))
    assert str(folder) not in sys.path and trial.choice().provider == "pickle"
    broken = Trial(One("Torchless-v0", "its_own"), "own", folder=str(folder))
    with pytest.raises(InputError, match="no get_state"):
        broken.choice()


def _pid_and_wait(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def _raise(error: Exception) -> None:
    raise error


def _start_a_process() -> int:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid


def test_a_fresh_process_answers_once() -> None:
    assert Fresh().call(len, "abc") == 3
    one = Fresh()
    assert one.call(_pid_and_wait, 0.0) == one.pid
    assert not psutil.pid_exists(one.pid)
    assert Fresh().call(lambda value: value + 1, 1) == 2
    with pytest.raises(CodeFailed, match="ValueError: no"):
        Fresh().call(_raise, ValueError("no"))
    with pytest.raises(InputError) as caught:
        Fresh().call(_raise_input)
    assert (caught.value.field, caught.value.fix) == ("environment.kwargs.a", "give less")


def _raise_input() -> None:
    raise InputError("environment.kwargs.a", 3, "give less")


def test_nothing_is_left_of_a_fresh_process() -> None:
    left = Fresh().call(_start_a_process)
    deadline = time.monotonic() + 30
    while psutil.pid_exists(left) and psutil.Process(left).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _keep_the_interpreter(begun: str) -> None:
    Path(begun).touch()
    ctypes.PyDLL(None).sleep(600)  # as native code does that never comes back: no other thread gets a turn


def _wait(begun: str) -> None:
    Path(begun).touch()
    time.sleep(600)


@pytest.mark.parametrize("what", ["_wait", "_keep_the_interpreter"])
def test_a_fresh_process_ends_with_the_one_that_started_it(what: str, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    code = "import test_trial; from train_cloud.envs.fresh import Fresh; one = Fresh(); print(one.pid, flush=True);"
    process = subprocess.Popen(
        [sys.executable, "-c", code + f"one.call(test_trial.{what}, {str(begun)!r})"],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    until = time.monotonic() + 60
    while not begun.exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    assert os.getpgid(child) == child, "Ctrl-C must not reach it"
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_was_found_is_kept_whole() -> None:
    from train_cloud.envs.known import recall, record

    choice = Choice("replay", True, "the same", ("its close() raises",), ("client",))
    assert recall(record(choice, {}, []), {}) == choice
