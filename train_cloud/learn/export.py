"""A model for people: a folder whose ``model.zip`` loads with plain Stable-Baselines3, made from a checkpoint's parts.

No environment is built and nothing of the user's code is imported: the zip is put together from SB3's own description
of the model (``skeleton``) and the tensors.
"""

from __future__ import annotations

import contextlib
import json
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.save_util import save_to_zip_file

from train_cloud.learn.capture import parameters_of
from train_cloud.snapshot import Snapshot

_PLAY = '''\
"""Plays the trained model: python play.py [episodes]. Needs stable-baselines3, gymnasium and the run's environment."""

import importlib
import inspect
import sys
from pathlib import Path

import gymnasium
import numpy as np
from {module} import {name}
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

HERE = Path(__file__).parent
ENVIRONMENT = {environment!r}
KWARGS = {kwargs!r}
MODULE = {imported!r}
WRAPPERS = {wrappers!r}
FRAMES = {frames!r}


def make() -> gymnasium.Env:
    if MODULE:
        importlib.import_module(MODULE)
    env = gymnasium.make(ENVIRONMENT, **KWARGS)
    for wrapper in WRAPPERS:
        module, _, attribute = wrapper.partition(":")
        env = getattr(importlib.import_module(module), attribute)(env)
    return env


def main(episodes: int) -> None:
    env = DummyVecEnv([make])
    if FRAMES:
        env = VecFrameStack(env, FRAMES)
    if (HERE / "vecnormalize.pkl").exists():
        env = VecNormalize.load(str(HERE / "vecnormalize.pkl"), env)
        env.training = env.norm_reward = False
    model = {name}.load(HERE / "model.zip", device="cpu")
    masked = "action_masks" in inspect.signature(model.predict).parameters
    for episode in range(episodes):
        observation, total, done = env.reset(), 0.0, False
        state, dones = None, np.ones(1, bool)  # of a recurrent policy
        while not done:
            masks = {{"action_masks": np.stack(env.env_method("action_masks"))}} if masked else {{}}
            action, state = model.predict(observation, state=state, episode_start=dones, deterministic=True, **masks)
            observation, rewards, dones, _ = env.step(action)
            total, done = total + float(rewards[0]), bool(dones[0])
        print(f"episode {{episode + 1}}: return {{total:.2f}}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
'''

_PLAY_TOGETHER = '''\
"""Plays the trained agents together: python play.py [episodes]. Needs stable-baselines3 and the run's environment."""

import importlib
import sys
from pathlib import Path

from stable_baselines3 import SAC

HERE = Path(__file__).parent
ENVIRONMENT = {environment!r}
KWARGS = {kwargs!r}
MODULE = {imported!r}
WRAPPERS = {wrappers!r}
LEARNER_OF = {learner_of!r}


def named(reference):
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def main(episodes: int) -> None:
    if MODULE:
        importlib.import_module(MODULE)
    env = named(ENVIRONMENT)(**KWARGS)
    for wrapper in WRAPPERS:
        env = named(wrapper)(env)
    models = {{name: SAC.load(HERE / name / "model.zip", device="cpu") for name in set(LEARNER_OF.values())}}
    for episode in range(episodes):
        observations, _ = env.reset()
        totals = dict.fromkeys(LEARNER_OF, 0.0)
        while env.agents:
            actions = {{
                name: models[LEARNER_OF[name]].predict(observations[name], deterministic=True)[0] for name in env.agents
            }}
            observations, rewards, _, _, _ = env.step(actions)
            for name, reward in rewards.items():
                totals[name] += float(reward)
        shown = ", ".join(f"{{name}} {{total:.2f}}" for name, total in totals.items())
        print(f"episode {{episode + 1}}: {{shown}}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
'''


def write_export(
    snapshot: Snapshot, folder: Path, *, run_yaml: str, lock: str, environment: Mapping[str, Any] | None
) -> None:
    """Write ``model.zip``, ``vecnormalize.pkl`` where the run normalises, ``run.yaml``, ``requirements.lock``,
    ``play.py``.

    Of several learners each has a folder with its ``model.zip``.

    :param snapshot: needs the parts ``model``, ``skeleton`` and, if there is one, ``normalizer``
    :param environment: the run file's section, for ``play.py``; None leaves that out (a script builds its own)
    """
    folder.mkdir(parents=True, exist_ok=True)
    learners = snapshot.facts.get("learners")
    for name, facts in (learners or {"": snapshot.facts}).items():
        (folder / name).mkdir(exist_ok=True)
        _write_model(snapshot, f"{name}/" if name else "", facts, folder / name / "model.zip")
    if "normalizer" in snapshot.parts:
        (folder / "vecnormalize.pkl").write_bytes(snapshot.parts["normalizer"].blob)
    (folder / "run.yaml").write_text(run_yaml)
    (folder / "requirements.lock").write_text(lock)
    if environment is not None and learners is not None:
        (folder / "play.py").write_text(
            _PLAY_TOGETHER.format(
                environment=environment["id"],
                kwargs=environment.get("kwargs", {}),
                imported=environment.get("module"),
                wrappers=list(environment.get("wrappers", ())),
                learner_of=dict(snapshot.facts["agents"]),
            )
        )
    elif environment is not None:
        module, _, name = snapshot.facts["algorithm"]["class"].partition(":")
        (folder / "play.py").write_text(
            _PLAY.format(
                module=module.split(".")[0] if module.startswith(("stable_baselines3.", "sb3_contrib.")) else module,
                name=name,
                environment=environment["id"],
                kwargs=environment.get("kwargs", {}),
                imported=environment.get("module"),
                wrappers=list(environment.get("wrappers", ())),
                frames=environment.get("frame_stack"),
            )
        )


@contextlib.contextmanager
def _without_a_folder_named_gym() -> Iterator[None]:
    """``save_to_zip_file`` notes OpenAI Gym's version where a module of that name can be imported. A user's folder
    ``gym/`` can, as many have one, and has no version.
    """
    if hasattr(sys.modules.get("gym"), "__version__"):
        yield
        return
    before = sys.modules.get("gym", ...)
    sys.modules["gym"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["gym"]
        if before is not ...:
            sys.modules["gym"] = before


def _write_model(snapshot: Snapshot, prefix: str, facts: Mapping[str, Any], path: Path) -> None:
    part = snapshot.parts[f"{prefix}model"]
    tensors = {name: torch.from_numpy(array.copy()) for name, array in part.arrays.items()}
    parameters, variables = parameters_of(tensors, facts["optimizers"])
    with _without_a_folder_named_gym():
        save_to_zip_file(path, data=None, params=parameters, pytorch_variables=variables or None)
    data = json.loads(snapshot.parts[f"{prefix}skeleton"].blob)
    data.update({key: value for key, value in facts["algorithm"].items() if key != "class"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("data", json.dumps(data, indent=4))
