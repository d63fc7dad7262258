"""The whole state of a Stable-Baselines3 run, captured and put back at one program point.

The point is ``BaseCallback._on_rollout_start`` (and the end of training): the only public one where environments,
buffer, networks and random generators agree, and the one that a resumed process, running the same script, reaches
with everything set up. What is captured was found by leaving each item out and watching when the rewards diverge
(docs/architecture.md).

Everything small goes into *one* pickle, because objects are shared: ``model.action_space`` may be environment 0's
object, with a generator that both draw from. What callbacks, algorithm, policy and buffers hold besides is in
``sb3.objects``. Where a model consists of several learners (``sb3.multiagent``), each
has parts and replay rows of its own, ``<learner>/model`` and ``<learner>/replay``, and that one pickle has the rest of
all.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import data_to_json
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecEnvWrapper,
    VecNormalize,
    VecTransposeImage,
)

from train_cloud.config.current import artifact_folders
from train_cloud.envs.make import FAILURES
from train_cloud.envs.shared import packages_of
from train_cloud.envs.state import (
    dumps,
    follow,
    layers,
    process_generators,
    set_process_generators,
    undisturbed,
)
from train_cloud.errors import InputError, TrainCloudError
from train_cloud.sb3.compare import read_state
from train_cloud.sb3.contents import Contents, size_of
from train_cloud.sb3.kinds import OF_A_CALLBACK, also_own, kind_of
from train_cloud.sb3.objects import Objects, Root
from train_cloud.sb3.pickling import LEFT, OWN, Whole, as_numpy
from train_cloud.sb3.ranks import CallbacksOfAllRanks, EveryStep
from train_cloud.sb3.replay import Ring
from train_cloud.sb3.vectorized import (
    get_single,
    get_vecenv,
    left_in_processes,
    look,
    reached,
    set_single,
    set_vecenv,
    singles,
)
from train_cloud.snapshot import Array, Part, Rows, Snapshot

REPLAY = "replay"

#: Attributes of an algorithm that belong to the process or to the budget, not to the state of the learning.
_OF_THE_PROCESS = {
    "start_time",
    "verbose",
    "tensorboard_log",
    "seed",
    "policy_kwargs",
    "policy_class",
    "_total_timesteps",
    "_num_timesteps_at_start",
}
#: Attributes of an algorithm that have a part, a stream or a place in the pickle of their own.
_ELSEWHERE = frozenset({
    "policy", "device", "env", "replay_buffer", "rollout_buffer", "_vec_normalize_env", "_logger", "_custom_logger",
    "learners", "learner_of", "rows", "rows_per_step",
})  # fmt: skip
#: Arrays that are others after each step: values, not objects that somebody else knows.
_OF_A_STEP = frozenset({"_last_obs", "_last_episode_starts", "_last_original_obs", "_last_lstm_states"})
#: Of a rollout buffer of SB3's: it is empty at a rollout's start, and filled and cut before it is read.
_OF_A_ROLLOUT = frozenset({"pos", "full", "generator_ready", "seq_start_indices", "seq_end_indices", "pad",
                           "pad_and_flatten"})  # fmt: skip
#: Of any buffer: how it was made. The model has the spaces, too.
_OF_A_BUFFER = frozenset({"observation_space", "action_space", "device", "env"})
#: Hyperparameter → attributes that follow from it; a fork that sets it anew keeps the new ones.
_FOLLOWING = {
    "learning_rate": ("lr_schedule",),
    "exploration_fraction": ("exploration_schedule",),
    "exploration_initial_eps": ("exploration_schedule",),
    "exploration_final_eps": ("exploration_schedule",),
}


class Capture:
    """Captures and restores one model with its callbacks.

    :param model: set up for learning (its environment, logger and buffer exist)
    :param root: the outermost callback of ``learn``
    :param own: the callback that does the capturing, left out
    :param provider_of: names the state provider of a single environment (see ``train_cloud.envs.state``)
    :param held: objects by name that were made since the session began, by nobody else known: saved as a whole
    :ivar held: those of the checkpoint, after :meth:`restore`
    """

    def __init__(
        self,
        model: BaseAlgorithm,
        root: BaseCallback,
        own: BaseCallback | None,
        provider_of: Callable[[gymnasium.Env[Any, Any]], str],
        held: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.model = model
        self.held: Mapping[str, Any] = {}
        self._held_now = held
        self._provider_of = provider_of
        self._callbacks = {
            path: callback
            for path, callback in _walk("callbacks", root)
            if callback is not own and not isinstance(callback, EveryStep | CallbacksOfAllRanks)
        }
        self._learners = {name: _Learner(name, learner) for name, learner in learners_of(model).items()}
        self._at: dict[int, dict[str, int]] = {}
        self._parts_bytes = 0
        self._contents = Contents()
        self._submitted: frozenset[str] = frozenset()
        self.begun_anew: tuple[str, ...] = ()
        """Which environments could not go on with their episode after :meth:`restore`, and why not."""
        env = model.get_env()
        assert env is not None
        self._env: VecEnv = env
        self._root, self._own = root, own
        self._objects: Objects | None = None
        self._found: dict[str, dict[str, Any]] = {}
        self._tried: set[str] = set()
        self._singles: list[gymnasium.Env[Any, Any]] = []
        for single in singles(env):
            follow(single)  # of somebody else's making
        self.not_exact = look(env)
        """Why an interruption of its environments is not exact."""
        for name, learner in self._learners.items():
            if not any(True for _ in _live_tensors(learner.model, "")):
                told = f"{type(learner.model).__name__}{f' of {name}' if name else ''}"
                fix = "it has no torch parameters (SBX keeps them in JAX): use an algorithm whose networks are torch's"
                raise InputError("algorithm", told, fix)

    def begin(self) -> None:
        """Note what is there. To be called at the session's first consistent point, before anything is restored."""
        roots: list[Root] = []
        elsewhere: dict[str, Any] = {"the logger": self.model.logger}
        optimizers: list[torch.optim.Optimizer] = []
        if self._own is not None:
            elsewhere["train-cloud's callback"] = self._own
            elsewhere["the algorithm's class"] = type(self.model)  # which that callback has made
        for index, venv in enumerate([*_wrappers(self._env), self._env.unwrapped]):
            elsewhere[f"environments[{index}]"] = venv
        for path, holder in reached(self._env):
            elsewhere[f"environments{path}"] = holder
        for env_index, single in enumerate(singles(self._env)):
            for index, layer in enumerate(layers(single)):
                elsewhere[f"environment {env_index}[{index}]"] = layer
        if _ALONE not in self._learners:
            roots.append(_root_of("algorithm", self.model))
            self._found["algorithm"] = _aliases(self.model)
        for name, learner in self._learners.items():
            path = _path_of(name)
            roots += [_root_of(path, learner.model), *_buffers_of(path, learner.model, learner.ring)]
            elsewhere.update(_live_tensors(learner.model, path + "."))
            optimizers += [_attribute(learner.model, name) for name in _optimizers_of(learner.model)]
            self._found[path] = _aliases(learner.model)
        for path, callback in self._callbacks.items():
            roots.append(Root(path, callback, _attributes_to_look_at(callback)))
        also_own(packages_of(singles(self._env)))
        self._objects = Objects(
            roots,
            elsewhere,
            optimizers,
            gradients=any(_has_own_train(one.model) for one in self._learners.values()),
            classes=[type(layer) for single in singles(self._env) for layer in layers(single)],
        )
        found = singles(self._env)
        for other in self._objects.environments.values():
            found += singles(other) if isinstance(other, VecEnv) else [other]
        self._singles = list(dict.fromkeys(found))
        for one in self._singles:
            follow(one)

    @property
    def objects(self) -> Objects:
        """What was there when the session began."""
        if self._objects is None:
            self.begin()
        assert self._objects is not None
        return self._objects

    @property
    def callbacks(self) -> Mapping[str, BaseCallback]:
        """Those whose state is saved, by path."""
        return self._callbacks

    @property
    def not_kept(self) -> list[str]:
        """What a checkpoint does not keep, and what this session lacks of the one that it was restored from: each with
        its path and the reason.
        """
        objects = self.objects
        return [
            *(f"{path}: {reason}" for path, reason in objects.not_kept.items()),
            *(f"environments: {left}" for left in left_in_processes(self._env)),
            *(f"{path}: the checkpoint has it, and this session's program has not" for path in objects.missing),
        ]

    @property
    def capacity(self) -> int:
        """Replay rows that are alive at most; 0 without a buffer. A row has one transition of each environment."""
        return min((learner.ring.capacity for learner in self._learners.values() if learner.ring), default=0)

    @property
    def rows_there(self) -> int:
        """Rows in the buffer of a training that has not begun: they came with an initial model. Counted as if they had
        just been added.
        """
        alone = self._learners.get(_ALONE)
        return 0 if alone is None or alone.ring is None else alone.ring.count()

    @property
    def rows_per_step(self) -> int:
        """That a step adds to a learner's buffer at most."""
        return int(getattr(self.model, "rows_per_step", 1))

    @property
    def rings(self) -> dict[str, Ring]:
        """The replay buffers by learner, without learners that have none."""
        return {name: learner.ring for name, learner in self._learners.items() if learner.ring is not None}

    def sent_bytes(self, new_rows: int) -> int:
        """About what a checkpoint sends.

        :param new_rows: of each learner
        """
        rings = [learner.ring for learner in self._learners.values() if learner.ring is not None]
        large = size_of(set(self._contents.names.values()) - self._submitted)
        return self._parts_bytes + large + sum(min(new_rows, ring.capacity) * ring.sent_bytes for ring in rings)

    def snapshot(self, last: int) -> Snapshot:
        """Everything but the replay rows: copies only. The only real cost within the training loop.

        :param last: number of rows that were ever added to the replay buffer; of several learners, who count theirs,
            as many as each may have added
        """
        self._at[last] = counts = self.counts(last)
        parts: dict[str, Part] = {}
        tensors: dict[str, dict[str, torch.Tensor]] = {}
        rests: dict[str, Any] = {}
        facts: dict[str, Any] = {}
        parts_bytes = 0
        for name, learner in self._learners.items():
            if learner.ring is not None and not learner.ring.at(counts[name]):
                kind = type(learner.ring.buffer).__name__
                raise InputError("replay_buffer", kind, "rows were added outside of collect_rollouts; train without")
            if learner.ring is not None and learner.ring.rewritten(counts[name]):
                path = f"{_path_of(name)}.replay_buffer"
                self.objects.not_kept[path] = "rows were changed after they were added: checkpoints have them as added"
            tensors[name], rests[name] = _tensors(learner.model, learner.noise)
            parts[learner.part("skeleton")] = Part(blob=learner.skeleton)
            facts[name] = {"algorithm": _description(learner.model), "optimizers": rests[name]}
        with undisturbed() as generators:  # users' code may draw from them
            blob, own = self._pickle(rests, last, _beside(tensors), {**generators, **cuda_generators()})
        large, contents = self._contents.arrays, self._contents.names
        for name, learner in self._learners.items():
            with_it = own if name == _ALONE else {}
            parts[learner.part("model")] = Part(copied(tensors[name] | with_it, large if name == _ALONE else {}))
        rest = {} if _ALONE in self._learners else copied(own, large)
        parts["model"] = Part(parts["model"].arrays if "model" in parts else rest, blob, contents)
        for part in parts.values():
            parts_bytes += sum(array.nbytes for name, array in part.arrays.items() if name not in part.contents)
        normalizer = self.model.get_vec_normalize_env()
        if normalizer is not None:
            parts["normalizer"] = Part(blob=pickle.dumps(normalizer, protocol=4))
        self._parts_bytes = parts_bytes + sum(len(part.blob) for part in parts.values())
        every: dict[str, Any] = facts.get(_ALONE) or {
            "algorithm": _description(self.model),
            "optimizers": {},
            "learners": facts,
            "agents": dict(getattr(self.model, "learner_of", {})),
        }
        return Snapshot(self.model.num_timesteps, parts, {}, every)

    def rows(self, first: int, last: int) -> dict[str, Rows]:
        """Replay rows ``[first, last)``; their observations stay put until ``capacity`` more rows are added.

        :param last: as it was given to :meth:`snapshot`
        :param first: the same, of an earlier one
        """
        self._submitted = frozenset(self._contents.names.values())
        counts, before = self._at.get(last) or self.counts(last), self._at.get(first, {})
        self._at = {at: known for at, known in self._at.items() if at >= last}
        return {
            learner.part(REPLAY): learner.ring.rows(before.get(name, first), counts[name])
            for name, learner in self._learners.items()
            if learner.ring is not None
        }

    def counts(self, last: int) -> dict[str, int]:
        """Rows that were ever added, by learner.

        :param last: as for :meth:`snapshot`
        """
        own: Mapping[str, int] = getattr(self.model, "rows", {})
        return {name: own.get(name, last) for name in self._learners}

    def restore(self, snapshot: Snapshot) -> int:
        """Overwrite the model, its environments, generators, logger and callbacks.

        :return: number of rows that were ever added to the replay buffer, as :meth:`snapshot` was given it
        """
        objects, part = self.objects, snapshot.parts["model"]
        beside = {
            f"{name}/{key}": array
            for name, learner in self._learners.items()
            for key, array in snapshot.parts[learner.part("model")].arrays.items()
        }
        state = objects.load(part.blob, part.arrays, self._singles, beside)
        self._contents.restored(part)
        self._submitted = frozenset(part.contents.values())
        self.held = state.get("held", {})
        set_anew = set(snapshot.facts.get("set_anew", ()))  # what a fork has changed
        set_anew |= {follows for name in set_anew for follows in _FOLLOWING.get(name, ())}
        objects.relink(state)
        objects.restore(state, set_anew)
        counts = {}
        for name, learner in self._learners.items():
            own = state["learners"][name] if name else state
            counts[name] = learner.restore(snapshot, own, set_anew, objects.tensors)
        if _ALONE not in self._learners:
            restore_attributes(self.model, state["algorithm"], set_anew)
            self.model.rows = dict(counts)  # type: ignore[attr-defined]
        last = counts.get(_ALONE, state.get("rows", 0) if any(counts.values()) else 0)
        self._at = {last: counts}
        begun_anew = set_vecenv(self._env, state["environments"])
        self._set_others(state.get("others", {}))
        logger = self.model.logger
        for live, saved in zip(_pending(logger), state["logger"], strict=True):
            live.clear()
            live.update(saved)
        if len(state["callbacks"]) != len(self._callbacks):
            raise InputError(
                "callbacks", len(self._callbacks), f"this run was begun with {len(state['callbacks'])} callbacks"
            )
        for callback, saved in zip(self._callbacks.values(), state["callbacks"], strict=True):
            _set_callback(callback, saved)
        objects.restore(state, set_anew)  # once more: replaying an episode may have changed what wrappers share
        self.model._num_timesteps_at_start = self.model.num_timesteps  # fps counts this session's steps
        self.begun_anew = tuple(dict.fromkeys(anew.because for anew in begun_anew.values()))
        if begun_anew:
            self._begin_episodes({index: anew.observation for index, anew in begun_anew.items()})
        set_generators(state["generators"])  # nothing after this may draw
        return last

    def _pickle(
        self, rests: Mapping[str, Any], last: int, beside: Mapping[str, torch.Tensor], generators: Mapping[str, Any]
    ) -> tuple[bytes, dict[str, torch.Tensor]]:
        objects = self.objects
        learners = {
            name: learner.state(rests[name], self._found[_path_of(name)]) for name, learner in self._learners.items()
        }
        state = learners.get(_ALONE) or {
            "algorithm": attributes_of(self.model, self._found["algorithm"]),
            "learners": learners,
            "rows": last,
        }
        state = {
            "whole": Whole(True),  # and first: what they share with others is whole, too
            "environments": get_vecenv(self._env, self._provider_of),
            "others": self._get_others(),
            "to here": Whole(False),
            **state,
            "logger": [dict(pending) for pending in _pending(self.model.logger)],
            "callbacks": [_get_callback(callback) for callback in self._callbacks.values()],
            "generators": generators,
            **objects.states(),
        }
        if held := dict(self._held_now()):
            state["held"] = held
        try:
            return objects.dump(state, self._singles, self._contents, beside)
        except FAILURES as error:
            what = next((name for name, value in state.items() if not _can_be_pickled(value, self._singles)), "state")
            raise TrainCloudError(
                f"the {what} cannot be saved: {error}; keep what cannot be pickled out of its attributes"
            ) from error

    def _get_others(self) -> dict[str, Any]:
        """States of environments that callbacks and the algorithm hold, by path."""
        found: dict[str, Any] = {}
        for path, env in self.objects.environments.items():
            if path in self.objects.not_kept:
                continue
            try:
                if isinstance(env, VecEnv):
                    found[path] = get_vecenv(env, self._provider_of)
                else:
                    found[path] = get_single(env, self._provider_of)
                if path not in self._tried:
                    dumps(found[path], self._singles)
                    self._tried.add(path)
            except InputError:
                raise
            except FAILURES as error:
                self.objects.not_kept[path] = f"{type(error).__name__}: {error}"
                found.pop(path, None)
        return found

    def _set_others(self, states: Mapping[str, Any]) -> None:
        for path, state in states.items():
            env = self.objects.environments.get(path)
            if env is None:
                self.objects.at(path, None)  # notes that it is missing
            elif isinstance(env, VecEnv):
                set_vecenv(env, state)
            else:
                set_single(env, state)

    def _begin_episodes(self, observations: Mapping[int, Any]) -> None:
        """Where an environment could not go on with its episode, the model must see the first observation of
        the new one, as the wrappers between them show it.

        :param observations: one environment's, by its index
        """
        if hasattr(self.model, "begin_episode"):
            self.model.begin_episode(observations[0])
            return
        model, wrappers = self.model, _wrappers(self._env)
        assert model._last_episode_starts is not None
        model._last_episode_starts[[*observations]] = True
        if not all(isinstance(wrapper, VecNormalize | VecTransposeImage) for wrapper in wrappers):
            model._last_obs = self._env.reset()  # type: ignore[assignment]  # nobody knows how they would show one
            model._last_episode_starts[:] = True
            return
        shown: Any = None  # of all environments, once a wrapper keeps that
        single = dict(observations)
        for wrapper in reversed(wrappers):
            if isinstance(wrapper, VecNormalize):
                wrapper.old_obs = _replaced(wrapper.old_obs if shown is None else shown, single)
                model._last_original_obs = wrapper.old_obs
                shown = wrapper.normalize_obs(wrapper.old_obs)
                single = {}
            elif isinstance(wrapper, VecTransposeImage):
                single = {index: wrapper.transpose_observations(one) for index, one in single.items()}
                shown = None if shown is None else wrapper.transpose_observations(shown)
        model._last_obs = _replaced(model._last_obs, single) if shown is None else shown


