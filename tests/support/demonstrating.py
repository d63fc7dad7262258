"""Experts, environments and networks that the tests of pretraining and recording name in their run files."""

from __future__ import annotations

import os
import signal
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor


def balance(env: Any, observation: Any) -> int:
    """CartPole: push towards the side that the pole leans to."""
    place, speed, angle, turning = observation
    return int(angle + 0.5 * turning + 0.02 * place + 0.05 * speed > 0)


def swing(env: Any, observation: Any) -> Any:
    """Pendulum: gain speed, then hold it up."""
    cosine, sine, speed = observation
    angle = np.arctan2(sine, cosine)
    torque = -10 * angle - 2 * speed if abs(angle) < 0.6 else (2.0 if speed > 0 else -2.0)
    return np.clip([torque], -2, 2).astype(np.float32)


class Reach(gymnasium.Env[Any, Any]):
    """A point that is to be moved to a target; observations and actions of any kind.

    :param shown: ``box``, ``dict`` or ``image``
    :param actions: ``box``, ``discrete``, ``multi``, ``binary``
    """

    def __init__(self, shown: str = "box", actions: str = "box") -> None:
        self.shown = shown
        box = spaces.Box(-2, 2, (2,), np.float32)
        self.observation_space = {
            "box": box,
            "dict": spaces.Dict({"target": spaces.Box(-2, 2, (1,), np.float32), "at": spaces.Discrete(9)}),
            "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
        }[shown]
        self.action_space = {
            "box": spaces.Box(-0.5, 0.5, (1,), np.float32),
            "discrete": spaces.Discrete(3),
            "multi": spaces.MultiDiscrete([3, 2]),
            "binary": spaces.MultiBinary(2),
        }[actions]
        self.place = self.target = 0.0
        self.steps = 0

    def _observation(self) -> Any:
        if self.shown == "dict":
            return {"target": np.array([self.target], np.float32), "at": round(4 * self.place) + 4}
        if self.shown == "image":
            picture = np.zeros((36, 36, 1), np.uint8)
            for value, row in ((self.place, 4), (self.target, 22)):
                column = int(4 + 14 * (value + 1))
                picture[row : row + 10, column - 4 : column + 5] = 255
            return picture
        return np.array([self.place, self.target], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.target = (float(value) for value in self.np_random.uniform(-1, 1, 2))
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        moved = np.asarray(action, np.float64).reshape(-1)[0]
        if isinstance(self.action_space, spaces.MultiBinary):
            moved = 1 + moved - float(action[1])
        moved = moved if isinstance(self.action_space, spaces.Box) else 0.25 * (moved - 1)
        self.place = float(np.clip(self.place + moved, -1, 1))
        distance = abs(self.place - self.target)
        arrived = distance < 0.15
        return self._observation(), -distance, arrived, self.steps >= 12, {"is_success": arrived}


gymnasium.register("Reach-v0", f"{__name__}:Reach")


def reach(env: Any, observation: Any) -> Any:
    """Towards the target."""
    bare = env.unwrapped
    away = bare.target - bare.place
    if isinstance(env.action_space, spaces.Box):
        return np.clip([away], -0.4, 0.4).astype(np.float32)
    step = 1 + (away > 0.125) - (away < -0.125)
    if isinstance(env.action_space, spaces.MultiBinary):
        return np.array([step == 2, step == 0], np.int8)
    return step if isinstance(env.action_space, spaces.Discrete) else np.array([step, int(away > 0)])


class Wanders:
    """Draws from NumPy's global generator and one of its own; keeps what it does from one step to the next."""

    def __init__(self, env: Any) -> None:
        self.env, self.calls = env, 0

    def __call__(self, env: Any, observation: Any) -> Any:
        assert env is self.env
        self.calls += 1
        return int(np.random.random() < 0.5) if self.calls % 3 else balance(env, observation)


class Interrupted(FlattenExtractor):
    """Ends its process at an update of the pretraining: ``AT_UPDATE=<signal>@<number>``; RL's updates come later."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        name, _, at = os.environ.get("AT_UPDATE", "").partition("@")
        if name and self.training and torch.is_grad_enabled():
            if int(at) <= 1:
                os.environ["AT_UPDATE"] = ""
                os.kill(os.getpid(), getattr(signal, name))
            else:
                os.environ["AT_UPDATE"] = f"{name}@{int(at) - 1}"
        return super().forward(observations)


class Forgets(FlattenExtractor):
    """Draws from torch's global generator at each update."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(super().forward(observations), 0.3, self.training)


class Doubled(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Shows everything twice as large."""

    def observation(self, observation: Any) -> Any:
        return 2 * observation


def halved(env: Any, observation: Any) -> int:
    return balance(env, observation / 2)


def wrong(env: Any, observation: Any) -> int:
    return 7


REACHES = 3


class Pressed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Presses a key as a keyboard does, when the first episode begins."""

    def reset(self, **kwargs: Any) -> Any:
        import pygame

        key = os.environ.get("PRESSED")
        if key and pygame.display.get_init():
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=ord(key)))
        return super().reset(**kwargs)


class Centres(FlattenExtractor):
    """Subtracts a running mean that is in no ``state_dict``, and keeps what it gave last, with its graph."""

    def __init__(self, space: Any) -> None:
        super().__init__(space)
        self.scale = torch.nn.Linear(self.features_dim, self.features_dim)
        self.mean = torch.zeros(self.features_dim)
        self.count: torch.Tensor
        self.register_buffer("count", torch.zeros(()), persistent=False)
        self.given: list[torch.Tensor] = []

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.scale(super().forward(observations))
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * found.detach().mean(dim=0)
            self.count += 1
        self.given = [(found - self.mean) / (1 + 0.01 * self.count)]
        return self.given[0]


class Normalizes(FlattenExtractor):
    """With statistics of each batch, which one of a single step has not."""

    def __init__(self, space: Any) -> None:
        super().__init__(space)
        self.normalized = torch.nn.BatchNorm1d(self.features_dim)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.normalized(super().forward(observations))
        return found


class Parametrized(FlattenExtractor):
    """Of the kind of module that torch does not pickle."""

    def __init__(self, space: Any) -> None:
        super().__init__(space)
        self.linear = torch.nn.utils.parametrizations.spectral_norm(
            torch.nn.Linear(self.features_dim, self.features_dim)
        )

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.linear(super().forward(observations))
        return found
