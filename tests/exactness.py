"""The table of docs/exactness.md: every algorithm, with every kind of environment, stopped at an awkward step and gone
on with in a new process, must end where the uninterrupted training ends.

``python tests/exactness.py`` tries all of it and writes the document; ``--part 2/6`` tries a sixth, and what was tried
before by the same commit counts too. What the commands do besides (signals, leases, stores) is in test_exactness.py:
here only ``learn`` runs, in processes forked from one that has imported everything.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib.util
import itertools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

from train_cloud.sb3.callback import IdleHost

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "exactness.md"
#: With it begins the part of the document that foreign_environments.py writes.
FOREIGN = "## Environments that no test was written with"
RESULTS = ROOT / "build" / "exactness.jsonl"
SEED = 3
KINDS = ("dummy", "subproc")
STOP_AT = 43
_TOTAL = 90
#: On-policy the rollout decides how far a stop is from the end: with two environments 64 timesteps.
_ROLLOUT = 16
_DEADLINE_S = 180.0

Values = dict[str, Any]


@dataclass(frozen=True)
class World:
    """An environment of the table.

    :ivar provider: what brings its state back
    :ivar actions: ``box``, ``discrete`` or ``masked``
    :ivar needs: the package that it comes from
    """

    name: str
    provider: str
    actions: str
    section: Values
    needs: str | None = None


def _walk(name: str, provider: str, actions: str) -> World:
    section = {"id": f"{name}-v0", "module": "interrupting", "kwargs": {"discrete": actions != "box"}}
    return World(name, provider, actions, section)


def _of(identifier: str, provider: str, actions: str, needs: str | None = None, **kwargs: Any) -> World:
    short = {"max_episode_steps": 30, **kwargs}
    return World(identifier, provider, actions, {"id": identifier, "kwargs": short}, needs)


WORLDS = {
    world.name
    + (", discrete" if world.actions == "discrete" and world.name in ("KeptWalk", "LunarLander-v3") else ""): world
    for world in (
        _walk("KeptWalk", "own", "box"),
        _of("HalfCheetah-v5", "mujoco", "box", "mujoco"),
        _of("Pendulum-v1", "pickle", "box"),
        _of("LunarLander-v3", "replay", "box", "Box2D", continuous=True),
        _walk("KeptWalk", "own", "discrete"),
        _of("ale_py:ALE/Breakout-v5", "ale", "discrete", "ale_py", obs_type="ram"),
        _of("CartPole-v1", "pickle", "discrete"),
        _of("LunarLander-v3", "replay", "discrete", "Box2D"),
        _walk("MaskedKeptWalk", "own", "masked"),
        _walk("MaskedWalk", "pickle", "masked"),
        _walk("MaskedLockedWalk", "replay", "masked"),
    )
}

_OFF: Values = {"learning_starts": 20, "batch_size": 16, "buffer_size": 70}
_ON: Values = {"n_steps": _ROLLOUT, "batch_size": 8, "n_epochs": 2}
#: Name → (kinds of actions, whether it has gSDE, hyperparameters). The ring of 70 rows laps.
ALGORITHMS: dict[str, tuple[tuple[str, ...], bool, Values]] = {
    "a2c": (("box", "discrete"), True, {"n_steps": 5}),
    "crossq": (("box",), True, _OFF),
    "ddpg": (("box",), False, _OFF),
    "dqn": (("discrete",), False, {**_OFF, "target_update_interval": 17}),
    "maskable_ppo": (("masked",), False, _ON),
    "ppo": (("box", "discrete"), True, _ON),
    "qrdqn": (("discrete",), False, {**_OFF, "target_update_interval": 17}),
    "recurrent_ppo": (("box", "discrete"), True, _ON),
    "sac": (("box",), True, _OFF),
    "td3": (("box",), False, {**_OFF, "action_noise": {"normal": 0.1}}),
    "tqc": (("box",), True, _OFF),
    "trpo": (("box", "discrete"), True, {name: value for name, value in _ON.items() if name != "n_epochs"}),
}


@dataclass(frozen=True)
class Case:
    """One line of the table. ``extra`` names one of EXTRAS, which stand beside the product."""

    algorithm: str
    world: str
    vectorization: str
    normalize: bool
    gsde: bool
    extra: str = ""

    AXES: ClassVar = ("algorithm", "world", "vectorization", "normalize", "gsde")

    @property
    def valid(self) -> bool:
        actions, has_gsde, _ = ALGORITHMS[self.algorithm]
        world = WORLDS[self.world]
        return world.actions in actions and (not self.gsde or (has_gsde and world.actions == "box"))

    @property
    def lacking(self) -> str | None:
        """The package that is not installed here."""
        needs = {WORLDS[self.world].needs, "cv2" if "Atari" in self.extra else None} - {None}
        return next((name for name in sorted(map(str, needs)) if importlib.util.find_spec(name) is None), None)

    def run(self) -> Values:
        """The run file's content."""
        world, (_, _, hyperparameters) = WORLDS[self.world], ALGORITHMS[self.algorithm]
        network: Values = {"net_arch": [8]}
        if self.algorithm == "recurrent_ppo":
            network["lstm_hidden_size"] = 8
        values: Values = {
            "run_id": "exactness",
            "algorithm": self.algorithm,
            "policy": "MlpLstmPolicy" if self.algorithm == "recurrent_ppo" else "MlpPolicy",
            "seed": SEED,
            "device": "cpu",
            "total_timesteps": _TOTAL,
            "save_frequency": _TOTAL,
            "environment": {
                **world.section,
                "n_envs": 2 if self.vectorization == "subproc" else 1,
                "vectorization": self.vectorization,
                "normalize": self.normalize or None,
                "state": world.provider,
            },
            "hyperparameters": {
                **hyperparameters,
                "policy_kwargs": network,
                **({"use_sde": True, "sde_sample_freq": 7} if self.gsde else {}),
            },
        }
        for section, changes in EXTRAS.get(self.extra, {}).items():
            values[section] = {**values.get(section, {}), **changes} if isinstance(changes, dict) else changes
        return values

    def choice(self) -> Any:
        """How the environment's state is saved, as ``train_cloud.envs.state.choose`` finds it."""
        section = self.run()["environment"]
        alone = {name: section[name] for name in ("id", "state", "module", "kwargs", "wrappers") if name in section}
        return _choice(json.dumps(alone, sort_keys=True), json.dumps(self.run().get("curriculum")))

    def __str__(self) -> str:
        marks = [self.vectorization, *(["normalised"] if self.normalize else []), *(["gSDE"] if self.gsde else [])]
        return f"{self.algorithm} on {self.world}, {', '.join([*marks, *([self.extra] if self.extra else [])])}"