_COUNTERS = ("num_timesteps", "_n_updates", "_episode_num")
#: Name of the learner where the model is the only one.
_ALONE = ""


def learners_of(model: BaseAlgorithm) -> dict[str, BaseAlgorithm]:
    """What has networks and a buffer: the model itself, or the learners that it consists of, by name."""
    return getattr(model, "learners", None) or {_ALONE: model}


class _Learner:
    """One set of networks with its buffer."""

    def __init__(self, name: str, model: BaseAlgorithm) -> None:
        self.name, self.model = name, model
        self.ring = _ring(model)
        self.noise = list(_noise_distributions(model))
        self.skeleton = _skeleton(model)

    def part(self, kind: str) -> str:
        """Name of its part or stream of this kind."""
        return f"{self.name}/{kind}" if self.name else kind

    def state(self, rest: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
        """:param found: see :func:`attributes_of`"""
        replay = {} if self.ring is None else self.ring.state()
        return {"rest": rest, "replay": replay, "algorithm": attributes_of(self.model, found)}

    def restore(
        self,
        snapshot: Snapshot,
        state: Mapping[str, Any],
        set_anew: Collection[str],
        others_have: Mapping[str, torch.Tensor],
    ) -> int:
        """
        :param others_have: tensors to put back that other objects hold too, by the names of :func:`_beside`
        :return: number of rows that were ever added to its buffer
        """
        last = 0 if self.ring is None else self.ring.load(snapshot.streams[self.part(REPLAY)], state["replay"])
        tensors = tensors_in(snapshot.parts[self.part("model")])
        tensors = {name: others_have.get(f"{self.name}/{name}", tensor) for name, tensor in tensors.items()}
        _set_tensors(self.model, self.noise, tensors, state["rest"])
        restore_attributes(self.model, state["algorithm"], set_anew)
        return last


def restore_parameters(model: BaseAlgorithm, snapshot: Snapshot) -> None:
    """Only the networks and their optimisers: what code between two ``learn`` calls looks at."""
    state = read_state(snapshot.parts["model"])
    for name, learner in learners_of(model).items():
        one = _Learner(name, learner)
        rest = (state["learners"][name] if name else state)["rest"]
        _set_tensors(learner, one.noise, tensors_in(snapshot.parts[one.part("model")]), rest)


def tensors_in(part: Part) -> dict[str, torch.Tensor]:
    """Copies of the model's tensors, without those that belong to the pickle."""
    return {name: torch.from_numpy(array.copy()) for name, array in part.arrays.items() if not name.startswith(OWN)}


def _description(model: BaseAlgorithm) -> dict[str, Any]:
    return {
        "class": f"{type(model).__module__}:{type(model).__qualname__}",
        **{name: model.__dict__[name] for name in _COUNTERS if name in model.__dict__},
    }


def restore_attributes(model: BaseAlgorithm, saved: Mapping[str, Any], but: Collection[str] = ()) -> None:
    """The counterpart of :func:`attributes_of`.

    :param but: names that stay as they are
    """
    for name, value in saved.items():
        live = model.__dict__.get(name)
        if name in but or value is LEFT:
            continue
        if isinstance(live, ActionNoise) and type(live) is type(value) and live is not value:
            # of an older checkpoint: learn() has handed this very object to collect_rollouts already
            live.__dict__.clear()
            live.__dict__.update(value.__dict__)
        else:
            model.__dict__[name] = _moved(value, model.device) if name == "_last_lstm_states" else value


def get_generators() -> dict[str, Any]:
    """The state of every global random generator that SB3 and environments draw from."""
    return {**process_generators(), **cuda_generators()}


def cuda_generators() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {}
    return {"cuda": [generator.numpy().copy() for generator in torch.cuda.get_rng_state_all()]}


def set_generators(state: Mapping[str, Any]) -> None:
    """Put back what :func:`get_generators` returned. A checkpoint from a GPU restores on a CPU, and the other
    way round.
    """
    set_process_generators(state)
    if "cuda" in state and torch.cuda.is_available():
        for index, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(torch.from_numpy(generator.copy()), index)


def _ring(model: BaseAlgorithm) -> Ring | None:
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        return Ring(buffer)
    if not isinstance(model, OnPolicyAlgorithm):
        raise InputError("algorithm", type(model).__name__, "it has neither a replay buffer nor a rollout buffer")
    return None


def attributes_of(model: BaseAlgorithm, found: Mapping[str, Any]) -> dict[str, Any]:
    """An algorithm's own attributes: references.

    :param found: what its names stood for when the session began, of what is saved under another name or is the same in
        each session: left out where that is so still
    """
    excluded = _OF_THE_PROCESS | _ELSEWHERE | set(model._get_torch_save_params()[1])
    state = {
        name: value
        for name, value in model.__dict__.items()
        if name not in excluded and found.get(name, LEFT) is not value
    }
    if "_last_lstm_states" in state:  # tensors, which a machine without a GPU must be able to read
        state["_last_lstm_states"] = _moved(state["_last_lstm_states"], torch.device("cpu"))
    return state


def _aliases(model: BaseAlgorithm) -> dict[str, Any]:
    kinds = ("module", "optimizer", "tensor", "function", "class", "environment", "handle")
    return {
        name: value
        for name, value in vars(model).items()
        if isinstance(value, type) or kind_of(value) in kinds or name in ("batch_norm_stats", "batch_norm_stats_target")
    }


def _path_of(learner: str) -> str:
    return f"algorithm.learners[{learner!r}]" if learner else "algorithm"


def _root_of(path: str, model: BaseAlgorithm) -> Root:
    def attributes() -> dict[str, Any]:
        hidden = _OF_THE_PROCESS | _ELSEWHERE | _OF_A_STEP
        policy = getattr(model, "policy", None)
        return {"policy": policy, **{name: value for name, value in vars(model).items() if name not in hidden}}

    return Root(path, model, attributes)


def _buffers_of(path: str, model: BaseAlgorithm, ring: Ring | None) -> Iterator[Root]:
    """The buffers' attributes besides their rows; of a rollout buffer of a user's own, all of them."""
    for name in ("replay_buffer", "rollout_buffer"):
        buffer = getattr(model, name, None)
        if buffer is None:
            continue
        skipped = _OF_A_BUFFER
        if name == "replay_buffer" and ring is not None:
            skipped |= ring.attributes
        elif type(buffer).__module__.split(".")[0] in ("stable_baselines3", "sb3_contrib"):
            arrays = {key for key, value in vars(buffer).items() if isinstance(value, np.ndarray | dict)}
            skipped |= _OF_A_ROLLOUT | arrays

        def attributes(buffer: Any = buffer, skipped: frozenset[str] = skipped) -> dict[str, Any]:
            return {key: value for key, value in vars(buffer).items() if key not in skipped}

        yield Root(f"{path}.{name}", buffer, attributes, "buffer", skipped)


def _attributes_to_look_at(callback: BaseCallback) -> Callable[[], Mapping[str, Any]]:
    def attributes() -> dict[str, Any]:
        links = {
            name for name in OF_A_CALLBACK if isinstance(getattr(callback, name, None), BaseCallback | list | dict)
        }
        return {name: value for name, value in vars(callback).items() if name not in links | {"model"}}

    return attributes


def _optimizers_of(model: BaseAlgorithm) -> list[str]:
    return [name for name in model._get_torch_save_params()[0] if _is_optimizer(_attribute(model, name))]


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, torch.optim.Optimizer)


