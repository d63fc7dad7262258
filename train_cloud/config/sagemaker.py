"""How a run is trained as a SageMaker training job: the machine, the role, the image, and for how long.

Values are checked against AWS's own model of the request (:mod:`train_cloud.config.aws_model`) when the run file is
read, so that nothing is created for one that AWS would refuse.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, Strict, model_validator

from train_cloud.config.aws_model import finding, regions
from train_cloud.config.shapes import Number, Section, Text, VariableName, Whole
from train_cloud.errors import InputError

#: Of an image in ECR; the names of repositories, tags and digests are ECR's own. SageMaker pulls from ECR.
_IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?/(?P<repository>[^:@]+)"
    r"(:(?P<tag>[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127})|@(?P<digest>sha256:[0-9a-f]{64}))"
)
_EXAMPLE_IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/train-cloud:1"
#: Hours: "The maximum value is 28 days" (StoppingCondition, SageMaker API Reference).
_MOST_HOURS = 28 * 24
#: "The maximum length of time allowed for KeepAlivePeriodInSeconds is 3600 seconds" (SageMaker AI Developer Guide).
_MOST_KEPT_SECONDS = 3600
#: Field → where it stands in CreateTrainingJob.
_MEMBERS = {
    "role": "RoleArn",
    "image": "AlgorithmSpecification.TrainingImage",
    "instance_type": "ResourceConfig.InstanceType",
    "volume_kms_key": "ResourceConfig.VolumeKmsKeyId",
    "job_name": "TrainingJobName",
    "retry_attempts": "RetryStrategy.MaximumRetryAttempts",
    "subnets": "VpcConfig.Subnets",
    "security_groups": "VpcConfig.SecurityGroupIds",
    "environment": "Environment",
}
#: In the place of AWS's pattern, where that says little to a reader.
_FORMS = {
    "role": "write it as arn:aws:iam::123456789012:role/name",
    "job_name": "use 1 to 63 letters, digits and inner hyphens",
}
_LONGEST_SHOWN = 80
#: Variables that the job sets itself, or SageMaker does.
_TAKEN = ("TRAIN_CLOUD_", "AWS_", "SM_", "TRAINING_JOB_")


def _tag(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class SageMaker(Section):
    """A training job of Amazon SageMaker AI."""

    role: Text = Field(description="ARN of the role that the job has: an output of `terraform/sagemaker`.")
    image: Text = Field(
        description=f"The image in ECR, built from `docker/Dockerfile`, with tag or digest: `{_EXAMPLE_IMAGE}`."
    )
    region: Text | None = Field(None, description="Region of the job; null for the image's, and no other than that.")
    instance_type: Text = Field("ml.g5.xlarge", description="Machine, by SageMaker's name; one is used.")
    spot: Annotated[bool, Strict()] = Field(
        True, description="Managed spot training: interrupted now and then, started again by SageMaker."
    )
    max_runtime_hours: Annotated[Number, Field(gt=0, le=_MOST_HOURS)] = Field(
        24.0, description="SageMaker stops the job after so many hours of training, with two minutes for a commit."
    )
    max_wait_hours: Annotated[Number, Field(gt=0, le=_MOST_HOURS)] | None = Field(
        None,
        description="With `spot`: these hours and those of waiting for a machine; null for 24 of waiting.",
    )
    keep_alive_seconds: Annotated[Whole, Field(ge=0, le=_MOST_KEPT_SECONDS)] = Field(
        0,
        description="Warm pool: how long the machine stays for the next job after one has ended, at its full price. "
        "Not with `spot`.",
    )
    retry_attempts: Whole | None = Field(
        None, description="How often SageMaker starts the job again after an error of its own; null for never."
    )
    volume_gb: Annotated[Whole, Field(ge=1, le=16384)] = Field(30, description="Of the job's volume.")
    volume_kms_key: Text | None = Field(None, description="KMS key of your own for the volume; null for AWS's.")
    subnets: tuple[Text, ...] = Field((), description="Subnets of a VPC of your own; it takes a way to S3 from there.")
    security_groups: tuple[Text, ...] = Field((), description="Security groups there; required with `subnets`.")
    job_name: Text | None = Field(
        None, description="What the jobs' names begin with, before a time; null for the run's id."
    )
    tags: dict[Text, Annotated[Text, BeforeValidator(_tag)]] = Field({}, description="Tags of the jobs.")
    environment: dict[VariableName, Annotated[Text, BeforeValidator(_tag)]] = Field(
        {}, description="Variables of the job's container, which are there before `env`."
    )

    @model_validator(mode="after")
    def _check(self) -> SageMaker:
        for field, member in _MEMBERS.items():
            value: Any = getattr(self, field)
            if value is not None and value != ():
                self._ask(field, member, list(value) if isinstance(value, tuple) else value)
        for key, value in self.tags.items():
            self._ask(f"tags.{key}", "Tags.[]", {"Key": key, "Value": value})
            if key.lower().startswith("aws:"):
                raise InputError(f"sagemaker.tags.{key}", value, "AWS keeps names that begin with aws: to itself")
        for name, value in self.environment.items():
            if name.startswith(_TAKEN):
                raise InputError(f"sagemaker.environment.{name}", value, "the job sets it: remove it")
        self._check_image()
        if bool(self.subnets) is not bool(self.security_groups):
            field = "security_groups" if self.subnets else "subnets"
            raise InputError(f"sagemaker.{field}", [], "give subnets and security_groups, or neither")
        if self.max_wait_hours is not None and not self.spot:
            fix = "only spot waits: set spot: true, or remove it"
            raise InputError("sagemaker.max_wait_hours", self.max_wait_hours, fix)
        if self.max_wait_hours is not None and self.max_wait_hours < self.max_runtime_hours:
            fix = f"give at least max_runtime_hours, which is {self.max_runtime_hours:g}: it includes them"
            raise InputError("sagemaker.max_wait_hours", self.max_wait_hours, fix)
        return self

    def _ask(self, field: str, member: str, value: object) -> None:
        """:raises InputError: AWS's model refuses it"""
        found = finding("sagemaker", "CreateTrainingJob", member, value)
        if found is not None:
            shown = str(found.value)[:_LONGEST_SHOWN] if isinstance(found.value, str) else found.value
            raise InputError(f"sagemaker.{field}", shown, _FORMS.get(field, found.fix))

    def _check_image(self) -> None:
        found = _IMAGE.fullmatch(self.image)
        if found is None:
            raise InputError("sagemaker.image", self.image, f"name an image in ECR with its tag: {_EXAMPLE_IMAGE}")
        wrong = finding("ecr", "BatchGetImage", "repositoryName", found["repository"])
        if wrong is not None:
            raise InputError("sagemaker.image", self.image, f"ECR calls no repository so: {wrong.fix}")
        known = regions("sagemaker")
        if self.region is not None and self.region not in known:
            raise InputError("sagemaker.region", self.region, f"SageMaker is in {', '.join(known)}")
        if found["region"] not in known:
            fix = f"SageMaker is not in {found['region']}, only in {', '.join(known)}"
            raise InputError("sagemaker.image", self.image, fix)
        if self.region is not None and self.region != found["region"]:
            fix = f"SageMaker pulls images of its own region: give {found['region']}, or an image in {self.region}"
            raise InputError("sagemaker.region", self.region, fix)

    @property
    def chosen_region(self) -> str:
        """Where its jobs are."""
        found = _IMAGE.fullmatch(self.image)
        assert found is not None
        return found["region"]

    @property
    def account(self) -> str:
        """Of the role, twelve digits."""
        return self.role.split(":")[4]

    @property
    def wait_hours(self) -> float:
        """With ``spot``: training and waiting together."""
        return self.max_wait_hours or min(self.max_runtime_hours + 24.0, _MOST_HOURS)