_SMALL_CNN = {"net_arch": [8], "features_extractor_kwargs": {"features_dim": 8}}
_ATARI: Values = {
    "kwargs": {"frameskip": 1, "repeat_action_probability": 0.25},
    "wrappers": ["stable_baselines3.common.atari_wrappers:AtariWrapper"],
    "frame_stack": 4,
}


def _staged(stages: list[Values]) -> Values:
    """A curriculum that goes up and down within some dozens of steps."""
    return {
        "stages": [{"name": name, **stage} for name, stage in zip(("near", "far", "farther"), stages, strict=True)],
        "start": 1,
        "success": "return >= -14",
        "advance": {"success": 0.7, "window": 4, "min_episodes": 2},
        "regress": {"success": 0.4},
        "mix": {"share": 0.3, "all_stages": True},
    }


#: What the product leaves out: sections of the run file that are changed.
EXTRAS: dict[str, Values] = {
    "four frames": {"environment": {"frame_stack": 4}},
    "Atari images, four frames": {
        "environment": _ATARI,
        "policy": "CnnPolicy",
        "hyperparameters": {**_OFF, "policy_kwargs": _SMALL_CNN},
    },
    "Atari images in rollouts, four frames": {
        "environment": {**_ATARI, "n_envs": 2},
        "policy": "CnnPolicy",
        "hyperparameters": {**_ON, "policy_kwargs": _SMALL_CNN},
    },
    "Ornstein-Uhlenbeck noise": {
        "environment": {"n_envs": 2},
        "hyperparameters": {"action_noise": {"ornstein-uhlenbeck": 0.2}},
    },
    "whole episodes": {"hyperparameters": {"train_freq": [1, "episode"], "gradient_steps": -1}},
    "schedule": {"hyperparameters": {"learning_rate": "lin_1e-3"}},
    "n-step": {"hyperparameters": {"n_steps": 3}},
    "curriculum by arguments": {
        "environment": {"wrappers": ["interrupting:short"]},
        "curriculum": _staged([{"kwargs": {"reach": reach}} for reach in (1, 3, 6)]),
    },
    "curriculum by a method": {
        "environment": {"wrappers": ["interrupting:short"]},
        "curriculum": _staged([{"method": "set_reach", "args": [reach]} for reach in (1, 3, 6)]),
    },
}


