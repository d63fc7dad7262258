"""Programs whose callbacks, algorithms and policies hold state of every kind: the user's code of test_objects.py."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import importlib.util
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DQN, PPO, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

Program = tuple[BaseAlgorithm, list[Any]]
SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 2}


def ppo(env: Any = "Pendulum-v1", kind: type[PPO] = PPO, **arguments: Any) -> PPO:
    arguments = {"policy": "MlpPolicy", **SMALL, "policy_kwargs": {"net_arch": [8]}, **arguments}
    return kind(env=env, seed=3, device="cpu", **arguments)


class Steers(BaseCallback):
    """What subclasses hold decides on the entropy bonus, and so on all that follows."""

    def _on_step(self) -> bool:
        self.see(float(self.locals["rewards"].mean()))
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, PPO)
        self.model.ent_coef = 0.5 * float(np.sin(float(self.decide())))  # a bound would hide what is beyond it

    def see(self, reward: float) -> None:
        raise NotImplementedError

    def decide(self) -> Any:
        raise NotImplementedError


# ------------------------------------------------------------------------------------------------------------- values


@dataclasses.dataclass
class Record:
    best: float = -1e9
    seen: list[float] = dataclasses.field(default_factory=list)


class Slotted:
    __slots__ = ("_count", "total")

    def __init__(self) -> None:
        self._count, self.total = 0, 0.0


class Chain:
    """Nested, and each part knows the whole."""

    def __init__(self, depth: int, whole: Chain | None = None) -> None:
        self.whole = whole or self
        self.value = 0.0
        self.next = Chain(depth - 1, self.whole) if depth else None


class Rewards(list[float]):
    limit = 5


class Named(dict[str, float]):
    pass


class Containers(Steers):
    def __init__(self) -> None:
        super().__init__()
        self.recent: collections.deque[float] = collections.deque(maxlen=7)
        self.counts: collections.Counter[int] = collections.Counter()
        self.grouped: collections.defaultdict[int, list[float]] = collections.defaultdict(list)
        self.ordered: collections.OrderedDict[int, float] = collections.OrderedDict()
        self.rewards, self.named, self.kinds = Rewards(), Named(), {1, 2}

    def see(self, reward: float) -> None:
        self.recent.append(reward)
        self.counts[int(reward)] += 1
        self.grouped[self.num_timesteps % 3].append(reward)
        self.ordered[self.num_timesteps % 5] = reward
        self.ordered.move_to_end(self.num_timesteps % 5)
        self.rewards.append(reward)
        self.rewards.limit = self.num_timesteps % 4
        self.named[str(int(reward))] = reward
        self.kinds.add(int(reward))

    def decide(self) -> Any:
        newest = next(reversed(self.ordered.values()))
        return 0.01 * (
            sum(self.recent) + max(self.counts.values()) + len(self.grouped[1]) + newest + len(self.rewards)
            + self.rewards.limit + sum(self.named.values()) + len(self.kinds)
        )  # fmt: skip


class Objects(Steers):
    def __init__(self) -> None:
        super().__init__()
        self.record, self.slotted, self.chain = Record(), Slotted(), Chain(3)
        self.statistics = RunningMeanStd(shape=())
        self.path = Path("somewhere")

    def see(self, reward: float) -> None:
        self.record.best = max(self.record.best, reward)
        self.record.seen.append(reward)
        self.slotted.total += reward
        self.slotted._count += 1
        self.statistics.update(np.array([reward]))
        innermost = self.chain.next.next.next  # type: ignore[union-attr]
        assert innermost is not None
        innermost.value += reward
        innermost.whole.value -= 0.5 * reward

    def decide(self) -> Any:
        assert self.chain.whole is self.chain
        return 0.01 * (
            self.record.best + np.mean(self.record.seen[-9:]) + self.slotted.total / self.slotted._count
            + float(self.statistics.mean) + self.chain.value
        )  # fmt: skip


class Generators(Steers):
    def __init__(self) -> None:
        super().__init__()
        self.new, self.old = np.random.default_rng(1), np.random.RandomState(2)
        self.python, self.torch = random.Random(3), torch.Generator().manual_seed(4)
        self.shared = self.new.normal  # a bound method of an extension's object

    def see(self, reward: float) -> None:
        self.drawn = self.new.random() + self.old.rand() + self.python.random()

    def decide(self) -> Any:
        return self.drawn * float(torch.rand((), generator=self.torch)) * 0.1 + 0.01 * float(self.shared())


class Arrays(Steers):
    """One array is a view of the other; a large one travels beside the pickle."""

    def __init__(self) -> None:
        super().__init__()
        self.table = np.zeros((100, 200))
        self.row = self.table[3]
        self.tensor = torch.zeros(4)
        self.objects = np.array([None, {"a": 1}, [2]], dtype=object)

    def see(self, reward: float) -> None:
        self.row[self.num_timesteps % 200] += reward
        self.table[3, 7] += 0.1
        self.tensor[self.num_timesteps % 4] += reward
        self.late = torch.ones(3, dtype=torch.bfloat16) * reward
        self.objects[1]["a"] += 1

    def decide(self) -> Any:
        return (
            float(self.table[3].sum() + self.row[7] + self.tensor.sum() + self.late.sum() + self.objects[1]["a"]) / 500
        )


# ----------------------------------------------------------------------------------------------- functions and sharing


def functional() -> Program:
    """A function as a callback, whose variables are its state; another one shares one of them."""
    calls = 0
    recent: collections.deque[float] = collections.deque(maxlen=5)

    def callback(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        nonlocal calls
        calls += 1
        recent.append(float(locals_["rewards"].mean()))
        locals_["self"].ent_coef = 0.001 * sum(recent) + 0.0001 * calls
        return True

    model = ppo(learning_rate=lambda left: 1e-3 * (1 + 0.01 * calls))
    return model, [ConvertCallback(callback)]


def local_class() -> Program:
    """State in the variables that a local class's methods close over, and in a list that was passed in."""
    seen: list[float] = []
    passed: list[float] = []
    factor = 0.001

    class Local(Steers):
        count = 0

        def __init__(self, into: list[float]) -> None:
            super().__init__()
            self.into = into
            self.made = [Part() for _ in range(2)]

        def see(self, reward: float) -> None:
            nonlocal factor
            seen.append(reward)
            self.into.append(reward)
            factor *= 1.001
            Local.count += 1
            self.made[0].value += reward
            self.made[1] = Part()

        def decide(self) -> Any:
            assert self.into is passed
            return factor * (sum(seen[-10:]) + len(passed) + Local.count + self.made[0].value)

    class Part:
        value = 0.0

    return ppo(), [Local(passed)]


