"""Several agents in one environment, each with a SAC of its own: independent learners, or one that all share.

The learners are Stable-Baselines3's ``SAC`` objects as they are: theirs are the networks, the buffers,
``_sample_action`` and ``train``. Only the loop between them is here: each agent that lives samples, the environment
makes one step, each adds its row, each trains, in the order of the environment's ``possible_agents``. A timestep is one
step of the shared environment.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn, TrainFreq
from stable_baselines3.common.utils import safe_mean, set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecTransposeImage

from train_cloud.config import RunFile
from train_cloud.config.run_file import MULTIAGENT as ALGORITHM
from train_cloud.envs.copies import copied
from train_cloud.envs.make import SHARED, close
from train_cloud.envs.parallel import Together
from train_cloud.envs.state import StatefulEnv
from train_cloud.envs.trial import Choice, stateful
from train_cloud.errors import InputError, NotYet
from train_cloud.sb3.algorithms import load_policy
from train_cloud.sb3.build import construct
from train_cloud.sb3.environment import maker_of
from train_cloud.sb3.hyperparameters import arguments_of
from train_cloud.sb3.resources import check_device

#: Of ``hyperparameters``: the one that is not SAC's.
_SHARE = "share_parameters"
_STATISTICS = 100  # episodes, as SB3's stats_window_size


class MultiAgent(OffPolicyAlgorithm):
    """Learners around one environment, as one model for ``learn``, callbacks and :class:`~.capture.Capture`.

    :param env: the environment of all
    :param learners: by name; one per agent, or one for all
    :param learner_of: name of an agent's learner
    :param seed: of the environment
    """

    def __init__(
        self, env: StatefulEnv, learners: Mapping[str, SAC], learner_of: Mapping[str, str], seed: int | None
    ) -> None:
        first = next(iter(learners.values()))
        super().__init__(
            BasePolicy,
            None,  # type: ignore[arg-type]
            first.learning_rate,
            learning_starts=first.learning_starts,
            batch_size=first.batch_size,
            gradient_steps=first.gradient_steps,
            device=first.device,
            use_sde=first.use_sde,
            seed=seed,
        )
        self.train_freq = first.train_freq
        self.learners = dict(learners)
        self.learner_of = dict(learner_of)
        self.rows = dict.fromkeys(learners, 0)
        """Rows that were ever added to a learner's buffer."""
        self.rows_per_step = max(list(learner_of.values()).count(name) for name in learners)
        self.env = _Table(env)
        if seed is not None:
            self.env.seed(seed)
            env.action_space.seed(seed)  # as SB3 does: environments draw from it too
        self.observation_space, self.action_space, self.n_envs = env.observation_space, env.action_space, 1
        self.actor = _Actors([learner.actor for learner in learners.values()])  # type: ignore[assignment]
        self._returns: dict[str, float] = {}
        self._lengths: dict[str, int] = {}
        self._ended: list[float] = []
        self._steps = 0
        self._agent_infos: dict[str, deque[dict[str, float]]] = {}

    def _setup_model(self) -> None:
        """The learners are set up already."""

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "learners", "learner_of", "rows", "rows_per_step", "actor"]

    # ------------------------------------------------------------------------------------------------------- the loop

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        for name, learner in self.learners.items():
            learner.set_logger(_Tagged(self.logger, name))
            learner._setup_learn(total_timesteps, None, reset_num_timesteps)
        if reset_num_timesteps:
            self._agent_infos = {name: deque(maxlen=_STATISTICS) for name in self.learner_of}
            self.begin_episode(self._last_obs)
        return result

    def begin_episode(self, observations: Any) -> None:
        """All that is counted within an episode begins at 0.

        :param observations: the first ones, by agent
        """
        self._last_obs = copied(observations)
        self._returns = dict.fromkeys(self.learner_of, 0.0)
        self._lengths = dict.fromkeys(self.learner_of, 0)
        self._ended, self._steps = [], 0

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer | None,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """``train_freq`` steps of the environment; its top is the consistent point."""
        assert isinstance(env, _Table)
        episodes = self._episode_num
        for learner in self.learners.values():
            learner.policy.set_training_mode(False)
        if self.use_sde:
            self.actor.reset_noise(1)  # type: ignore[operator]
        callback.on_rollout_start()
        for step in range(train_freq.frequency):
            if self.use_sde and self.sde_sample_freq > 0 and step % self.sde_sample_freq == 0:
                self.actor.reset_noise(1)  # type: ignore[operator]
            if not self._step(env, callback, log_interval):
                return RolloutReturn(step + 1, self._episode_num - episodes, continue_training=False)
        callback.on_rollout_end()
        return RolloutReturn(train_freq.frequency, self._episode_num - episodes, continue_training=True)

    def _step(self, env: _Table, callback: BaseCallback, log_interval: int | None) -> bool:
        """:return: False where a callback ends the training"""
        actions, stored = {}, {}
        before: dict[str, Any] = dict(self._last_obs)  # type: ignore[arg-type]
        for name in env.living():
            learner = self.learners[self.learner_of[name]]
            learner._last_obs = _shown(learner, before[name])
            action, stored[name] = learner._sample_action(learner.learning_starts, learner.action_noise)
            actions[name] = action[0]
        observations, reward, over, _, each = env.envs[0].step(actions)
        rewards, terminations, truncations = each["rewards"], each["terminations"], each["truncations"]
        self._steps += 1
        for name in actions:
            self._returns[name] += rewards[name]
            self._lengths[name] += 1
            if terminations[name] or truncations[name] or over:
                self._end_of(name)
        infos: list[dict[str, Any]] = [{**each}]  # what callbacks expect: of the one environment
        if over:
            infos[0]["episode"] = {"r": round(safe_mean(self._ended), 6), "l": self._steps, "t": self._seconds()}
        self.num_timesteps += 1
        for learner in self.learners.values():
            learner.num_timesteps = self.num_timesteps
        callback.update_locals(locals())
        if not callback.on_step():
            return False

        for name in actions:
            learner = self.learners[self.learner_of[name]]
            done = terminations[name] or truncations[name]
            after = observations.get(name, before[name])
            timed_out = truncations[name] and not terminations[name]
            assert learner.replay_buffer is not None
            learner.replay_buffer.add(
                _shown(learner, before[name]),
                _shown(learner, after),
                stored[name],
                np.array([rewards[name]]),
                np.array([done]),
                [{**each["infos"][name], "TimeLimit.truncated": timed_out}],
            )
            self.rows[self.learner_of[name]] += 1
            if (done or over) and learner.action_noise is not None:
                learner.action_noise.reset()
        # Copied: the environment may fill the same arrays again, and these are what the next row begins with.
        self._last_obs = {**before, **copied(observations)}
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        if over:
            self._update_info_buffer(infos)
            self._end_episode(env, log_interval)
        return True

    def _seconds(self) -> float:
        """Since the training began in this process."""
        return round((time.time_ns() - self.start_time) / 1e9, 6)

    def _end_of(self, name: str) -> None:
        """An agent's episode is over."""
        self._agent_infos[name].append({"r": round(self._returns[name], 6), "l": self._lengths[name]})
        self._ended.append(self._returns[name])
        self._returns[name], self._lengths[name] = 0.0, 0

    def _end_episode(self, env: _Table, log_interval: int | None) -> None:
        """The last agent is gone: the environment begins anew."""
        self._episode_num += 1
        self.begin_episode(env.reset())
        if log_interval is not None and self._episode_num % log_interval == 0:
            self.dump_logs()

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """Each learner in turn; one whose agents have not acted yet has nothing to learn from."""
        for name, learner in self.learners.items():
            if self.rows[name]:
                learner.train(gradient_steps, batch_size)

    def dump_logs(self) -> None:
        """``<agent>/rollout/…`` of each, and ``rollout/…`` of all: the mean over agents."""
        for name, infos in self._agent_infos.items():
            if infos:
                self.logger.record(f"{name}/rollout/ep_rew_mean", safe_mean([info["r"] for info in infos]))
                self.logger.record(f"{name}/rollout/ep_len_mean", safe_mean([info["l"] for info in infos]))
        super().dump_logs()

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        for learner in self.learners.values():
            learner._current_progress_remaining = self._current_progress_remaining


