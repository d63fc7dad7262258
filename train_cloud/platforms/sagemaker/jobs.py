"""The jobs of a run: written down in its folder before each is created, and asked for at AWS.

A record says that a job was about to be created; whether it was, and how it stands, only SageMaker knows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from train_cloud.errors import CloudError, ConditionFailed
from train_cloud.platforms.ec2.api import call, client
from train_cloud.platforms.ec2.price import products
from train_cloud.run import layout
from train_cloud.store import ObjectStore
from train_cloud.store.foreign import ignore

_OVER = ("Completed", "Failed", "Stopped")
_LOG_GROUP = "/aws/sagemaker/TrainingJobs"
_PARALLEL = 8


class JobRecord(BaseModel):
    """Of a job that was created for a run."""

    model_config = ConfigDict(frozen=True)

    name: str
    region: str
    launched: str
    """ISO 8601."""
    launch: str
    """Key of what it was told to do."""


class JobState(BaseModel):
    """How a job stands, as SageMaker says it."""

    model_config = ConfigDict(frozen=True)

    name: str
    status: str
    """TrainingJobStatus."""
    secondary: str
    """SecondaryStatus."""
    message: str = ""
    """Of the last transition."""
    reason: str | None = None
    """Why it failed."""
    interruptions: int = 0
    billable_seconds: float | None = None
    training_seconds: float | None = None
    pool: str | None = None
    """Status of its warm pool."""

    @property
    def over(self) -> bool:
        return self.status in _OVER

    def in_words(self) -> str:
        """One line."""
        parts = [f"{self.status}, {self.secondary}" if self.secondary != self.status else self.status]
        if self.interruptions:
            parts.append(f"interrupted {self.interruptions} times" if self.interruptions > 1 else "interrupted once")
        if self.billable_seconds is not None and self.training_seconds is not None:
            parts.append(f"{self.billable_seconds:,.0f} s billed of {self.training_seconds:,.0f} s trained")
        if self.pool is not None:
            parts.append(f"warm pool {self.pool}")
        return "; ".join([*parts, *([self.reason] if self.reason else [])])


def record_job(store: ObjectStore, record: JobRecord) -> None:
    """Before it is created, so that none is ever there that nobody knows of."""
    with contextlib.suppress(ConditionFailed):  # AWS has refused it once, and is asked again
        store.create(layout.job_key(record.name), record.model_dump_json(indent=1).encode())


def recorded_jobs(store: ObjectStore) -> list[JobRecord]:
    """Of a run, the oldest first."""
    found = []
    for info in store.list(layout.JOBS):
        try:
            found.append(JobRecord.model_validate_json(bytes(store.get(info.key).body)))
        except ValidationError:
            ignore(store.url, [info.key], "damaged")
    return sorted(found, key=lambda record: record.launched)


class Jobs:
    """SageMaker in one region.

    :raises CloudError: there is no such region
    """

    def __init__(self, region: str) -> None:
        self.region = region
        self._client = client("sagemaker", region)

    def create(self, request: dict[str, Any]) -> str:
        """Create a job; its ARN. A lost reply, after which the client asks again, is no failure.

        :raises CloudError: AWS refuses it
        """
        try:
            answer = call(self._client, "create_training_job", **request)
        except CloudError as error:
            if "ResourceInUse" not in str(error):
                raise
            name = request["TrainingJobName"]
            there = call(self._client, "describe_training_job", TrainingJobName=name)
            if there is None or there.get("HyperParameters") != request["HyperParameters"]:
                raise
            answer = there
        if answer is None:
            raise CloudError("create_training_job: AWS does not find what it names: role, image, subnets or key")
        return str(answer["TrainingJobArn"])

    def state(self, name: str) -> JobState | None:
        """None where there is no such job."""
        found = call(self._client, "describe_training_job", TrainingJobName=name)
        return None if found is None else _state(found)

    def stop(self, name: str) -> None:
        """Ask for its end; it gets SIGTERM and two minutes."""
        call(self._client, "stop_training_job", TrainingJobName=name)

    def log(self, name: str) -> Iterator[str]:
        """What its containers have said, line by line, as CloudWatch has it."""
        logs = client("logs", self.region)
        streams = call(logs, "describe_log_streams", logGroupName=_LOG_GROUP, logStreamNamePrefix=f"{name}/")
        for stream in sorted((streams or {}).get("logStreams", []), key=lambda each: each.get("creationTime", 0)):
            token: str | None = None
            while True:
                more = {"nextToken": token} if token else {}
                found = call(logs, "get_log_events", logGroupName=_LOG_GROUP, logStreamName=stream["logStreamName"],
                             startFromHead=True, **more)  # fmt: skip
                if found is None:
                    break
                yield from (str(event["message"]) for event in found["events"])
                if found["nextForwardToken"] == token:
                    break
                token = found["nextForwardToken"]


def states(records: list[JobRecord]) -> list[JobState]:
    """How they stand, of those that are known at AWS."""
    regions = {region: Jobs(region) for region in {record.region for record in records}}
    with ThreadPoolExecutor(_PARALLEL) as threads:
        found = threads.map(lambda record: regions[record.region].state(record.name), records)
        return [state for state in found if state is not None]


def hourly_price(instance_type: str, region: str) -> float:
    """Dollars an hour of training on such a machine, on demand, by AWS's price list.

    :raises CloudError: AWS refuses, does not answer, or has not exactly one such price
    """
    wanted = {"instanceName": instance_type, "regionCode": region}
    found = {
        price
        for unit, price, usage in products("AmazonSageMaker", wanted, region)
        if unit.lower().startswith("h") and usage.endswith(f"Train:{instance_type}")
    }
    if len(found) != 1:
        raise CloudError(f"the price list has {len(found)} prices for training on {instance_type} in {region}")
    return found.pop()


def _state(found: Any) -> JobState:
    transitions = found.get("SecondaryStatusTransitions") or []
    pool = found.get("WarmPoolStatus") or {}
    return JobState(
        name=found["TrainingJobName"],
        status=found["TrainingJobStatus"],
        secondary=found.get("SecondaryStatus", found["TrainingJobStatus"]),
        message=(transitions[-1].get("StatusMessage") or "") if transitions else "",
        reason=found.get("FailureReason"),
        interruptions=sum(each["Status"] == "Interrupted" for each in transitions),
        billable_seconds=found.get("BillableTimeInSeconds"),
        training_seconds=found.get("TrainingTimeInSeconds"),
        pool=pool.get("Status"),
    )
