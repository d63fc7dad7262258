"""Data-parallel training: several processes, the ranks, on one run of Stable-Baselines3.

Each rank has environments, buffer, action noise and generators of its own; networks and optimisers are the same on all.
They begin as rank 0's, and stay equal because each backward ends with one sum of the gradients over all ranks, *before*
anything reads them: PPO clips them first, and the average of clipped gradients is another number than the clipped
average. ``DistributedDataParallel`` would not do: Stable-Baselines3 calls ``evaluate_actions`` and ``critic`` and not
``forward``, which is where it begins to listen.

``register_post_accumulate_grad_hook`` tells of each gradient, and one callback of the autograd engine at the end of the
backward sums them; PyTorch's own FSDP does the same (``torch/distributed/fsdp/_runtime_utils.py``,
``_register_post_backward_final_callback``). ``queue_callback`` has no public name: ``tests/test_ranks.py`` fails where
a version of torch has it no more.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch.autograd import Variable

from train_cloud.errors import TrainCloudError
from train_cloud.snapshot import OF_THE_BLOB, Array, Snapshot

#: What a rank wants at a rollout's start, and what all do: the most that anybody wants.
GO_ON, HOLD, SAVE, STOP = range(4)

#: Names of tensors that each rank has its own of: what was cut out of its pickle, and gSDE's noise.
_OWN = (OF_THE_BLOB, "sde|")


class RankLost(TrainCloudError):
    """Another process of a data-parallel run has ended, or does not answer."""


def is_shared(name: str) -> bool:
    """Whether an array of a learner's part is the same on all ranks."""
    return not name.startswith(_OWN)