class Statistics:
    def __init__(self) -> None:
        self.total, self.history = 0.0, [0.0]


class Bonus(gymnasium.Wrapper[Any, Any, Any, Any]):
    def __init__(self, env: Any, statistics: Statistics) -> None:
        super().__init__(env)
        self.statistics = statistics

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        self.statistics.total += 0.01 * float(reward)
        return (observation, float(reward) + self.statistics.total, *rest)


class Reads(Steers):
    def __init__(self, statistics: Statistics) -> None:
        super().__init__()
        self.statistics = statistics
        self.again = {"the same": statistics}
        self.latest = self.again["the same"].history

    def see(self, reward: float) -> None:
        self.statistics.total *= 0.99
        self.latest.append(reward)

    def decide(self) -> Any:
        assert self.again["the same"] is self.statistics and self.latest is self.statistics.history
        return 0.01 * self.statistics.total + 0.001 * len(self.statistics.history)


def shared_with_a_wrapper() -> Program:
    statistics = Statistics()
    env = DummyVecEnv([lambda: Bonus(gymnasium.make("Pendulum-v1"), statistics)])
    return ppo(env), [Reads(statistics)]


class Switches(BaseCallback):
    """Changes what the algorithm computes with, by functions that know it and the callback."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 1e-3
        self.on_end: list[Callable[[], None]] = []

    def _on_step(self) -> bool:
        model: Any = self.model
        if self.num_timesteps == 70:
            self.rate = 1e-4
            model.lr_schedule = lambda left: self.rate * left
            model.clip_range = functools.partial(self.clip, model)
            model.learning_rate = 1e-5
            self.on_end.append(self.slower)
        return True

    def _on_rollout_end(self) -> None:
        for call in self.on_end:
            call()

    def slower(self) -> None:
        self.rate *= 0.9

    @staticmethod
    def clip(model: Any, left: float) -> float:
        return 0.1 + 0.01 * int(model._n_updates) / 100


class LowersTheRate(BaseCallback):
    def _on_step(self) -> bool:
        if self.num_timesteps == 70:
            self.model.learning_rate = 1e-5
            self.model._setup_lr_schedule()
        return True


# ------------------------------------------------------------------------------------------------------------ networks


def bonus_of(error: torch.Tensor, buffer: Any) -> None:
    buffer.advantages += error.detach().numpy().reshape(buffer.advantages.shape)


class Novelty(BaseCallback):
    """Networks of its own that learn along: made before the training, at its start, or when they are needed."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.when = when
        self.predictor: Any = None

    def make(self) -> None:
        self.predictor = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 4))
        self.target = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
        self.target.requires_grad_(False)
        self.average = copy.deepcopy(self.predictor)
        self.optimizer = torch.optim.AdamW(self.predictor.parameters(), lr=1e-2)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 10)
        self.parts = {"head": self.predictor[3], "all": [self.predictor, self.target]}

    def _init_callback(self) -> None:
        if self.when == "init":
            self.make()

    def _on_training_start(self) -> None:
        if self.when == "start":
            self.make()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.predictor is None:
            self.make()
        assert self.parts["head"] is self.predictor[3]
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        seen = torch.as_tensor(buffer.observations, dtype=torch.float32).flatten(0, 1)
        error = ((self.predictor(seen) - self.target(seen)) ** 2).mean(-1)
        bonus_of(error, buffer)
        error.mean().backward()
        if self.model._n_updates % 4 == 0:  # the gradients of two rollouts together
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        with torch.no_grad():
            for mine, theirs in zip(self.average.parameters(), self.predictor.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)
        buffer.advantages += float(next(self.average.parameters()).sum())