def cases() -> list[Case]:
    """All of the table."""
    product = itertools.product(ALGORITHMS, WORLDS, KINDS, (False, True), (False, True))
    found = [case for case in itertools.starmap(Case, product) if case.valid]
    breakout = "ale_py:ALE/Breakout-v5"
    found += [
        *(Case(name, "Pendulum-v1", "subproc", True, False, "four frames") for name in ("sac", "recurrent_ppo")),
        *(Case(name, "Pendulum-v1", "dummy", False, False, "Ornstein-Uhlenbeck noise") for name in ("td3", "tqc")),
        *(Case(name, "HalfCheetah-v5", "dummy", False, False, "whole episodes") for name in ("sac", "td3", "crossq")),
        *(Case(name, "Pendulum-v1", "dummy", False, False, "schedule") for name in ("tqc", "trpo", "recurrent_ppo")),
        *(Case(name, "CartPole-v1", "dummy", False, False, "n-step") for name in ("dqn", "qrdqn")),
        *(Case(name, breakout, "dummy", False, False, "Atari images, four frames") for name in ("dqn", "qrdqn")),
        Case("ppo", breakout, "subproc", False, False, "Atari images in rollouts, four frames"),
        *(Case("ppo", "KeptWalk, discrete", kind, True, False, "curriculum by arguments") for kind in KINDS),
        *(Case("sac", "KeptWalk", kind, False, False, "curriculum by arguments") for kind in KINDS),
        *(Case("dqn", "KeptWalk, discrete", kind, False, False, "curriculum by arguments") for kind in KINDS),
        Case("maskable_ppo", "MaskedLockedWalk", "subproc", False, False, "curriculum by arguments"),
        *(Case("sac", "KeptWalk", kind, False, False, "curriculum by a method") for kind in KINDS[::-1]),
        *(Case("ppo", "KeptWalk, discrete", kind, True, False, "curriculum by a method") for kind in KINDS),
        *(Case("dqn", "KeptWalk, discrete", kind, False, False, "curriculum by a method") for kind in KINDS),
        Case("maskable_ppo", "MaskedLockedWalk", "dummy", False, False, "curriculum by a method"),
    ]
    return found


def pairwise(seed: int) -> list[Case]:
    """A random selection in which every pair of values of two axes stands that can stand together.

    Greedy, as in "AETG" (Cohen, Dalal, Fredman, Patton 1997): of some random cases that have an uncovered pair, the one
    with most of them.
    """
    chance = random.Random(seed)
    everything = [case for case in cases() if not case.extra]
    pairs = {case: set(itertools.combinations(_values(case), 2)) for case in everything}
    due = set().union(*pairs.values())
    chosen: list[Case] = []
    while due:
        target = chance.choice(sorted(due, key=repr))
        having = [case for case in everything if target in pairs[case]]
        best = max(chance.sample(having, min(20, len(having))), key=lambda case: len(pairs[case] & due))
        chosen.append(best)
        due -= pairs[best]
    return chosen


