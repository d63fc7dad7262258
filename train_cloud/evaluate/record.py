"""Episodes that somebody plays, written down for a pretraining: a model, an expert, or a person at the keyboard.

What is recorded is what the environment gives and is given, with the run file's own wrappers and nothing around them:
no normaliser, no stack of frames. The same seed gives the same episodes, but for a person's.
"""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from train_cloud.config import Environment
from train_cloud.config.evaluation import compare
from train_cloud.envs.copies import copied, copied_whole
from train_cloud.envs.demonstrations import Episode
from train_cloud.envs.make import One, close, load_object, refusing
from train_cloud.errors import InputError
from train_cloud.extras import need
from train_cloud.generators import unseeded_follow

log = logging.getLogger(__name__)

#: Episodes that are played for each one that is to be kept, at most.
_TRIES = 20
#: In a file of keys: what is done while no key is held.
NOTHING = ""


class Recorder(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Outermost: writes down each step.

    :param seed: of the first episode; the next ones follow, whatever :meth:`reset` is given
    :ivar episode: the one that is played
    :ivar info: of its last step
    """

    def __init__(self, env: gymnasium.Env[Any, Any], seed: int) -> None:
        super().__init__(env)
        self._seed = seed
        self.episode: Episode | None = None
        self.info: Mapping[str, Any] = {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=self._seed, options=options)
        self.episode = Episode(self._seed, [copied(observation)], [], [], [], [])
        self.info = info
        self._seed += 1
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        episode = self.episode
        assert episode is not None
        episode.actions.append(np.array(action))
        episode.observations.append(copied(observation))
        episode.rewards.append(float(reward))
        episode.terminations.append(bool(terminated))
        episode.truncations.append(bool(truncated))
        self.info = copied_whole(info) if terminated or truncated else copied(info)
        return observation, reward, terminated, truncated, info

    @property
    def over(self) -> bool:
        """Whether the episode has ended."""
        episode = self.episode
        return episode is not None and bool(episode.actions) and (episode.terminations[-1] or episode.truncations[-1])


class Chosen:
    """The episodes that are kept.

    :param wanted: how many
    :param success: condition as in the section ``evaluation``, of those that are kept; None keeps all
    """

    def __init__(self, wanted: int, success: str | None) -> None:
        self._wanted, self._success = wanted, success
        self.episodes: list[Episode] = []
        self.played = 0

    @property
    def enough(self) -> bool:
        return len(self.episodes) >= self._wanted

    def add(self, recorder: Recorder) -> None:
        """The one that the recorder has just written down.

        :raises InputError: too many were no success, or nothing says whether they are
        """
        episode = recorder.episode
        assert episode is not None
        self.played += 1
        if self._success is None or self._succeeded(self._success, episode, recorder.info):
            self.episodes.append(episode)
        elif self.played >= _TRIES * self._wanted:
            fix = f"only {len(self.episodes)} of {self.played} episodes were: ask for fewer, or take a better player"
            raise InputError("--successful", True, fix)

    def _succeeded(self, condition: str, episode: Episode, info: Mapping[str, Any]) -> bool:
        length = len(episode.actions)
        if ":" in condition:
            said = load_object(condition, "evaluation.success")(episode.total, length, dict(info))
        else:
            said = compare(condition, episode.total, length, info)
        if said is None:
            fix = f"nothing says whether an episode is one ({condition}): set evaluation.success, e.g. return >= 200"
            raise InputError("--successful", True, fix)
        return bool(said)


class Player(ABC):
    """Plays episodes."""

    @abstractmethod
    def play(self, recorder: Recorder, chosen: Chosen) -> None:
        """Until enough are chosen."""


def record(environment: Environment, player: Player, chosen: Chosen, seed: int) -> tuple[Sequence[Episode], Any]:
    """
    :param environment: the run file's
    :param seed: of the first episode, and of every generator
    :return: the episodes, and the environment that they are of, which is closed
    :raises InputError: the environment or the player refuses
    """
    kwargs = {**environment.kwargs, **({"render_mode": "rgb_array"} if isinstance(player, Keyboard) else {})}
    env = One(environment.id, environment.module, kwargs, environment.wrappers)()
    set_random_seed(seed)
    env.action_space.seed(seed)
    recorder = Recorder(env, seed)
    try:
        with unseeded_follow(seed), refusing("environment.id", environment.id, "playing it raises"):
            player.play(recorder, chosen)
    finally:
        close(recorder)
    return chosen.episodes, env


class Expert(Player):
    """A function ``(environment, observation) -> action``, or a class that is made with the environment and called so.

    Where it has a ``reset()``, that is called when an episode begins.

    :param reference: ``module:name``
    """

    def __init__(self, reference: str) -> None:
        self._reference = reference
        self._found = load_object(reference, "--expert")
        if not callable(self._found):
            fix = "name a function (environment, observation) -> action, or a class with __call__"
            raise InputError("--expert", reference, fix)

    def play(self, recorder: Recorder, chosen: Chosen) -> None:
        act: Callable[[Any, Any], Any] = self._found
        env = recorder.env
        if isinstance(act, type):
            with refusing("--expert", self._reference, "making it with the environment raises"):
                act = act(env)
        begin = getattr(act, "reset", None)
        while not chosen.enough:
            observation, _ = recorder.reset()
            if callable(begin):
                with refusing("--expert", self._reference, "its reset() raises"):
                    begin()
            while not recorder.over:
                with refusing("--expert", self._reference, "calling it raises"):
                    action = act(env, observation)
                observation, *_ = recorder.step(_as_action(action, env.action_space, self._reference))
            chosen.add(recorder)


def _as_action(action: Any, space: spaces.Space[Any], reference: str) -> Any:
    """As the space has it: an expert gives a Python number, or an array of another type."""
    fits = action
    if space.dtype is not None:
        with refusing("--expert", reference, "what it gives is no action:"):
            fits = np.asarray(action, space.dtype)
    fits = fits[()] if isinstance(space, spaces.Discrete) else fits
    if not space.contains(fits):
        raise InputError("--expert", reference, f"it gives {action!r}, which is not in {space}")
    return fits


class Model(Player):
    """A run's model.

    :param folder: with ``model.zip`` and, where the run normalises, ``vecnormalize.pkl``
    :param algorithm: ``module:Class`` of the model
    :param frame_stack: as the run file has it
    :param deterministic: whether actions are the policy's most probable ones
    """

    def __init__(self, folder: Path, algorithm: str, frame_stack: int | None, *, deterministic: bool) -> None:
        self._folder, self._frame_stack, self._deterministic = folder, frame_stack, deterministic
        self._kind: type[BaseAlgorithm] = load_object(algorithm, "algorithm", BaseAlgorithm)

    def play(self, recorder: Recorder, chosen: Chosen) -> None:
        env: VecEnv = DummyVecEnv([lambda: _Stopping(recorder)])
        if self._frame_stack is not None:
            env = VecFrameStack(env, self._frame_stack)
        normalizer = self._folder / "vecnormalize.pkl"
        if normalizer.exists():
            normalized = VecNormalize.load(str(normalizer), env)
            normalized.training = normalized.norm_reward = False
            env = normalized
        model = self._kind.load(self._folder / "model.zip", device="cpu")
        masked = "action_masks" in inspect.signature(model.predict).parameters
        while not chosen.enough:
            observation: Any = env.reset()
            state, started = None, np.ones(1, dtype=bool)
            while not recorder.over:
                masks = {"action_masks": np.stack(env.env_method("action_masks"))} if masked else {}
                action, state = model.predict(
                    observation, state=state, episode_start=started, deterministic=self._deterministic, **masks
                )
                observation, _, started, _ = env.step(action)
            chosen.add(recorder)


class _Stopping(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A VecEnv resets at once what has ended: what it then shows is not needed, and the episode is still to be read."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._recorder = recorder
        self._shown: Any = None
        self._ended = False

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        if self._ended:  # by the VecEnv itself
            self._ended = False
            return self._shown, {}
        return self._recorder.reset()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        found = self._recorder.step(action)
        self._shown, self._ended = found[0], self._recorder.over
        return found


class Keyboard(Player):
    """A person, by ``gymnasium.utils.play``.

    :param keys: keys that are held together → action, and :data:`NOTHING` → what is done without any; None for the
        environment's own
    """

    def __init__(self, keys: Mapping[str, Any] | None) -> None:
        self._keys = keys

    def play(self, recorder: Recorder, chosen: Chosen) -> None:
        need("pygame", "record --keyboard")
        from gymnasium.utils.play import play

        space = recorder.action_space
        keys, given = None, dict(self._keys or {})
        nothing = _as_action(given.pop(NOTHING, _nothing(space)), space, "--keys")
        if self._keys is not None:
            keys = {tuple(held): _as_action(action, space, "--keys") for held, action in given.items()}
        elif not recorder.has_wrapper_attr("get_keys_to_action"):
            fix = 'the environment does not say which keys it has: give --keys FILE, JSON like {"a": 0, "d": 1, "": 0}'
            raise InputError("--keyboard", True, fix)
        log.info("close the window or press Escape to stop without a recording")
        with _until_enough():
            play(_Counting(recorder, chosen), keys_to_action=keys, noop=nothing)
        if not chosen.enough:
            raise InputError("--episodes", len(chosen.episodes), "the window was closed before all were played")


def _nothing(space: spaces.Space[Any]) -> Any:
    return np.zeros(space.shape or (), space.dtype)


class _Enough(Exception):
    """All episodes are played."""


@contextmanager
def _until_enough() -> Iterator[None]:
    try:
        yield
    except _Enough:
        import pygame

        pygame.quit()


class _Counting(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Leaves the game when enough is played; ``play`` itself resets what has ended."""

    def __init__(self, recorder: Recorder, chosen: Chosen) -> None:
        super().__init__(recorder)
        self._recorder, self._chosen = recorder, chosen

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        found = self._recorder.step(action)
        if self._recorder.over:
            self._chosen.add(self._recorder)
            if self._chosen.enough:
                raise _Enough
        return found
