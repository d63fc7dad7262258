"""Behaviour cloning: the policy learns to do what demonstrations do, before the first timestep.

What is learned, and how, follows from the algorithm:

- PPO, A2C: minus the log-probability of what was done. For continuous actions the spread (``log_std``) is held: it
  would shrink to nothing, and with it what RL tries.
- SAC, TD3, DDPG: the squared distance of the mean action, squashed and scaled to -1..1. The log-probability under a
  squashed Gaussian collapses its spread, and is infinite at the bounds.
- DQN: the margin loss of Hester et al., "Deep Q-learning from Demonstrations" (2018): what was done has to be better
  than all else by :data:`MARGIN`.

Beside it value function or critic learn the discounted returns of the demonstrations, in units of their own spread, so
that policy and value share a features extractor fairly. Its last layer begins at their mean.

The order of the batches of an epoch follows from (seed, epoch) alone, so that position and optimiser are all the state
there is besides the model's own.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations
from torch.nn import functional

from train_cloud.config import RunFile
from train_cloud.config.pretraining import Pretraining as Settings
from train_cloud.envs.demonstrations import Array, Demonstrations, Observations, check
from train_cloud.envs.state import undisturbed
from train_cloud.errors import InputError
from train_cloud.snapshot import Part

#: DQfD's own.
MARGIN = 0.8
_ENTROPY = 1e-3
#: Steps for each forward pass where nothing is learned.
_MEASURED = 1024
#: How near to a bound an action of a squashed policy counts as on it.
_AT_BOUND = 1e-6
_FIELD = "pretraining"
_OPTIMIZER, _REFERENCE = "optimizer|", "reference|"


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
        self._cloner = _cloner_of(model, self._settings)
        self._demonstrations = demonstrations
        self._digest, self._steps, self._episodes = "", 0, 0
        if demonstrations is not None:
            self._digest = demonstrations.digest()
            self._steps, self._episodes = len(demonstrations), len(demonstrations.starts)
            inner = _innermost(model)
            check(demonstrations, run_file.environment.id, inner.observation_space, inner.action_space)
            self._cloner.check(demonstrations)
            self._learned, self._held_out = self._split(demonstrations)
        self.finished = False
        self.epochs: list[dict[str, float]] = []
        self._epoch = self._batch = 0
        self._sums = [0.0, 0.0, 0.0]  # loss, value loss, steps
        self._optimizer: torch.optim.Optimizer | None = None
        self._reference: torch.nn.Module | None = None
        self._data: _Data | None = None
        self._resumed = False
        self._saved: dict[int, dict[str, torch.Tensor]] = {}

    # ----------------------------------------------------------------------------------------------- state and results

    def part(self, timesteps: int) -> Part:
        """For a checkpoint.

        :param timesteps: the run's
        """
        arrays: dict[str, Array] = {}
        if not self.finished and self._optimizer is not None:
            for index, values in self._optimizer.state_dict()["state"].items():
                arrays |= {f"{_OPTIMIZER}{index}|{name}": _as_numpy(value) for name, value in values.items()}
        if self._reference is not None and self._keeps_at(timesteps):
            arrays |= {_REFERENCE + name: _as_numpy(value) for name, value in self._reference.state_dict().items()}
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

    def resume(self, part: Part | None) -> None:
        """Go on from a checkpoint, whose networks are in the model already.

        :param part: what :meth:`part` gave; None where it has none
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
        reference = {
            name.removeprefix(_REFERENCE): torch.from_numpy(array.copy())
            for name, array in part.arrays.items()
            if name.startswith(_REFERENCE)
        }
        if reference:
            self._reference = _frozen(self._cloner.actor)
            self._reference.load_state_dict(reference)

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
        self._data = _Data(self._model, self._demonstrations, self._cloner, fit=not self._resumed)
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
            while self._batch * size < len(order):
                self._learn(order[self._batch * size : (self._batch + 1) * size])
                self._batch += 1
                if self._batch * size < len(order):
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
            self._reference = _frozen(self._cloner.actor)

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
            observations = _seen_lately(self._model, generator)
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


# --------------------------------------------------------------------------------------------------- by the algorithm