def _values(case: Case) -> list[tuple[str, Any]]:
    return [(axis, getattr(case, axis)) for axis in Case.AXES]


# ------------------------------------------------------------------------------------------------------- one training


class _Memory(IdleHost):
    """Keeps what it would commit.

    :param stop_at: stops there; 0 keeps what there is at the first consistent point, and stops at the next
    """

    def __init__(self, restored: Any, stop_at: int | None) -> None:
        from stable_baselines3.common.logger import KVWriter

        super().__init__(_TOTAL, restored=restored)
        self.timesteps = 0
        self.stop_at = stop_at
        self.kept: bytes | None = None
        self.device = ""
        self.scalars: list[tuple[int, Values]] = []
        scalars = self.scalars

        class Lines(KVWriter):
            def write(self, values: Values, excluded: Any, step: int = 0) -> None:
                logged = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
                scalars.append((step, {n: v.hex() for n, v in logged.items() if not n.startswith("time/")}))

            def close(self) -> None:
                pass

        self._lines = Lines()

    def stop_deadline(self) -> float | None:
        if self.stop_at is None or self.timesteps < self.stop_at or (self.stop_at == 0 and self.kept is None):
            return None
        return time.monotonic() + 3600

    def step(self, timesteps: int) -> None:
        self.timesteps = timesteps

    def submit(self, snapshot: Any) -> None:
        from train_cloud.snapshot import Part

        if self.stop_at == 0 and self.kept is not None:
            return
        parts = {name: Part(dict(part.arrays), part.blob) for name, part in snapshot.parts.items()}
        self.kept = pickle.dumps(replace(snapshot, parts=parts, facts={**snapshot.facts, "device": self.device}))

    def outputs(self) -> list[Any]:
        return [self._lines]

    def save_requested(self) -> bool:
        return self.stop_at == 0 and self.kept is None

    def exactness(self, exact: bool, because: str) -> None:
        assert exact, because


def stretch(run: Values, choice: Any, stop_at: int | None, begin: str | None, out: str, server: str) -> None:
    """In a process of its own: train from ``begin``, or from the start, to ``stop_at``, or to the end.

    :param out: gets the state, the scalars and a digest of the whole replay buffer; what went wrong, if it did
    """
    forkserver: Any = multiprocessing.forkserver._forkserver
    forkserver._forkserver_address, forkserver.ensure_running = server, lambda: None
    multiprocessing.forkserver.ensure_running = forkserver.ensure_running
    from train_cloud.envs.make import FAILURES
    from train_cloud.generators import follow

    follow(SEED)  # as in a session: SB3 samples a space that nobody has seeded to measure images
    try:
        found = _stretch(run, choice, stop_at, begin)
    except FAILURES:
        found = {"failed": traceback.format_exc()}
    Path(out).write_bytes(pickle.dumps(found))


def _stretch(run: Values, choice: Any, stop_at: int | None, begin: str | None) -> Values:
    import torch
    from stable_baselines3.common.logger import Logger

    from train_cloud.config import parse_run_file
    from train_cloud.sb3 import build
    from train_cloud.sb3.callback import learn
    from train_cloud.trainer import TrainingStopped

    torch.set_num_threads(1)
    tried: Any = types.SimpleNamespace(recalled=None, choice=lambda: choice)  # once, in the parent
    vars(build)["record"] = lambda *_: {}  # for a next trial
    restored = pickle.loads(pickle.loads(Path(begin).read_bytes())["state"]) if begin else None
    built = build.build_model(parse_run_file(run), None, tried)
    built.model.set_logger(Logger(None, []))
    host: Any = _Memory(restored, stop_at)
    host.device = str(built.model.device)
    with contextlib.suppress(TrainingStopped):
        learn(built.model, host, build.build_callbacks(parse_run_file(run)), built.choice)
    buffer = getattr(built.model, "replay_buffer", None)
    arrays = (
        {name: value for name, value in sorted(vars(buffer).items()) if hasattr(value, "tobytes")} if buffer else {}
    )
    digest = hashlib.sha256(b"".join(value.tobytes() for value in arrays.values())).hexdigest()
    built.close()
    return {"state": host.kept, "scalars": host.scalars, "buffer": digest, "digests": host.digests.now()}


