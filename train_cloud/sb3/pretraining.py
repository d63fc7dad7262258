"""Behaviour cloning: the policy learns to do what demonstrations do, before the first timestep.

What is learned follows from the algorithm (:mod:`train_cloud.sb3.cloning`), what the policy is shown from the wrappers
of its environment (:mod:`train_cloud.sb3.shown`). Values are learned in units of the returns' spread, so that policy
and value share a features extractor fairly.

The order of the batches of an epoch follows from (seed, epoch) alone, so that position and optimiser are all the state
there is besides the model's own.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch.nn.utils.parametrize import is_parametrized

from train_cloud.config import RunFile
from train_cloud.envs.demonstrations import Array, Demonstrations, check
from train_cloud.envs.make import refusing
from train_cloud.errors import InputError
from train_cloud.sb3.cloning import cloner_of, frozen
from train_cloud.sb3.shown import Data, check_wrappers, innermost, seen_lately
from train_cloud.snapshot import Part

#: Steps for each forward pass where nothing is learned.
_MEASURED = 1024
_FIELD = "pretraining"
_OPTIMIZER, _REFERENCE = "optimizer|", "reference"


class Pretraining:
    """The pretraining of one run, and what is left of it while RL goes on.

    :param model: just built
    :param demonstrations: None where the newest checkpoint says that it is over
    :ivar finished: whether the policy is cloned
    :ivar epochs: figures of those that are over: ``epoch``, ``loss``, ``value_loss``, ``held_out_loss`` and
        ``held_out_accuracy`` or ``held_out_error``
    :raises InputError: the algorithm cannot be pretrained, or the demonstrations do not fit
    """

    def __init__(self, run_file: RunFile, model: BaseAlgorithm, demonstrations: Demonstrations | None) -> None:
        assert run_file.pretraining is not None and run_file.environment is not None
        self._settings, self._seed = run_file.pretraining, run_file.seed
        self._model = model
        self._cloner = cloner_of(model, self._settings)
        check_wrappers(model, self._settings.demonstrations)
        if self._settings.keep is not None:
            fix = "the policy cannot be copied and saved, to be kept near: leave it out; copying it raises"
            with refusing("pretraining.keep", self._settings.keep.model_dump(), fix):
                _check_whole(frozen(self._cloner.actor))
        self._demonstrations = demonstrations
        self._digest, self._steps, self._episodes = "", 0, 0
        if demonstrations is not None:
            self._digest = demonstrations.digest()
            self._steps, self._episodes = len(demonstrations), len(demonstrations.starts)
            inner = innermost(model)
            check(demonstrations, run_file.environment.id, inner.observation_space, inner.action_space)
            self._cloner.check(demonstrations)
            self._learned, self._held_out = self._split(demonstrations)
        self.finished = False
        self.epochs: list[dict[str, float]] = []
        self._epoch = self._batch = 0
        self._sums = [0.0, 0.0, 0.0]  # loss, value loss, steps
        self._optimizer: torch.optim.Optimizer | None = None
        self._reference: torch.nn.Module | None = None
        self._data: Data | None = None
        self._resumed = False
        self._saved: dict[int, dict[str, torch.Tensor]] = {}

    # ----------------------------------------------------------------------------------------------- state and results

    def held(self) -> dict[str, torch.nn.Module]:
        """The cloned policy, as long as it is needed: saved whole, since its ``state_dict`` need not be all of it. A
        network of a user's may have plain attributes that its output depends on, and the policy's own go on changing.
        """
        keeps = self._reference is not None and self._keeps_at(self._model.num_timesteps)
        return {_REFERENCE: self._reference} if keeps and self._reference is not None else {}

    def part(self) -> Part:
        """For a checkpoint."""
        arrays: dict[str, Array] = {}
        if not self.finished and self._optimizer is not None:
            for index, values in self._optimizer.state_dict()["state"].items():
                arrays |= {f"{_OPTIMIZER}{index}|{name}": _as_numpy(value) for name, value in values.items()}
        state = {
            "finished": self.finished,
            "epoch": self._epoch,
            "batch": self._batch,
            "sums": self._sums,
            "epochs": self.epochs,
            "digest": self._digest,
            "steps": self._steps,
            "episodes": self._episodes,
        }
        return Part(arrays, json.dumps(state).encode())

    def facts(self) -> dict[str, Any]:
        """For a checkpoint's facts: how far it is, and on what."""
        return {
            "finished": self.finished,
            "epoch": self._epoch,
            "epochs": self._settings.epochs,
            "demonstrations": self._digest,
            "steps": self._steps,
            "episodes": self._episodes,
        }

    def resume(self, part: Part | None, held: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, whose networks are in the model already.

        :param part: what :meth:`part` gave; None where it has none
        :param held: what :meth:`held` gave
        :raises InputError: the demonstrations are others now
        """
        if part is None:
            fix = "the checkpoint was made without: leave it out, or begin a new run"
            raise InputError(_FIELD, self._settings.demonstrations, fix)
        state = json.loads(part.blob)
        self.finished, self.epochs, self._sums = state["finished"], state["epochs"], state["sums"]
        self._epoch, self._batch = state["epoch"], state["batch"]
        self._resumed = True
        if not self.finished and self._digest != state["digest"]:
            fix = "they are others than the run was begun with: restore them, or choose another run_id"
            raise InputError("pretraining.demonstrations", self._settings.demonstrations, fix)
        self._digest, self._steps, self._episodes = state["digest"], state["steps"], state["episodes"]
        for name, array in part.arrays.items():
            if name.startswith(_OPTIMIZER):
                index, key = name.removeprefix(_OPTIMIZER).split("|")
                self._saved.setdefault(int(index), {})[key] = torch.from_numpy(array.copy())
        self._reference = held.get(_REFERENCE)

    def policy_file(self) -> bytes:
        """The cloned policy's ``state_dict``, for ``torch.load(…, weights_only=True)``."""
        self._cloner.finish()
        body = io.BytesIO()
        torch.save({name: value.detach().cpu() for name, value in self._model.policy.state_dict().items()}, body)
        return body.getvalue()

    # -------------------------------------------------------------------------------------------------------- training

    def begin(self) -> None:
        """Set out on what is to be learned, at the first consistent point or one that was restored."""
        assert self._demonstrations is not None
        self._data = Data(self._model, self._demonstrations, self._cloner, fit=not self._resumed)
        self._demonstrations = None  # which it has copies of
        if not self._resumed and self._settings.critic:
            self._cloner.begin_values_at(self._data.mean_return)
        self._optimizer = self._make_optimizer(self._data.spread**0.5)
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": self._saved})

    def batches(self) -> Iterator[bool]:
        """Learn; each turn is a batch, after which the state can be saved.

        :return: whether an epoch is over with it, and measured
        """
        size = self._settings.batch_size
        while self._epoch < self._settings.epochs:
            order = np.random.default_rng([self._seed, 1 + self._epoch]).permutation(self._learned)
            self._model.policy.set_training_mode(True)
            count = -(-len(order) // size)
            if len(order) % size == 1 and count > 1:
                count -= 1  # a single step has no statistics, for batch normalisation: it joins the batch before
            while self._batch < count:
                last = len(order) if self._batch + 1 == count else (self._batch + 1) * size
                self._learn(order[self._batch * size : last])
                self._batch += 1
                if self._batch < count:
                    self._model.policy.set_training_mode(False)  # as RL has it, for whoever saves
                    yield False
                    self._model.policy.set_training_mode(True)
            self._model.policy.set_training_mode(False)
            loss, value_loss, steps = self._sums
            figures = {"epoch": float(self._epoch + 1), "loss": loss / steps}
            if self._settings.critic:
                figures["value_loss"] = value_loss / steps
            figures |= self._measure()
            self.epochs.append(figures)
            self._epoch, self._batch, self._sums = self._epoch + 1, 0, [0.0, 0.0, 0.0]
            yield True

    def finish(self) -> None:
        """The policy is cloned; from here on it is the algorithm's."""
        self._cloner.finish()
        self.finished = True
        self._optimizer = self._data = None
        if self._settings.keep is not None:
            self._reference = frozen(self._cloner.actor)

    def _make_optimizer(self, deviation: float) -> torch.optim.Optimizer:
        """:param deviation: of the returns: a step of Adam's is as large whatever the loss, so values of hundreds would
        not be reached. Last layers that give nothing but values learn as if returns had the deviation 1.
        """
        parameters = {id(one): one for one in self._cloner.parameters()}
        heads = {id(one) for layer in self._cloner.last_layers() for one in layer.parameters()} & parameters.keys()
        rate = self._settings.learning_rate
        groups: list[dict[str, Any]] = [
            {"params": [one for key, one in parameters.items() if key not in heads]},
            {"params": [one for key, one in parameters.items() if key in heads], "lr": rate * deviation},
        ]
        return torch.optim.Adam([group for group in groups if group["params"]], lr=rate)

    def _learn(self, rows: Array) -> None:
        assert self._data is not None and self._optimizer is not None
        policy_loss, value_loss = self._cloner.losses(*self._data.batch(rows))
        self._optimizer.zero_grad()
        (policy_loss + value_loss / self._data.spread if self._settings.critic else policy_loss).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._sums[0] += float(policy_loss.detach()) * len(rows)
        self._sums[1] += float(value_loss.detach()) * len(rows)
        self._sums[2] += len(rows)

    def _measure(self) -> dict[str, float]:
        """On what was held out."""
        if not len(self._held_out):
            return {}
        assert self._data is not None
        loss = found = 0.0
        with torch.no_grad():
            for start in range(0, len(self._held_out), _MEASURED):
                rows = self._held_out[start : start + _MEASURED]
                observations, actions, returns = self._data.batch(rows)
                loss += float(self._cloner.losses(observations, actions, returns)[0]) * len(rows)
                found += float(self._cloner.measure(observations, actions).sum())
        count = len(self._held_out)
        return {"held_out_loss": loss / count, f"held_out_{self._cloner.measured}": found / count}

    def _split(self, demonstrations: Demonstrations) -> tuple[Array, Array]:
        """Steps to learn from, and those that are held out: whole episodes, as two steps of one are nearly the same."""
        episodes, share = demonstrations.episodes, self._settings.validation
        if not share:
            return np.arange(len(demonstrations)), np.zeros(0, np.int64)
        if len(episodes) < 2:
            fix = "there is only one episode, and whole ones are held out: record more, or set it to 0"
            raise InputError("pretraining.validation", share, fix)
        count = min(len(episodes) - 1, max(1, round(share * len(episodes))))
        chosen = set(np.random.default_rng([self._seed, 0]).permutation(len(episodes))[:count].tolist())
        steps = [np.arange(episode.start, episode.stop) for episode in episodes]
        return (
            np.concatenate([each for number, each in enumerate(steps) if number not in chosen]),
            np.concatenate([each for number, each in enumerate(steps) if number in chosen]),
        )

    # ------------------------------------------------------------------------------------------------- while RL goes on

    @property
    def keeps(self) -> bool:
        """Whether the policy is held near the cloned one."""
        return self._settings.keep is not None

    def _keeps_at(self, timesteps: int) -> bool:
        return self._settings.keep is not None and timesteps < self._settings.keep.until

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Within the algorithm's ``train()``: each update of the policy also goes towards the cloned one.

        The penalty's gradient is added to the algorithm's own before each step of its optimiser, after its clipping, on
        observations of its rollout or buffer. They are drawn by a generator that follows from (seed, timesteps).
        Nothing of this is there when the training is saved.
        """
        keep, timesteps = self._settings.keep, self._model.num_timesteps
        if keep is None or self._reference is None or not self._keeps_at(timesteps):
            self._reference = None
            yield
            return
        reference, weight = self._reference, keep.weight * (1.0 - timesteps / keep.until)
        generator = np.random.default_rng([self._seed, timesteps, 1])

        def pull(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            observations = seen_lately(self._model, generator)
            parameters = [one for group in optimizer.param_groups for one in group["params"] if one.requires_grad]
            penalty = weight * self._cloner.divergence(reference, observations).mean()
            for one, gradient in zip(
                parameters, torch.autograd.grad(penalty, parameters, allow_unused=True), strict=True
            ):
                if gradient is not None:
                    one.grad = gradient if one.grad is None else one.grad + gradient

        hook = self._cloner.actors_optimizer.register_step_pre_hook(pull)
        try:
            yield
        finally:
            hook.remove()


def _as_numpy(value: Any) -> Array:
    found: Array = (value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)).copy()
    return found


def _check_whole(actor: torch.nn.Module) -> None:
    """:raises TypeError: torch refuses to pickle it"""
    parametrized = [name for name, module in actor.named_modules() if is_parametrized(module)]
    if parametrized:
        raise TypeError(f"{parametrized[0]} is parametrized, and torch saves no such module as a whole")
