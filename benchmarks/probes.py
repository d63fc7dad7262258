"""Callbacks that the benchmarks' run files name: they measure from inside the real worker, which is left as it is.

What they measure goes to the file that ``BENCHMARK_PLAN`` names; what they hold of it is of a kind that no checkpoint
takes along.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import torch
from botocore.config import Config
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from benchmarks.measure import Waited
from benchmarks.server import pace
from train_cloud.sb3.callback import Checkpoints

PLAN = "BENCHMARK_PLAN"
"""Environment variable: path of a JSON file with a :class:`Plan`."""
_IMPORTED = time.monotonic()
_NEVER = 1 << 62
_FILL = 500
_WARM = 10
_BEYOND = 2


Span = tuple[float, float]
"""Seconds, and those of them in which the training thread waited for a core that others had."""


@dataclass(frozen=True)
class Plan:
    rows: int
    """Rows in the replay buffer before anything is measured."""
    every: int = 0
    """Timesteps between two checkpoints."""
    cycles: int = 0
    block: int = 0
    """Steps before a checkpoint, and after it, that it is compared with."""
    stock_every: int = 1
    """Stock saves in each so-manieth cycle on a line."""
    output: str = ""
    """Path of the file that the :class:`Cycle`\\ s are written to."""
    lines: tuple[tuple[float, float], ...] = ()
    """Of the server, one cycle on each in turn: bytes per second (0 for as fast as it goes), latency in seconds."""


@dataclass
class Cycle:
    """One checkpoint of ours among steps without one: of each step its seconds, and those of them in which the training
    thread waited for a core.
    """

    line: int = 0
    """Which of the plan's."""
    before: list[Span] = field(default_factory=list)
    block: list[Span] = field(default_factory=list)
    """Begins with the checkpoint, ends some steps after its commit is over."""
    after: list[Span] = field(default_factory=list)
    stall: Span = (0.0, 0.0)
    """In the callback."""
    clones: list[Span] = field(default_factory=list)
    """The loop that clones each tensor, before and after."""
    stock: list[Span] = field(default_factory=list)
    """Saving and uploading with stock, if it was this cycle's turn."""


class _Stock:
    """Stable-Baselines3's own callback, and boto3's ``upload_file`` for each file that it wrote."""

    def __init__(self, model: OffPolicyAlgorithm) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="stock-")
        self._callback = CheckpointCallback(1, self._folder.name, save_replay_buffer=True)
        self._callback.init_callback(model)
        # Unsigned, as boto3 sends over HTTPS, to which it need not be told.
        config = Config(s3={"addressing_style": "path", "payload_signing_enabled": False})
        self._client = boto3.client("s3", config=config)

    def save(self, timesteps: int, clock: _Clock) -> list[Span]:
        """:return: for saving and for uploading"""
        began = clock.now()
        self._callback.num_timesteps = timesteps
        self._callback.n_calls = 1
        self._callback._on_step()
        saved = clock.since(began)
        began = clock.now()
        for path in sorted(Path(self._folder.name).iterdir()):
            self._client.upload_file(str(path), "stock", path.name)
        uploaded = clock.since(began)
        for path in Path(self._folder.name).iterdir():
            path.unlink()
        return [saved, uploaded]