@contextlib.contextmanager
def warm_parent() -> Iterator[Any]:
    """A process that has imported everything, to fork from."""
    from sessions import forking

    with forking("exactness") as context:
        yield context


@functools.cache
def _choice(environment: str, curriculum: str) -> Any:
    """Tried once for each environment, whatever stands around it."""
    from train_cloud.config import Environment
    from train_cloud.config.curriculum import Curriculum
    from train_cloud.envs.curriculum import choose_all
    from train_cloud.envs.trial import choose
    from train_cloud.sb3.environment import stages_of
    from train_cloud.sb3.vector_environments import MakeEnv

    section = Environment.model_validate(json.loads(environment))
    if curriculum != "null":
        stages = Curriculum.model_validate_json(curriculum)
        return choose_all(stages_of(section, stages), section.state)
    return choose(MakeEnv(section), section.state)


def _started(context: Any, run: Values, choice: Any, stop_at: int | None, begin: str | None, out: Path) -> Any:
    multiprocessing.forkserver.ensure_running()
    server = multiprocessing.forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]
    process = context.Process(target=stretch, args=(run, choice, stop_at, begin, str(out), server))
    process.start()
    return process


def in_a_process(context: Any, run: Values, choice: Any, stop_at: int | None, begin: str | None, out: Path) -> None:
    """:func:`stretch` in a process forked from the warm one."""
    process = _started(context, run, choice, stop_at, begin, out)
    process.join(_DEADLINE_S)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode == 0, process.exitcode


def differences(context: Any, case: Case, folder: Path) -> list[str]:
    """Where the stopped training of a case differs from the uninterrupted one; empty if nowhere."""
    from train_cloud.sb3.compare import differences as compare

    run, choice = case.run(), case.choice()

    def train(name: str, stop_at: int | None = None, begin: str | None = None) -> Any:
        out = folder / name
        return _started(context, run, choice, stop_at, begin and str(folder / begin), out), out

    def result(started: Any) -> Values:
        process, out = started
        process.join(_DEADLINE_S)
        if process.exitcode is None:
            process.kill()
            process.join()
            return {"failed": f"it did not end within {_DEADLINE_S:.0f} s"}
        found: Values = pickle.loads(out.read_bytes()) if out.exists() else {"failed": f"exit code {process.exitcode}"}
        return found

    whole_started, first_started = train("whole"), train("first", STOP_AT)
    whole, first = result(whole_started), result(first_started)
    for found in (whole, first):
        if "failed" in found:
            return [found["failed"]]
    stopped = pickle.loads(first["state"])
    if not STOP_AT <= stopped.timesteps < _TOTAL:
        return [f"stopped at {stopped.timesteps}, which says nothing"]
    second = result(train("second", begin="first"))
    if "failed" in second:
        return [second["failed"]]
    one, other = (pickle.loads(found["state"]) for found in (whole, second))
    # The last part of the rows is on its way to a store; of the whole buffer there is a digest.
    told = compare(replace(one, streams={}), replace(other, streams={}))
    if whole["buffer"] != second["buffer"]:
        told.append("the replay buffers differ")
    if whole["digests"] != second["digests"]:
        told.append(f"what the environments gave: {second['digests']}, uninterrupted {whole['digests']}")
    if first["scalars"] + second["scalars"] != whole["scalars"]:
        told.append(f"logged {first['scalars'] + second['scalars']}, uninterrupted {whole['scalars']}")
    return told


# ------------------------------------------------------------------------------------------------------- the document


