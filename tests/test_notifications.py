"""Who is told what: through a real topic with a queue at moto's, and never before what is urgent."""

from __future__ import annotations

import json
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import boto3
import pytest
from groups import make_group
from until import until

from train_cloud.errors import CloudError, CloudUnavailable
from train_cloud.platforms.ec2 import finish as finishing
from train_cloud.platforms.ec2.finish import finish
from train_cloud.platforms.ec2.group import Group
from train_cloud.platforms.ec2.metadata import Metadata
from train_cloud.platforms.ec2.notify import SUBJECT_LENGTH, Topic, Webhook
from train_cloud.platforms.ec2.units import UnitState
from train_cloud.platforms.ec2.watch import Watch
from train_cloud.platforms.notifications import announce_end, announce_loss, announce_notice
from train_cloud.rehearsal.metadata import MetadataService
from train_cloud.run import layout
from train_cloud.run.head import Lease, Outcome, Token
from train_cloud.run.session import begin_session, end_session
from train_cloud.store import ObjectStore, open_store

OVER = UnitState("inactive", "dead", "success", 0, 0)


class Subscribed:
    """A topic, and a queue that gets what it is told."""

    def __init__(self) -> None:
        name = f"t-{uuid.uuid4().hex[:8]}"
        self.sqs = boto3.client("sqs")
        self.queue = self.sqs.create_queue(QueueName=name)["QueueUrl"]
        of_queue = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=["QueueArn"])["Attributes"]
        sns = boto3.client("sns")
        self.arn = sns.create_topic(Name=name)["TopicArn"]
        sns.subscribe(TopicArn=self.arn, Protocol="sqs", Endpoint=of_queue["QueueArn"])
        self.topic = Topic(self.arn)

    def news(self) -> list[dict[str, Any]]:
        """What came since the last time: Subject, Message, MessageAttributes."""
        found = []
        while messages := self.sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                found.append(json.loads(message["Body"]))
                self.sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
        return found


class Refusing:
    """A channel that refuses a number of times, and writes down what it took."""

    name = "refusing"

    def __init__(self, times: int = 0, watch: Callable[[], object] = lambda: None) -> None:
        self.times, self.watch = times, watch
        self.seen: list[object] = []
        self.subjects: list[str] = []

    def publish(self, subject: str, message: str, attributes: Mapping[str, str]) -> str:
        self.seen.append(self.watch())
        if self.times:
            self.times -= 1
            raise CloudUnavailable("not now")
        self.subjects.append(subject)
        return "m-1"


@pytest.fixture(scope="module")
def subscribed(aws_endpoint: str) -> Subscribed:
    return Subscribed()


@pytest.fixture
def store(folder_root: str) -> ObjectStore:
    return open_store(layout.run_url(folder_root, "my-run"))


@pytest.fixture
def service() -> Iterator[MetadataService]:
    with MetadataService("i-0abc") as service:
        yield service


def begin(store: ObjectStore, folder: Path, instance: str, boot: str = "b007") -> int:
    return begin_session(store, folder, instance_id=instance, boot_id=boot, details={}, persist=True).number


def concluded(store: ObjectStore, outcome: Outcome, session: int = 1) -> None:
    Lease.take(store, Token(session, 0), "i-0abc").conclude(outcome, "as it were")


@pytest.mark.parametrize("outcome", ["completed", "stopped", "failed"])
def test_an_end_is_told_once(store: ObjectStore, subscribed: Subscribed, outcome: Outcome) -> None:
    concluded(store, outcome)
    assert announce_end(store, subscribed.topic) is True
    assert announce_end(store, subscribed.topic) is False
    (said,) = subscribed.news()
    assert said["Subject"] == f"train-cloud: my-run {outcome}"
    assert "as it were" in said["Message"] and f"train-cloud status {store.url}" in said["Message"]
    told = {name: content["Value"] for name, content in said["MessageAttributes"].items()}
    assert told == {"run_id": "my-run", "news": outcome}
    concluded(store, outcome, session=2)  # with a larger budget it ended again
    assert announce_end(store, subscribed.topic) is True
    assert len(subscribed.news()) == 1


def test_a_run_that_goes_on_has_no_end(store: ObjectStore) -> None:
    assert announce_end(store, Refusing()) is False
    Lease.take(store, Token(1, 0), "i-0abc")
    assert announce_end(store, Refusing(), why="gone") is False