class Blocks(BaseCallback):
    """Fills the replay buffer by stepping without learning; then, around each of ``cycles`` checkpoints, times the
    steps of ordinary training.

    Between the checkpoints the rows that are missing to ``every`` come from stepping without learning, too, so that a
    checkpoint has as many new rows as it would have.
    """

    model: OffPolicyAlgorithm

    def __init__(self) -> None:
        super().__init__()
        self._plan = Plan(**json.loads(Path(os.environ[PLAN]).read_text()))
        self._run = _Run()

    def _on_training_start(self) -> None:
        run = self._run
        run.stock = _Stock(self.model)
        callbacks = self.locals["callback"].callbacks
        run.checkpoints = next(callback for callback in callbacks if isinstance(callback, Checkpoints))
        run.behind = _Behind(run)
        run.behind.init_callback(self.model)
        callbacks.append(run.behind)
        self._learn(False)

    def _on_rollout_start(self) -> None:
        run, plan = self._run, self._plan
        run.steps.append(run.clock.since(run.began))
        if run.phase == "fill":
            if self.num_timesteps < plan.rows or self.num_timesteps % plan.every < plan.every - plan.block - _WARM:
                return
            self._learn(True)
            run.phase = "warm"
            if plan.lines:
                pace(os.environ["AWS_ENDPOINT_URL"], *plan.lines[len(run.cycles) % len(plan.lines)])
        elif run.phase == "warm" and self.num_timesteps % plan.every >= plan.every - plan.block:
            run.cycle = Cycle(len(run.cycles) % max(1, len(plan.lines)))
            self._clone()
            self._begin("before", run.cycle.before)
        elif run.phase == "before" and self.num_timesteps % plan.every == 0:
            run.beyond = 0
            self._begin("block", run.cycle.block)
        elif run.phase == "block":
            assert run.checkpoints is not None
            run.beyond = 0 if run.checkpoints._host.busy() else run.beyond + 1
            if run.beyond > _BEYOND:
                self._begin("after", run.cycle.after)
        elif run.phase == "after" and len(run.steps) >= plan.block:
            self._clone()
            if len(run.cycles) // max(1, len(plan.lines)) % plan.stock_every == 0:
                assert run.stock is not None
                run.cycle.stock = run.stock.save(self.num_timesteps, run.clock)
            run.cycles.append(run.cycle)
            self._begin("fill", [])
            self._learn(False)
        run.began = run.clock.now()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        # The next rollout's length; during one it is too late.
        if self._run.phase == "fill":
            plan, at = self._plan, self.num_timesteps
            end = -(-max(at + 1, plan.rows) // plan.every) * plan.every - plan.block - _WARM
            left = min(end, (at // plan.every + 1) * plan.every) - at if end > at else 1
            self._rollouts_of(max(1, min(_FILL, left)))

    def _on_training_end(self) -> None:
        buffer = self.model.replay_buffer
        assert buffer is not None
        columns = (array for array in vars(buffer).values() if isinstance(array, np.ndarray))
        result = {
            "row_bytes": sum(column.nbytes for column in columns) // buffer.buffer_size,
            "tensor_bytes": sum(tensor.nbytes for tensor in self._run.tensors),
            "cycles": [asdict(cycle) for cycle in self._run.cycles],
        }
        Path(self._plan.output).write_text(json.dumps(result))

    def _learn(self, wanted: bool) -> None:
        self.model.learning_starts = 0 if wanted else _NEVER
        self._rollouts_of(1)

    def _rollouts_of(self, steps: int) -> None:
        self.model.train_freq = TrainFreq(steps, TrainFrequencyUnit.STEP)  # type: ignore[assignment]

    def _begin(self, phase: str, steps: list[Span]) -> None:
        self._run.phase, self._run.steps = phase, steps

    def _clone(self) -> None:
        if not self._run.tensors:
            self._run.tensors = list(_tensors(self.model))  # optimizers have theirs from their first step on
        began = self._run.clock.now()
        clones = [tensor.detach().clone() for tensor in self._run.tensors]
        self._run.cycle.clones.append(self._run.clock.since(began))
        del clones


class Filled(BaseCallback):
    """Steps without learning until there are ``rows`` rows, then learns."""

    model: OffPolicyAlgorithm

    def __init__(self) -> None:
        super().__init__()
        self._plan = Plan(**json.loads(Path(os.environ[PLAN]).read_text()))

    def _on_training_start(self) -> None:
        self.model.learning_starts = self._plan.rows

    def _on_step(self) -> bool:
        return True


class Started(BaseCallback):
    """Notes when this module was imported, with everything heavy before it, and when the first new step was done."""

    def _on_step(self) -> bool:
        note = Path(os.environ[PLAN])
        if not note.exists():  # an attribute that says so would come back with the checkpoint
            note.write_text(json.dumps({"imported": _IMPORTED, "stepped": time.monotonic()}))
        return True


class _Behind(BaseCallback):
    """Is called right after the callback that makes the checkpoints."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self._run = run

    def _on_rollout_start(self) -> None:
        if self._run.phase == "block" and not self._run.steps:
            self._run.cycle.stall = self._run.clock.since(self._run.began)

    def _on_step(self) -> bool:
        return True


class _Clock:
    """Of the training thread, which must be the one that makes it."""

    def __init__(self) -> None:
        self._waited = Waited()

    def now(self) -> Span:
        return time.perf_counter(), self._waited()

    def since(self, began: Span) -> Span:
        return time.perf_counter() - began[0], self._waited() - began[1]


@dataclass
class _Run(KVWriter):
    """All that is measured, as an output, like what logs: no checkpoint takes it along."""

    clock: _Clock = field(default_factory=_Clock)
    phase: str = "fill"
    began: Span = (0.0, 0.0)
    """When the step that goes on did."""
    steps: list[Span] = field(default_factory=list)
    """Of this phase."""
    beyond: int = 0
    """Steps since the commit is over."""
    cycle: Cycle = field(default_factory=Cycle)
    cycles: list[Cycle] = field(default_factory=list)
    tensors: list[torch.Tensor] = field(default_factory=list)
    stock: _Stock | None = None
    checkpoints: Checkpoints | None = None
    behind: _Behind | None = None


def _tensors(model: OffPolicyAlgorithm) -> Any:
    """Every tensor of the model, its optimizers' included."""
    for state in model.get_parameters().values():
        if "param_groups" in state:
            for values in state["state"].values():
                yield from (value for value in values.values() if isinstance(value, torch.Tensor))
        else:
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))
