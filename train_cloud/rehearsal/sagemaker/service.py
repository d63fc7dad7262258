"""SageMaker's API over HTTP on loopback, for training jobs: it refuses what AWS refuses, and knows how its jobs stand.

moto completes a job at once, checks nothing, and cannot stop one. What a request may hold is AWS's own model's word
(:mod:`train_cloud.config.aws_model`); the rules across its members are those of "CreateTrainingJob" and "Managed Spot
Training" (SageMaker AI API Reference and Developer Guide).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from train_cloud.config.aws_model import findings

ACCOUNT = "123456789012"
#: Secondary status → status, where the two are not the same word.
_STATUS = {
    **dict.fromkeys(("Starting", "Downloading", "Training", "Interrupted", "Uploading"), "InProgress"),
    **dict.fromkeys(("MaxRuntimeExceeded", "MaxWaitTimeExceeded"), "Stopped"),
}
_OVER = ("Completed", "Failed", "Stopped")
_TARGET = "SageMaker."


class Refusal(Exception):
    """AWS's answer to what it does not do.

    :param code: ``ValidationException``, ``ResourceInUse``, …
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Job:
    """A training job, as ``DescribeTrainingJob`` tells it. For any thread."""

    def __init__(self, request: Mapping[str, Any], region: str) -> None:
        self.request = request
        self.name: str = request["TrainingJobName"]
        self.arn = f"arn:aws:sagemaker:{region}:{ACCOUNT}:training-job/{self.name}"
        self.stop_asked = threading.Event()
        self.failure: str | None = None
        self.seen: list[str] = []
        """Its secondary statuses, in order."""
        self._created = time.time()
        self._training = 0.0
        self._trains_since: float | None = None
        self._transitions: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self.enter("Starting", "Launching requested ML instances")

    @property
    def status(self) -> str:
        return _STATUS.get(self.seen[-1], self.seen[-1])

    @property
    def over(self) -> bool:
        return self.status in _OVER

    def enter(self, secondary: str, message: str = "") -> None:
        """Go over into a secondary status."""
        with self._changed:
            at = time.time()
            if self._transitions:
                self._transitions[-1]["EndTime"] = at
            if secondary == "Training":
                self._trains_since = at
            elif self._trains_since is not None:
                self._training += at - self._trains_since
                self._trains_since = None
            self._transitions.append({"Status": secondary, "StartTime": at, "StatusMessage": message})
            self.seen.append(secondary)
            self._changed.notify_all()

    def wait(self, condition: Callable[[Job], bool], seconds: float) -> bool:
        """Until the condition holds, which is looked at after each change and twice a second."""
        until = time.monotonic() + seconds
        with self._changed:
            while not condition(self):
                if time.monotonic() > until:
                    return False
                self._changed.wait(0.5)
        return True

    def described(self) -> dict[str, Any]:
        copied = (
            *("AlgorithmSpecification", "EnableManagedSpotTraining", "HyperParameters", "OutputDataConfig"),
            *("ResourceConfig", "RoleArn", "StoppingCondition", "TrainingJobName"),
        )
        found: dict[str, Any] = {name: self.request[name] for name in copied if name in self.request}
        with self._changed:
            found |= {
                "TrainingJobArn": self.arn,
                "TrainingJobStatus": self.status,
                "SecondaryStatus": self.seen[-1],
                "SecondaryStatusTransitions": [dict(each) for each in self._transitions],
                "CreationTime": self._created,
                "LastModifiedTime": self._transitions[-1]["StartTime"],
            }
            if self.over:
                seconds = max(1, round(self._training))
                found |= {"TrainingTimeInSeconds": seconds, "BillableTimeInSeconds": seconds}
            if self.failure is not None:
                found["FailureReason"] = self.failure
        return found


