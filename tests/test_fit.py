"""What instance types and folders have room for."""

from __future__ import annotations

from pathlib import Path

import pytest

from train_cloud.errors import InputError
from train_cloud.platforms.ec2.fit import DEFAULT_TYPES, check_gpus, check_store, look_up

#: GiB, from the tables of "Amazon EC2 Instance Types".
NOMINAL = {
    "g4dn.xlarge": 16,
    "g4dn.16xlarge": 256,
    "g5.xlarge": 16,
    "g5.12xlarge": 192,
    "g6.2xlarge": 32,
    "g6.48xlarge": 768,
    "g6e.xlarge": 32,
    "gr6.4xlarge": 128,
    "p3.2xlarge": 61,
    "p4d.24xlarge": 1152,
    "c5.9xlarge": 72,
    "c6i.large": 4,
    "c7a.xlarge": 8,
    "m5.large": 8,
    "m6i.32xlarge": 512,
    "r5.24xlarge": 768,
    "r7i.2xlarge": 64,
}


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS cannot be asked: nobody has said where."""
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")


@pytest.mark.parametrize(("name", "gib"), NOMINAL.items())
def test_a_type_in_the_table(unasked: None, name: str, gib: int) -> None:
    found = look_up([name])[name]
    assert 0.9 * gib < found.memory_bytes / 2**30 < 0.97 * gib
    assert (found.gpus > 0) == (name[0] in "gp")


@pytest.mark.parametrize("name", ["g5", "g5.", "g5.huge", "g99.xlarge", "xlarge", "", "g5.xlarge.xlarge"])
def test_a_type_that_is_not_known(unasked: None, name: str) -> None:
    with pytest.raises(InputError, match="g4dn, g5, g6") as caught:
        look_up([name])
    assert (caught.value.field, caught.value.value) == ("--instance-type", name)


def test_aws_is_asked_where_it_can_be(aws_endpoint: str) -> None:
    known = look_up(["g4dn.12xlarge", "x2iedn.xlarge"])  # the second is of no family of the table
    assert known["g4dn.12xlarge"].gpus == 4 and known["x2iedn.xlarge"].gpus == 0
    assert 0.9 * 128 < known["x2iedn.xlarge"].memory_bytes / 2**30 < 0.97 * 128
    with pytest.raises(InputError, match="describe-instance-type-offerings") as caught:
        look_up(["g5.xlarge", "g99.xlarge"])
    assert caught.value.value == "g99.xlarge"


def test_terraforms_own_are_not_asked_about(aws_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train_cloud.platforms.ec2.fit.client", lambda service: pytest.fail("asked"))
    assert list(look_up(None)) == list(DEFAULT_TYPES)


def test_the_table_answers_where_aws_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert look_up(["g5.xlarge"])["g5.xlarge"].gpus == 1


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_that_is_not_there(unasked: None, device: str) -> None:
    for name in ("c7i.large", "g6.xlarge"):
        check_gpus(look_up([name]), "auto")
    check_gpus(look_up(["g6.xlarge"]), device)
    with pytest.raises(InputError, match=f"device: {device}"):
        check_gpus(look_up(["c7i.large"]), device)


@pytest.mark.parametrize("form", ["{}", "file://{}", "{}/deep/below"])
def test_room_in_a_folder(tmp_path: Path, form: str) -> None:
    store = form.format(tmp_path / "store")
    check_store(store, 1000)
    with pytest.raises(InputError, match=r"1000000\.0 GB.* are free") as caught:
        check_store(store, 10**15)
    assert caught.value.field == "--store"
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_has_room() -> None:
    check_store("s3://bucket/prefix", 10**18)