def test_a_head_that_cannot_be_read_is_told_as_a_failure(store: ObjectStore) -> None:
    store.create(layout.HEAD, b'{"torn')
    channel = Refusing()
    assert announce_end(store, channel, session=4, why="no JSON") is True
    assert announce_end(store, channel, session=4, why="no JSON") is False
    assert channel.subjects == ["train-cloud: my-run failed"]


def test_the_capacity_is_0_before_anybody_is_told_and_a_refusal_changes_nothing(
    aws_endpoint: str, store: ObjectStore, tmp_path: Path, service: MetadataService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finishing, "unit_state", lambda _: OVER)
    concluded(store, "completed")
    group = Group(make_group())
    channel = Refusing(times=1, watch=group.capacity)
    for _ in range(3):
        assert finish(store, tmp_path, Metadata(service.endpoint), group, channels=[channel]).verb == "close"
        assert group.capacity() == 0
    assert channel.seen == [0, 0]
    assert channel.subjects == ["train-cloud: my-run completed"]


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    said = "ActiveState=inactive\\nSubState=dead\\nResult=success\\nExecMainStatus=75\\nNRestarts=0\\n"
    (folder / "systemctl").write_text(f"#!/bin/sh\n[ \"$1\" != show ] || printf '{said}'\n")
    (folder / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_an_interruption_is_told_once_by_whichever_watch_sees_it(
    systemctl: None, store: ObjectStore, tmp_path: Path, service: MetadataService
) -> None:
    state = tmp_path / "state"
    begin(store, state, "i-0abc")
    Lease.take(store, Token(1, 0), "i-0abc")
    channel = Refusing(times=1)
    service.interrupt("terminate", seconds=120)
    for _ in range(2):  # the second is a restarted one
        watch = Watch(store, state, Metadata(service.endpoint, timeout_s=1), boot_id="b007", channels=[channel])
        watch.poll(datetime.now(timezone.utc))
        until(lambda: len(channel.subjects) == 1, "somebody was told")
        service.interrupt("terminate", seconds=60)  # and another announcement for the same machine
        watch.poll(datetime.now(timezone.utc))
        until(lambda w=watch: all(case.told for case in w._cases()), "that is the same news")  # type: ignore[misc]
        watch.close()
    assert channel.subjects == ["train-cloud: my-run interrupted"]


def test_a_run_that_is_over_is_not_interrupted(store: ObjectStore) -> None:
    concluded(store, "completed")
    channel = Refusing()
    assert announce_notice(store, channel, session=1, instance_id="i-0abc", notice="scale-in") is False
    assert channel.seen == []


@pytest.mark.parametrize(
    ("end", "told"), [(None, True), ("notice", True), ("completed", False), ("limit", False), ("fenced", False)]
)
def test_who_takes_over_tells_of_a_loss(store: ObjectStore, tmp_path: Path, end: str | None, told: bool) -> None:
    first = begin_session(store, tmp_path / "a", instance_id="i-0abc", boot_id="b007", details={}, persist=True)
    if end is not None:
        end_session(store, first, ended_by=end)
    second = begin(store, tmp_path / "b", "i-0def", "b008")
    channel = Refusing()
    for expected in (told, False):
        assert announce_loss(store, channel, session=second, instance_id="i-0def") is expected
    assert channel.subjects == ["train-cloud: my-run interrupted"] * told


def test_a_loss_that_was_told_as_a_notice_or_as_a_failure_is_no_news(store: ObjectStore, tmp_path: Path) -> None:
    begin(store, tmp_path / "a", "i-0abc")
    Lease.take(store, Token(1, 0), "i-0abc")
    channel = Refusing()
    assert announce_notice(store, channel, session=1, instance_id="i-0abc", notice="spot")
    begin(store, tmp_path / "b", "i-0def", "b008")
    assert announce_loss(store, channel, session=2, instance_id="i-0def") is False
    concluded(store, "failed", session=2)
    assert announce_end(store, channel)
    begin(store, tmp_path / "c", "i-0123", "b009")  # relaunched
    assert announce_loss(store, channel, session=3, instance_id="i-0123") is False
    assert channel.subjects == ["train-cloud: my-run interrupted", "train-cloud: my-run failed"]


def test_a_restarted_boot_lost_nothing(store: ObjectStore, tmp_path: Path) -> None:
    begin(store, tmp_path, "i-0abc")
    second = begin(store, tmp_path, "i-0abc", "the next boot of the same machine")
    assert announce_loss(store, Refusing(), session=second, instance_id="i-0abc") is False


def test_the_topic_shortens_what_sns_would_refuse_and_names_what_is_missing(subscribed: Subscribed) -> None:
    assert subscribed.topic.publish("é\n" + "x" * 200, "m", {"run_id": "r"})
    (said,) = subscribed.news()
    assert said["Subject"].isascii() and len(said["Subject"]) == SUBJECT_LENGTH
    missing = Topic(f"{subscribed.arn}-not-there")
    with pytest.raises(CloudError, match="publish"):
        missing.publish("s", "m", {})


class Hook(BaseHTTPRequestHandler):
    """A webhook's server: answers with the statuses that it is given, and keeps what arrived."""

    statuses: ClassVar[list[int]] = []
    arrived: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.statuses.pop(0) if self.statuses else 204
        if status < 300:
            self.arrived.append(json.loads(body))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[str]:
    Hook.statuses.clear()
    Hook.arrived.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/services/very-secret"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_gets_what_the_topic_gets(store: ObjectStore, hook: str) -> None:
    Lease.take(store, Token(4, 0), "i-0abc").conclude("completed", None)
    webhook, topic = Webhook(lambda: hook), Refusing()
    for channel in (webhook, topic, webhook, topic):
        announce_end(store, channel)
    (told,) = Hook.arrived
    assert told["text"] == told["content"] and "completed" in told["text"]
    assert told["news"] == "completed" and told["subject"] == "train-cloud: my-run completed"
    assert topic.subjects == ["train-cloud: my-run completed"]


@pytest.mark.parametrize(
    ("statuses", "timeout_s", "error"),
    [
        ([503, 200], 60.0, None),
        ([429, 200], 60.0, None),
        ([503], 0.0, CloudUnavailable),
        ([404], 60.0, CloudError),
        ([302], 60.0, CloudError),
    ],
)
def test_what_a_webhook_may_answer(
    hook: str, statuses: list[int], timeout_s: float, error: type[CloudError] | None, caplog: pytest.LogCaptureFixture
) -> None:
    Hook.statuses += statuses
    webhook = Webhook(lambda: hook, retry_timeout_s=timeout_s)
    if error is None:
        webhook.publish("subject", "message", {})
        assert len(Hook.arrived) == 1
    else:
        with pytest.raises(error) as caught:
            webhook.publish("subject", "message", {})
        assert "secret" not in str(caught.value)
    assert "very-secret" not in caplog.text


@pytest.mark.parametrize("url", ["very-secret", "ftp://very-secret/x", "http://127.0.0.1:9/very-secret"])
def test_a_webhook_that_cannot_be_reached_keeps_its_secret(url: str) -> None:
    with pytest.raises(CloudError) as caught:
        Webhook(lambda: url).publish("subject", "message", {})
    assert "very-secret" not in "".join(traceback.format_exception(caught.value))


def test_the_url_is_read_from_the_runs_secrets(aws_endpoint: str, hook: str, tmp_path: Path) -> None:
    """As the worker does it: finish is told by its run file which secret, and reads it from a real parameter."""
    from train_cloud.cli.worker import _channels

    name = f"/tests/{uuid.uuid4().hex[:8]}"
    boto3.client("ssm").put_parameter(Name=name, Value=f"{hook}\n", Type="SecureString")
    run_file = tmp_path / "run.yaml"
    run = {"run_id": "a", "algorithm": "sac", "environment": {"id": "Pendulum-v1"}, "total_timesteps": 10}
    run |= {"save_frequency": 5, "secrets": {"HOOK": name}, "webhook": "HOOK"}
    run_file.write_text(json.dumps(run))
    (webhook,) = _channels(None, run_file, retry_timeout_s=0)
    assert webhook.publish("subject", "message", {}) == "HTTP 204"
    assert Hook.arrived[0]["text"] == "message"
    run_file.write_text(json.dumps({**run, "secrets": {}}))
    assert _channels(None, run_file, retry_timeout_s=0) == []
    boto3.client("ssm").delete_parameter(Name=name)
    run_file.write_text(json.dumps(run))
    (webhook,) = _channels(None, run_file, retry_timeout_s=0)
    with pytest.raises(CloudError, match="no such SSM parameter"):
        webhook.publish("subject", "message", {})
