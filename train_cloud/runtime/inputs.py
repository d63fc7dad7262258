"""What a session is given: the run file, the store, the platform, by when to stop."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from train_cloud.config import RunFile
from train_cloud.platforms.protocol import Platform
from train_cloud.runtime import reproducibility
from train_cloud.runtime.deadline import StopSignals
from train_cloud.runtime.evaluations import Evaluations
from train_cloud.store import ObjectStore
from train_cloud.trainer import Deadline


@dataclass(frozen=True)
class Inputs:
    """None of it changes while the session lasts."""

    config: RunFile
    run_yaml: str
    """The run file as written."""
    store: ObjectStore
    """Of the run."""
    store_root: str
    state_dir: Path
    """The session's local files."""
    platform: Platform
    deadline: Deadline
    signals: StopSignals
    evaluations: Evaluations | None
    """In a process of their own; None where nothing is evaluated, or inline."""
    train_on: bool
    """Somebody asks to train on where a callback had ended the run before its total."""

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What must not change under a run id."""
        return self.config.identity()

    @cached_property
    def lock(self) -> str:
        """What is installed; to list that takes half a second."""
        return reproducibility.lock()

    @property
    def evaluates_inline(self) -> bool:
        return self.config.evaluation is not None and self.config.evaluation.mode == "inline"
