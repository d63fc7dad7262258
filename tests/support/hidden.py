"""Environments and callbacks with state where no checkpoint sees it, for the tests that must find it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv


def count(name: str) -> int:
    """Counts in a variable of this process, which no checkpoint has: a resumed one counts from 0."""
    os.environ[name] = str(int(os.environ.get(name, "0")) + 1)
    return int(os.environ[name])


class Line(gymnasium.Env[Any, Any]):
    """A walk on a line.

    :param hidden: ``count``: after 200 steps of the process the reward is another one; ``process``: observations depend
        on the process's id; ``noise``: on a generator that nobody seeds
    """

    def __init__(self, hidden: str = "", continuous: bool = False) -> None:
        self.hidden = hidden
        self.observation_space = spaces.Box(-10, 10, (2,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32) if continuous else spaces.Discrete(2)
        self.noise = np.random.default_rng() if hidden == "noise" else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self.length = 0
        return self.place.copy(), {}

    def step(self, action: Any) -> Any:
        steps = count("HIDDEN_STEPS")
        self.length += 1
        push = float(np.asarray(action).reshape(-1)[0])
        self.place = np.clip(self.place + push * self.np_random.uniform(-0.5, 0.5, 2), -9, 9).astype(np.float32)
        # Only where a run is trained: the trial of its state, in processes of its own, would find this at once.
        if self.hidden == "process" and "train_cloud.envs.serve" not in sys.orig_argv:
            self.place[0] += 1e-4 * (os.getpid() % 997)
        if self.noise is not None:
            self.place[0] += 1e-6 * os.urandom(1)[0]
        reward = -float(np.abs(self.place).sum()) - (self.hidden == "count" and steps > 200)
        return self.place.copy(), reward, bool(np.abs(self.place).max() > 3), self.length >= 40, {}


gymnasium.register("Line-v0", "hidden:Line")


def wait_for_commit(timesteps: int) -> None:
    """Of so many: ``HEAD_FILE`` tells. A busy machine may train faster than it commits."""
    head = Path(os.environ.get("HEAD_FILE", "nowhere"))
    deadline = time.monotonic() + 60
    while head.exists() and time.monotonic() < deadline and json.loads(head.read_text())["timesteps"] < timesteps:
        time.sleep(0.01)


class Waits(BaseCallback):
    """At step 160, for the first commit."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 160:
            wait_for_commit(150)
        return True


class WaitsForReplay(BaseCallback):
    """For two commits, and at step 500 for the end of the session's replay; with ``STOP_IN_REPLAY`` it stops the
    training in the midst of it. There it does nothing.
    """

    def _on_step(self) -> bool:
        if Path.cwd().name == "work":  # in the replay
            if os.environ.get("STOP_IN_REPLAY"):
                time.sleep(120)
            return True
        if self.num_timesteps in (160, 340):
            wait_for_commit({160: 150, 340: 300}[self.num_timesteps])
        deadline = time.monotonic() + 120
        while self.num_timesteps == 500 and time.monotonic() < deadline and self.goes_on():
            time.sleep(0.02)
        return True

    @staticmethod
    def goes_on() -> bool:
        running = any(thread.name == "train-cloud-replay" for thread in threading.enumerate())
        started = Path(os.environ.get("STOP_IN_REPLAY", "nowhere"))
        if running and started.exists() and started.stat().st_size:
            os.environ["STOP_IN_REPLAY"] = ""
            os.kill(os.getpid(), signal.SIGTERM)
            return False
        return running


class WritesOutside(BaseCallback):
    """Appends to a file somewhere else at each rollout."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        with Path(os.environ["WRITES_TO"]).open("a") as file:
            file.write(f"{os.getpid()}\n")


def script() -> None:
    """PPO in two processes' worth of environments, as a script of SB3 trains it."""
    import train_cloud

    run = train_cloud.run_file()
    env = DummyVecEnv([lambda: Monitor(Line()), lambda: Monitor(Line())])
    model = PPO("MlpPolicy", env, seed=run.seed, device="cpu", n_steps=25, batch_size=25, n_epochs=2,
                policy_kwargs={"net_arch": [8]})  # fmt: skip
    model.learn(run.total_timesteps, callback=[WaitsForReplay(), train_cloud.checkpoints()])


class Anneals(BaseCallback):
    """Lowers the entropy bonus by a count that only this process has."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.model.ent_coef = 1.0 / count("HIDDEN_ROLLOUTS")  # type: ignore[attr-defined]
