"""The state of vectorised environments: of a ``VecEnv`` layer by layer, of what is innermost by one of these plans.

===========  ==========================================================================================================
``dummy``    SB3's ``DummyVecEnv`` or a class derived from it: each environment by its state provider
``subproc``  SB3's ``SubprocVecEnv``: the same in the environments' own processes, where ``train_cloud.stateful`` is
``own``      the ``get_state()`` and ``set_state(state)`` of a ``VecEnv`` of the user's
``tree``     anything else whose parts can be reached: Gymnasium's and SuperSuit's vector environments, a user's own
``anew``     all others: a resumed session begins new episodes, which is recorded as not exact
===========  ==========================================================================================================

A tree has vector environments within each other, and single ones at its ends. That its state comes back is tried out on
copies of it in two fresh processes: what stands for an object of a library in C++ may be pickled, and be dead when it
comes back.
"""

from __future__ import annotations

import io
import pickle
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from train_cloud.envs.curriculum import Staged
from train_cloud.envs.fresh import Fresh
from train_cloud.envs.make import FAILURES, Env, close, in_words
from train_cloud.envs.parallel import NEEDED, Together
from train_cloud.envs.pickling import Sections, dumps, loads
from train_cloud.envs.pieces import Left, Taking, put_each
from train_cloud.envs.shared import Shared, put_shared
from train_cloud.envs.state import (
    Anew,
    StatefulEnv,
    get_state,
    plain,
    process_generators,
    set_process_generators,
    set_state,
    take_apart,
)
from train_cloud.envs.trial import Alike, Choice, choose_for, difference, shown, stateful
from train_cloud.errors import TrainCloudError

#: Of a VecEnv: connections and descriptions. ``envs`` goes through the state providers; a step's ``info`` is shown
#: once.
_OF_THE_VECENV = {
    "venv", "envs", "class_attributes", "remotes", "work_remotes", "processes", "metadata", "waiting", "closed",
    "buf_infos",
}  # fmt: skip
#: What the episodes' resets have told, which callbacks may read until the next ones. Objects in it are the
#: environments'.
_RESET_INFOS = "reset_infos"
#: Steps of the trial of a tree: before its state is taken, and after.
_LEAD_IN, _COMPARED = 30, 60

ProviderOf = Callable[[Env], str]


@dataclass
class Tree:
    """What holds environments, and the environments, by their path.

    :ivar holders: vector environments, the innermost layer first
    """

    holders: dict[str, Any] = field(default_factory=dict)
    singles: dict[str, Env] = field(default_factory=dict)

    def all(self) -> list[Any]:
        """What states of this tree refer to, for :func:`dumps` and :func:`loads`."""
        return [*self.singles.values(), *self.holders.values()]


@dataclass
class Plan:
    """How the innermost layer's state is taken.

    :ivar how: see the module
    :ivar because: why it is not exact to resume with it; empty where it is
    """

    how: str
    because: str = ""
    tree: Tree = field(default_factory=Tree)


_plans: weakref.WeakKeyDictionary[Any, Plan] = weakref.WeakKeyDictionary()
_chosen: weakref.WeakKeyDictionary[Any, tuple[str, bool, Choice]] = weakref.WeakKeyDictionary()
_together: weakref.WeakKeyDictionary[Any, Together] = weakref.WeakKeyDictionary()
_in_pieces: weakref.WeakSet[Any] = weakref.WeakSet()


# ------------------------------------------------------------------------------------------------- what there is


def layers_of(env: VecEnv) -> list[Any]:
    """The wrappers, outermost first, and what is innermost: not always one of SB3's."""
    found: list[Any] = [env]
    while isinstance(found[-1], VecEnvWrapper):
        found.append(found[-1].venv)
    return found


def tree_of(base: Any) -> Tree:
    """What is reached from the innermost layer through attributes, lists and dicts."""
    found = Tree()
    waiting: list[tuple[str, Any]] = [("", base)]
    seen: set[int] = set()
    while waiting:
        path, value = waiting.pop(0)
        if id(value) in seen:
            continue
        if value is base or isinstance(value, VecEnv | gymnasium.vector.VectorEnv):
            seen.add(id(value))
            found.holders[path] = value
            for name, content in vars(value).items():
                waiting += [(f"{path}.{name}{place}", inner) for place, inner in _within(content)]
        elif (single := _single(value)) is not None:
            seen.add(id(value))
            found.singles[path] = single
    return found


