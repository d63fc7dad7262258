"""Act: the worker's Auto Scaling group, from inside (leave it, close it) and from outside (find it, open it again).

Source: "Amazon EC2 Auto Scaling API Reference". "Not found" is success: what was to go is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from train_cloud.platforms.ec2.api import call, client, until_it_holds

RUN_TAG = "train-cloud-run"
"""Tag of the group and its machines whose value is the run id, as ``terraform/worker.tf`` sets it."""
TERMINATING_HOOK = "final-commit"
"""The group's lifecycle hook, as ``terraform/worker.tf`` names it: the worker's role may not ask for its name."""


_NEEDED = ("Launch", "Terminate", "HealthCheck", "ReplaceUnhealthy", "ScheduledActions")
"""Processes of a group; AZRebalance is suspended by ``terraform/worker.tf``."""


class Group:
    """One Auto Scaling group.

    :param name: its name
    :param region: default: the SDK's own (``AWS_REGION``)
    :param retry_timeout_s: how long each method keeps trying where another try may help; None: without end
    :raises CloudForbidden, CloudUnavailable: once the retry timeout is over
    :raises CloudError: Auto Scaling refuses, and would refuse again
    """

    def __init__(self, name: str, *, region: str | None = None, retry_timeout_s: float | None = 0) -> None:
        self.name = name
        self._retry_timeout_s = retry_timeout_s
        self._client = client("autoscaling", region)

    def capacity(self) -> int | None:
        """The desired capacity; None: there is no such group."""
        found = self._call("describe_auto_scaling_groups", group=False, AutoScalingGroupNames=[self.name])
        groups = found["AutoScalingGroups"] if found else []
        return int(groups[0]["DesiredCapacity"]) if groups else None

    def set_capacity(self, desired: int) -> bool:
        """Set the desired capacity, idempotently and at once. False: there is no such group."""
        return self._call("set_desired_capacity", DesiredCapacity=desired, HonorCooldown=False) is not None

    def terminate(self, instance_id: str, *, decrement: bool) -> bool:
        """End a machine of the group. False: it is none of the group's any more.

        :param decrement: lower the desired capacity too, so that no other machine replaces it
        """
        done = self._call(
            "terminate_instance_in_auto_scaling_group",
            group=False,
            InstanceId=instance_id,
            ShouldDecrementDesiredCapacity=decrement,
        )
        return done is not None

    def complete_termination(self, instance_id: str) -> bool:
        """Let Auto Scaling end a machine that the terminating hook holds back. False: it holds none back."""
        done = self._call(
            "complete_lifecycle_action",
            LifecycleHookName=TERMINATING_HOOK,
            InstanceId=instance_id,
            LifecycleActionResult="CONTINUE",
        )
        return done is not None

    def suspended(self) -> dict[str, str]:
        """Processes without which the group launches nothing and that are suspended, each with AWS's reason.

        AWS itself suspends them where a group has tried to launch for over a day in vain: "administrative suspension",
        "Suspend and resume Amazon EC2 Auto Scaling processes" (Amazon EC2 Auto Scaling User Guide).
        """
        found = self._call("describe_auto_scaling_groups", group=False, AutoScalingGroupNames=[self.name])
        groups = found["AutoScalingGroups"] if found else []
        suspended = groups[0].get("SuspendedProcesses", []) if groups else []
        return {
            each["ProcessName"]: each.get("SuspensionReason") or "no reason is given"
            for each in suspended
            if each["ProcessName"] in _NEEDED
        }

    def resume(self, processes: Sequence[str]) -> bool:
        """Let the group go on with suspended processes. False: there is no such group."""
        return self._call("resume_processes", ScalingProcesses=list(processes)) is not None

    def closing_time(self) -> str | None:
        """Since when a scheduled action has been taking the capacity to 0, hour by hour; None: none does yet.

        :return: ISO 8601, to the minute
        """
        found = self._call("describe_scheduled_actions") or {"ScheduledUpdateGroupActions": []}
        times = [
            action["StartTime"]
            for action in found["ScheduledUpdateGroupActions"]
            if action.get("DesiredCapacity") == 0 and "StartTime" in action
        ]
        past = [when for when in times if when <= datetime.now(timezone.utc)]
        return min(past).isoformat(timespec="minutes") if past else None

    def _call(self, operation: str, *, group: bool = True, **arguments: Any) -> Mapping[str, Any] | None:
        if group:
            arguments["AutoScalingGroupName"] = self.name
        return until_it_holds(lambda: call(self._client, operation, **arguments), retry_timeout_s=self._retry_timeout_s)


def find_groups(tag: str, value: str, *, region: str | None = None) -> list[str]:
    """Names of the groups that carry a tag.

    :raises CloudForbidden, CloudUnavailable: it could not be found out
    """
    filters = [{"Name": f"tag:{tag}", "Values": [value]}]
    found = call(client("autoscaling", region), "describe_auto_scaling_groups", Filters=filters)
    return sorted(group["AutoScalingGroupName"] for group in (found or {})["AutoScalingGroups"])