def _live_tensors(model: BaseAlgorithm, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that :func:`_tensors` saves the values of, with their paths."""
    modules, variables = model._get_torch_save_params()
    for name in modules:
        module = _attribute(model, name)
        if isinstance(module, torch.nn.Module):
            for key in module.state_dict(keep_vars=True):
                value = _attribute(module, key) if not key.endswith("_extra_state") else None
                if isinstance(value, torch.Tensor):
                    yield f"{prefix}{name}.{key}", value
    for name in variables:
        value = _attribute(model, name)
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value


def _has_own_train(model: BaseAlgorithm) -> bool:
    """Whether updates are made by code that may add up gradients over several of them; SB3's begins at 0 each time."""
    train: Any = getattr(type(model), "train", None)
    return train is not None and train.__module__.split(".")[0] not in (
        "stable_baselines3",
        "sb3_contrib",
        "train_cloud",
    )


def _moved(value: Any, device: torch.device) -> Any:
    """The same, in which each tensor of nested (named) tuples is on ``device``."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(device)
    if isinstance(value, tuple):
        items = [_moved(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def copied(tensors: Mapping[str, torch.Tensor], with_them: Mapping[str, Array]) -> Mapping[str, Array]:
    """Copies in this process's memory, which the next gradient step does not reach.

    :param with_them: arrays that are copies already
    """
    arrays, on_gpu = dict(with_them), {}
    for name, tensor in tensors.items():
        if tensor.is_cuda:
            on_gpu[name] = as_numpy(tensor.detach()) if name.startswith(OWN) else tensor.detach()
        elif name.startswith(OWN):
            arrays[name] = as_numpy(tensor.detach().cpu()).numpy().copy()
        elif tensor.is_cpu and not tensor.requires_grad:  # nearly all: there are a hundred, and the training waits
            arrays[name] = tensor.numpy().copy()
        else:
            arrays[name] = tensor.detach().cpu().numpy().copy()
    return _Arriving(on_gpu, arrays) if on_gpu else arrays


class _Arriving(Mapping[str, Array]):
    """Arrays on their way from a GPU; whoever reads one waits until all are there, with the interpreter lock released.

    The copy in GPU memory is made in the stream that trains, so that the next update comes after it. From there to
    pinned memory a stream of its own takes it, beside the training. PyTorch, "CUDA semantics": the allocator must be
    told of memory that another stream reads (``record_stream``); pinned memory is kept until its copy is done.
    """

    _streams: ClassVar[dict[torch.device, torch.cuda.Stream]] = {}

    def __init__(self, tensors: Mapping[str, torch.Tensor], arrays: Mapping[str, Array]) -> None:
        self._arrays = dict(arrays)
        self._events = []
        kinds: dict[tuple[torch.device, torch.dtype], dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            kinds.setdefault((tensor.device, tensor.dtype), {})[name] = tensor
        for (device, dtype), group in kinds.items():
            with torch.cuda.device(device):
                together = torch.cat([tensor.reshape(-1) for tensor in group.values()])
                there = torch.empty(together.shape, dtype=dtype, pin_memory=True)
                if device not in self._streams:
                    self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
                stream = self._streams[device]
                stream.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(stream):
                    there.copy_(together, non_blocking=True)
                    together.record_stream(stream)
                    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                    event.record(stream)
                self._events.append(event)
            whole, at = there.numpy(), 0
            for name, tensor in group.items():
                self._arrays[name] = whole[at : at + tensor.numel()].reshape(tensor.shape)
                at += tensor.numel()

    def __getitem__(self, name: str) -> Array:
        for event in self._events:
            event.synchronize()
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def _tensors(
    model: BaseAlgorithm, noise: Sequence[StateDependentNoiseDistribution]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """References to every tensor of the model, and what else its state_dicts hold."""
    tensors: dict[str, torch.Tensor] = {}
    rest: dict[str, Any] = {}
    for name, state in model.get_parameters().items():
        if "state" in state and "param_groups" in state:
            rest[f"{name}|groups"] = state["param_groups"]
            for index, values in state["state"].items():
                for key, value in values.items():
                    kind = tensors if isinstance(value, torch.Tensor) else rest
                    kind[f"{name}|state|{index}|{key}"] = value
        else:
            tensors.update({f"{name}|{key}": value for key, value in state.items()})
    for name in model._get_torch_save_params()[1]:
        value = _attribute(model, name)
        if isinstance(value, torch.Tensor):
            tensors[f"variable|{name}"] = value
    for index, distribution in enumerate(noise):
        tensors[f"sde|{index}|mat"] = distribution.exploration_mat
        tensors[f"sde|{index}|mats"] = distribution.exploration_matrices
    return tensors, rest


def _beside(tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors that optimisers and gSDE have made, as which the restored ones are put back: whoever holds one
    of these, a callback that scales Adam's moments, goes on holding the very one.

    :param tensors: of each learner, as :func:`_tensors` names them
    """
    return {
        f"{learner}/{name}": tensor
        for learner, named in tensors.items()
        for name, tensor in named.items()
        if "|state|" in name or name.startswith("sde|")
    }


def parameters_of(
    tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The inverse of the naming in :func:`_tensors`: SB3's ``params`` and its ``pytorch_variables``."""
    parameters: dict[str, Any] = {}
    variables: dict[str, torch.Tensor] = {}
    for name, value in [*tensors.items(), *rest.items()]:
        owner, *path = name.split("|")
        if name.startswith(OWN):
            continue
        if owner == "variable":
            variables[path[0]] = value
        elif owner == "sde":
            continue
        elif path[0] == "groups":
            parameters.setdefault(owner, {"state": {}, "param_groups": None})["param_groups"] = value
        elif path[0] == "state" and len(path) == 3:
            state = parameters.setdefault(owner, {"state": {}, "param_groups": None})["state"]
            state.setdefault(int(path[1]), {})[path[2]] = value
        else:
            parameters.setdefault(owner, {})[path[0]] = value
    return parameters, variables


def _set_tensors(
    model: BaseAlgorithm,
    noise: Sequence[StateDependentNoiseDistribution],
    tensors: Mapping[str, torch.Tensor],
    rest: Mapping[str, Any],
) -> None:
    parameters, variables = parameters_of(tensors, rest)
    model.set_parameters(parameters, exact_match=True, device=model.device)
    for name, value in variables.items():
        _attribute(model, name).data.copy_(value)
    for index, distribution in enumerate(noise):
        distribution.exploration_mat = tensors[f"sde|{index}|mat"].to(model.device)
        distribution.exploration_matrices = tensors[f"sde|{index}|mats"].to(model.device)


def _attribute(model: BaseAlgorithm | torch.nn.Module, path: str) -> Any:
    value: Any = model
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _noise_distributions(model: BaseAlgorithm) -> Iterator[StateDependentNoiseDistribution]:
    """gSDE's noise matrices are in no state_dict."""
    for module in model.policy.modules():
        distribution = getattr(module, "action_dist", None)
        if isinstance(distribution, StateDependentNoiseDistribution):
            yield distribution


def _wrappers(env: VecEnv) -> list[VecEnvWrapper]:
    """Outermost first."""
    found = []
    while isinstance(env, VecEnvWrapper):
        found.append(env)
        env = env.venv
    return found


def _replaced(observations: Any, single: Mapping[int, Any]) -> Any:
    """A copy of the observations of all environments, with those of some replaced."""
    if isinstance(observations, dict):
        return {
            key: _replaced(value, {index: one[key] for index, one in single.items()})
            for key, value in observations.items()
        }
    copied = np.array(observations)
    for index, one in single.items():
        copied[index] = one
    return copied


def _can_be_pickled(value: object, envs: list[gymnasium.Env[Any, Any]]) -> bool:
    try:
        dumps(value, envs)
    except FAILURES:
        return False
    return True


def _walk(path: str, root: BaseCallback) -> Iterator[tuple[str, BaseCallback]]:
    """A callback and those that it calls, with their paths; those in ``learn``'s list are ``callbacks[0] Name`` and so
    on.
    """
    several = getattr(root, "callbacks", None)
    if path == "callbacks" and not several:
        path = f"callbacks[0] {type(root).__name__}"
    yield path, root
    for index, child in enumerate(several or []):
        inner = f"callbacks[{index}]" if path == "callbacks" else f"{path}.callbacks[{index}]"
        yield from _walk(f"{inner} {type(child).__name__}", child)
    for name in ("callback", "callback_on_new_best"):
        child = getattr(root, name, None)
        if isinstance(child, BaseCallback):
            yield from _walk(f"{path}.{name}", child)


def _get_callback(callback: BaseCallback) -> dict[str, Any]:
    return {
        name: value
        for name, value in callback.__dict__.items()
        if name not in OF_A_CALLBACK and not _is_in_the_session(value)
    }


def _is_in_the_session(value: Any) -> bool:
    """A path into the session's own folder, which may be another one in the next session."""
    return isinstance(value, str | PurePath) and any(PurePath(value).is_relative_to(one) for one in artifact_folders())


def _set_callback(callback: BaseCallback, state: Mapping[str, Any]) -> None:
    for name, value in state.items():
        live = getattr(callback, name, None)
        if value is LEFT:
            continue
        if isinstance(live, VecEnv) and isinstance(value, list):
            set_vecenv(live, value)  # of an older checkpoint
        else:
            setattr(callback, name, value)


def _pending(logger: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What was recorded and is not dumped yet."""
    return logger.name_to_value, logger.name_to_count, logger.name_to_excluded


def _skeleton(model: BaseAlgorithm) -> bytes:
    """SB3's own description of a model without its tensors, as ``save`` writes it; the same bytes all through a run."""
    excluded = set(model._excluded_save_params()) | {
        name.split(".")[0] for names in model._get_torch_save_params() for name in names
    }
    volatile = {name for name in model.__dict__ if name.startswith(("_last_", "ep_")) or name == "start_time"}
    data = {name: value for name, value in model.__dict__.items() if name not in excluded | volatile}
    empty: dict[str, Any] = dict.fromkeys(volatile)
    return data_to_json({**data, **empty}).encode()