def _within(content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, list | tuple):
        yield from ((f"[{index}]", item) for index, item in enumerate(content))
    elif type(content) is dict:
        yield from ((f"[{key!r}]", item) for key, item in content.items())
    else:
        yield "", content


def _single(value: Any) -> Env | None:
    """An environment as the state providers take it; of several agents', as one."""
    if isinstance(value, gymnasium.Env):
        return value
    if isinstance(value, type) or not all(hasattr(value, name) for name in NEEDED):
        return None
    if value not in _together:
        _together[value] = Together(value)
    return _together[value]


def _inside(single: Env) -> dict[str, Env]:
    """The environments whose layers are saved: itself, or those of a curriculum's stages."""
    if isinstance(single, Staged):
        return {f".train_cloud_envs[{stage}]": env for stage, env in enumerate(single.train_cloud_envs)}
    return {"": single}


def get_single(single: Env, provider_of: ProviderOf) -> Any:
    """The state of one environment of a ``VecEnv``: references."""
    if isinstance(single, Staged):
        return single.get_states(provider_of)
    return get_state(single, provider_of(single))


def set_single(single: Env, state: Any) -> Anew | None:
    """The counterpart; see :func:`train_cloud.envs.state.set_state`."""
    return single.set_states(state) if isinstance(single, Staged) else set_state(single, state)


def singles(env: VecEnv) -> list[Env]:
    """The environments that live in this process; of a curriculum those of its stages."""
    return [*plan_of(env).tree.singles.values()]


def reached(env: VecEnv) -> list[tuple[str, Any]]:
    """What holds them below the layers of SB3's, with its path."""
    return [(path, holder) for path, holder in plan_of(env).tree.holders.items() if path]


def choice_of(single: Env) -> Choice:
    """How a single environment's state is saved; of one that somebody else made, tried on others like it, once for all
    of its kind.
    """
    if isinstance(single, StatefulEnv):
        return Choice(single.train_cloud_provider, not single.train_cloud_because, single.train_cloud_because)
    return _choose(single, recorded=False)


def _choose(single: Env, *, recorded: bool) -> Choice:
    spec = getattr(single, "spec", None)
    kind = str(spec) if spec is not None else type(single.unwrapped).__qualname__
    known = next((one for one in _chosen.values() if one[0] == kind and _holds(one, recorded)), None)
    _chosen[single] = known or (kind, recorded, choose_for(single, recorded=recorded))
    return _chosen[single][2]


def _holds(tried: tuple[str, bool, Choice], recorded: bool) -> bool:
    """Whether what was found with a record of what is played, or without one, is true in the other case too."""
    _, with_record, choice = tried
    return with_record == recorded or (choice.provider != "replay" if with_record else choice.exact)


def prepare(env: VecEnv) -> None:
    """Before the first reset of a training that a script of the user's begins: whatever can only be played again is
    recorded from here on.
    """
    tree = tree_of(layers_of(env)[-1])
    for holder in tree.holders.values():
        inside = vars(holder).get("envs")
        for index, single in enumerate(inside if isinstance(inside, list) else ()):
            if not isinstance(single, gymnasium.Env) or isinstance(single, StatefulEnv):
                continue
            choice = _choose(single, recorded=True)
            if choice.provider == "replay":
                inside[index] = stateful(single, choice)


# ------------------------------------------------------------------------------------------------------- the plan


def plan_of(env: VecEnv) -> Plan:
    """Made when it is asked for first."""
    inner = layers_of(env)
    if inner[-1] not in _plans:
        _plans[inner[-1]] = _planned(inner)
    return _plans[inner[-1]]


def _planned(inner: Sequence[Any]) -> Plan:
    base = inner[-1]
    if isinstance(base, DummyVecEnv):
        found = {
            f".envs[{index}]{place}": inner
            for index, single in enumerate(base.envs)
            for place, inner in _inside(single).items()
        }
        return Plan("dummy", "", Tree({}, found))
    if isinstance(base, SubprocVecEnv):
        if base.has_attr("train_cloud_get_state"):
            return Plan("subproc", next(filter(None, base.get_attr("train_cloud_because")), ""))
        fix = "wrap each, outermost, with train_cloud.stateful: make_vec_env(…, wrapper_class=train_cloud.stateful)"
        return Plan("anew", f"the environments of a SubprocVecEnv are in processes of their own: {fix}")
    if callable(getattr(type(base), "get_state", None)) and callable(getattr(type(base), "set_state", None)):
        return Plan("own")
    tree = tree_of(base)
    left = next((left for left in _take_apart(tree) if not left.harmless), None)
    because = str(left) if left is not None else ""
    for single in tree.singles.values() if not because else ():
        choice = choice_of(single)
        because = because or ("" if choice.exact else choice.because)
    because = because or _tried(inner, tree)
    return Plan("anew" if because else "tree", f"{type(base).__qualname__}: {because}" if because else "", tree)


