"""Secrets: parameters of AWS Systems Manager, which the instance's role may read (``GetParameter``)."""

from __future__ import annotations

from collections.abc import Mapping

from train_cloud.errors import InputError
from train_cloud.platforms.ec2.api import call, client, until_it_holds
from train_cloud.safe_text import hide

RETRY_TIMEOUT_S = 120.0
"""IAM tells all of its servers about a new role within seconds, seldom minutes."""


def read_secrets(secrets: Mapping[str, str], *, retry_timeout_s: float = RETRY_TIMEOUT_S) -> dict[str, str]:
    """The values, decrypted, by the names of environment variables.

    :param secrets: variable → name of the parameter
    :raises InputError: there is no such parameter
    :raises CloudError: it cannot be read
    """
    if not secrets:
        return {}
    ssm, found = client("ssm"), {}
    for name, parameter in secrets.items():

        def ask(parameter: str = parameter) -> Mapping[str, object] | None:
            return call(ssm, "get_parameter", Name=parameter, WithDecryption=True)

        answer = until_it_holds(ask, retry_timeout_s=retry_timeout_s)
        if answer is None:
            region = ssm.meta.region_name
            raise InputError(f"secrets.{name}", parameter, f"there is no such SSM parameter in {region}: put it there")
        value = answer["Parameter"]
        assert isinstance(value, dict)
        found[name] = str(value["Value"])
        hide({name: found[name]})
    return found
