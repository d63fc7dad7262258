"""What behaviour cloning learns, and how, by the kind of algorithm.

- PPO, A2C: minus the log-probability of what was done. For continuous actions the spread (``log_std``) is held: it
  would shrink to nothing, and with it what RL tries.
- SAC, TD3, DDPG: the squared distance of the mean action, squashed and scaled to -1..1. The log-probability under a
  squashed Gaussian collapses its spread, and is infinite at the bounds.
- DQN: the margin loss of Hester et al., "Deep Q-learning from Demonstrations" (2018): what was done has to be better
  than all else by :data:`MARGIN`.

Beside it value function or critic learn the discounted returns of the demonstrations. Their last layer begins at the
returns' mean.
"""

from __future__ import annotations

import copy
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
from torch.nn import functional

from train_cloud.config.pretraining import Pretraining as Settings
from train_cloud.envs.demonstrations import Array, Demonstrations
from train_cloud.envs.state import undisturbed
from train_cloud.errors import InputError

#: DQfD's own.
MARGIN = 0.8
_ENTROPY = 1e-3
#: How near to a bound an action of a squashed policy counts as on it.
_AT_BOUND = 1e-6


class Cloner(ABC):
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


class _ActorCritic(Cloner):
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
        return actions.astype(np.float32 if isinstance(self.space, spaces.MultiBinary) else np.int64)

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


class _Squashed(Cloner):
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


class _Margin(Cloner):
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


_CLONERS: Mapping[type[BaseAlgorithm], type[Cloner]] = {
    PPO: _ActorCritic,
    A2C: _ActorCritic,
    SAC: _Squashed,
    TD3: _Deterministic,  # and DDPG, which is derived from it
    DQN: _Margin,
}


def cloner_of(model: BaseAlgorithm, settings: Settings) -> Cloner:
    """:raises InputError: there is none for this algorithm, or not with these settings"""
    kind = next((cloner for algorithm, cloner in _CLONERS.items() if isinstance(model, algorithm)), None)
    if kind is None or (kind is _ActorCritic and not isinstance(model.policy, ActorCriticPolicy)):
        fix = f"PPO, A2C, SAC, TD3, DDPG and DQN can be pretrained, {type(model).__name__} cannot: use one of them"
        raise InputError("pretraining", settings.demonstrations, fix)
    return kind(model, settings)


def _last(network: torch.nn.Module) -> list[torch.nn.Linear]:
    """Its last layer, in a list; none where no layer is linear."""
    return [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)][-1:]


def frozen(actor: torch.nn.Module) -> torch.nn.Module:
    """A copy that does not learn. Its distribution is another object; what the last one was made of is no state."""
    known: dict[int, Any] = {}
    for module in actor.modules():
        known |= {id(value): value for value in vars(module).values() if isinstance(value, spaces.Space)}
        for tensor in _computed(list(vars(module).values())):  # a feature that was kept, a weight that was normalised
            known[id(tensor)] = tensor.detach().clone()
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


def _computed(value: Any) -> Iterator[torch.Tensor]:
    """Tensors with a graph, which torch does not copy, in lists and dicts of a module's too."""
    if isinstance(value, torch.Tensor):
        if not value.is_leaf:
            yield value
    elif isinstance(value, Mapping):
        yield from _computed(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _computed(one)
