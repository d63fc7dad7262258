"""Secrets of a run: parameters of AWS Systems Manager, read with the machine's own role.

Source: "GetParameter" (AWS Systems Manager API Reference); "Creating SecureString parameters" (AWS Systems Manager User
Guide).
"""

from __future__ import annotations

from train_cloud.errors import CloudError
from train_cloud.instance.api import call, client, until_it_holds


def read_secret(parameter: str, *, patience_s: float | None = 120.0) -> str:
    """The value of a parameter, decrypted; never logged.

    :param patience_s: for how long to try again, since a new role takes a while to be known everywhere; None: for ever
    :raises CloudForbidden, CloudUnavailable: once patience is over
    :raises CloudError: there is no such parameter
    """
    ssm = client("ssm", None)
    given = {"Name": parameter, "WithDecryption": True}
    answer = until_it_holds(lambda: call(ssm, "get_parameter", **given), patience_s=patience_s)
    if answer is None:
        raise CloudError(f"there is no SSM parameter {parameter}: create it, or correct the run file's secrets")
    return str(answer["Parameter"]["Value"])