def _shown(learner: SAC, observation: Any) -> Any:
    """An agent's observation as its policy takes it: with a first axis of one environment, images channel first."""
    if isinstance(learner.env, VecTransposeImage):
        observation = learner.env.transpose_observations(observation)
    if isinstance(observation, dict):
        return {key: np.asarray(value)[None] for key, value in observation.items()}
    return np.asarray(observation)[None]


class _Actors:
    """What SB3 asks of an actor where gSDE is on, of all of them."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = actors

    def reset_noise(self, batch_size: int = 1) -> None:
        for actor in self._actors:
            actor.reset_noise(batch_size)

    def get_std(self) -> torch.Tensor:
        return torch.cat([actor.get_std().reshape(-1) for actor in self._actors])


class _Tagged(Logger):
    """Records into another logger, under ``<learner>/``; that one decides when all is written."""

    def __init__(self, logger: Logger, tag: str) -> None:
        super().__init__(None, [])
        self._into, self._tag = logger, tag

    def record(self, key: str, value: Any, exclude: str | tuple[str, ...] | None = None) -> None:
        self._into.record(f"{self._tag}/{key}", value, exclude)

    def record_mean(self, key: str, value: float | None, exclude: str | tuple[str, ...] | None = None) -> None:
        self._into.record_mean(f"{self._tag}/{key}", value, exclude)


class _Table(DummyVecEnv):
    """The environment of all where SB3 and callbacks expect a ``VecEnv``; observations are dicts by agent."""

    def __init__(self, env: StatefulEnv) -> None:
        self.envs = [env]
        VecEnv.__init__(self, 1, env.observation_space, env.action_space)
        self.metadata = env.metadata

    def living(self) -> list[str]:
        together = self.envs[0].unwrapped
        assert isinstance(together, Together)
        return together.living

    def reset(self) -> Any:
        observations, self.reset_infos[0] = self.envs[0].reset(seed=self._seeds[0])
        self._reset_seeds()
        return observations


class _Seat(gymnasium.Env[Any, npt.NDArray[Any]]):
    """One agent's place at the table: shows SB3 its spaces. Spaces of its own, as each learner seeds its own."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = copy.deepcopy(observation_space), copy.deepcopy(action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        shown = copy.deepcopy(self.observation_space)
        shown.seed(0)  # nobody looks at it, but a checkpoint finds it
        return shown.sample(), {}