def commit() -> str:
    """The commit that is checked out; with a mark where files of the package differ from it."""
    name = _git("rev-parse", "--short=12", "HEAD")
    return name + ("+" if _git("status", "--porcelain", "--", "train_cloud") else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def try_all(chosen: Iterable[Case], results: Path) -> int:
    """Try the cases and note what was found, one line of JSON each.

    :return: how many were not equal
    """
    results.parent.mkdir(parents=True, exist_ok=True)
    at = commit()

    def attempt(case: Case) -> bool:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        told = [] if case.lacking else differences(context, case, folder)
        line = {"commit": at, "date": date.today().isoformat(), "case": asdict(case), "differences": told}
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{'equal' if not told else 'DIFFERENT'}  {case}{''.join(f': {text}' for text in told)}", flush=True)
        shutil.rmtree(folder)
        return bool(told)

    with warm_parent() as context, tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(attempt, chosen))


def read(results: Path) -> dict[Case, Values]:
    """The newest result of each case."""
    found = {}
    for line in results.read_text().splitlines() if results.exists() else ():
        entry = json.loads(line)
        found[Case(**entry["case"])] = entry
    return found


_HEAD = """\
# Exactness

A run that was interrupted ends bit for bit where it would have ended without. Three layers stand behind that
sentence, each with evidence of its own in every checkpoint's facts and in `status`.

1. **Accounting.** What can be reached from model, callbacks, wrappers and environments is captured, or built anew
   from the run file, or named as not kept. A run with anything of the last kind that can change its result is not
   exact, and says why.
2. **A replay in a fresh process.** Once a session a process of its own restores the first checkpoint that the session
   has committed, trains on to the second one, and must come to what the training itself has recorded. It has none of
   what only the training's process had: what class and module attributes have become, caches, handles. Nor will the
   next session have it.
3. **Checksums of every step.** One over each of observations, actions, rewards and ends, and one over all parameters
   for each commit. Steps that a kill makes a session compute again are compared with what the session before had
   recorded.

| `status` says | `exact` | what that rests on |
|---|---|---|
| `proved` | true | a replay came to the same with this code, libraries and kind of machine; nothing speaks against it |
| `not contradicted` | true | nothing speaks against it; no replay was possible yet, or none is wanted |
| `no, because …` | false | what is not kept, another machine or library, or the first step that differs, and how |

A difference never ends a run: it goes on, and is not exact from the step that is named.

**The replay** runs at the lowest priority, where a core is idle beside torch's threads and the environments'
processes and where memory holds a second training, and never on a GPU that is not deterministic
(`reproducibility.replay` in [run-file.md](run-file.md): `idle`, `always` or `never`). It is killed at once when
anybody asks the training to stop, and when the run ends first, the run is simply not proved. It works in a folder of
its own that shows the files of the working folder, sends nothing to the store, evaluates nothing and logs nothing.
Code that writes to a file elsewhere makes it give up, and so does code that has changed since the training began.
What it cannot see to: your code's own connections. An environment that occupies something of which there is one on
the machine, a port or a device, may be in the training's way when it is made a second time: set `never`. What a
replay has shown holds for later sessions as long as code, packages and processor are the same.

**The checksums** are read from the rollout and replay buffers in blocks, a rollout or 64 steps; what they cost stands
in [benchmarks.md](benchmarks.md) (8). They depend on bytes alone, not on when a run commits or is interrupted, nor on
the process or the device. A session leaves them in three places: rolling values in each checkpoint's facts, up to
8,192 values since the last commit in a file of the state folder, which a killed process leaves behind whole, and ten
of those in its progress record in the store. So on the same disk the very step is named; on another machine, after a
kill without warning, a range of steps from what had last been reported, at each commit and once a minute. What was
computed after that, and the rollout or block that was under way, nobody can compare. Where an algorithm has a loop
and buffers of its own, parameters alone are compared.

**Try it before a run**: `train-cloud prove run.yaml` trains twice, interrupts one, and compares everything; see
[cli.md](cli.md).

## The table

Written by `python tests/exactness.py`, which is part of `make test-full`. Do not edit.

- {when}, commit {commits}
- {found}
- missing packages: {lacking}
- {versions}; one thread, on the CPU

Each case trains {total} timesteps, and on to the end of a rollout, once in one process and once in two: stopped at the
first consistent point at or after timestep {stop}, in mid-episode, and gone on with in a new process from what was
saved.
*Equal* means that parameters, optimisers, normaliser, generators, environments, replay buffer, pending and logged
scalars are the same bit for bit. Episodes end after 30 steps, and the replay buffer of 70 rows laps. `subproc` has two
environments, `dummy` one. A curriculum has three stages and goes up and down within these steps.

CI tries a selection in which every two values of two columns stand together, from a seed that it prints
(`tests/test_exactness_table.py`). Signals, leases and stores are tested with whole sessions in
`tests/test_exactness.py`. On a GPU equality is not promised; `tests/test_cuda.py` says what is, and what an H100 did
stands in [gpu.md](gpu.md).

| algorithm | environment (state by) | dummy | dummy, normalised | subproc | subproc, normalised |
|---|---|---|---|---|---|
"""


