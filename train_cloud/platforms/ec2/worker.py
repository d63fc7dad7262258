"""A machine of an Auto Scaling group: systemd starts the process again, the group sends the next machine, and no person
looks on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from train_cloud.config import variables
from train_cloud.platforms.ec2 import units
from train_cloud.platforms.ec2.metadata import Metadata
from train_cloud.platforms.ec2.notices import local_notice
from train_cloud.platforms.ec2.price import Price, Volume, read_price
from train_cloud.platforms.unattended import LATER, Unattended, launched
from train_cloud.run import layout
from train_cloud.run.run_deadline import read_volume
from train_cloud.run.session import Session, begin_session, local_session
from train_cloud.store import ObjectStore

#: Set on a worker by the launch.
GROUP = "TRAIN_CLOUD_AUTOSCALING_GROUP"
#: For how long a dollar limit waits for a price: IAM takes seconds, seldom minutes, to know a new role everywhere.
PRICE_SECONDS = 120.0
_LONGEST_SETUP = 2 * 3600.0
log = logging.getLogger(__name__)


class Worker(Unattended):
    """See the module."""

    def __init__(self) -> None:
        self.boot_id = units.boot_id()

    def price(self, start: Mapping[str, Any]) -> Price | None:
        found = Price.model_validate(start["price"])
        until = time.monotonic() + variables.number(variables.PRICE_SECONDS, PRICE_SECONDS)
        while found.at_most is None and time.monotonic() < until:
            time.sleep(min(5.0, max(0.1, until - time.monotonic())))
            began = datetime.fromisoformat(start["started"])
            found = _price(start, began, life_cycle=found.life_cycle)
        return found

    def begin(self, store: ObjectStore, state_dir: Path, details: Mapping[str, Any], above: int) -> Session:
        metadata = Metadata()
        instance_id = metadata.instance_id()
        new = local_session(state_dir, self.boot_id) is None
        machine = {}
        if new:
            machine = describe_machine(store, metadata, instance_id, later=(state_dir / LATER).exists())
        return begin_session(
            store,
            state_dir,
            instance_id=instance_id,
            boot_id=self.boot_id,
            details={**details, **machine},
            persist=True,
            above=above,
        )

    def goes_at(self, state_dir: Path) -> datetime | None:
        notice = local_notice(state_dir, self.boot_id)
        return notice.time if notice is not None else None


def describe_machine(
    store: ObjectStore, metadata: Metadata, instance_id: str, *, later: bool = False
) -> dict[str, Any]:
    """What a session's start says of its machine, price included; for ``begin_session``.

    :param later: whether another run was trained on this machine before
    """
    now, launch = datetime.now(timezone.utc), launched(store)
    machine = {
        "instance_type": metadata.instance_type(),
        "availability_zone": metadata.availability_zone(),
        "volume": read_volume(launch),
        "public_address": metadata.has_public_address(),
    }
    boots = [info.modified for info in launch.list(layout.BOOTS) if info.key.endswith(f"-{instance_id}")]
    # Of a pipeline only its first session on a machine has waited for that.
    first = launch is store or not later
    setup = (now - max(boots)).total_seconds() if boots and first else None
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
