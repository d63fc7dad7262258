"""Secrets as the worker reads them."""

from __future__ import annotations

import boto3
import pytest

from train_cloud.errors import CloudUnavailable, InputError
from train_cloud.platforms.ec2.parameters import read_secrets


def test_parameters_become_variables(aws_endpoint: str) -> None:
    ssm = boto3.client("ssm")
    ssm.put_parameter(Name="/our-lab/wandb", Value="a secret", Type="SecureString")
    ssm.put_parameter(Name="plain", Value="another", Type="String")
    found = read_secrets({"WANDB_API_KEY": "/our-lab/wandb", "HOOK": "plain"})
    assert found == {"WANDB_API_KEY": "a secret", "HOOK": "another"}
    assert read_secrets({}) == {}


def test_one_that_is_not_there_is_named(aws_endpoint: str) -> None:
    with pytest.raises(InputError, match="no such SSM parameter in us-east-1") as caught:
        read_secrets({"A_NAME": "/absent"})
    assert caught.value.field == "secrets.A_NAME"


def test_a_service_that_does_not_answer(aws_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(CloudUnavailable):
        read_secrets({"A_NAME": "/absent"}, retry_timeout_s=0)
