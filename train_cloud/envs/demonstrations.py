"""Demonstrations: what somebody did in an environment, step by step, in a ``.npz`` file or a Minari dataset.

A ``.npz`` file has one row for each step, in these arrays (docs/pretraining.md):

==================  =========================  ================================================================
``observations``    (steps, …)                 before the action; of a dict one array each, ``observations/<key>``
``actions``         (steps, …)                 as the environment was given them
``rewards``         (steps,)
``terminations``    (steps,) of truth values   the episode ended with this step
``truncations``     (steps,) of truth values   it was cut with this step
``episode_starts``  (steps,) of truth values   optional: else a new episode begins after each end
``environment``     () of text                 optional: JSON ``{"id": …, "kwargs": {…}}``
==================  =========================  ================================================================

A Minari dataset (https://minari.farama.org, "Dataset standards") is a folder; only its format *arrow* is read. Nothing
that is read here is unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from train_cloud import extras
from train_cloud.errors import InputError
from train_cloud.whole_file import write_whole

FIELD = "pretraining.demonstrations"

Array: TypeAlias = npt.NDArray[Any]
Observations: TypeAlias = "Array | dict[str, Array]"

_KEY = "observations/"
_REQUIRED = ("actions", "rewards", "terminations", "truncations")
_ENDS = ("terminations", "truncations", "episode_starts")
_METADATA = "metadata.json"
#: How far a continuous action may lie outside of its bounds by rounding.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Demonstrations:
    """Steps of whole episodes, one after the other.

    :ivar observations: before each action, (steps, …); by key where the environment's are a dict
    :ivar actions: (steps, …)
    :ivar rewards: (steps,)
    :ivar terminations: (steps,)
    :ivar truncations: (steps,)
    :ivar starts: first step of each episode, ascending
    :ivar environment: ``id`` and ``kwargs`` of the environment that they are of; None where nobody wrote it down
    :ivar source: for messages
    """

    observations: Observations
    actions: Array
    rewards: Array
    terminations: Array
    truncations: Array
    starts: npt.NDArray[np.int64]
    environment: Mapping[str, Any] | None
    source: str

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def episodes(self) -> list[slice]:
        """The steps of each."""
        ends = [*self.starts[1:].tolist(), len(self)]
        return [slice(first, last) for first, last in zip(self.starts.tolist(), ends, strict=True)]

    @property
    def by_key(self) -> dict[str, Array]:
        """Observations by key, with the key ``""`` where they are no dict."""
        return self.observations if isinstance(self.observations, dict) else {"": self.observations}

    def returns(self, rewards: Array, gamma: float) -> npt.NDArray[np.float64]:
        """Discounted sum of the rewards from each step to its episode's end, (steps,)."""
        found = np.zeros(len(self), np.float64)
        for episode in self.episodes:
            total = 0.0
            for step in range(episode.stop - 1, episode.start - 1, -1):
                total = float(rewards[step]) + gamma * total
                found[step] = total
        return found

    def digest(self) -> str:
        """SHA-256 (hexadecimal) of all arrays, wherever they were read from."""
        found = hashlib.sha256()
        arrays = {f"{_KEY}{key}": array for key, array in self.by_key.items()}
        arrays |= {name: getattr(self, name) for name in (*_REQUIRED, "starts")}
        for name, array in sorted(arrays.items()):
            found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            found.update(np.ascontiguousarray(array).view(np.uint8).data)
        return found.hexdigest()