def _take_apart(tree: Tree) -> list[Left]:
    """What of the holders' attributes is not taken."""
    left = []
    for path, holder in tree.holders.items():
        left += _look_at(holder, tree.all(), f"{path}.".lstrip("."))
    return left


def _look_at(holder: Any, known: Sequence[Any], prefix: str) -> list[Left]:
    """Take its attributes in pieces from now on, if they cannot be pickled as a whole."""
    try:
        dumps(_attributes(holder), known)
        return []
    except FAILURES:
        _in_pieces.add(holder)
    taking = Taking(lambda value: dumps(value, known))
    for name, value in _attributes(holder).items():
        taking.take(value, prefix + name)
    return taking.left


def look(env: VecEnv) -> list[str]:
    """Find out how the state of all layers is taken.

    :return: why an interruption is not exact, a clause each
    """
    plan, inner = plan_of(env), layers_of(env)
    for single in plan.tree.singles.values():
        take_apart(single)
    known = [*plan.tree.all(), *inner]
    left = [left for layer in inner[: len(inner) if plan.how == "dummy" else -1]
            for left in _look_at(layer, known, f"{type(layer).__qualname__}.")]  # fmt: skip
    told = [str(one) for one in left if not one.harmless]
    if plan.because:
        told.append(plan.because)
    elif plan.how == "dummy":
        choices = [choice_of(single) for single in plan.tree.singles.values()]
        told += dict.fromkeys(choice.because for choice in choices if not choice.exact)
    return told


def _attributes(holder: Any) -> dict[str, Any]:
    found = {name: value for name, value in vars(holder).items() if name not in _OF_THE_VECENV}
    if not _is_data(found.get(_RESET_INFOS)):
        del found[_RESET_INFOS]
    return found


def _is_data(value: Any) -> bool:
    """Whether it consists of plain values and arrays."""
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    if type(value) is dict:
        return all(map(_is_data, value)) and all(map(_is_data, value.values()))
    if type(value) in (list, tuple):
        return all(map(_is_data, value))
    return value is None or isinstance(value, str | bytes | int | float | np.generic)


# -------------------------------------------------------------------------------------------------- get and set


def get_vecenv(env: VecEnv, provider_of: ProviderOf) -> list[dict[str, Any]]:
    """References: one dict per layer, outermost first; the innermost has the environments' states."""
    plan, inner = plan_of(env), layers_of(env)
    found = [_taken(layer, [*plan.tree.all(), *inner]) for layer in inner[:-1]]
    base = inner[-1]
    if plan.how == "dummy":
        states = [get_single(single, provider_of) for single in base.envs]
        return [*found, {**_taken(base, plan.tree.all()), "train_cloud": states}]
    if plan.how == "subproc":
        return [*found, {**_attributes(base), "train_cloud": _from_processes(base)}]
    if plan.how == "own":
        return [*found, {"train_cloud_own": base.get_state()}]
    if plan.how == "tree":
        return [*found, {"train_cloud_tree": _get_tree(plan.tree, provider_of)}]
    return [*found, {"train_cloud_anew": plan.because}]


#: Large contents of environments in processes of their own, by name, as of the last time.
_sent: weakref.WeakKeyDictionary[VecEnv, dict[str, bytes]] = weakref.WeakKeyDictionary()
_left: weakref.WeakKeyDictionary[VecEnv, list[str]] = weakref.WeakKeyDictionary()


def left_in_processes(env: VecEnv) -> list[str]:
    """What classes, modules and functions have changed in the environments' own processes and cannot be saved, as of
    the last time.
    """
    return _left.get(layers_of(env)[-1], [])


def _from_processes(base: Any) -> list[bytes | Sections]:
    """The environments' states. A large content comes through a pipe only if no earlier state had it."""
    known = _sent.get(base)
    taken = []
    if known is None:  # the first time: what is the same in all comes from one
        taken, known = base.env_method("train_cloud_get_state", indices=[0]), {}
        known |= _contents_in(taken)
    if len(taken) < base.num_envs:
        others = range(len(taken), base.num_envs)
        taken += base.env_method("train_cloud_get_state", frozenset(known), indices=others)
    known = {**known, **_contents_in(taken)}
    _sent[base] = {name: known[name] for _, names, *_ in taken for name in names}
    _left[base] = list(dict.fromkeys(left for _, _, *several in taken for left in (several[0] if several else ())))
    return [
        Sections(state.rest, state.at, [known[name] for name in names]) if isinstance(state, Sections) else state
        for state, names, *_ in taken
    ]


