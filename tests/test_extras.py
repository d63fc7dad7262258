"""A real machine with everything that is off by default: its journal in CloudWatch Logs, its news at a topic."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from until import until

from train_cloud.config import load_run_file
from train_cloud.operations.requirements import packages
from train_cloud.platforms.ec2.units import FINISH, TRAIN
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.machine import MachineInstance, missing, prepare
from train_cloud.rehearsal.systemd import Line
from train_cloud.rehearsal.terraform import Terraform

EXAMPLE = Path(__file__).parents[1] / "examples" / "pendulum_sac.yaml"
pytestmark = [pytest.mark.slow, pytest.mark.machine, pytest.mark.full, pytest.mark.timeout(1800)]


def test_the_journal_and_the_news_leave_a_real_machine(tmp_path: Path) -> None:
    lacking = "; ".join(missing())
    if lacking:
        assert os.environ.get("CI") != "true", lacking
        pytest.skip(f"needs {lacking}")
    image = prepare(packages=packages(load_run_file(EXAMPLE)), say=print)
    lines: list[Line] = []
    with EmbeddedAws(log=tmp_path / "aws.log") as aws:
        variables = {"run_file": EXAMPLE, "project_name": "extras", "notification_emails": [], "cloudwatch_log_days": 1}
        outputs = Terraform(tmp_path / "work", aws).apply(variables)
        sqs = aws.client("sqs")
        queue = sqs.create_queue(QueueName="told")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        aws.client("sns").subscribe(TopicArn=outputs["notification_topic_arn"], Protocol="sqs", Endpoint=arn)
        group = outputs["autoscaling_group_name"]
        found = aws.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[group])
        instance = found["AutoScalingGroups"][0]["Instances"][0]["InstanceId"]
        with aws.permissions_enforced():
            logs, s3 = aws.client("logs"), aws.client("s3")
            queues = aws.client("sqs")

            def journal(unit: str) -> str:
                named = {"logGroupName": f"/{group}", "logStreamName": f"{instance}/train-cloud-{unit}"}
                try:
                    events = logs.get_log_events(**named, startFromHead=True)["events"]
                except logs.exceptions.ResourceNotFoundException:
                    return ""
                return "\n".join(event["message"] for event in events)

            machine = MachineInstance(
                aws, group, instance, tmp_path / "machine", image=image, environment={}, on_line=lines.append
            )
            try:
                until(lambda: machine.timesteps > 0, "it trains")
                until(lambda: "the training" in journal("train"), "CloudWatch has the trainer's journal")
                assert "ready after" in journal("bootstrap"), "and the boot's, from before Python was there"
                machine.metadata.interrupt(seconds=120)
                news: list[dict[str, Any]] = []

                def told() -> bool:
                    for message in queues.receive_message(QueueUrl=queue).get("Messages", ()):
                        news.append(json.loads(message["Body"]))
                    return bool(news)

                until(told, "somebody was told")
                until(lambda: all(machine.state(unit).over for unit in (TRAIN, FINISH)), "the trainer has left")
                until(lambda: "interrupted (notice)" in journal("train"), "its last words arrive too")
            finally:
                machine.lose_power()
            assert [message["Subject"] for message in news] == ["train-cloud: pendulum-sac interrupted"]
            assert instance in news[0]["Message"]
            bucket = s3.list_buckets()["Buckets"][0]["Name"]
            for prefix, wanted in {
                "launched/": {"overrides.json", "run.yaml"},
                "told/": {"000001-interrupted-topic.json"},
            }.items():
                listed = s3.list_objects_v2(Bucket=bucket, Prefix=f"runs/pendulum-sac/{prefix}").get("Contents", ())
                names = {entry["Key"].rsplit("/", 1)[1] for entry in listed}
                said = [line.text for line in lines if line.unit == "train-cloud-watch.service"]
                assert wanted <= names, (names, said)
    refused = [line.text for line in lines if "AccessDenied" in line.text or "not authorized" in line.text]
    assert not refused