class ForwardModel(PPO):
    """An algorithm with a network, an optimiser, tensors and buffers of its own."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self.network = nn.Linear(3, 3)
        self.own_optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-2)
        self.weights = torch.ones(3, requires_grad=True)
        self.errors: collections.deque[float] = collections.deque(maxlen=3)
        self.scales: dict[str, Any] = {"a": torch.zeros(2), "b": [np.random.default_rng(0)]}
        self.memory = ReplayBuffer(50, self.observation_space, self.action_space, device="cpu")

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "network", "own_optimizer", "memory"]

    def train(self) -> None:
        seen = torch.as_tensor(self.rollout_buffer.observations[:, 0], dtype=torch.float32)
        error = ((self.network(seen[:-1]) * self.weights - seen[1:]) ** 2).mean(-1)
        self.rollout_buffer.advantages[:-1, 0] += error.detach().numpy() + self.scales["b"][0].normal()
        self.errors.append(float(error.mean()))
        self.last_error = error.mean()
        self.own_optimizer.zero_grad()
        error.mean().backward()
        self.own_optimizer.step()
        self.scales["a"] += 0.1
        self.memory.add(
            seen[:1].numpy(), seen[1:2].numpy(), np.zeros((1, 1)), np.array(self.errors)[-1:], np.zeros(1), [{}]
        )
        self.ent_coef = 0.01 * float(sum(self.errors) + self.scales["a"].sum() + self.memory.rewards.sum())
        super().train()


class Accumulates(PPO):
    """Steps its policy's optimiser after every second rollout only."""

    def train(self) -> None:
        self.policy.set_training_mode(True)
        for data in self.rollout_buffer.get(16):
            _, log_prob, _ = self.policy.evaluate_actions(data.observations, data.actions)
            loss: Any = -(log_prob * data.advantages).mean()
            loss.backward()
        self._n_updates += 1
        if self._n_updates % 2 == 0:
            self.policy.optimizer.step()
            self.policy.optimizer.zero_grad()


class Surgery(BaseCallback):
    """Freezes and unfreezes layers, adds parameters to the optimiser, replaces a layer and an optimiser, hooks in."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def _on_step(self) -> bool:
        policy: Any = self.model.policy
        if self.num_timesteps == 40:
            policy.value_net.requires_grad_(False)
            policy.action_net = nn.Sequential(policy.action_net, nn.Linear(1, 1))
            policy.optimizer.add_param_group({"params": list(policy.action_net[1].parameters()), "lr": 1e-2})
            policy.mlp_extractor.register_forward_hook(self.count)
        if self.num_timesteps == 100:
            policy.optimizer = torch.optim.SGD(policy.parameters(), lr=1e-2, momentum=0.9)
            policy.value_net.requires_grad_(True)
        return True

    def count(self, module: Any, arguments: Any, output: Any) -> None:
        self.passes += 1

    def _on_rollout_end(self) -> None:
        self.model.ent_coef = 1e-4 * self.passes  # type: ignore[attr-defined]


class Extractor(BaseFeaturesExtractor):
    """Normalises by statistics that are in no state_dict."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, 3)
        self.seen = 0
        self.mean = torch.zeros(3)
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.ones(3), persistent=False)
        self.history: collections.deque[float] = collections.deque(maxlen=4)
        self.dropout = nn.Dropout(0.0)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        if len(observations) == 1:
            self.seen += 1
            self.mean = self.mean + 0.01 * (observations[0] - self.mean)
            self.scale.mul_(1.001)
            self.history.append(float(observations.sum()))
        self.dropout.p = min(0.5, self.seen / 1000)
        seen: torch.Tensor = self.dropout((observations - self.mean) * self.scale + 1e-3 * sum(self.history))
        return seen


