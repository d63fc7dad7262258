"""A training job's container, as the trainer sees it: the entry point starts it again, and SageMaker
the job.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from train_cloud.platforms.ec2.price import Price
from train_cloud.platforms.unattended import Unattended
from train_cloud.run.session import Session, begin_session
from train_cloud.store import ObjectStore

#: Set by the job's entry point for what it starts: :class:`Place` as JSON.
PLACE = "TRAIN_CLOUD_JOB"


class Place(BaseModel):
    """Where a process of a job is."""

    model_config = ConfigDict(frozen=True)

    job: str
    boot_id: str
    """Of this container: another one after each interruption."""
    machine: Mapping[str, Any] = Field({})
    """For the session's start: ``instance_type``, ``price`` and the like."""


class Job(Unattended):
    """See the module. What takes the machine away sends SIGTERM, two minutes before: there is no other notice."""

    def __init__(self) -> None:
        self._place = Place.model_validate_json(os.environ[PLACE])
        self.boot_id = self._place.boot_id

    def price(self, start: Mapping[str, Any]) -> Price | None:
        return Price.model_validate(start.get("price", {}))

    def begin(self, store: ObjectStore, state_dir: Path, details: Mapping[str, Any], above: int) -> Session:
        return begin_session(
            store,
            state_dir,
            instance_id=self._place.job,
            boot_id=self.boot_id,
            details={**details, **self._place.machine},
            persist=True,
            above=above,
        )

    def goes_at(self, state_dir: Path) -> datetime | None:
        return None
