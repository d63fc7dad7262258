"""Decide: whether what the metadata service says means that this machine is about to go.

Sources: "Spot Instance interruption notices", "EC2 instance rebalance recommendations" (Amazon EC2 User Guide) and
"Retrieve the target lifecycle state through instance metadata" (Amazon EC2 Auto Scaling User Guide).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from train_cloud.errors import CloudUnavailable
from train_cloud.platforms.ec2.metadata import Metadata

NOTICE_FILE = "notice.json"
"""In the state directory: the notice that stopped the trainer, while it is in force."""

SCALE_IN_GRACE = timedelta(seconds=120)
"""Heartbeat of the group's terminating lifecycle hook: how long Auto Scaling waits for this machine."""

FREE = timedelta(hours=1)
"""A spot machine that EC2 itself interrupts within so long after its launch costs nothing, one that is ended by whoever
has it is paid for by the second: "Billing for interrupted Spot Instances" (Amazon EC2 User Guide)."""


class Notice(BaseModel):
    """One announcement about this machine.

    ``action`` is EC2's word for a spot notice (terminate, stop, hibernate). ``time`` is when the machine goes, for a
    rebalance recommendation when it was made; ``seen`` when we first read it. Both in UTC. ``drain`` is a Ray
    cluster's word that it gives up a node.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["spot", "scale-in", "rebalance", "drain"]
    action: str
    time: AwareDatetime
    seen: AwareDatetime

    @property
    def key(self) -> str:
        """The same for every sight of one announcement; Auto Scaling gives its own no time."""
        return self.kind if self.kind == "scale-in" else f"{self.kind} {self.action} {self.time.isoformat()}"

    @property
    def ends(self) -> bool:
        """Whether the machine goes. Any spot action counts: one restart too many costs less than the work."""
        return self.kind != "rebalance"


class _LocalNotice(Notice):
    """As it lies on the disk: a machine that was stopped and started again must not believe its last boot's notice."""

    boot_id: str


class _InstanceAction(BaseModel):
    action: str
    time: AwareDatetime


class _Recommendation(BaseModel):
    noticeTime: AwareDatetime


def worth_leaving(notice: Notice, launched: datetime | None) -> bool:
    """Whether a machine with nothing left to do should go before EC2 takes it, so that its successor comes sooner: only
    where the interruption would not make its whole time free.

    :param launched: when the machine was; None, unknown: it stays
    """
    if notice.kind != "spot" or notice.action != "terminate" or launched is None:
        return False
    return notice.time - launched >= FREE


def spot(metadata: Metadata, seen: datetime) -> Notice | None:
    """The spot interruption notice, two minutes ahead at best.

    :raises CloudUnavailable: no sensible answer this time
    """
    said = metadata.instance_action()
    if said is None:
        return None
    try:
        announced = _InstanceAction.model_validate_json(said)
    except ValidationError as error:
        raise CloudUnavailable(f"the metadata service gave an instance-action that is none: {said!r}") from error
    return Notice(kind="spot", action=announced.action, time=announced.time, seen=seen)


def scale_in(metadata: Metadata, seen: datetime) -> Notice | None:
    """Auto Scaling's decision to terminate this machine. It gives no time: the lifecycle hook's grace from now."""
    if metadata.target_lifecycle_state() != "Terminated":
        return None
    return Notice(kind="scale-in", action="terminate", time=seen + SCALE_IN_GRACE, seen=seen)


def rebalance(metadata: Metadata, seen: datetime) -> Notice | None:
    """EC2's recommendation to move: the machine may go, or not."""
    said = metadata.rebalance_recommendation()
    if said is None:
        return None
    try:
        made = _Recommendation.model_validate_json(said).noticeTime
    except ValidationError as error:
        raise CloudUnavailable(
            f"the metadata service gave a rebalance recommendation that is none: {said!r}"
        ) from error
    return Notice(kind="rebalance", action="checkpoint", time=made, seen=seen)


Detector = Callable[[Metadata, datetime], Notice | None]
DETECTORS: tuple[Detector, ...] = (spot, scale_in, rebalance)
"""Asked one by one, the most urgent first: a fault in one must not hide what another would say."""


def local_form(notice: Notice, boot_id: str) -> dict[str, str]:
    """What ``notice.json`` holds."""
    return {**record_form(notice), "boot_id": boot_id}


def record_form(notice: Notice) -> dict[str, str]:
    """What the session's record in the store holds: the same bytes for the same notice."""
    content: dict[str, str] = notice.model_dump(mode="json")
    return content


def local_notice(state_dir: Path, boot_id: str) -> Notice | None:
    """The notice in force on this machine since this boot, or None. A file that cannot be read counts as a notice's
    absence: the worst that follows is a start too many."""
    try:
        found = _LocalNotice.model_validate_json((state_dir / NOTICE_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return found if found.boot_id == boot_id else None