class Noisy(DiagGaussianDistribution):
    """Counts how often it was sampled from."""

    samples = 0

    def sample(self) -> torch.Tensor:
        self.samples += 1
        return super().sample() * (1 + 0.01 * (self.samples % 7))


class Policy(ActorCriticPolicy):
    """Counters, a plain list and a distribution of its own."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        named["features_extractor_class"] = Extractor
        super().__init__(*arguments, **named)
        self.action_dist = Noisy(1)
        self.calls, self.log = 0, [0.0]

    def predict_values(self, observation: Any) -> torch.Tensor:
        self.calls += 1
        self.log.append(float(self.calls))
        return super().predict_values(observation) + 0.01 * (self.calls % 5) + 1e-3 * len(self.log)


# ------------------------------------------------------------------------------------------------------------- buffers


class CarriesOver(RolloutBuffer):
    """Adds the mean of the rollout before to each advantage."""

    def reset(self) -> None:
        self.before = float(self.rewards.mean()) if hasattr(self, "rewards") else 0.0
        self.kept = self.advantages.copy() if hasattr(self, "advantages") else np.zeros((32, 1), np.float32)
        super().reset()

    def compute_returns_and_advantage(self, last_values: Any, dones: Any) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        self.advantages += self.before + 0.1 * self.kept


class Prioritized(ReplayBuffer):
    """Samples by priorities, which each use lowers."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.priorities = np.zeros(self.buffer_size)
        self.largest = 1.0

    def add(self, *arguments: Any, **named: Any) -> None:
        self.priorities[self.pos] = self.largest
        super().add(*arguments, **named)

    def sample(self, batch_size: int, env: Any = None) -> Any:
        size = self.buffer_size if self.full else self.pos
        weights = self.priorities[:size] / self.priorities[:size].sum()
        chosen = np.random.choice(size, batch_size, p=weights)
        self.priorities[chosen] *= 0.9
        self.largest *= 1.01
        return self._get_samples(chosen, env)


class Rewrites(ReplayBuffer):
    """Changes rows after they were added, which no checkpoint sees."""

    def sample(self, batch_size: int, env: Any = None) -> Any:
        self.rewards[: self.pos] *= 0.99
        return super().sample(batch_size, env)


class Drifting(ActionNoise):
    """Noise that remembers."""

    def __init__(self) -> None:
        self.generator, self.place = np.random.default_rng(5), np.zeros(1)
        super().__init__()

    def __call__(self) -> Any:
        self.place = 0.9 * self.place + self.generator.normal(0, 0.1, 1)
        return self.place.astype(np.float32)

    def reset(self) -> None:
        """It goes on."""


def off_policy(kind: Any, env: str, **arguments: Any) -> BaseAlgorithm:
    small = {"learning_starts": 20, "batch_size": 16, "buffer_size": 100, "policy_kwargs": {"net_arch": [8]}}
    made: BaseAlgorithm = kind("MlpPolicy", env, seed=3, device="cpu", **{**small, **arguments})
    return made


# -------------------------------------------------------------------------------------------------------- environments


