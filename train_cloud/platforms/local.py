"""A person's machine: the process is the session, its end is seen by whoever started it, and it costs nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from train_cloud.config import RunFile
from train_cloud.errors import InputError
from train_cloud.platforms.ec2.price import Price
from train_cloud.platforms.protocol import Platform
from train_cloud.run.head import Head, Outcome, reopen
from train_cloud.run.session import Session, begin_session, this_process
from train_cloud.store import ObjectStore

KEEP_CANCELLED = "TRAIN_CLOUD_KEEP_CANCELLED"
"""Set where nobody has asked for this very run: one that is cancelled while its process starts stays cancelled."""


class Local(Platform):
    """See the module."""

    begins_early = False

    def __init__(self) -> None:
        self.boot_id = f"process-{os.getpid()}"

    @property
    def max_attempts(self) -> int | None:
        return None

    def secrets(self, config: RunFile) -> dict[str, str]:
        for name, parameter in config.secrets.items():
            if name not in os.environ:
                fix = f"set the environment variable {name}: only a worker reads the parameter"
                raise InputError(f"secrets.{name}", parameter, fix)
        return {}

    def price(self, start: Mapping[str, Any]) -> Price | None:
        return None

    def refuse(self, config: RunFile) -> None:
        """A person may ask for everything."""

    def admit(self, store: ObjectStore, state_dir: Path) -> Outcome | None:
        return None

    def begin(self, store: ObjectStore, state_dir: Path, details: Mapping[str, Any], above: int) -> Session:
        return begin_session(
            store,
            state_dir,
            instance_id=f"{socket.gethostname()}-{os.getpid()}",
            boot_id=self.boot_id,
            # The same session may have one process after the other here.
            details={**details, "process": this_process()},
            persist=False,
            above=above,
        )

    def reopen(self, store: ObjectStore) -> Head | None:
        return reopen(store, but_cancelled=KEEP_CANCELLED in os.environ)

    def acquired(self, state_dir: Path) -> None:
        """Nothing was counted."""

    def goes_at(self, state_dir: Path) -> datetime | None:
        return None

    def run_deadline(self, store: ObjectStore) -> datetime | None:
        return None

    def experiment(self, store: ObjectStore) -> str | None:
        return None  # who trains an experiment here looks after all its runs

    def give_up(self, store: ObjectStore, because: str, session: int) -> None:
        """Who started it sees it."""

    def unreadable(self, store_root: str, state_dir: Path | None, because: str) -> None:
        """Who started it sees it."""
