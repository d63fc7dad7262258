"""Vectorised environments as people bring them: their own, Gymnasium's, PettingZoo's in others."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from one_only import Walk
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

LINE = spaces.Box(-np.inf, np.inf, (2,), np.float64)
PUSH = spaces.Box(-1.0, 1.0, (1,), np.float32)


class _Few(VecEnv):
    """What a VecEnv needs besides its play."""

    actions: Any

    def __init__(self, count: int, seen: Any = LINE, acts: Any = PUSH) -> None:
        super().__init__(count, seen, acts)

    def step_async(self, actions: Any) -> None:
        self.actions = actions

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        return []

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


class Pool(_Few):
    """Vectorised by hand, with NumPy, and a generator that nobody seeds."""

    def __init__(self, count: int = 3) -> None:
        super().__init__(count)
        self.dice = np.random.default_rng()
        self.places, self.steps = np.zeros(count), np.zeros(count, int)

    def reset(self) -> Any:
        self.places, self.steps[:] = self.dice.normal(size=self.num_envs), 0
        return self.see()

    def see(self) -> Any:
        return np.stack([self.places, self.steps.astype(float)], axis=1)

    def push(self) -> Any:
        return 0.1 * self.dice.normal(size=self.num_envs)

    def step_wait(self) -> Any:
        self.places = self.places + 0.3 * self.actions[:, 0] + self.push()
        self.steps += 1
        dones, infos = self.steps >= 12, [{"at": float(place)} for place in self.places]
        for index in np.flatnonzero(dones):
            infos[index]["terminal_observation"] = self.see()[index]
            self.places[index], self.steps[index] = self.dice.normal(), 0
        return self.see(), -np.abs(self.places).astype(np.float32), dones, infos


class Engine:
    """Of a library: a copy of it is a new one."""

    def __init__(self) -> None:
        self.turns = 0

    def __reduce__(self) -> Any:
        return Engine, ()


class WithEngine(Pool):
    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine()

    def push(self) -> Any:
        self.engine.turns += 1
        return super().push() + 1e-3 * self.engine.turns


class ByHandle(Pool):
    """The library's object is known by a number, and found in a table."""

    table: ClassVar[dict[int, Engine]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.handle = 100 + len(self.table)
        self.table[self.handle] = Engine()

    def push(self) -> Any:
        self.table[self.handle].turns += 1
        return super().push() + 1e-3 * self.table[self.handle].turns


class WithThread(Pool):
    """Something works beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.worker = threading.Thread(target=print)


class Asks(ByHandle):
    """The same library, which can be asked for its state."""

    def get_state(self) -> Any:
        return self.places, self.steps.copy(), self.dice.bit_generator.state, self.table[self.handle].turns

    def set_state(self, state: Any) -> None:
        self.places, self.steps, self.dice.bit_generator.state, self.table[self.handle].turns = state


class Counting(DummyVecEnv):
    """SB3's, with something of its own."""

    def __init__(self) -> None:
        super().__init__([Walk, Walk])
        self.ended = 0

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = super().step_wait()
        self.ended += int(dones.sum())
        return observations, rewards + self.ended, dones, infos


class Locked(Walk):
    """Can only be played again."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.episodes = threading.Lock(), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.episodes += 1
        return super().reset(seed=seed, options=options)

    def harder(self) -> float:
        return 1.0 + self.episodes


gymnasium.register("VectorLocked-v0", "vectors:Locked")


class OfGymnasium(_Few):
    """Gymnasium's vector environment as SB3 wants it."""

    def __init__(self, kind: str = "sync") -> None:
        mode = gymnasium.vector.AutoresetMode.SAME_STEP
        made = gymnasium.make_vec("VectorLocked-v0", 2, vectorization_mode=kind, vector_kwargs={"autoreset_mode": mode})
        self.inner = gymnasium.wrappers.vector.RecordEpisodeStatistics(made)
        super().__init__(2, made.single_observation_space, made.single_action_space)

    def reset(self) -> Any:
        return self.inner.reset(seed=7)[0]

    def step_wait(self) -> Any:
        observations, rewards, terminated, truncated, info = self.inner.step(self.actions)
        gained = info.get("episode", {}).get("r", np.zeros(2))
        return observations, (rewards + gained).astype(np.float32), terminated | truncated, [{}, {}]

    def close(self) -> None:
        self.inner.close()


class Agents:
    """A ``ParallelEnv`` of two."""

    metadata: ClassVar[dict[str, Any]] = {}
    render_mode = None
    possible_agents: ClassVar[list[str]] = ["a", "b"]

    def __init__(self) -> None:
        self.agents: list[str] = []
        self.np_random = np.random.default_rng()
        self.places, self.steps, self.font = np.zeros(2), 0, threading.Lock()

    def __getstate__(self) -> Any:
        return {name: value for name, value in vars(self).items() if name != "font"}

    def __setstate__(self, state: Any) -> None:
        vars(self).update(state, font=threading.Lock())

    def observation_space(self, agent: str) -> Any:
        return LINE

    def action_space(self, agent: str) -> Any:
        return PUSH

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.places, self.steps = ["a", "b"], self.np_random.normal(size=2), 0
        return self.see(), {"a": {}, "b": {}}

    def see(self) -> Any:
        return {name: np.array([place, self.steps]) for name, place in zip("ab", self.places, strict=True)}

    def step(self, actions: Any) -> Any:
        self.places = self.places + [0.2 * float(actions[name][0]) for name in "ab"] + self.np_random.normal(size=2)
        self.steps += 1
        over = dict.fromkeys("ab", self.steps >= 9)
        return self.see(), dict(zip("ab", map(float, -self.places), strict=True)), over, over, {"a": {}, "b": {}}

    def close(self) -> None: ...


class Together(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Each agent an environment, as SuperSuit's ``pettingzoo_env_to_vec_env_v1`` makes them."""

    def __init__(self) -> None:
        self.several = [Agents(), Agents()]
        self.num_envs, self.observation_space, self.action_space = 4, LINE, PUSH
        self.single_observation_space, self.single_action_space = LINE, PUSH

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.stack([seen for agents in self.several for seen in agents.reset()[0].values()]), [{}] * 4

    def step_async(self, actions: Any) -> None:
        self.saved = actions

    def step_wait(self) -> Any:
        seen, gained, over = [], [], []
        for number, agents in enumerate(self.several):
            chosen = dict(zip("ab", self.saved[2 * number : 2 * number + 2], strict=True))
            observations, rewards, terminations, _, _ = agents.step(chosen)
            if terminations["a"]:
                observations = agents.reset()[0]
            seen += observations.values()
            gained += rewards.values()
            over += terminations.values()
        return np.stack(seen), np.array(gained, np.float32), np.array(over), np.array(over), [{}] * 4


class OfAgents(VecEnvWrapper):
    """A wrapper of SB3's around what is none of SB3's, as SuperSuit's ``SB3VecEnvWrapper``."""

    def __init__(self) -> None:
        self.venv: Any = Together()
        self.num_envs, self.observation_space, self.action_space = 4, LINE, PUSH
        self.render_mode, self.reset_infos = None, []

    def reset(self) -> Any:
        return self.venv.reset()[0]

    def step_wait(self) -> Any:
        observations, rewards, terminations, truncations, infos = self.venv.step_wait()
        return observations, rewards, terminations | truncations, infos

    def seed(self, seed: int | None = None) -> Any: ...
