"""A node of a Ray cluster: the process is the session, as on a person's machine, and the machine may be one of EC2's,
which has a price and is taken away.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from train_cloud.config import RunFile
from train_cloud.errors import CloudError
from train_cloud.platforms.ec2.metadata import Metadata, on_ec2
from train_cloud.platforms.ec2.notices import local_notice
from train_cloud.platforms.ec2.parameters import read_secrets
from train_cloud.platforms.ec2.price import Price
from train_cloud.platforms.ec2.worker import describe_machine
from train_cloud.platforms.local import Local
from train_cloud.run.session import Session, begin_session, this_process
from train_cloud.store import ObjectStore

log = logging.getLogger(__name__)

#: Set for the process that trains: the node's number in its cluster, and what part of the node the run has.
NODE, SHARE = "TRAIN_CLOUD_RAY_NODE", "TRAIN_CLOUD_RAY_SHARE"


class RayNode(Local):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._node = os.environ[NODE]
        self._share = float(os.environ.get(SHARE, "1"))

    def secrets(self, config: RunFile) -> dict[str, str]:
        missing = {name: parameter for name, parameter in config.secrets.items() if name not in os.environ}
        if missing and on_ec2():
            return read_secrets(missing)
        return super().secrets(config)

    def price(self, start: Mapping[str, Any]) -> Price | None:
        try:
            return Price.model_validate(start["price"])
        except (KeyError, ValidationError):
            return None

    def begin(self, store: ObjectStore, state_dir: Path, details: Mapping[str, Any], above: int) -> Session:
        instance_id = f"{socket.gethostname()}-{os.getpid()}"
        machine: dict[str, Any] = {}
        if on_ec2():
            try:
                instance_id, machine = self._machine(store)
            except CloudError as error:  # it trains all the same, and its price stays unknown
                log.warning("what this machine is cannot be told: %s", error)
        node = {"node": self._node, "share": self._share}
        return begin_session(
            store,
            state_dir,
            instance_id=instance_id,
            boot_id=self.boot_id,
            details={**details, **machine, "ray": node, "process": this_process()},
            persist=False,
            above=above,
        )

    def _machine(self, store: ObjectStore) -> tuple[str, dict[str, Any]]:
        """Its id and description, of whose price this run pays its share of the node."""
        metadata = Metadata()
        try:
            instance_id = metadata.instance_id()
            machine = describe_machine(store, metadata, instance_id)
        finally:
            metadata.close()
        price = Price.model_validate(machine["price"])
        parts = {
            name: amount * self._share
            for name in ("spot", "on_demand", "volume", "address")
            if (amount := getattr(price, name)) is not None
        }
        return instance_id, {**machine, "price": price.model_copy(update=parts).model_dump()}

    def goes_at(self, state_dir: Path) -> datetime | None:
        notice = local_notice(state_dir, self._node)
        return notice.time if notice is not None else None