# ------------------------------------------------------------------------------------------------- from the run file


def build(run_file: RunFile, choice: Choice, arguments: Mapping[str, Any] | None = None) -> MultiAgent:
    """Learners and environment of a run file.

    :param arguments: take the place of these arguments of every learner
    :raises InputError: a field that SB3, the environment or the user's own code refuses
    """
    assert run_file.environment is not None
    check_device(run_file.device)
    check_shape(run_file)
    set_random_seed(run_file.seed)
    env = stateful(maker_of(run_file)(), choice)
    together = env.unwrapped
    assert isinstance(together, Together)
    try:
        learner_of = _learners(run_file, together)
        learners = {
            name: _learner(run_file, together, name, number, arguments or {})
            for number, name in enumerate(dict.fromkeys(learner_of.values()))
        }
        set_random_seed(run_file.seed)
        return MultiAgent(env, learners, learner_of, run_file.seed)
    except InputError:
        close(env)
        raise


def check_shape(run_file: RunFile) -> None:
    """:raises InputError: what one environment for several agents cannot have"""
    environment, written = run_file.environment, run_file.hyperparameters
    assert environment is not None
    alone = f"{ALGORITHM} has one environment for all agents: "
    for field, value, fix in (
        ("environment.n_envs", environment.n_envs, alone + "leave it 1"),
        ("environment.vectorization", environment.vectorization, alone + "leave it dummy"),
        ("environment.normalize", environment.normalize, "scale observations in a wrapper: leave it null"),
        ("environment.frame_stack", environment.frame_stack, "stack frames in a wrapper: leave it null"),
    ):
        if value not in (1, "dummy", None):
            raise InputError(field, value, fix)
    frequency = written.get("train_freq")
    if isinstance(frequency, list) and "episode" in frequency:
        fix = f"agents' episodes end at different steps: {ALGORITHM} trains every so many steps, give a whole number"
        raise InputError("hyperparameters.train_freq", frequency, fix)
    if run_file.evaluation is not None:
        raise NotYet("evaluation", "of several agents", "not in this version: remove it")
    if run_file.initial_model is not None:
        raise NotYet("initial_model", "for several agents", "not in this version: remove it")
    share = written.get(_SHARE, False)
    if not isinstance(share, bool):
        raise InputError(f"hyperparameters.{_SHARE}", share, "give true or false")
    for name in ("n_steps", "optimize_memory_usage"):
        if share and written.get(name) not in (None, 1, False):
            fix = "it needs rows that follow each other, and those of agents that share a learner take turns: remove it"
            raise InputError(f"hyperparameters.{name}", written[name], fix)


