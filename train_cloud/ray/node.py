"""What a node of a Ray cluster hears of its own end: from EC2's metadata service, and from Ray itself.

Ray reads no metadata service. So who trains on a node asks it, and tells Ray what it says, which then gives the node no
more work. A node may also be given up by Ray, its autoscaler or a person (``ray drain-node``); then Ray says when it
goes, or not.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime, timezone

import ray

from train_cloud.errors import CloudError
from train_cloud.platforms.ec2.metadata import Metadata, on_ec2
from train_cloud.platforms.ec2.notices import SCALE_IN_GRACE, Notice, rebalance, spot
from train_cloud.platforms.ec2.watch import LONGEST_INTERVAL_S

log = logging.getLogger(__name__)

_DRAIN_SECONDS = 1.0
#: DRAIN_NODE_REASON_PREEMPTION in Ray's autoscaler.proto.
_PREEMPTION = 2


class NodeNotices:
    """Asked again and again; gives each notice once. No call takes longer than a few seconds.

    :param node: Ray's number of this node, hexadecimal
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._metadata = Metadata() if on_ec2() else None
        self._seen: set[str] = set()
        self._ask_at = self._drained_at = 0.0
        self._failing = False

    def look(self) -> list[Notice]:
        """What is new, the most urgent first."""
        return [notice for notice in [*self._of_ec2(), *self._of_ray()] if self._is_new(notice)]

    def close(self) -> None:
        if self._metadata is not None:
            self._metadata.close()

    def _is_new(self, notice: Notice) -> bool:
        key = notice.kind if notice.kind == "drain" else notice.key
        new = key not in self._seen
        self._seen.add(key)
        return new

    def _of_ec2(self) -> list[Notice]:
        if self._metadata is None or time.monotonic() < self._ask_at:
            return []
        self._ask_at = time.monotonic() + LONGEST_INTERVAL_S
        found = []
        try:
            for detect in (spot, rebalance):
                notice = detect(self._metadata, datetime.now(timezone.utc))
                found += [notice] if notice is not None else []
            self._failing = False
        except CloudError as error:
            if not self._failing:
                log.warning("asking for a notice fails: %s", error)
            self._failing = True
        return found

    def _of_ray(self) -> list[Notice]:
        if time.monotonic() < self._drained_at:
            return []
        self._drained_at = time.monotonic() + _DRAIN_SECONDS
        deadline = draining().get(self._node)
        if deadline is None:
            return []
        seen = datetime.now(timezone.utc)
        goes = datetime.fromtimestamp(deadline / 1000, timezone.utc) if deadline else seen + SCALE_IN_GRACE
        return [Notice(kind="drain", action="terminate", time=goes, seen=seen)]


def draining() -> dict[str, int]:
    """Nodes that Ray gives up → when they go, in milliseconds since 1970; 0: it has not said.

    Ray has no public call for it: this is what its own Train asks (``ray/train/v2/_internal/execution/preemption.py``).
    """
    found: dict[str, int] = ray._private.state.state.get_draining_nodes()
    return found


def drain(node: str, notice: Notice) -> bool:
    """Tell Ray that a node goes, as ``ray drain-node`` does; whether it has agreed."""
    client = ray._raylet.GcsClient(  # type: ignore[attr-defined]
        address=ray.get_runtime_context().gcs_address
    )
    why = f"train-cloud: {notice.kind} notice"
    agreed, refusal = client.drain_node(node, _PREEMPTION, why, int(notice.time.timestamp() * 1000))
    if not agreed:
        log.warning("Ray does not give up this node: %s", refusal)
    return bool(agreed)
