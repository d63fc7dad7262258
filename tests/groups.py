"""Auto Scaling groups at moto's, as ``terraform/worker.tf`` makes them."""

from __future__ import annotations

import uuid

import boto3


def make_group(name: str | None = None) -> str:
    """Name of a new group of one machine, tagged with a run id that is the name."""
    name = name or f"g-{uuid.uuid4().hex[:8]}"
    autoscaling = boto3.client("autoscaling")
    autoscaling.create_launch_configuration(
        LaunchConfigurationName=name, ImageId="ami-12c6146b", InstanceType="g5.xlarge"
    )
    autoscaling.create_auto_scaling_group(
        AutoScalingGroupName=name,
        LaunchConfigurationName=name,
        MinSize=0,
        MaxSize=1,
        DesiredCapacity=1,
        AvailabilityZones=["us-east-1a"],
        Tags=[{"Key": "train-cloud-run", "Value": name, "PropagateAtLaunch": True}],
    )
    return name


def machines(group: str) -> list[str]:
    """Instance ids in a group."""
    found = boto3.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[group])
    return [instance["InstanceId"] for instance in found["AutoScalingGroups"][0]["Instances"]]