def _contents_in(taken: Sequence[tuple[Any, ...]]) -> dict[str, bytes]:
    return {
        name: content
        for state, names, *_ in taken
        if isinstance(state, Sections)
        for name, content in zip(names, state.large, strict=True)
        if content is not None
    }


def set_vecenv(env: VecEnv, saved: Sequence[Mapping[str, Any]]) -> dict[int, Anew]:
    """:return: what began in the environments that could not go on with their episode, by index"""
    plan, inner = plan_of(env), layers_of(env)
    for layer, content in zip(inner[:-1], saved, strict=False):
        _put(layer, content)
    if len(saved) != len(inner):
        return _begin(inner, f"it had {len(saved)} layers, and has {len(inner)}")
    base, last = inner[-1], dict(saved[-1])
    if "train_cloud_anew" in last:
        return _begin(inner, last["train_cloud_anew"])
    if plan.how in ("dummy", "subproc") and "train_cloud" in last:
        states = last.pop("train_cloud")
        _put(base, last)
        begun = {}
        for index, state in enumerate(states):
            if plan.how == "dummy":
                anew = set_single(base.envs[index], state)
            else:
                anew = base.env_method("train_cloud_set_state", state, indices=[index])[0]
            if anew is not None:
                begun[index] = anew
        return begun
    try:
        if plan.how == "own" and "train_cloud_own" in last:
            base.set_state(last["train_cloud_own"])
            return {}
        if plan.how == "tree" and "train_cloud_tree" in last:
            _set_tree(plan.tree, last["train_cloud_tree"])
            return {}
    except FAILURES as error:
        return _begin(inner, f"restoring its state raises {in_words(error)}")
    return _begin(inner, plan.because or "its state was saved in another way")


def _taken(layer: Any, known: Sequence[Any]) -> dict[str, Any]:
    content = _attributes(layer)
    if layer not in _in_pieces:
        return content
    taking = Taking(lambda value: dumps(value, known))
    return {name: taking.take(value, name) for name, value in content.items()}


def _put(layer: Any, content: Mapping[str, Any]) -> None:
    found = put_each(vars(layer), content)
    # In place: the environment of each has the very dict, too.
    for live, saved in zip(vars(layer).get(_RESET_INFOS, ()), found.pop(_RESET_INFOS, ()), strict=False):
        live.clear()
        live.update(saved)
    vars(layer).update(found)


def _get_tree(tree: Tree, provider_of: ProviderOf) -> dict[str, Any]:
    return {
        "holders": {path: _taken(holder, tree.all()) for path, holder in tree.holders.items()},
        "singles": {path: get_state(single, provider_of(single)) for path, single in tree.singles.items()},
    }


def _set_tree(tree: Tree, state: Mapping[str, Any]) -> None:
    """:raises TrainCloudError: it is another tree, or an environment of it cannot go on"""
    for kind, there in (("holders", tree.holders), ("singles", tree.singles)):
        if state[kind].keys() != there.keys():
            raise TrainCloudError(f"it held {', '.join(state[kind])}, and holds {', '.join(there)}")
    for path, single in tree.singles.items():
        anew = set_state(single, state["singles"][path])
        if anew is not None:
            raise TrainCloudError(anew.because)
    for path, holder in tree.holders.items():
        _put(holder, state["holders"][path])


def _begin(inner: Sequence[Any], because: str) -> dict[int, Anew]:
    """New episodes everywhere: other ones than the run began with."""
    numbers: Any = np.random.get_state(legacy=False)
    outermost = next(layer for layer in reversed(inner) if isinstance(layer, VecEnv))
    outermost.seed(zlib.crc32(numbers["state"]["key"].tobytes()))
    observations = outermost.reset()
    return {index: Anew(_of(observations, index), because) for index in range(outermost.num_envs)}


def _of(observations: Any, index: int) -> Any:
    if isinstance(observations, Mapping):
        return {name: _of(part, index) for name, part in observations.items()}
    if isinstance(observations, tuple):
        return tuple(_of(part, index) for part in observations)
    return observations[index]


# ------------------------------------------------------------------------------------------------------ the trial


