"""Detect: what the EC2 instance metadata service says about this machine (version 2, session tokens).

Protocol: "Use the Instance Metadata Service to access instance metadata", "Instance identity documents" and "Spot
Instance interruption notices", Amazon EC2 User Guide. A 404 is an answer (there is no such thing now), not an error.
"""

from __future__ import annotations

import json
import os
import time
from datetime import datetime
from pathlib import Path

import requests

from train_cloud.errors import CloudForbidden, CloudUnavailable

ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
"""The AWS SDKs' own variable for another endpoint."""
_ENDPOINT = "http://169.254.169.254"
_DISABLED = "AWS_EC2_METADATA_DISABLED"
"""The AWS SDKs' own variable: nobody may ask."""
_LONGEST_TTL_S = 21600
"""Six hours: what the service allows a token to live."""


def on_ec2() -> bool:
    """Whether this machine is one of EC2's, without asking anybody: elsewhere that address is not ours to use.

    Source: "Detect whether a host is an EC2 instance" (Amazon EC2 User Guide).
    """
    if os.environ.get(_DISABLED, "").lower() == "true":
        return False
    if os.environ.get(ENDPOINT_VARIABLE):
        return True
    marks = (("/sys/devices/virtual/dmi/id/board_asset_tag", "i-"), ("/sys/hypervisor/uuid", "ec2"))
    return any(_begins(path, mark) for path, mark in marks)


def _begins(path: str, mark: str) -> bool:
    try:
        return Path(path).read_text().lower().startswith(mark)
    except OSError:
        return False


class Metadata:
    """One machine's metadata. Not thread-safe.

    :param endpoint: default: ``AWS_EC2_METADATA_SERVICE_ENDPOINT``, else the link-local address of EC2
    :param timeout_s: longest wait for a connection, and between two bytes of an answer; the service is on the same host
    :param token_ttl_s: life asked for each token, 1 to 21600 seconds; renewed when nine tenths of it are over
    """

    def __init__(
        self, endpoint: str | None = None, *, timeout_s: float = 2.0, token_ttl_s: int = _LONGEST_TTL_S
    ) -> None:
        self.endpoint = (endpoint or os.environ.get(ENDPOINT_VARIABLE) or _ENDPOINT).rstrip("/")
        self._timeout_s = timeout_s
        self._token_ttl_s = token_ttl_s
        self._token = ""
        self._renew_at = 0.0
        self._http = requests.Session()
        self._http.trust_env = False  # a proxy would answer for another machine

    def read(self, path: str) -> str | None:
        """The text under ``/latest/<path>``; None where the service says that there is none (404).

        :raises CloudUnavailable: no connection, time-out, 5xx, throttling, or a fresh token that is not accepted
        :raises CloudForbidden: the metadata service is switched off for this machine
        """
        answer = self._get(path)
        if answer.status_code == 401:  # expired, or the service has forgotten it: a fresh one must do
            self._renew_at = 0.0
            answer = self._get(path)
        if answer.status_code == 404:
            return None
        return _body(answer, path)

    def instance_id(self) -> str:
        return self._must("meta-data/instance-id")

    def instance_type(self) -> str:
        return self._must("meta-data/instance-type")

    def availability_zone(self) -> str:
        return self._must("meta-data/placement/availability-zone")

    def life_cycle(self) -> str:
        """How the machine was bought: ``spot``, ``on-demand``, …"""
        return self._must("meta-data/instance-life-cycle")

    def region(self) -> str:
        return self._must("meta-data/placement/region")

    def instance_action(self) -> str | None:
        """JSON ``{"action": "terminate"|"stop"|"hibernate", "time": ISO 8601}`` once an interruption is scheduled."""
        return self.read("meta-data/spot/instance-action")

    def rebalance_recommendation(self) -> str | None:
        """JSON ``{"noticeTime": ISO 8601}`` once EC2 thinks an interruption more likely than usual."""
        return self.read("meta-data/events/recommendations/rebalance")

    def target_lifecycle_state(self) -> str | None:
        """``InService``, ``Terminated``, …: where Auto Scaling is taking this machine; None outside a group."""
        return self.read("meta-data/autoscaling/target-lifecycle-state")

    def has_public_address(self) -> bool:
        """Whether there is a public IPv4 address."""
        return bool(self.read("meta-data/public-ipv4"))

    def launched(self) -> datetime | None:
        """When EC2 began to launch this machine, from its identity document; None where that does not say."""
        try:
            told = json.loads(self.read("dynamic/instance-identity/document") or "{}")
            return datetime.fromisoformat(told["pendingTime"].replace("Z", "+00:00"))
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    def close(self) -> None:
        self._http.close()

    def _must(self, path: str) -> str:
        text = self.read(path)
        if not text:
            raise CloudUnavailable(f"the metadata service at {self.endpoint} does not know {path}")
        return text

    def _get(self, path: str) -> requests.Response:
        if time.monotonic() >= self._renew_at:
            asked = time.monotonic()
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(self._token_ttl_s)}
            self._token = _body(self._send("PUT", "api/token", headers), "api/token")
            self._renew_at = asked + 0.9 * self._token_ttl_s
        return self._send("GET", path, {"X-aws-ec2-metadata-token": self._token})

    def _send(self, method: str, path: str, headers: dict[str, str]) -> requests.Response:
        url = f"{self.endpoint}/latest/{path}"
        try:
            return self._http.request(method, url, headers=headers, timeout=self._timeout_s, allow_redirects=False)
        except requests.RequestException as error:
            raise CloudUnavailable(f"{method} {url}: {type(error).__name__}: {error}") from error


def _body(answer: requests.Response, path: str) -> str:
    if answer.status_code == 200:
        return answer.text.strip()
    said = f"the metadata service answered {answer.status_code} to {path}"
    if answer.status_code == 403:
        raise CloudForbidden(
            f"{said}: it is switched off for this machine (HttpEndpoint), or further away than its hops"
        )
    raise CloudUnavailable(said)