class Tries(Steers):
    """Environments of its own, which go on from where they were."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = gymnasium.make("Pendulum-v1")
        self.raw.reset(seed=1)
        self.several = {"one": [VecNormalize(make_vec_env("Pendulum-v1", 2, seed=5))]}
        self.several["one"][0].reset()
        self.rewards = 0.0

    def see(self, reward: float) -> None:
        _, one, _, over, _ = self.raw.step(np.array([0.5]))
        if over:
            self.raw.reset()
        _, two, _, _ = self.several["one"][0].step(np.array([[0.1], [0.2]]))
        self.rewards += float(one) + float(two.sum())

    def decide(self) -> Any:
        return 0.001 * self.rewards


# ----------------------------------------------------------------------------------------- modules, classes, functions

HISTORY: list[float] = []
SETTINGS: dict[str, Any] = {"factor": 0.001, "nested": {"steps": 0}}
TABLE = np.linspace(0.0, 1.0, 100_000)
CALLS = 0
RECENT: collections.deque[float] = collections.deque(maxlen=9)
LOCK = threading.Lock()


def counted(reward: float) -> float:
    """Has an attribute that counts, a default that grows, and changes a global."""
    global CALLS
    CALLS += 1
    counted.calls = getattr(counted, "calls", 0) + 1  # type: ignore[attr-defined]
    return reward


def remembering(reward: float, memory: list[float] = []) -> float:  # noqa: B006
    memory.append(reward)
    return sum(memory[-5:])


class Shared:
    instances = 0
    last = 0.0
    seen: list[float] = []  # noqa: RUF012

    def __init__(self) -> None:
        type(self).instances += 1


class Globals(Steers):
    total = 0.0

    def see(self, reward: float) -> None:
        HISTORY.append(counted(reward))
        RECENT.append(reward)
        SETTINGS["factor"] *= 1.001
        SETTINGS["nested"]["steps"] += 1
        Shared()
        Shared.last = reward
        Shared.seen.append(reward)
        Globals.total += 1.0

    def decide(self) -> Any:
        calls = counted.calls  # type: ignore[attr-defined]
        found = sum(HISTORY[-9:]) + CALLS + calls + remembering(self.num_timesteps) + Shared.instances + Shared.last
        found += len(Shared.seen) + self.total + sum(RECENT)
        return found * float(SETTINGS["factor"]) * 1e-4 + 1e-6 * SETTINGS["nested"]["steps"]


# ----------------------------------------------------------------------------------------------------- what is not kept


class Quiet(Steers):
    """Handles that a fresh one does as well as: a log file, a lock, an event, a bar."""

    def __init__(self) -> None:
        super().__init__()
        self.file = Path(os.environ["HOLDING"], "log.txt").open("w")  # noqa: SIM115
        self.lock, self.event, self.total = threading.Lock(), threading.Event(), 0.0
        self.late: Any = None
        self.writer: Any = None
        self.library = np

    def see(self, reward: float) -> None:
        with self.lock:
            self.total += reward
        if self.late is None:
            from torch.utils.tensorboard import SummaryWriter
            from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

            self.late = Path(os.environ["HOLDING"], "late.txt").open("a")  # noqa: SIM115
            self.writer = [SummaryWriter(os.environ["HOLDING"]), tqdm(total=10, disable=True)]  # type: ignore[no-untyped-call, unused-ignore]
        self.late.write(f"{reward}\n")
        if self.num_timesteps == 60:
            self.event.set()

    def decide(self) -> Any:
        return 0.001 * self.total + 0.1 * self.event.is_set()


class ReadsAFile(Steers):
    """Every second reward is weighed by the next line of a file, which is open."""

    def __init__(self) -> None:
        super().__init__()
        path = Path(os.environ["HOLDING"], "weights.txt")
        path.write_text("".join(f"{n}\n" for n in range(1000)))
        self.file = path.open()
        self.total = 0.0

    def see(self, reward: float) -> None:
        self.total += reward * float(self.file.readline())

    def decide(self) -> Any:
        return 1e-4 * self.total


class Endless(Steers):
    """A Python generator in the middle of its work, and a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = self.count()
        self.inside = {"a": [self.count()]}

    def count(self) -> Iterator[int]:
        yield from range(10**6)

    def see(self, reward: float) -> None:
        self.number = next(self.numbers)
        if self.num_timesteps == 50:
            self.line = socket.socket()

    def decide(self) -> Any:
        return 1e-3 * self.number


class Refuses:
    def __init__(self) -> None:
        self.steps = 0

    def __reduce__(self) -> Any:
        raise TypeError("no copies of this")