def make(arrays: Mapping[str, Array], environment: Mapping[str, Any] | None, source: str) -> Demonstrations:
    """From arrays as a ``.npz`` file has them.

    :param source: for messages
    :raises InputError: an array is missing, or does not fit the others; nothing is in them, or no numbers
    """

    def refuse(why: str) -> InputError:
        return InputError(FIELD, source, why)

    keys = {name.removeprefix(_KEY): array for name, array in arrays.items() if name.startswith(_KEY)}
    missing = [name for name in _REQUIRED if name not in arrays]
    if not keys and "observations" not in arrays:
        missing.insert(0, "observations (or observations/<key> for each key of a dict)")
    if missing:
        raise refuse(f"it lacks {', '.join(missing)}: write what docs/pretraining.md lists, or use train-cloud record")
    if keys and "observations" in arrays:
        raise refuse("it has observations, and observations/<key> besides: leave one of them out")
    seen = keys or {"observations": arrays["observations"]}
    columns = {**seen, **{name: arrays[name] for name in _REQUIRED}}
    if "episode_starts" in arrays:
        columns["episode_starts"] = arrays["episode_starts"]
    steps = {name: len(array) if array.ndim else -1 for name, array in columns.items()}
    if len(set(steps.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in steps.items())
        raise refuse(f"its arrays have different numbers of steps ({told}): give one row of each for every step")
    count = steps["actions"]
    if count <= 0:
        raise refuse("it has no steps: record some episodes, with train-cloud record for example")
    for name, array in columns.items():
        if array.dtype.kind not in "biuf":
            raise refuse(f"its {name} are of type {array.dtype}: give numbers")
        if name in ("rewards", *_ENDS) and array.shape != (count,):
            raise refuse(f"its {name} have the shape {array.shape}: give one number for each step, ({count},)")
        if array.dtype.kind == "f" and not (finite := np.isfinite(array.reshape(count, -1)).all(axis=1)).all():
            bad = np.flatnonzero(~finite)
            raise refuse(
                f"its {name} are not finite at {len(bad)} steps, the first is {bad[0]}: leave these episodes out"
            )
    terminations, truncations = (arrays[name].astype(bool) for name in ("terminations", "truncations"))
    begins = np.concatenate([[True], (terminations | truncations)[:-1]])
    if "episode_starts" in arrays:
        given = arrays["episode_starts"].astype(bool)
        wrong = np.flatnonzero(begins & ~given)
        if len(wrong):
            after = (
                "its first step begins no episode"
                if wrong[0] == 0
                else f"no episode begins after the end at {wrong[0] - 1}"
            )
            raise refuse(f"episode_starts do not fit the ends: {after}")
        begins = given
    return Demonstrations(
        keys or arrays["observations"],
        arrays["actions"],
        arrays["rewards"],
        terminations,
        truncations,
        np.flatnonzero(begins).astype(np.int64),
        environment,
        source,
    )


# ------------------------------------------------------------------------------------------------- files and folders


def read(path: Path, source: str) -> Demonstrations:
    """What a file or folder holds.

    :param source: for messages
    :raises InputError: nothing of these kinds, or damaged
    :raises NotInstalled: a Minari dataset, and its reader is not installed
    """
    if path.is_file():
        return _read_npz(path, source)
    if not path.is_dir():
        raise InputError(FIELD, source, "there is no such file or folder: correct the path")
    for folder in (path, path / "data"):
        if (folder / _METADATA).is_file():
            return _read_minari(folder, source)
    files = sorted(path.glob("*.npz"))
    if not files:
        raise InputError(
            FIELD, source, "it has neither .npz files nor a Minari dataset (data/metadata.json): name one that has"
        )
    return _joined([_read_npz(file, f"{source}: {file.name}") for file in files], source)


def minari_folder(identifier: str) -> Path:
    """Where Minari keeps a dataset of this id (minari.storage.datasets_root_dir).

    :raises InputError: there is none
    """
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
    folder = root / identifier
    if not (folder / "data" / _METADATA).is_file():
        there = sorted(path.parent.parent.relative_to(root).as_posix() for path in root.glob(f"**/data/{_METADATA}"))
        known = f"there are {', '.join(there[:5])}{' …' if len(there) > 5 else ''}" if there else "there is none"
        fix = f"Minari has no dataset of this id in {root} ({known}): minari download {identifier}, or name its folder"
        raise InputError(FIELD, f"minari:{identifier}", fix)
    return folder


def _read_npz(path: Path, source: str) -> Demonstrations:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # of zipfile, zlib and NumPy, whatever stands in a file that is damaged or another one
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        fix = f"it is no .npz file of plain arrays ({why}): write it with numpy.savez"
        raise InputError(FIELD, source, fix) from error
    return make(arrays, _environment(arrays.pop("environment", None), source), source)


def _environment(text: Array | None, source: str) -> Mapping[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(str(text))
        return {"id": str(found["id"]), "kwargs": dict(found.get("kwargs") or {})}
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(
            FIELD, source, 'its environment is not JSON like {"id": "CartPole-v1", "kwargs": {}}'
        ) from error


def _read_minari(folder: Path, source: str) -> Demonstrations:
    metadata = _json(folder / _METADATA, source)
    if metadata.get("data_format") != "arrow":
        fix = f"its format is {metadata.get('data_format')!r}: only arrow is read; convert it, or export it as .npz"
        raise InputError(FIELD, source, fix)
    extras.need("pyarrow", "a Minari dataset")
    extras.need("minari", "a Minari dataset")
    from minari import MinariDataset

    columns: dict[str, list[Array]] = {}
    try:
        dataset = MinariDataset(folder)
        for episode in dataset.iterate_episodes():
            count = len(episode.rewards)
            if not count:
                continue
            found: dict[str, Any] = {"observations": episode.observations, "actions": episode.actions}
            if isinstance(episode.observations, dict):
                del found["observations"]
                found |= {_KEY + key: value for key, value in episode.observations.items()}
            found |= {name: getattr(episode, name) for name in ("rewards", "terminations", "truncations")}
            if not all(isinstance(value, np.ndarray) for value in found.values()):
                odd = ", ".join(name for name, value in found.items() if not isinstance(value, np.ndarray))
                raise InputError(FIELD, source, f"its {odd} are no arrays: nested and tuple spaces are not supported")
            found["episode_starts"] = np.arange(count) == 0
            for name, value in found.items():
                columns.setdefault(name, []).append(value[:count])  # the last observation has no action
    except InputError:
        raise
    except Exception as error:  # pyarrow's own, of files that are cut off or changed
        fix = f"it cannot be read as a Minari dataset ({type(error).__name__}: {error}): download or record it again"
        raise InputError(FIELD, source, fix) from error
    if not columns:
        raise InputError(FIELD, source, "it has no steps: record some episodes, with train-cloud record for example")
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    count, said = len(arrays["rewards"]), metadata.get("total_steps")
    if isinstance(said, int) and count != said:
        raise InputError(FIELD, source, f"{count} of its {said} steps are there: download or copy it again")
    return make(arrays, _of_spec(metadata.get("env_spec")), source)


def _of_spec(text: object) -> Mapping[str, Any] | None:
    """Gymnasium's ``EnvSpec.to_json``."""
    if not isinstance(text, str):
        return None
    try:
        spec = json.loads(text)
        return {"id": str(spec["id"]), "kwargs": dict(spec.get("kwargs") or {})}
    except (ValueError, TypeError, LookupError):
        return None


def _json(path: Path, source: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(FIELD, source, f"its {path.name} cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}


def _joined(parts: Sequence[Demonstrations], source: str) -> Demonstrations:
    first = parts[0]
    for part in parts[1:]:
        if part.by_key.keys() != first.by_key.keys():
            raise InputError(
                FIELD, part.source, f"it has other keys of observations than {first.source}: use one environment"
            )
        shapes = [{key: array.shape[1:] for key, array in each.by_key.items()} for each in (first, part)]
        if shapes[0] != shapes[1] or part.actions.shape[1:] != first.actions.shape[1:]:
            raise InputError(FIELD, part.source, f"its arrays have other shapes than those of {first.source}")
        if None not in (part.environment, first.environment) and part.environment != first.environment:
            raise InputError(FIELD, part.source, f"it is of another environment than {first.source}")
    keys = {key: np.concatenate([part.by_key[key] for part in parts]) for key in first.by_key}
    before = np.cumsum([0, *(len(part) for part in parts[:-1])])
    together = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _REQUIRED}
    return Demonstrations(
        observations=keys if isinstance(first.observations, dict) else keys[""],
        starts=np.concatenate([part.starts + at for part, at in zip(parts, before, strict=True)]),
        environment=next((part.environment for part in parts if part.environment is not None), None),
        source=source,
        **together,
    )


def write(episodes: Sequence[Episode], env: gymnasium.Env[Any, Any], environment: Mapping[str, Any], out: Path) -> None:
    """Write recorded episodes: into a file where ``out`` ends in ``.npz``, else as the folder of a Minari dataset.

    :param env: that they are of
    :param environment: its ``id`` and ``kwargs``
    :raises NotInstalled: for a Minari dataset
    """
    if out.suffix != ".npz":
        _write_minari(episodes, env, out)
        return
    first = episodes[0].observations[0]
    arrays: dict[str, Any] = {}
    if isinstance(first, Mapping):
        for key in first:
            arrays[_KEY + key] = np.stack(
                [np.asarray(seen[key]) for each in episodes for seen in each.observations[:-1]]
            )
    else:
        arrays["observations"] = np.stack([np.asarray(seen) for each in episodes for seen in each.observations[:-1]])
    arrays["actions"] = np.stack([np.asarray(action) for each in episodes for action in each.actions])
    for name, dtype in (("rewards", np.float64), ("terminations", bool), ("truncations", bool)):
        arrays[name] = np.concatenate([np.asarray(getattr(each, name), dtype) for each in episodes])
    arrays["episode_starts"] = np.concatenate([np.arange(len(each.actions)) == 0 for each in episodes])
    arrays["environment"] = np.array(json.dumps(environment, sort_keys=True))
    body = io.BytesIO()
    _savez(body, arrays)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, body.getvalue())


def _savez(body: io.BytesIO, arrays: Mapping[str, Any]) -> None:
    """``numpy.savez_compressed`` without the time of day, so that the same episodes are the same bytes."""
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED)


@dataclass
class Episode:
    """One that was recorded.

    :ivar seed: of its reset
    :ivar observations: one more than actions
    """

    seed: int
    observations: list[Any]
    actions: list[Any]
    rewards: list[float]
    terminations: list[bool]
    truncations: list[bool]

    @property
    def total(self) -> float:
        """Its return."""
        return float(sum(self.rewards))


def _spec_of(env: gymnasium.Env[Any, Any]) -> EnvSpec | None:
    """What is written of the environment: a class that it was registered by stands there by its name. None where
    Gymnasium cannot write it even so.
    """
    spec = env.unwrapped.spec
    if spec is None:
        return None
    made_by: Any = spec.entry_point
    if isinstance(made_by, type) and "<" not in made_by.__qualname__:
        spec = replace(spec, entry_point=f"{made_by.__module__}:{made_by.__qualname__}")
    try:
        spec.to_json()
    except (ValueError, TypeError):
        return None
    return spec


def _write_minari(episodes: Sequence[Episode], env: gymnasium.Env[Any, Any], out: Path) -> None:
    extras.need("pyarrow", "a Minari dataset")
    extras.need("minari", "a Minari dataset")
    import minari
    from minari.data_collector.episode_buffer import EpisodeBuffer

    def stacked(values: Sequence[Any]) -> Any:
        if isinstance(values[0], Mapping):
            return {key: stacked([value[key] for value in values]) for key in values[0]}
        return np.stack([np.asarray(value) for value in values])

    buffers = [
        EpisodeBuffer(
            id=number,
            seed=each.seed,
            observations=stacked(each.observations),
            actions=stacked(each.actions),
            rewards=list(each.rewards),
            terminations=list(each.terminations),
            truncations=list(each.truncations),
        )
        for number, each in enumerate(episodes)
    ]
    before = os.environ.get("MINARI_DATASETS_PATH")
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    # It warns of each thing that is not said: author, e-mail, algorithm.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".record-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["MINARI_DATASETS_PATH"] = folder
        try:
            minari.create_dataset_from_buffers(
                "recorded/demonstrations-v0", buffers, env=_spec_of(env),
                observation_space=env.observation_space, action_space=env.action_space,
                data_format="arrow", jpeg_encoding=False, description="Recorded by train-cloud record.",
            )  # fmt: skip
        finally:
            if before is None:
                del os.environ["MINARI_DATASETS_PATH"]
            else:
                os.environ["MINARI_DATASETS_PATH"] = before
        shutil.move(Path(folder) / "recorded" / "demonstrations-v0", out)


# ------------------------------------------------------------------------------------------------- whether they fit


def check(
    demonstrations: Demonstrations,
    environment_id: str,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
) -> None:
    """
    :param environment_id: the run's
    :param observation_space: of one environment, with the run file's wrappers and nothing more
    :raises InputError: they are of another environment, or of other spaces
    """
    theirs = demonstrations.environment
    if theirs is not None and _name(theirs["id"]) != _name(environment_id):
        fix = f"they are of {theirs['id']}, and the run is on {environment_id}: record them with train-cloud record"
        raise InputError(FIELD, demonstrations.source, fix)
    found = [*_differences(demonstrations, observation_space), *_wrong_actions(demonstrations, action_space)]
    if found:
        fix = f"{'; '.join(found)}: use demonstrations of this very environment, with its wrappers"
        raise InputError(FIELD, demonstrations.source, fix)


def _name(identifier: str) -> str:
    """Without the module that Gymnasium is to import first."""
    return identifier.rpartition(":")[2]


def _differences(demonstrations: Demonstrations, space: spaces.Space[Any]) -> Iterator[str]:
    if isinstance(space, spaces.Dict) != isinstance(demonstrations.observations, dict):
        kinds = ("a dict", "an array")
        there, here = kinds if isinstance(demonstrations.observations, dict) else kinds[::-1]
        yield f"observations are {there} there, {here} here"
        return
    here_by_key = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
    there_by_key = demonstrations.by_key
    for key in sorted({*here_by_key, *there_by_key}):
        name = f"observations/{key}" if key else "observations"
        if key not in there_by_key or key not in here_by_key:
            yield f"{name} is only {'here' if key in here_by_key else 'there'}"
            continue
        one, array = here_by_key[key], there_by_key[key]
        yield from _wrong(name, array, one)
        if isinstance(one, spaces.Discrete | spaces.MultiDiscrete) and array.shape[1:] == one.shape:
            yield from _out_of_range(name, array, one)


def _wrong(name: str, array: Array, space: spaces.Space[Any]) -> Iterator[str]:
    if space.shape is None or space.dtype is None:
        yield f"{name} are of {space}, which cannot be learned from"
    elif array.shape[1:] != space.shape:
        yield f"{name} have the shape {array.shape[1:]} there, {space.shape} here"
    elif not np.can_cast(array.dtype, space.dtype, "same_kind"):
        yield f"{name} are {array.dtype} there, {space.dtype} here"


def _out_of_range(name: str, array: Array, space: spaces.Discrete | spaces.MultiDiscrete) -> Iterator[str]:
    first: Any = space.start
    count: Any = space.n if isinstance(space, spaces.Discrete) else space.nvec
    outside = ((array < first) | (array >= first + count)).reshape(len(array), -1).any(axis=1)
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        yield f"{name} are outside of {space} at {int(outside.sum())} steps, the first is {at}: {array[at].tolist()}"


def _wrong_actions(demonstrations: Demonstrations, space: spaces.Space[Any]) -> Iterator[str]:
    actions = demonstrations.actions
    wrong = list(_wrong("actions", actions, space))
    yield from wrong
    if wrong:
        return
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        yield from _out_of_range("actions", actions, space)
    elif isinstance(space, spaces.MultiBinary):
        other = ~np.isin(actions, (0, 1)).reshape(len(actions), -1).all(axis=1)
        if other.any():
            at = int(np.flatnonzero(other)[0])
            yield f"actions are neither 0 nor 1 at {int(other.sum())} steps, the first is {at}"
    elif isinstance(space, spaces.Box):
        slack = _ROUNDING * np.where(np.isfinite(space.high - space.low), space.high - space.low, 1.0)
        outside = ((actions < space.low - slack) | (actions > space.high + slack)).reshape(len(actions), -1).any(axis=1)
        if outside.any():
            at = int(np.flatnonzero(outside)[0])
            count = int(outside.sum())
            yield f"actions are outside of {space} at {count} steps, the first is {at}: {actions[at].tolist()}"
