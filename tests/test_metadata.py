"""The metadata client and the metadata service of the rehearsal, each tried against the other over HTTP."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import botocore.session
import pytest
import requests

from train_cloud.errors import CloudForbidden, CloudUnavailable
from train_cloud.platforms.ec2.metadata import ENDPOINT_VARIABLE, Metadata
from train_cloud.rehearsal.metadata import MetadataService

TOKEN = "/latest/api/token"


@pytest.fixture
def service() -> Iterator[MetadataService]:
    with MetadataService("i-0abc", instance_type="g6.2xlarge", availability_zone="eu-west-1b") as service:
        yield service


@pytest.fixture
def metadata(service: MetadataService) -> Iterator[Metadata]:
    metadata = Metadata(service.endpoint, timeout_s=0.5)
    yield metadata
    metadata.close()


def log(service: MetadataService) -> list[tuple[str, str, int]]:
    return [(entry.method, entry.path.removeprefix("/latest/"), entry.status) for entry in service.requests]


def test_says_what_machine_this_is(metadata: Metadata) -> None:
    assert metadata.instance_id() == "i-0abc"
    assert metadata.instance_type() == "g6.2xlarge"
    assert metadata.availability_zone() == "eu-west-1b"
    assert metadata.region() == "eu-west-1"


def test_nothing_announced_is_an_answer(metadata: Metadata) -> None:
    assert metadata.instance_action() is None
    assert metadata.rebalance_recommendation() is None
    assert metadata.target_lifecycle_state() == "InService"


def test_notices_come_and_go(metadata: Metadata, service: MetadataService) -> None:
    when = service.interrupt("stop", seconds=90)
    service.recommend_rebalance()
    service.scale_in()
    action = json.loads(metadata.instance_action() or "")
    assert action["action"] == "stop"
    assert datetime.fromisoformat(action["time"].replace("Z", "+00:00")) == when
    assert timedelta(seconds=88) < when - datetime.now(timezone.utc) < timedelta(seconds=91)
    assert "noticeTime" in json.loads(metadata.rebalance_recommendation() or "")
    assert metadata.target_lifecycle_state() == "Terminated"
    service.withdraw()
    assert (metadata.instance_action(), metadata.rebalance_recommendation()) == (None, None)
    assert metadata.target_lifecycle_state() == "InService"


def test_one_token_serves_many_questions(metadata: Metadata, service: MetadataService) -> None:
    for _ in range(3):
        metadata.instance_id()
    assert [method for method, _, _ in log(service)] == ["PUT", "GET", "GET", "GET"]


def test_a_token_that_is_no_longer_accepted_is_renewed(metadata: Metadata, service: MetadataService) -> None:
    metadata.instance_id()
    service.expire_tokens()
    assert metadata.instance_id() == "i-0abc"
    assert log(service)[2:] == [
        ("GET", "meta-data/instance-id", 401),
        ("PUT", "api/token", 200),
        ("GET", "meta-data/instance-id", 200),
    ]


def test_a_token_is_renewed_before_it_runs_out(service: MetadataService) -> None:
    metadata = Metadata(service.endpoint, token_ttl_s=1)
    metadata.instance_id()
    time.sleep(0.95)
    metadata.instance_id()
    metadata.close()
    assert [status for _, _, status in log(service)] == [200] * 4
    assert [method for method, _, _ in log(service)] == ["PUT", "GET", "PUT", "GET"]


def test_the_service_forgets_a_token_after_its_ttl(service: MetadataService) -> None:
    headers = {"X-aws-ec2-metadata-token-ttl-seconds": "1"}
    token = requests.put(service.endpoint + TOKEN, headers=headers, timeout=2).text
    ask = {"X-aws-ec2-metadata-token": token}
    url = service.endpoint + "/latest/meta-data/instance-id"
    assert requests.get(url, headers=ask, timeout=2).text == "i-0abc"
    time.sleep(1.05)
    assert requests.get(url, headers=ask, timeout=2).status_code == 401


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_server_error_is_temporary(metadata: Metadata, service: MetadataService, status: int) -> None:
    service.fail(1, status)  # the token
    with pytest.raises(CloudUnavailable, match=str(status)):
        metadata.instance_action()
    assert metadata.instance_action() is None
    service.fail(1, status)  # the question
    with pytest.raises(CloudUnavailable, match=str(status)):
        metadata.instance_action()
    assert metadata.instance_action() is None


def test_a_service_that_refuses_fresh_tokens_is_temporary(metadata: Metadata, service: MetadataService) -> None:
    metadata.instance_id()
    service.fail(1, 401)
    assert metadata.instance_id() == "i-0abc"
    service.fail(1, 401)
    service.fail(1, 503)
    with pytest.raises(CloudUnavailable, match="503 to api/token"):
        metadata.instance_id()
    assert metadata.instance_id() == "i-0abc"


def test_a_service_that_is_switched_off_is_not_temporary(metadata: Metadata, service: MetadataService) -> None:
    service.fail(1, 403)
    with pytest.raises(CloudForbidden, match="HttpEndpoint"):
        metadata.instance_id()


def test_a_silent_service_is_temporary(metadata: Metadata, service: MetadataService) -> None:
    metadata.instance_id()
    service.stall(1, seconds=2)
    began = time.monotonic()
    with pytest.raises(CloudUnavailable, match="ReadTimeout"):
        metadata.instance_action()
    assert time.monotonic() - began < 1.5
    assert metadata.instance_action() is None


def test_nobody_listening_is_temporary() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with pytest.raises(CloudUnavailable, match="Connection"):
        Metadata(f"http://127.0.0.1:{port}").instance_id()


def test_an_instance_without_an_id_is_temporary(metadata: Metadata, service: MetadataService) -> None:
    service.set("meta-data/instance-id", None)
    with pytest.raises(CloudUnavailable, match="does not know meta-data/instance-id"):
        metadata.instance_id()


def test_the_endpoint_comes_from_the_environment_and_no_proxy_is_asked(
    service: MetadataService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT_VARIABLE, service.endpoint + "/")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert Metadata().instance_id() == "i-0abc"
    monkeypatch.delenv(ENDPOINT_VARIABLE)
    assert Metadata().endpoint == "http://169.254.169.254"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 400),
        ({"X-aws-ec2-metadata-token-ttl-seconds": "0"}, 400),
        ({"X-aws-ec2-metadata-token-ttl-seconds": "21601"}, 400),
        ({"X-aws-ec2-metadata-token-ttl-seconds": "soon"}, 400),
        ({"X-aws-ec2-metadata-token-ttl-seconds": "60", "X-Forwarded-For": "10.0.0.9"}, 403),
        ({"X-aws-ec2-metadata-token-ttl-seconds": "21600"}, 200),
    ],
)
def test_who_gets_a_token(service: MetadataService, headers: dict[str, str], status: int) -> None:
    assert requests.put(service.endpoint + TOKEN, headers=headers, timeout=2).status_code == status


def test_without_a_token_nothing_is_said(service: MetadataService) -> None:
    assert requests.get(service.endpoint + "/latest/meta-data/instance-id", timeout=2).status_code == 401


def test_botocore_finds_its_credentials_there(monkeypatch: pytest.MonkeyPatch) -> None:
    expiry = (datetime.now(timezone.utc) + timedelta(hours=6)).strftime("%Y-%m-%dT%H:%M:%SZ")
    keys = {"AccessKeyId": "ASIAROLE", "SecretAccessKey": "secret", "Token": "session", "Expiration": expiry}
    with MetadataService("i-0abc", role="worker", credentials=lambda: keys) as service:
        monkeypatch.setenv(ENDPOINT_VARIABLE, service.endpoint)
        for name in ("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name, raising=False)
        credentials = botocore.session.Session().get_credentials()
        assert credentials is not None and credentials.method == "iam-role"
        assert (credentials.access_key, credentials.token) == ("ASIAROLE", "session")


def test_folders_list_their_children(metadata: Metadata, service: MetadataService) -> None:
    assert metadata.read("meta-data/placement/") == "availability-zone\nregion"
    assert "placement/" in (metadata.read("meta-data/") or "").splitlines()
    assert metadata.read("meta-data/place") is None


def test_serves_on_a_socket_that_was_bound_before() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with MetadataService("i-0def", listener=listener, user_data=b"#!/bin/sh\n") as service:
        assert service.endpoint == f"http://127.0.0.1:{port}"
        assert Metadata(service.endpoint).read("user-data") == "#!/bin/sh"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_a_machine_that_is_killed_leaves_no_traceback(
    service: MetadataService, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its connection is reset, in the middle of a request or between two."""
    address = service.endpoint.removeprefix("http://").split(":")
    threads = threading.active_count()
    for sent in (b"", b"GET /latest/meta-data/instance-id HTTP/1.1\r\n"):
        with socket.create_connection((address[0], int(address[1]))) as client:
            client.sendall(b"GET /latest/meta-data/ HTTP/1.1\r\n\r\n")
            assert b"401" in client.recv(1000)
            client.sendall(sent)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    before = len(service.requests)
    deadline = time.monotonic() + 30
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.05)
    assert requests.get(f"{service.endpoint}/latest/meta-data/", timeout=10).status_code == 401
    assert len(service.requests) == before + 1
    assert capfd.readouterr().err == ""