class Stubborn(Steers):
    """An object that refuses to be pickled, and one that appears late."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = Refuses()

    def see(self, reward: float) -> None:
        self.steps.steps += 1
        if self.num_timesteps == 50:
            self.late = {"x": Refuses()}

    def decide(self) -> Any:
        return 1e-3 * self.steps.steps


class Moments(BaseCallback):
    """Damps what Adam remembers, and moves weights, through the very tensors and through others with their memory."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[torch.Tensor] = []
        self.weights: dict[str, torch.Tensor] = {}
        table = torch.zeros(3, 4)
        self.row, self.table = table[1], table

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if not self.moments:  # the first update makes them
            states = self.model.policy.optimizer.state.values()
            self.moments = [tensor for state in states for name, tensor in state.items() if name == "exp_avg"]
            self.weights = self.model.policy.state_dict()
            self.late = torch.arange(6.0)
            self.views = [self.late[1:4], self.late.view(2, 3)]
            return
        for moment in self.moments:
            moment.mul_(0.5)
        self.row += 1
        self.views[0] += 0.1
        shift = float(self.table.sum() + self.late.sum() + self.views[1].sum())
        self.weights["action_net.bias"].add_(1e-3 * np.sin(shift))


def stock_callbacks() -> list[Any]:
    folder = os.environ["HOLDING"]
    bars = [ProgressBarCallback()] if importlib.util.find_spec("tqdm") else []
    judge = make_vec_env("Pendulum-v1", 1, seed=7)
    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=20, min_evals=1)
    return [
        EvalCallback(
            judge, eval_freq=60, n_eval_episodes=1, callback_after_eval=stop, log_path=folder,
            callback_on_new_best=StopTrainingOnRewardThreshold(10.0), best_model_save_path=folder, verbose=0,
        ),
        EveryNTimesteps(50, CheckpointCallback(1, folder)),
        LogEveryNTimesteps(50),
        CallbackList([StopTrainingOnMaxEpisodes(100), *bars]),
    ]  # fmt: skip


PROGRAMS: dict[str, Callable[[], Program]] = {
    "containers": lambda: (ppo(), [Containers()]),
    "objects": lambda: (ppo(), [Objects()]),
    "generators": lambda: (ppo(), [Generators()]),
    "arrays and tensors": lambda: (ppo(), [Arrays()]),
    "a function and its variables": functional,
    "a local class": local_class,
    "shared with a wrapper": shared_with_a_wrapper,
    "schedules by functions": lambda: (ppo(), [Switches()]),
    "a lower rate": lambda: (ppo(), [LowersTheRate()]),
    "networks, made early": lambda: (ppo(), [Novelty("init")]),
    "networks, made at the start": lambda: (ppo(), [Novelty("start")]),
    "networks, made late": lambda: (ppo(), [Novelty("late")]),
    "an algorithm's own": lambda: (ppo(kind=ForwardModel), []),
    "tensors in others' memory": lambda: (ppo(), [Moments()]),
    "gradients of two rollouts": lambda: (ppo(kind=Accumulates), []),
    "surgery": lambda: (ppo(), [Surgery()]),
    "a policy's own": lambda: (ppo(policy=Policy), []),
    "an extractor's own": lambda: (ppo(policy_kwargs={"features_extractor_class": Extractor, "net_arch": [8]}), []),
    "a rollout buffer's own": lambda: (ppo(rollout_buffer_class=CarriesOver), []),
    "priorities": lambda: (off_policy(DQN, "CartPole-v1", replay_buffer_class=Prioritized), []),
    "noise that remembers": lambda: (off_policy(TD3, "Pendulum-v1", action_noise=Drifting()), []),
    "environments of a callback": lambda: (ppo(), [Tries()]),
    "modules and classes": lambda: (ppo(), [Globals()]),
    "handles": lambda: (ppo(), [Quiet()]),
    "a file that is read": lambda: (ppo(), [ReadsAFile()]),
    "SB3's callbacks": lambda: (ppo(), stock_callbacks()),
    "SB3's callbacks, off-policy": lambda: (off_policy(DQN, "CartPole-v1"), stock_callbacks()[1:]),
}
#: What cannot be kept → paths that must be named, and no others.
NAMED: dict[str, tuple[Callable[[], Program], tuple[str, ...]]] = {
    "a generator at work, a socket": (
        lambda: (ppo(), [Endless()]),
        ("callbacks[0] Endless.numbers", "callbacks[0] Endless.inside['a'][0]", "callbacks[0] Endless.line"),
    ),
    "objects that refuse": (
        lambda: (ppo(), [Stubborn()]),
        ("callbacks[0] Stubborn.steps", "callbacks[0] Stubborn.late['x']"),
    ),
    "rows that are rewritten": (
        lambda: (off_policy(DQN, "CartPole-v1", replay_buffer_class=Rewrites), []),
        ("algorithm.replay_buffer",),
    ),
}
