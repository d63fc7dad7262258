"""The request that creates a training job, and what AWS would refuse in it.

Sources: "CreateTrainingJob", "ResourceConfig" and "StoppingCondition" (Amazon SageMaker API Reference); "Managed Spot
Training in Amazon SageMaker AI" and "SageMaker AI Managed Warm Pools" (SageMaker AI Developer Guide).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from train_cloud.config.aws_model import findings
from train_cloud.config.sagemaker import SageMaker
from train_cloud.errors import InputError

_MOST_NAME = 63
#: What a warm pool has in common with the next job, or it is not used ("Matching requirements" of warm pools).
_MATCHED = {
    "role": "role",
    "instance_type": "instance type",
    "volume_gb": "volume",
    "volume_kms_key": "volume's key",
    "subnets": "subnets",
    "security_groups": "security groups",
}
#: Tags by which jobs are found in the console and in bills.
RUN_TAG = "train-cloud-run"


def job_name(prefix: str, at: datetime, chance: str) -> str:
    """A name that no other job has: SageMaker keeps names of jobs that are over.

    :param prefix: what it begins with; where that is too long, eight of a digest take the place of its end
    :param chance: four random characters
    """
    suffix = f"-{at:%y%m%d-%H%M%S}-{chance}"
    room = _MOST_NAME - len(suffix)
    if len(prefix) > room:
        prefix = f"{prefix[: room - 9].rstrip('-')}-{hashlib.sha256(prefix.encode()).hexdigest()[:8]}"
    return f"{prefix}{suffix}"


def training_job(section: SageMaker, name: str, *, store: str, launch: str, tags: Mapping[str, str]) -> dict[str, Any]:
    """What ``create_training_job`` is given.

    :param store: the store's root, ``s3://bucket/prefix``
    :param launch: key there of what the job is told to do
    :param tags: beside the run file's own
    :raises InputError: AWS's model refuses it
    """
    request: dict[str, Any] = {
        "TrainingJobName": name,
        "RoleArn": section.role,
        "AlgorithmSpecification": {"TrainingImage": section.image, "TrainingInputMode": "File"},
        "HyperParameters": {"store": store, "launch": launch},
        # Required. Models are in the run's artifacts; what SageMaker itself writes there is an empty archive.
        "OutputDataConfig": {"S3OutputPath": f"{store}/sagemaker"},
        "ResourceConfig": {
            "InstanceType": section.instance_type,
            "InstanceCount": 1,
            "VolumeSizeInGB": section.volume_gb,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": math.ceil(section.max_runtime_hours * 3600)},
        "EnableManagedSpotTraining": section.spot,
        "EnableNetworkIsolation": False,  # the store is reached over the network
        "Environment": dict(section.environment),
        "Tags": [{"Key": key, "Value": value} for key, value in {**section.tags, **tags}.items()],
    }
    if section.spot:
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = math.ceil(section.wait_hours * 3600)
    if section.keep_alive_seconds:
        request["ResourceConfig"]["KeepAlivePeriodInSeconds"] = section.keep_alive_seconds
    if section.volume_kms_key is not None:
        request["ResourceConfig"]["VolumeKmsKeyId"] = section.volume_kms_key
    if section.retry_attempts is not None:
        request["RetryStrategy"] = {"MaximumRetryAttempts": section.retry_attempts}
    if section.subnets:
        request["VpcConfig"] = {"SecurityGroupIds": [*section.security_groups], "Subnets": [*section.subnets]}
    for found in findings("sagemaker", "CreateTrainingJob", request):
        raise InputError(f"sagemaker: {found.member}", found.value, found.fix)
    return request


def refuse_pool_and_spot(section: SageMaker, hourly: float | None) -> None:
    """Before anything is created, and with what each would cost.

    :param hourly: dollars for an hour of the machine on demand; None: unknown
    :raises InputError: both are asked for
    """
    if not (section.spot and section.keep_alive_seconds):
        return
    kept = section.keep_alive_seconds
    pool, whole = "its price on demand", "the price on demand"
    if hourly is not None:
        pool = f"${hourly * kept / 3600:,.2f}"
        whole = f"${hourly:,.2f} an hour"
    raise InputError(
        "sagemaker.keep_alive_seconds",
        kept,
        f'AWS: a warm pool "cannot be used with spot instances". A pool on {section.instance_type} costs {whole} '
        f"while it trains and at most {pool} more after each job; spot costs a part of {whole} and nothing between "
        "jobs, but each job waits some minutes for its machine: remove it, or set sagemaker.spot: false",
    )


def unlike(before: SageMaker, after: SageMaker) -> list[str]:
    """In what a job differs from the one before it, so that no warm pool of that one takes it; in words."""
    return [word for field, word in _MATCHED.items() if getattr(before, field) != getattr(after, field)]