def check_finite(model: MultiAgent, where: str) -> None:
    """:raises InputError: an observation or a reward in a buffer is NaN or infinite"""
    for name, learner in model.learners.items():
        buffer: Any = learner.replay_buffer
        for what in ("observations", "next_observations", "rewards"):
            column = getattr(buffer, what, None)
            for part in column.values() if isinstance(column, dict) else [column]:
                if part is not None and np.issubdtype(part.dtype, np.floating) and not np.isfinite(part).all():
                    raise InputError("environment.id", where, f"it gives {name} {what} that are NaN or infinite")


def _learners(run_file: RunFile, together: Together) -> dict[str, str]:
    """Name of the learner of each agent."""
    assert run_file.environment is not None
    agents = together.possible_agents
    if not run_file.hyperparameters.get(_SHARE, False):
        return {name: name for name in agents}
    for kind, of_all in (("observation", together.observation_space), ("action", together.action_space)):
        for name in agents:
            if of_all[name] != of_all[agents[0]]:
                fix = f"agent {name} has another {kind} space than {agents[0]}: they cannot share a learner"
                raise InputError(f"hyperparameters.{_SHARE}", True, fix)
    return dict.fromkeys(agents, SHARED)


def _learner(run_file: RunFile, together: Together, name: str, number: int, changed: Mapping[str, Any]) -> SAC:
    agent = together.possible_agents[0] if name == SHARED else name
    written = {key: value for key, value in run_file.hyperparameters.items() if key != _SHARE}
    seed = (run_file.seed + number) % 2**32
    own = run_file.model_copy(update={"hyperparameters": written, "seed": seed})
    seat = _Seat(together.observation_space[agent], together.action_space[agent])
    arguments = {**arguments_of(own, SAC, seat.action_space, seat.observation_space), **changed}
    kind = arguments.get("replay_buffer_class")
    if isinstance(kind, type) and issubclass(kind, HerReplayBuffer):
        fix = f"{ALGORITHM} has no hindsight: remove it"
        raise InputError("hyperparameters.replay_buffer_class", written["replay_buffer_class"], fix)
    model = construct(own, SAC, load_policy(own), DummyVecEnv([lambda: seat]), arguments)
    assert isinstance(model, SAC)
    return model