def _tried(inner: Sequence[Any], tree: Tree) -> str:
    """Play a copy of it in a fresh process, and go on with its state in another one's.

    :return: why its state does not come back; empty where it does
    """
    outermost = next(layer for layer in reversed(inner) if isinstance(layer, VecEnv))
    providers = {path: choice_of(single).provider for path, single in tree.singles.items()}
    one, other = Fresh(loads=[__name__]), Fresh(loads=[__name__])
    try:
        copied = _copy(outermost, tree)
        played = one.call(_play_first, copied, providers)
        return str(other.call(_play_second, copied, providers, played) or "")
    except FAILURES as error:
        return f"whether its state comes back could not be tried: {in_words(error)}"
    finally:
        one.close()
        other.close()


def _copy(env: VecEnv, tree: Tree) -> bytes:
    """With new environments in the place of its own: these may be what cannot be copied."""
    import cloudpickle

    alike: dict[int, tuple[Any, ...]] = {}
    for single in tree.singles.values():
        if isinstance(single, StatefulEnv):
            alike[id(single)] = _stateful_alike, (Alike(single.env), choice_of(single), single.replay_max_steps)
        elif isinstance(single, Together):
            alike[id(single.parallel)] = _parallel_alike, (Alike(single),)
        else:
            alike[id(single)] = _made, (Alike(single),)

    class Copier(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if id(obj) in alike:
                return alike[id(obj)]
            if isinstance(obj, VecEnvWrapper) and not hasattr(type(obj), "__setstate__"):
                # While it has no venv yet, a wrapper looks for __setstate__ there for ever.
                return _empty, (type(obj),), dict(vars(obj)), None, None, _fill
            return super().reducer_override(obj)

    file = io.BytesIO()
    Copier(file).dump(env)
    return file.getvalue()


def _empty(kind: Any) -> Any:
    return kind.__new__(kind)


def _fill(obj: Any, content: Mapping[str, Any]) -> None:
    vars(obj).update(content)


def _made(alike: Alike) -> Env:
    return alike()


def _stateful_alike(alike: Alike, choice: Choice, replay_max_steps: int) -> Env:
    made = stateful(alike(), choice)
    made.replay_max_steps = replay_max_steps
    return made


def _parallel_alike(alike: Alike) -> Any:
    return alike().unwrapped.parallel  # type: ignore[attr-defined]


@dataclass
class _Played:
    state: bytes
    shared: bytes
    generators: Mapping[str, Any]
    actions: list[Any]
    outputs: list[Any]


def _play_first(copied: bytes, providers: Mapping[str, str]) -> _Played:
    warnings.simplefilter("ignore")
    env = pickle.loads(copied)
    tree = tree_of(layers_of(env)[-1])
    _take_apart(tree)
    env.reset()
    shared = Shared([*tree.singles.values()])
    space = env.action_space
    space.seed(1)
    for _ in range(_LEAD_IN):
        env.step(np.stack([space.sample() for _ in range(env.num_envs)]))
    state = dumps(_get_tree(tree, _by_path(tree, providers)), tree.all())
    played = _Played(state, dumps(shared.changed(), tree.all()), process_generators(), [], [])
    for _ in range(_COMPARED):
        played.actions.append(np.stack([space.sample() for _ in range(env.num_envs)]))
        played.outputs.append(_shown(env.step(played.actions[-1])))
    close(env)
    return played


def _play_second(copied: bytes, providers: Mapping[str, str], played: _Played) -> str | None:
    warnings.simplefilter("ignore")
    env = pickle.loads(copied)
    tree = tree_of(layers_of(env)[-1])
    _take_apart(tree)
    env.reset()
    env.step(np.stack([env.action_space.sample() for _ in range(env.num_envs)]))
    set_process_generators(played.generators)
    put_shared(loads(played.shared, tree.all()), [*tree.singles.values()])
    _set_tree(tree, loads(played.state, tree.all()))
    for number, (actions, expected) in enumerate(zip(played.actions, played.outputs, strict=True)):
        differs = difference(expected, _shown(env.step(actions)))
        if differs:
            return f"restored, it went another way at step {number + 1}: {differs}"
    close(env)
    return None


def _shown(output: Sequence[Any]) -> tuple[Any, ...]:
    observations, rewards, dones, infos = output
    return plain(observations), plain(rewards), plain(dones), plain([shown(info) for info in infos])


def _by_path(tree: Tree, providers: Mapping[str, str]) -> ProviderOf:
    by_id = {id(single): providers[path] for path, single in tree.singles.items()}
    return lambda single: by_id[id(single)]