class Ranks:
    """This process's place among the ranks of a run.

    :param rank: its number; 0 commits, logs, evaluates
    :param size: how many there are
    :param lost: says why another rank is gone, once a call to it has failed
    :param waiting: is told whether this process waits for the others, from now on
    :ivar keep: takes snapshots that rank 0 may come to commit, should it be stopped before the next one
    """

    def __init__(
        self,
        rank: int,
        size: int,
        lost: Callable[[], str] = lambda: "another rank is gone",
        waiting: Callable[[bool], None] = lambda waits: None,
    ) -> None:
        self.rank, self.size = rank, size
        self.keep: Callable[[Snapshot], None] = lambda snapshot: None
        self._lost, self._waiting = lost, waiting
        self._ready: dict[int, torch.Tensor] = {}
        self._normalizer: VecNormalize | None = None
        self._base: list[tuple[Array, Array, float]] = []
        self.sent_bytes = 0
        """Of gradients, so far."""
        self.exchange_seconds = 0.0
        """That went by while gradients were summed up, so far."""

    @contextlib.contextmanager
    def joined(self, rendezvous: str, device: torch.device) -> Iterator[Ranks]:
        """The process group, while this lasts.

        :param rendezvous: a file that all ranks can write, new for each group
        :param device: that the networks are on: NCCL for CUDA, gloo for the rest
        """
        store = dist.FileStore(rendezvous, self.size)  # type: ignore[attr-defined]
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, "lo")  # all on this machine: nobody else is to listen
        with self._exchange():
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)
        try:
            yield self
        finally:
            dist.destroy_process_group()

    # -------------------------------------------------------------------------------------------------------- gradients

    def begin(self, model: BaseAlgorithm) -> None:
        """Give the model rank 0's parameters, buffers and optimisers' variables, and have its gradients averaged from
        here on. To be called on all ranks at one point, with equal models.
        """
        policy = model.policy
        names, variables = model._get_torch_save_params()
        found: dict[int, torch.Tensor] = {}
        for tensor in [*policy.parameters(), *policy.buffers(), *_modules(model, names), *_variables(model, variables)]:
            found.setdefault(id(tensor), tensor)
        with self._exchange():
            for tensor in found.values():
                dist.broadcast(tensor.data, 0)
        # An optimiser may have what no module has: SAC's entropy coefficient.
        learned = {id(p): p for name in names for p in _optimized(model, name)}
        learned.update({id(p): p for p in found.values() if p.requires_grad and p.is_leaf})
        for index, parameter in enumerate(learned.values()):
            parameter.register_post_accumulate_grad_hook(self._note(index))  # type: ignore[no-untyped-call]

    def _note(self, index: int) -> Callable[[torch.Tensor], None]:
        def noted(parameter: torch.Tensor) -> None:
            if not self._ready:
                Variable._execution_engine.queue_callback(self._average)
            self._ready[index] = parameter

        return noted

    def _average(self) -> None:
        """At a backward's end."""
        ready, self._ready = self._ready, {}
        kinds: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
        for index in sorted(ready):
            gradient = ready[index].grad
            assert gradient is not None
            kinds.setdefault((gradient.device, gradient.dtype), []).append(gradient)
        began = time.perf_counter()
        for gradients in kinds.values():
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            with self._exchange():
                dist.all_reduce(flat)
            flat /= self.size
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
            self.sent_bytes += flat.numel() * flat.element_size()
        self.exchange_seconds += time.perf_counter() - began

    # -------------------------------------------------------------------------------------------------------- decisions

    def agree(self, wish: int) -> int:
        """The most that any rank wants, on all of them."""
        most = torch.tensor([wish])
        with self._exchange():
            dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def mean(self, value: float) -> float:
        """Over the ranks."""
        total = torch.tensor([value], dtype=torch.float64)
        with self._exchange():
            dist.all_reduce(total)
        return float(total) / self.size

    @contextlib.contextmanager
    def updating(self, model: Any) -> Iterator[None]:
        """While ``model.train()`` runs: where it looks whether the policy has moved too far (``target_kl``), it looks
        at the mean over all ranks. A rank that left its loop alone would leave the others waiting for its gradients.
        The logger is told what the exchange of gradients took: ``time/exchange_ms`` and ``time/exchanged_mb``.
        """
        limit = getattr(model, "target_kl", None)
        sent, seconds = self.sent_bytes, self.exchange_seconds
        if limit is not None:
            model.target_kl = _TargetKL(limit, self)
        try:
            yield
        finally:
            if limit is not None:
                model.target_kl = limit
        model.logger.record("time/exchange_ms", 1e3 * (self.exchange_seconds - seconds))
        model.logger.record("time/exchanged_mb", (self.sent_bytes - sent) / 1e6)

    # ------------------------------------------------------------------------------------------------------- normaliser

    def follow(self, normalizer: VecNormalize | None) -> None:
        """Keep the statistics of this normaliser the same on all ranks.

        :param normalizer: as it was before the training has reset the environments, or as it was restored
        """
        self._normalizer = normalizer
        self._base = [(s.mean.copy(), s.var.copy(), float(s.count)) for s in _statistics(normalizer)]

    def merge(self) -> None:
        """Put together what all ranks have seen since the last time, in the order of the ranks, so that all have the
        same statistics.

        :raises RankLost: a rank is gone
        """
        if not self._base or not (self._normalizer and self._normalizer.training):
            return
        statistics = _statistics(self._normalizer)
        own = [_without(one, base) for one, base in zip(statistics, self._base, strict=True)]
        flat = np.concatenate([np.concatenate([mean.ravel(), m2.ravel(), [count]]) for mean, m2, count in own])
        every = [torch.zeros(len(flat), dtype=torch.float64) for _ in range(self.size)]
        with self._exchange():
            dist.all_gather(every, torch.from_numpy(flat))
        at = 0
        for one, (mean, var, count) in zip(statistics, self._base, strict=True):
            length = mean.size
            one.mean, one.var, one.count = mean.copy(), var.copy(), count
            for row in every:
                seen = row.numpy()[at : at + 2 * length + 1]
                if seen[-1] > 0:
                    new = seen[:length].reshape(mean.shape), seen[length:-1].reshape(mean.shape) / seen[-1], seen[-1]
                    one.update_from_moments(new[0], new[1], float(new[2]))
            at += 2 * length + 1
        self.follow(self._normalizer)

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        """While a call waits for all ranks.

        :raises RankLost: one is gone
        """
        self._waiting(True)
        try:
            yield
        except RuntimeError as error:  # gloo's and NCCL's, of whatever kind
            raise RankLost(self._lost()) from error
        finally:
            self._waiting(False)


