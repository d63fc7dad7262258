"""Act: the worker's Auto Scaling group, from inside (leave it, close it) and from outside (find it, open it again).

Source: "Amazon EC2 Auto Scaling API Reference". "Not found" is success: what was to go is gone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from botocore.parsers import ResponseParserError

from train_cloud.errors import CloudError, CloudForbidden, CloudUnavailable, TrainCloudError

TERMINATING_HOOK = "final-commit"
"""The group's lifecycle hook, as ``terraform/worker.tf`` names it: the worker's role may not ask for its name."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_FORBIDDEN = {
    "AccessDenied",
    "AccessDeniedException",
    "AuthFailure",
    "InvalidClientTokenId",
    "OptInRequired",
    "SignatureDoesNotMatch",
    "UnauthorizedOperation",
    "UnrecognizedClientException",
}
_TEMPORARY = {
    "ExpiredToken",
    "InternalFailure",
    "RequestLimitExceeded",
    "ResourceContention",
    "ScalingActivityInProgress",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
}


def until_it_holds(
    act: Callable[[], _T],
    *,
    patience_s: float | None,
    retry_on: tuple[type[TrainCloudError], ...] = (CloudUnavailable, CloudForbidden),
    first_wait_s: float = 1.0,
    longest_wait_s: float = 30.0,
) -> _T:
    """Call ``act`` until it returns, waiting twice as long after each failure.

    :param patience_s: stop waiting after so many seconds; 0: one attempt; None: never
    :param retry_on: worth another try. A refusal is among them because IAM takes seconds, sometimes minutes, to tell
        all of its servers about a new role.
    :raises TrainCloudError: the last failure, once patience is over; any other failure at once
    """
    began, wait = time.monotonic(), first_wait_s
    while True:
        try:
            return act()
        except retry_on as error:
            if patience_s is not None and time.monotonic() - began + wait > patience_s:
                raise
            _log.warning("%s; next attempt in %.0f s", error, wait)
        time.sleep(wait)
        wait = min(2 * wait, longest_wait_s)


class Group:
    """One Auto Scaling group.

    :param name: its name
    :param region: default: the SDK's own (``AWS_REGION``)
    :param patience_s: how long each method keeps trying where another try may help; None: without end
    :raises CloudForbidden, CloudUnavailable: once patience is over
    :raises CloudError: Auto Scaling refuses, and would refuse again
    """

    def __init__(self, name: str, *, region: str | None = None, patience_s: float | None = 0) -> None:
        self.name = name
        self._patience_s = patience_s
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

    def _call(self, operation: str, *, group: bool = True, **arguments: Any) -> Mapping[str, Any] | None:
        if group:
            arguments["AutoScalingGroupName"] = self.name
        return until_it_holds(lambda: call(self._client, operation, **arguments), patience_s=self._patience_s)


def find_groups(tag: str, value: str, *, region: str | None = None) -> list[str]:
    """Names of the groups that carry a tag.

    :raises CloudForbidden, CloudUnavailable: it could not be found out
    """
    filters = [{"Name": f"tag:{tag}", "Values": [value]}]
    found = call(client("autoscaling", region), "describe_auto_scaling_groups", Filters=filters)
    return sorted(group["AutoScalingGroupName"] for group in (found or {})["AutoScalingGroups"])


def client(service: str, region: str | None = None) -> Any:
    """A boto3 client with short time-outs: what calls it has retries of its own.

    :raises CloudError: no region is configured
    """
    config = Config(connect_timeout=5, read_timeout=15, retries={"mode": "standard", "total_max_attempts": 2})
    try:
        return boto3.Session().client(service, region_name=region, config=config)  # type: ignore[call-overload]
    except BotoCoreError as error:
        raise CloudError(f"{service}: {error}") from error


def call(client: Any, operation: str, **arguments: Any) -> Mapping[str, Any] | None:
    """One call; None where AWS says that what is named does not exist.

    :raises CloudForbidden: no credentials, or not enough
    :raises CloudUnavailable: worth another try
    :raises CloudError: refused for good
    """
    try:
        answer: Mapping[str, Any] = getattr(client, operation)(**arguments)
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise CloudForbidden(f"{operation}: {error}") from error
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        said = f"{operation}: {error}"
        if code in _FORBIDDEN:
            raise CloudForbidden(said) from error
        if code in _TEMPORARY or status >= 500 or status == 429:
            raise CloudUnavailable(said) from error
        if _absent(code, str(error)):
            return None
        raise CloudError(said) from error
    except (BotoCoreError, ResponseParserError) as error:  # the second: somebody answered, but not AWS
        raise CloudUnavailable(f"{operation}: {error}") from error
    return answer


def _absent(code: str, message: str) -> bool:
    """Auto Scaling has no code for this: a ValidationError, and its wording ("… not found", "No active Lifecycle Action
    found with …")."""
    return code == "ValidationError" and ("not found" in message or "No active Lifecycle Action found" in message)
