"""A machine of an Auto Scaling group: systemd starts the process again, the group sends the next machine, and no person
looks on.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from train_cloud.config import RunFile, variables
from train_cloud.errors import InputError
from train_cloud.platforms.ec2 import units
from train_cloud.platforms.ec2.metadata import Metadata
from train_cloud.platforms.ec2.notices import local_notice
from train_cloud.platforms.ec2.parameters import read_secrets
from train_cloud.platforms.ec2.price import Price, Volume, read_price
from train_cloud.platforms.protocol import Platform
from train_cloud.run import layout
from train_cloud.run.head import Head, Outcome, conclude, read_head
from train_cloud.run.run_deadline import read_deadline, read_experiment_name, read_volume
from train_cloud.run.session import Session, begin_session, local_session
from train_cloud.store import ObjectStore, open_store
from train_cloud.whole_file import write_local

#: Set on a worker by the launch.
GROUP = "TRAIN_CLOUD_AUTOSCALING_GROUP"
_RUN_ID = "TRAIN_CLOUD_RUN_ID"
#: For how long a dollar limit waits for a price: IAM takes seconds, seldom minutes, to know a new role everywhere.
PRICE_SECONDS = 120.0
_STARTS = "starts.json"
_MAX_STARTS = 20
_MAX_ATTEMPTS = 5
_LONGEST_SETUP = 2 * 3600.0
log = logging.getLogger(__name__)


class Worker(Platform):
    """See the module."""

    begins_early = True

    def __init__(self) -> None:
        self.boot_id = units.boot_id()

    @property
    def max_attempts(self) -> int | None:
        return int(variables.number(variables.MAX_ATTEMPTS, _MAX_ATTEMPTS))

    def secrets(self, config: RunFile) -> dict[str, str]:
        return read_secrets(config.secrets)

    def price(self, start: Mapping[str, Any]) -> Price | None:
        found = Price.model_validate(start["price"])
        until = time.monotonic() + variables.number(variables.PRICE_SECONDS, PRICE_SECONDS)
        while found.at_most is None and time.monotonic() < until:
            time.sleep(min(5.0, max(0.1, until - time.monotonic())))
            began = datetime.fromisoformat(start["started"])
            found = _price(start, began, life_cycle=found.life_cycle)
        return found

    def refuse(self, config: RunFile) -> None:
        if config.seeds is not None:
            fix = "several runs: write a run file for each with train-cloud expand, and launch these"
            raise InputError("seeds", list(config.seeds), fix)

    def admit(self, store: ObjectStore, state_dir: Path) -> Outcome | None:
        self._count_start(state_dir, store.url)
        read = read_head(store)
        return read[0].outcome if read is not None else None

    def _count_start(self, state_dir: Path, url: str) -> None:
        """Until the run is acquired no attempt can be counted in its head, and with the store unreachable the machine
        must not restart for ever: starts are counted on its own disk.

        :raises InputError: an exit code that systemd does not restart after, so that ``finish`` decides
        """
        path = state_dir / _STARTS
        starts = 1
        if path.exists():
            before = json.loads(path.read_text())
            starts += before["starts"] if before["boot_id"] == self.boot_id else 0
        write_local(path, {"boot_id": self.boot_id, "starts": starts})
        if starts > _MAX_STARTS:
            raise InputError("TRAIN_CLOUD_STORE", url, f"{_MAX_STARTS} starts could not take the run: see the journal")

    def begin(self, store: ObjectStore, state_dir: Path, details: Mapping[str, Any], above: int) -> Session:
        metadata = Metadata()
        instance_id = metadata.instance_id()
        new = local_session(state_dir, self.boot_id) is None
        machine = describe_machine(store, metadata, instance_id) if new else {}
        return begin_session(
            store,
            state_dir,
            instance_id=instance_id,
            boot_id=self.boot_id,
            details={**details, **machine},
            persist=True,
            above=above,
        )

    def reopen(self, store: ObjectStore) -> Head | None:
        return None

    def acquired(self, state_dir: Path) -> None:
        (state_dir / _STARTS).unlink(missing_ok=True)

    def goes_at(self, state_dir: Path) -> datetime | None:
        notice = local_notice(state_dir, self.boot_id)
        return notice.time if notice is not None else None

    def run_deadline(self, store: ObjectStore) -> datetime | None:
        return read_deadline(store)

    def experiment(self, store: ObjectStore) -> str | None:
        return read_experiment_name(store)

    def give_up(self, store: ObjectStore, because: str, session: int) -> None:
        conclude(store, "failed", because, session=session, owner=platform.node())

    def unreadable(self, store_root: str, state_dir: Path | None, because: str) -> None:
        if state_dir is None:
            return
        store = open_store(layout.run_url(store_root, os.environ[_RUN_ID]))
        state_dir.mkdir(parents=True, exist_ok=True)
        owner = platform.node()
        session = begin_session(store, state_dir, instance_id=owner, boot_id=self.boot_id, details={}, persist=True)
        conclude(store, "failed", because, session=session.number, owner=owner)


def describe_machine(store: ObjectStore, metadata: Metadata, instance_id: str) -> dict[str, Any]:
    """What a session's start says of its machine, price included; for ``begin_session``."""
    now = datetime.now(timezone.utc)
    machine = {
        "instance_type": metadata.instance_type(),
        "availability_zone": metadata.availability_zone(),
        "volume": read_volume(store),
        "public_address": metadata.has_public_address(),
    }
    boots = [info.modified for info in store.list(layout.BOOTS) if info.key.endswith(f"-{instance_id}")]
    setup = (now - max(boots)).total_seconds() if boots else None
    return {
        **machine,
        "price": _price(machine, now, life_cycle=metadata.life_cycle()).model_dump(),
        # By two clocks, S3's and this machine's: nonsense counts as nothing.
        "setup_seconds": setup if setup is not None and 0 <= setup < _LONGEST_SETUP else None,
    }


def _price(machine: Mapping[str, Any], at: datetime, *, life_cycle: str) -> Price:
    """:param machine: as :func:`describe_machine` tells it"""
    volume = None
    if machine.get("volume") is not None:
        try:
            volume = Volume.model_validate(machine["volume"])
        except ValidationError as error:
            log.warning("run.json: volume: %s", error.errors()[0]["msg"])
    return read_price(
        machine["instance_type"],
        machine["availability_zone"],
        at,
        life_cycle=life_cycle,
        volume=volume,
        public_address=machine.get("public_address"),
    )
