"""Calls of AWS's API with short time-outs and typed refusals, and tried again where waiting may help."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from botocore.parsers import ResponseParserError

from train_cloud.errors import CloudError, CloudForbidden, CloudUnavailable, TrainCloudError
from train_cloud.generators import leave_to_training
from train_cloud.retry import Retry

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_FORBIDDEN = {
    "AccessDenied",
    "AccessDeniedException",
    "AuthFailure",
    "AuthorizationError",
    "InvalidClientTokenId",
    "KMSAccessDenied",
    "OptInRequired",
    "SignatureDoesNotMatch",
    "UnauthorizedOperation",
    "UnrecognizedClientException",
}
leave_to_training()
_ABSENT = {
    "InvalidKeyPair.NotFound",
    "InvalidSubnetID.NotFound",
    "NoSuchEntity",
    "NoSuchResourceException",
    "ParameterNotFound",
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
    retry_timeout_s: float | None,
    retry_on: tuple[type[TrainCloudError], ...] = (CloudUnavailable, CloudForbidden),
    first_wait_s: float = 1.0,
    longest_wait_s: float = 30.0,
) -> _T:
    """Call ``act`` until it returns, waiting twice as long after each failure.

    :param retry_timeout_s: stop waiting after so many seconds; 0: one attempt; None: never
    :param retry_on: worth another try. A refusal is among them because IAM takes seconds, sometimes minutes, to tell
        all of its servers about a new role.
    :raises TrainCloudError: the last failure, once the retry timeout is over; any other failure at once
    """
    retry = Retry(retry_timeout_s, first_s=first_wait_s, longest_s=longest_wait_s)
    while True:
        try:
            return act()
        except retry_on as error:
            if not retry.has_time():
                raise
            _log.warning("%s; next attempt in %.0f s", error, retry.pause_s)
        retry.pause()


def client(service: str, region: str | None = None) -> Any:
    """A boto3 client with short time-outs: what calls it has retries of its own.

    :raises CloudError: no region is configured
    """
    config = Config(connect_timeout=5, read_timeout=15, retries={"mode": "standard", "total_max_attempts": 2})
    try:
        session: Any = boto3.Session()
        return session.client(service, region_name=region or region_name(), config=config)
    except BotoCoreError as error:
        raise CloudError(f"{service}: {error}") from error


def region_name() -> str | None:
    """The configured region. boto3 itself reads AWS_DEFAULT_REGION; every other SDK and the AWS CLI know AWS_REGION."""
    return os.environ.get("AWS_REGION") or boto3.Session().region_name


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
    """Auto Scaling and SageMaker have no code for this: a ValidationError, and its wording ("… not found", "No active
    Lifecycle Action found with …")."""
    if code in ("ValidationError", "ValidationException"):
        return "not found" in message or "No active Lifecycle Action found" in message
    return code in _ABSENT
