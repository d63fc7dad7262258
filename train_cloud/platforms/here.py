"""Which platform this process runs on."""

from __future__ import annotations

import os

from train_cloud.platforms.ec2.worker import GROUP, Worker
from train_cloud.platforms.local import Local
from train_cloud.platforms.protocol import Platform
from train_cloud.platforms.ray_node import NODE, RayNode
from train_cloud.platforms.sagemaker.job import PLACE, Job


def here() -> Platform:
    """By what the launch has set."""
    if PLACE in os.environ:
        return Job()
    if NODE in os.environ:
        return RayNode()
    return Worker() if GROUP in os.environ else Local()