class _Cloner(ABC):
    """What is learned, of one kind of algorithm.

    :ivar measured: ``accuracy``, the share of actions that are equal, or ``error``, the mean squared distance of
        actions that are scaled to -1..1
    :ivar loss: its own
    """

    loss: ClassVar[str]
    measured = "error"

    def __init__(self, model: Any, settings: Settings) -> None:
        self.model, self.policy, self.settings = model, model.policy, settings
        self.space: spaces.Space[Any] = model.action_space
        chosen = self.loss if settings.loss == "auto" else settings.loss
        if chosen not in self.losses_here():
            fix = f"{type(model).__name__} on {self.space} learns by {' or '.join(self.losses_here())}: {self.why_not}"
            raise InputError("pretraining.loss", settings.loss, fix)
        self.chosen = chosen
        if settings.entropy and not self.has_entropy:
            fix = f"{type(model).__name__} on {self.space} has no entropy to raise, as its spread is held: leave it out"
            raise InputError("pretraining.entropy", settings.entropy, fix)

    why_not = "the log-probability collapses a squashed policy's spread"
    has_entropy = False

    def losses_here(self) -> tuple[str, ...]:
        return (self.loss,)

    def check(self, demonstrations: Demonstrations) -> None:  # noqa: B027 - most can learn from all
        """:raises InputError: nothing can be learned from them"""

    @property
    @abstractmethod
    def actor(self) -> torch.nn.Module:
        """What acts."""

    @property
    def actors_optimizer(self) -> torch.optim.Optimizer:
        found: torch.optim.Optimizer = self.actor.optimizer  # type: ignore[assignment]
        return found

    @abstractmethod
    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """What is learned; one may come twice."""

    def targets(self, actions: Array) -> Array:
        """What was done, as :meth:`losses` takes it, (steps, …)."""
        return actions

    @abstractmethod
    def losses(
        self, observations: Any, actions: torch.Tensor, returns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the policy, and of the values; means over the batch."""

    @abstractmethod
    def measure(self, observations: Any, actions: torch.Tensor) -> torch.Tensor:
        """Of each step, (steps,)."""

    @abstractmethod
    def values(self) -> Sequence[torch.nn.Module]:
        """Networks whose last layer gives a value."""

    def begin_values_at(self, mean: float) -> None:
        """Of returns of 100 a layer that begins at 0 would be far for thousands of updates."""
        for network in self.values():
            for layer in _last(network):
                if layer.bias is not None:
                    layer.bias.data.fill_(mean)

    def last_layers(self) -> list[torch.nn.Linear]:
        """Of those networks, where they are for nothing else."""
        return [layer for network in self.values() for layer in _last(network)]

    def finish(self) -> None:  # noqa: B027 - on-policy there are none
        """Once all is learned: target networks."""

    def divergence(self, reference: Any, observations: Any) -> torch.Tensor:
        """From the cloned policy to the one of now, for each observation, (steps,)."""
        raise NotImplementedError


class _ActorCritic(_Cloner):
    """PPO and A2C."""

    loss = "log_prob"
    why_not = "discrete actions have no mean"

    def __init__(self, model: Any, settings: Settings) -> None:
        self.has_entropy = not isinstance(model.action_space, spaces.Box)
        self.measured = "accuracy" if self.has_entropy else "error"
        super().__init__(model, settings)
        self._entropy = (_ENTROPY if settings.entropy is None else settings.entropy) if self.has_entropy else 0.0

    def losses_here(self) -> tuple[str, ...]:
        return ("log_prob",) if self.has_entropy else ("log_prob", "mse")

    def check(self, demonstrations: Demonstrations) -> None:
        if not self.policy.squash_output or self.chosen != "log_prob":
            return
        at = (np.abs(self.policy.scale_action(demonstrations.actions)) >= 1 - _AT_BOUND).reshape(
            len(demonstrations), -1
        )
        if at.any():
            count = int(at.any(axis=1).sum())
            why = f"{count} of {len(demonstrations)} actions lie at the bounds of {self.space}, where the "
            fix = f"{why}log-probability of a squashed policy is infinite: set it to mse"
            raise InputError("pretraining.loss", self.settings.loss, fix)

    @property
    def actor(self) -> torch.nn.Module:
        found: torch.nn.Module = self.policy
        return found

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        return (one for name, one in self.policy.named_parameters() if name != "log_std")

    def targets(self, actions: Array) -> Array:
        if isinstance(self.space, spaces.Box):
            scaled = self.policy.scale_action(actions) if self.policy.squash_output else actions
            return scaled.astype(np.float32).reshape(len(actions), -1)
        return actions.astype(np.int64)

    def losses(
        self, observations: Any, actions: torch.Tensor, returns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.chosen == "mse":
            values = self.policy.predict_values(observations)
            loss = self._distance(observations, actions).mean()
        else:
            values, log_prob, entropy = self.policy.evaluate_actions(observations, actions)
            loss = -log_prob.mean()
            if self._entropy:
                loss = loss - self._entropy * entropy.mean()
        return loss, 0.5 * functional.mse_loss(values.flatten(), returns)

    def measure(self, observations: Any, actions: torch.Tensor) -> torch.Tensor:
        if not self.has_entropy:
            return self._distance(observations, actions)
        done: torch.Tensor = self.policy.get_distribution(observations).mode()
        return (done == actions).reshape(len(actions), -1).all(dim=1).float()

    def _distance(self, observations: Any, actions: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = self.policy.get_distribution(observations).mode().reshape(actions.shape)
        distance: torch.Tensor = (mean - actions) * self._scale(actions.device)
        return distance.square().mean(dim=1)

    def _scale(self, device: torch.device) -> torch.Tensor:
        """To units in which the bounds are -1 and 1, where there are any."""
        assert isinstance(self.space, spaces.Box)
        width = (self.space.high.astype(np.float64) - self.space.low).reshape(-1)
        bounded = np.isfinite(width) & (width > 0) & (not self.policy.squash_output)
        return torch.as_tensor(np.where(bounded, 2.0 / np.where(bounded, width, 1.0), 1.0), dtype=torch.float32).to(
            device
        )

    def values(self) -> Sequence[torch.nn.Module]:
        return [self.policy.value_net]

    def divergence(self, reference: Any, observations: Any) -> torch.Tensor:
        with torch.no_grad():
            cloned = reference.get_distribution(observations)
        found = kl_divergence(cloned, self.policy.get_distribution(observations))
        return found.reshape(len(found), -1).sum(dim=1)


class _Squashed(_Cloner):
    """SAC, and with a deterministic actor TD3 and DDPG."""

    loss = "mse"

    @property
    def actor(self) -> torch.nn.Module:
        found: torch.nn.Module = self.policy.actor
        return found

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        # SAC's spread: a layer, or with gSDE a parameter.
        yield from (one for name, one in self.actor.named_parameters() if name.split(".")[0] != "log_std")
        if self.settings.critic:
            yield from self.policy.critic.parameters()

    def targets(self, actions: Array) -> Array:
        scaled: Array = self.policy.scale_action(actions).astype(np.float32)
        return np.clip(scaled, -1, 1).reshape(len(actions), -1)

    def losses(
        self, observations: Any, actions: torch.Tensor, returns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss = self.measure(observations, actions).mean()
        if not self.settings.critic:
            return loss, torch.zeros((), device=loss.device)
        found = [functional.mse_loss(each.flatten(), returns) for each in self.policy.critic(observations, actions)]
        return loss, 0.5 * torch.stack(found).sum()

    def measure(self, observations: Any, actions: torch.Tensor) -> torch.Tensor:
        distance: torch.Tensor = self._mean(self.actor, observations) - actions
        return distance.square().mean(dim=1)

    def _mean(self, actor: Any, observations: Any) -> torch.Tensor:
        return torch.tanh(actor.get_action_dist_params(observations)[0])

    def values(self) -> Sequence[torch.nn.Module]:
        return list(self.policy.critic.q_networks)

    def finish(self) -> None:
        self.policy.critic_target.load_state_dict(self.policy.critic.state_dict())

    def divergence(self, reference: Any, observations: Any) -> torch.Tensor:
        with torch.no_grad():
            cloned = self._gaussian(reference, observations)
        # Squashing is a bijection, which changes no divergence.
        return torch.distributions.kl_divergence(cloned, self._gaussian(self.actor, observations)).sum(dim=1)

    def _gaussian(self, actor: Any, observations: Any) -> torch.distributions.Distribution:
        mean, log_std, more = actor.get_action_dist_params(observations)
        found: torch.distributions.Distribution = actor.action_dist.proba_distribution(
            mean, log_std, **more
        ).distribution
        return found


class _Deterministic(_Squashed):
    """TD3 and DDPG."""

    why_not = "its policy is deterministic and has no log-probability"

    def _mean(self, actor: Any, observations: Any) -> torch.Tensor:
        found: torch.Tensor = actor(observations)
        return found

    def finish(self) -> None:
        super().finish()
        self.policy.actor_target.load_state_dict(self.policy.actor.state_dict())

    def divergence(self, reference: Any, observations: Any) -> torch.Tensor:
        with torch.no_grad():
            cloned = reference(observations)
        distance: torch.Tensor = self.actor(observations) - cloned
        return distance.square().mean(dim=1)


class _Margin(_Cloner):
    """DQN."""

    loss = "margin"
    measured = "accuracy"
    why_not = "its values are no distribution"

    def __init__(self, model: Any, settings: Settings) -> None:
        super().__init__(model, settings)
        if settings.keep is not None:
            fix = "DQN's values are no distribution that could be kept near: leave it out, or use PPO"
            raise InputError("pretraining.keep", settings.keep.model_dump(), fix)

    @property
    def actor(self) -> torch.nn.Module:
        found: torch.nn.Module = self.policy.q_net
        return found

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        return self.actor.parameters()

    def targets(self, actions: Array) -> Array:
        return actions.astype(np.int64).reshape(len(actions))

    def losses(
        self, observations: Any, actions: torch.Tensor, returns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values = self.actor(observations)
        done = values.gather(1, actions[:, None]).flatten()
        others = torch.full_like(values, MARGIN).scatter(1, actions[:, None], 0.0)
        loss = ((values + others).max(dim=1).values - done).mean()
        return loss, 0.5 * functional.mse_loss(done, returns)

    def measure(self, observations: Any, actions: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.actor(observations)
        return (values.argmax(dim=1) == actions).float()

    def values(self) -> Sequence[torch.nn.Module]:
        return [self.actor]

    def last_layers(self) -> list[torch.nn.Linear]:
        return []  # its values decide, and their margin has no unit

    def finish(self) -> None:
        self.policy.q_net_target.load_state_dict(self.policy.q_net.state_dict())


_CLONERS: Mapping[type[BaseAlgorithm], type[_Cloner]] = {
    PPO: _ActorCritic,
    A2C: _ActorCritic,
    SAC: _Squashed,
    TD3: _Deterministic,  # and DDPG, which is derived from it
    DQN: _Margin,
}


def _cloner_of(model: BaseAlgorithm, settings: Settings) -> _Cloner:
    kind = next((cloner for algorithm, cloner in _CLONERS.items() if isinstance(model, algorithm)), None)
    if kind is None or (kind is _ActorCritic and not isinstance(model.policy, ActorCriticPolicy)):
        fix = f"PPO, A2C, SAC, TD3, DDPG and DQN can be pretrained, {type(model).__name__} cannot: use one of them"
        raise InputError(_FIELD, settings.demonstrations, fix)
    unknown = [wrapper for wrapper in _wrappers(model) if not isinstance(wrapper, _KNOWN)]
    if unknown:
        fix = f"nobody knows how {type(unknown[0]).__name__} would show the demonstrations to the policy: leave it out"
        raise InputError(_FIELD, settings.demonstrations, fix)
    return kind(model, settings)


# --------------------------------------------------------------------------------------- what the policy is shown

_KNOWN = (VecFrameStack, VecNormalize, VecTransposeImage, VecMonitor)


class _Data:
    """Demonstrations as the policy sees them.

    :param fit: make the normaliser's statistics from them first; else they are restored
    :ivar mean_return: of the discounted returns
    :ivar spread: their variance, in units of which values are learned
    """

    def __init__(self, model: BaseAlgorithm, demonstrations: Demonstrations, cloner: _Cloner, *, fit: bool) -> None:
        self._device = model.device
        seen = _typed(demonstrations.observations, _innermost(model).observation_space)
        rewards = demonstrations.rewards.astype(np.float64)
        for wrapper in reversed(_wrappers(model)):
            if isinstance(wrapper, VecFrameStack):
                seen = _stacked(seen, demonstrations, wrapper)
            elif isinstance(wrapper, VecTransposeImage):
                seen = wrapper.transpose_observations(seen)
            elif isinstance(wrapper, VecNormalize):
                if fit:
                    _fit(wrapper, seen, demonstrations)
                seen = wrapper.normalize_obs(seen)
                rewards = np.asarray(wrapper.normalize_reward(rewards), np.float64)
        if fit:
            _show_again(model)
        returns = demonstrations.returns(rewards, float(getattr(model, "gamma", 1.0)))
        self.mean_return, self.spread = float(returns.mean()), float(returns.var()) or 1.0
        self._observations: Observations = seen
        self._targets = cloner.targets(demonstrations.actions)
        self._returns = returns.astype(np.float32)

    def batch(self, rows: Array) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Observations, what was done, and returns."""
        chosen = _at(self._observations, rows)
        targets, returns = (
            torch.as_tensor(array[rows], device=self._device) for array in (self._targets, self._returns)
        )
        return obs_as_tensor(chosen, self._device), targets, returns


def _wrappers(model: BaseAlgorithm) -> list[VecEnvWrapper]:
    """Outermost first."""
    found, env = [], model.get_env()
    while isinstance(env, VecEnvWrapper):
        found.append(env)
        env = env.venv
    return found


def _innermost(model: BaseAlgorithm) -> VecEnv:
    env = model.get_env()
    assert env is not None
    return env.unwrapped


def _typed(observations: Observations, space: spaces.Space[Any]) -> Observations:
    if isinstance(observations, dict):
        assert isinstance(space, spaces.Dict)
        return {key: observations[key].astype(one.dtype) for key, one in space.spaces.items()}
    return observations.astype(space.dtype)


def _at(observations: Observations, rows: Any) -> Any:
    if isinstance(observations, dict):
        return {key: array[rows] for key, array in observations.items()}
    return observations[rows]


def _stacked(seen: Observations, demonstrations: Demonstrations, wrapper: VecFrameStack) -> Observations:
    """As the wrapper stacks them, episode by episode."""
    stack: Any = StackedObservations(1, wrapper.stacked_obs.n_stack, wrapper.venv.observation_space)  # type: ignore[arg-type]
    found: list[Any] = []
    nothing = np.zeros(1, bool)
    for episode in demonstrations.episodes:
        for step in range(episode.start, episode.stop):
            one = _at(seen, slice(step, step + 1))
            found.append(
                copy.deepcopy(stack.reset(one) if step == episode.start else stack.update(one, nothing, [{}])[0])
            )
    if isinstance(seen, dict):
        return {key: np.concatenate([each[key] for each in found]) for key in seen}
    return np.concatenate(found)


def _fit(normalizer: VecNormalize, seen: Observations, demonstrations: Demonstrations) -> None:
    """Its statistics are those of the demonstrations, as if it had seen nothing else."""
    if normalizer.norm_obs:
        keys = normalizer.obs_rms if isinstance(normalizer.obs_rms, dict) else {"": normalizer.obs_rms}
        for key, statistics in keys.items():
            array = (seen[key] if isinstance(seen, dict) else seen).astype(np.float64)
            statistics.mean, statistics.var, statistics.count = array.mean(axis=0), array.var(axis=0), len(array)
    running, total = np.zeros(len(demonstrations)), 0.0
    starts = set(demonstrations.starts.tolist())
    for step, reward in enumerate(demonstrations.rewards.tolist()):
        total = reward + (0.0 if step in starts else normalizer.gamma * total)
        running[step] = total
    normalizer.ret_rms.mean, normalizer.ret_rms.var = running.mean(), running.var()
    normalizer.ret_rms.count = len(running)


def _show_again(model: Any) -> None:
    """The observation that the training begins with was normalised by other statistics."""
    shown: Any = None
    for wrapper in reversed(_wrappers(model)):
        if isinstance(wrapper, VecNormalize):
            shown = wrapper.normalize_obs(wrapper.old_obs)
        elif isinstance(wrapper, VecTransposeImage) and shown is not None:
            shown = wrapper.transpose_observations(shown)
    if shown is not None:
        model._last_obs = shown


def _seen_lately(model: Any, generator: np.random.Generator) -> Any:
    """A batch of observations from the rollout or the replay buffer, as the policy sees them."""
    rollout = getattr(model, "rollout_buffer", None)
    if rollout is not None:  # which train() has flattened
        count = len(rollout.returns)
        rows = generator.integers(0, count, min(count, getattr(model, "batch_size", count)))
        return obs_as_tensor(_at(rollout.observations, rows), model.device)
    buffer = model.replay_buffer
    rows = generator.integers(0, buffer.size(), model.batch_size)
    at = (rows, generator.integers(0, buffer.n_envs, model.batch_size))
    return obs_as_tensor(
        buffer._normalize_obs(_at(buffer.observations, at), model.get_vec_normalize_env()), model.device
    )


def _last(network: torch.nn.Module) -> list[torch.nn.Linear]:
    """Its last layer, in a list; none where no layer is linear."""
    return [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)][-1:]


def _frozen(actor: torch.nn.Module) -> torch.nn.Module:
    """A copy that does not learn. Its distribution is another object; what the last one was made of is no state."""
    known: dict[int, Any] = {}
    for module in actor.modules():
        known |= {id(value): value for value in vars(module).values() if isinstance(value, spaces.Space)}
        distribution, optimizer = getattr(module, "action_dist", None), getattr(module, "optimizer", None)
        if distribution is not None:
            known[id(distribution)] = copy.copy(distribution)
        if optimizer is not None:
            known[id(optimizer)] = None
    with undisturbed():  # NumPy draws a seed for each generator that it copies
        frozen = copy.deepcopy(actor, known)
    frozen.requires_grad_(False)
    frozen.train(False)
    return frozen


def _as_numpy(value: Any) -> Array:
    found: Array = (value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)).copy()
    return found
