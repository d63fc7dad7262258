"""What instance types and folders have room for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from train_cloud.errors import InputError
from train_cloud.platforms.ec2.fit import DEFAULT_TYPES, check_store, memory_bytes

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


@pytest.mark.parametrize(("name", "gib"), NOMINAL.items())
def test_memory_of_a_type(name: str, gib: int) -> None:
    assert 0.9 * gib < memory_bytes(name) / 2**30 < 0.97 * gib


@pytest.mark.parametrize("name", ["g5", "g5.", "g5.huge", "g99.xlarge", "xlarge", "", "g5.xlarge.xlarge"])
def test_a_type_that_is_not_known(name: str) -> None:
    with pytest.raises(InputError, match="g4dn, g5, g6") as caught:
        memory_bytes(name)
    assert (caught.value.field, caught.value.value) == ("--instance-type", name)


def test_the_default_is_terraforms() -> None:
    text = (Path(__file__).parents[1] / "terraform" / "variables.tf").read_text()
    block = text.split('variable "instance_types"')[1].split("validation")[0]
    default = re.search(r"default\s*=\s*\[(.*)\]", block)
    assert default is not None
    assert tuple(re.findall(r'"([^"]+)"', default[1])) == DEFAULT_TYPES


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