class SageMaker:
    """A context manager: the service, at :attr:`endpoint`.

    :param on_create: is given each job that was created, and plays its life, in a thread of its own
    :param trusts: whether a role may be used by SageMaker; its ARN is given
    :param quota: jobs at once on machines of one type
    """

    def __init__(
        self,
        on_create: Callable[[Job], None],
        *,
        region: str = "us-east-1",
        trusts: Callable[[str], bool] = lambda role: True,
        quota: int = 100,
    ) -> None:
        self._on_create, self._region, self._trusts, self._quota = on_create, region, trusts, quota
        self.jobs: dict[str, Job] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        """Operation and parameters, of all that was asked."""
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
                operation = self.headers.get("X-Amz-Target", "").removeprefix(_TARGET)
                try:
                    code, answer = 200, service.answer(operation, body)
                except Refusal as refusal:
                    code, answer = 400, {"__type": refusal.code, "message": str(refusal)}
                reply = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, format: str, *args: Any) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> SageMaker:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, operation: str, asked: dict[str, Any]) -> dict[str, Any]:
        """:raises Refusal: as AWS would"""
        with self._lock:
            self.requests.append((operation, asked))
            if operation not in ("CreateTrainingJob", "DescribeTrainingJob", "StopTrainingJob"):
                raise Refusal("UnknownOperationException", f"this SageMaker knows no {operation}")
            for found in findings("sagemaker", operation, asked):
                raise Refusal(
                    "ValidationException",
                    f"1 validation error detected: Value '{found.value}' at '{found.member}' failed to satisfy "
                    f"constraint: {found.fix}",
                )
            if operation == "CreateTrainingJob":
                return self._create(asked)
            job = self.jobs.get(asked["TrainingJobName"])
            if job is None:
                raise Refusal("ValidationException", "Requested resource not found.")
            if operation == "StopTrainingJob":
                if job.over:
                    raise Refusal(
                        "ValidationException",
                        f"The request was rejected because the training job is in status {job.status}.",
                    )
                job.stop_asked.set()
                return {}
            return job.described()

    def _create(self, asked: dict[str, Any]) -> dict[str, Any]:
        for message in refusals(asked, self._region):
            raise Refusal("ValidationException", message)
        if asked["TrainingJobName"] in self.jobs:
            raise Refusal("ResourceInUse", "Training job names must be unique within an AWS account and region.")
        if not self._trusts(asked["RoleArn"]):
            raise Refusal(
                "ValidationException",
                f"Could not assume role {asked['RoleArn']}. Please ensure that the role exists and allows principal "
                "'sagemaker.amazonaws.com' to assume the role.",
            )
        kind = asked["ResourceConfig"]["InstanceType"]
        at_work = [job for job in self.jobs.values() if not job.over]
        if sum(job.request["ResourceConfig"]["InstanceType"] == kind for job in at_work) >= self._quota:
            raise Refusal(
                "ResourceLimitExceeded",
                f"The account-level service limit '{kind} for training job usage' is {self._quota} Instances.",
            )
        job = self.jobs[asked["TrainingJobName"]] = Job(asked, self._region)
        threading.Thread(target=self._on_create, args=(job,), daemon=True).start()
        return {"TrainingJobArn": job.arn}


def refusals(asked: Mapping[str, Any], region: str) -> list[str]:
    """What AWS refuses in a request of which each member by itself is right."""
    found = []
    stopping = asked.get("StoppingCondition", {})
    runtime, wait = stopping.get("MaxRuntimeInSeconds", 86400), stopping.get("MaxWaitTimeInSeconds")
    spot = asked.get("EnableManagedSpotTraining", False)
    kept = asked.get("ResourceConfig", {}).get("KeepAlivePeriodInSeconds", 0)
    if spot and wait is None:
        found.append("MaxWaitTimeInSeconds is required when EnableManagedSpotTraining is true")
    if not spot and wait is not None:
        found.append("MaxWaitTimeInSeconds is supported only when EnableManagedSpotTraining is true")
    if wait is not None and wait < runtime:
        found.append("MaxWaitTimeInSeconds must be equal to or greater than MaxRuntimeInSeconds")
    if max(runtime, wait or 0) > 28 * 86400:
        found.append("a training job can run, or wait, for 28 days at most")
    if spot and kept:
        found.append("KeepAlivePeriodInSeconds: warm pools cannot be used with spot instances")
    if kept > 3600:
        found.append("KeepAlivePeriodInSeconds: the maximum is 3600")
    image = asked.get("AlgorithmSpecification", {}).get("TrainingImage", "")
    if f".dkr.ecr.{region}.amazonaws.com" not in image:
        found.append(f"the image {image} is not in ECR in {region}")
    if asked.get("RetryStrategy") and not runtime:
        found.append("RetryStrategy needs MaxRuntimeInSeconds")
    if asked.get("ResourceConfig", {}).get("VolumeSizeInGB", 0) < 1:
        found.append("VolumeSizeInGB must be at least 1")
    return found