def document(found: dict[Case, Values]) -> str:
    """docs/exactness.md"""
    import gymnasium
    import numpy
    import stable_baselines3
    import torch

    everything = cases()
    tried = {case: found[case] for case in everything if case in found and not case.lacking}
    equal = [case for case, entry in tried.items() if not entry["differences"]]
    commits = sorted({entry["commit"] for entry in tried.values()})
    dates = sorted({entry["date"] for entry in tried.values()})
    lacking = sorted({case.lacking for case in everything if case.lacking})
    versions = ", ".join(
        f"{name} {module.__version__}"
        for name, module in (
            ("stable-baselines3", stable_baselines3),
            ("torch", torch),
            ("gymnasium", gymnasium),
            ("numpy", numpy),
        )
    )
    some = f"; {len(everything) - len(tried)} of {len(everything)} not tried" if len(tried) < len(everything) else ""
    lines = _HEAD.format(
        when=" to ".join(dict.fromkeys([*dates[:1], *dates[-1:]])) or "never",
        commits=", ".join(commits) + (" (+: with uncommitted changes)" if any("+" in name for name in commits) else ""),
        found=f"{len(equal)} of {len(tried)} cases equal{some}",
        lacking=", ".join(lacking) or "none",
        versions=f"{versions}, Python {platform.python_version()}, {platform.machine()}",
        total=_TOTAL,
        stop=STOP_AT,
    ).splitlines()
    for algorithm, world, gsde in itertools.product(ALGORITHMS, WORLDS, (False, True)):
        row = [Case(algorithm, world, kind, norm, gsde) for kind in ("dummy", "subproc") for norm in (False, True)]
        if not row[0].valid:
            continue
        name = f"{algorithm}{', gSDE' if gsde else ''}"
        marks = " | ".join(_mark(case, found) for case in row)
        lines.append(f"| {name} | {world} ({WORLDS[world].provider}) | {marks} |")
    lines += ["", "| besides | |", "|---|---|"]
    lines += [f"| {case} | {_mark(case, found)} |" for case in everything if case.extra]
    _, heading, foreign = DOCUMENT.read_text().partition(FOREIGN)
    return "\n".join(lines) + "\n" + (f"\n{heading}{foreign}" if heading else "")


def _mark(case: Case, found: dict[Case, Values]) -> str:
    if case.lacking:
        return f"needs {case.lacking}"
    if case not in found:
        return "not tried"
    return "**different**" if found[case]["differences"] else "equal"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", metavar="N/OF", default="1/1", help="try one part of the table")
    parser.add_argument("--only", metavar="TEXT", default="", help="try cases that have this in their name")
    parser.add_argument("--again", action="store_true", help="try also what was tried already at this commit")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    number, of = map(int, options.part.split("/"))
    at = commit()
    done = set() if options.again else {c for c, entry in read(options.results).items() if entry["commit"] == at}
    chosen = [case for case in cases()[number - 1 :: of] if options.only in str(case) and case not in done]
    bad = try_all(chosen, options.results)
    DOCUMENT.write_text(document(read(options.results)))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent), str(Path(__file__).parent / "support")]
    import exactness

    sys.exit(exactness.main())