class EveryStep(BaseCallback):
    """First in ``learn``'s list: the model's timesteps count those of all ranks, which take theirs at the same time."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    def _on_step(self) -> bool:
        self.model.num_timesteps += (self._ranks.size - 1) * self.model.n_envs
        return True


class CallbacksOfAllRanks(CallbackList):
    """The user's callbacks: where one of them ends the training on any rank, it ends on all, after the same step."""

    def __init__(self, ranks: Ranks, callbacks: list[BaseCallback]) -> None:
        super().__init__(callbacks)
        self._ranks = ranks

    def _on_step(self) -> bool:
        wish = GO_ON if super()._on_step() else STOP
        return self._ranks.agree(wish) == GO_ON


class _TargetKL(float):
    """``target_kl`` of a model in training. What is compared with a multiple of it is first averaged over the ranks.

    The comparison is SB3's ``approx_kl_div > 1.5 * self.target_kl`` (PPO, RecurrentPPO, MaskablePPO), whose left side
    is a NumPy array: it leaves it to this class, which takes no part in NumPy's own operations (NumPy,
    "Interoperability": ``__array_ufunc__ = None``).
    """

    __array_ufunc__ = None
    _ranks: Ranks

    def __new__(cls, value: float, ranks: Ranks) -> _TargetKL:
        made = super().__new__(cls, value)
        made._ranks = ranks
        return made

    def __mul__(self, other: float) -> _TargetKL:
        return _TargetKL(float(self) * other, self._ranks)

    __rmul__ = __mul__

    def __lt__(self, other: Any) -> bool:
        return float(self) < self._ranks.mean(float(other))

    def __hash__(self) -> int:
        return float.__hash__(self)

    def __eq__(self, other: object) -> bool:
        return float(self) == other


def _modules(model: BaseAlgorithm, names: Sequence[str]) -> Iterator[torch.Tensor]:
    for name in names:
        module = attrgetter(name)(model)
        if isinstance(module, torch.nn.Module):
            yield from module.parameters()
            yield from module.buffers()


def _variables(model: BaseAlgorithm, names: Sequence[str]) -> Iterator[torch.Tensor]:
    for name in names:
        value = attrgetter(name)(model)
        if isinstance(value, torch.Tensor):
            yield value


def _optimized(model: BaseAlgorithm, name: str) -> Iterator[torch.Tensor]:
    optimizer = attrgetter(name)(model)
    if isinstance(optimizer, torch.optim.Optimizer):
        for group in optimizer.param_groups:
            yield from group["params"]


def _statistics(normalizer: VecNormalize | None) -> list[RunningMeanStd]:
    if normalizer is None:
        return []
    found = normalizer.obs_rms if normalizer.norm_obs else {}
    of_observations = [found[key] for key in sorted(found)] if isinstance(found, dict) else [found]
    return [*of_observations, normalizer.ret_rms]


def _without(one: RunningMeanStd, base: tuple[Array, Array, float]) -> tuple[Array, Array, float]:
    """Mean, sum of squared deviations and number of what was added to ``base``: T. Chan, G. Golub, R. LeVeque,
    "Updating formulae and a pairwise algorithm for computing sample variances", 1979, the other way round.
    """
    mean, var, count = base
    added = float(one.count) - count
    if added <= 0:
        return np.zeros_like(mean), np.zeros_like(mean), 0.0
    new = (one.mean * one.count - mean * count) / added
    squares = one.var * one.count - var * count - (new - mean) ** 2 * count * added / one.count
    return new, np.maximum(squares, 0.0), added
