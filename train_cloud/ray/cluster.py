"""A Ray cluster that runs are to be trained on: whether it can be reached, whether its nodes can train them.

Whatever does not fit is found here, before anything is created.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import platform
import re
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import ray
from packaging.requirements import InvalidRequirement, Requirement
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from train_cloud.config import RunFile, read_yaml
from train_cloud.errors import InputError
from train_cloud.operations.requirements import packages

NAMESPACE = "train-cloud"
#: Ray's own variable.
ADDRESS = "RAY_ADDRESS"
_CONNECT_SECONDS = 5.0
#: A worker process must start for it, on a node that may be busy.
ANSWER_SECONDS = 180.0
#: Where `ray up` leaves the cluster's description on its head.
_BOOTSTRAP = Path("ray_bootstrap_config.yaml")
_EPSILON = 1e-6

Resources = Mapping[str, float]
"""By Ray's names: CPU, GPU, memory (bytes), and the cluster's own."""


class _Has(Protocol):
    @property
    def resources(self) -> Resources: ...


@dataclass(frozen=True)
class Node:
    """One of the cluster's."""

    id: str
    address: str
    resources: Resources


@dataclass(frozen=True)
class NodeType:
    """Machines that the cluster may get."""

    name: str
    resources: Resources
    most: int


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[list[Node]]:
    """Be a driver of the cluster for a while.

    :param address: ``host:port`` of its head; None for what ``RAY_ADDRESS`` says, or the one that runs here
    :return: its nodes
    :raises InputError: it cannot be reached, or has another version of Ray or Python
    """
    named = address or os.environ.get(ADDRESS) or None
    _check_address(named)
    try:
        ray.init(
            address=named or "auto",
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except (RuntimeError, ValueError, OSError, RayError) as error:
        raise _explained(named, error) from error
    try:
        yield nodes()
    finally:
        ray.shutdown()


def _check_address(named: str | None) -> None:
    """Ask the address before Ray does, which takes a minute to give up."""
    if named is None or named == "auto":
        return
    found = re.fullmatch(r"(?P<host>[^:/\s]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})", named)
    if found is None:
        fix = "write host:port of the cluster's head, as `ray start --head` prints it"
        if named.startswith(("ray://", "http")):
            fix = "call this on a node of the cluster, `ray exec CLUSTER.yaml 'train-cloud launch …'`: " + fix
        raise InputError("--address", named, fix)
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        fix = f"nothing answers there ({error}): start the cluster, or name its head's host:port"
        raise InputError("--address", named, fix) from error


def _explained(named: str | None, error: Exception) -> InputError:
    said = str(error)
    versions = re.findall(r"(Ray|Python): (\S+)", said)
    if "ersion mismatch" in said and len(versions) == 4:
        theirs, ours = (" and ".join(map(" ".join, half)) for half in (versions[:2], versions[2:]))
        fix = f"the cluster has {theirs}, this process {ours}: install the same versions on both"
        return InputError("--address", named or "auto", fix)
    first = next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__)
    if named is None:
        fix = f"start a cluster here (`ray start --head`), set {ADDRESS}, or give --address: {first}"
        return InputError("--address", None, fix)
    return InputError("--address", named, f"Ray cannot be used from here, call this on a node of the cluster: {first}")


def nodes() -> list[Node]:
    """Those that live."""
    return [
        Node(found["NodeID"], found["NodeManagerAddress"], found.get("Resources", {}))
        for found in ray.nodes()  # type: ignore[no-untyped-call]
        if found["Alive"]
    ]


# ---------------------------------------------------------------------------------------------------- what nodes have


def needs(config: RunFile, threads: int, *, gpus: bool) -> dict[str, float]:
    """What a run takes of a node.

    :param threads: with which torch computes
    :param gpus: whether any node has one
    """
    asked = config.ray
    wants = config.device.startswith("cuda") or (config.device == "auto" and gpus)
    found = {
        "CPU": float(threads) if asked.cpus is None else asked.cpus,
        "GPU": float(wants) if asked.gpus is None else asked.gpus,
        "memory": 0.0 if asked.memory_gb is None else asked.memory_gb * 1e9,
        **asked.resources,
    }
    return {name: amount for name, amount in found.items() if amount > 0}


def share(need: Resources, node: Resources) -> float:
    """Which part of a node a run has: the largest of its shares of CPUs and GPUs, above 0 and at most 1."""
    shares = [need[name] / node[name] for name in ("CPU", "GPU") if need.get(name) and node.get(name)]
    return min(1.0, max(shares, default=1.0))


def fits(need: Resources, node: Resources) -> int:
    """How many such runs a node holds at once."""
    most = (math.floor(node.get(name, 0.0) / amount + _EPSILON) for name, amount in need.items())
    return min(most, default=1)


def may_come() -> list[NodeType]:
    """What the autoscaler may add, by the file that `ray up` leaves on the head; nothing elsewhere."""
    path = Path.home() / _BOOTSTRAP
    if not path.is_file():
        return []
    told = read_yaml(path.read_text(), path.name)
    types = told.get("available_node_types", {}) if isinstance(told, dict) else {}
    most = told.get("max_workers", 0) if isinstance(told, dict) else 0
    return [
        NodeType(name, each.get("resources", {}), min(most, each.get("max_workers", most)))
        for name, each in types.items()
        if name != told.get("head_node_type")
    ]


def check_resources(wanted: Mapping[str, Resources], here: Sequence[Node], later: Sequence[NodeType]) -> None:
    """:param wanted: by run
    :raises InputError: a run that no node can hold
    """
    every: list[_Has] = [*here, *later]
    for run_id, need in wanted.items():
        if not any(fits(need, one.resources) for one in every):
            told = {_told(one.resources, need) for one in every if any(one.resources.get(name) for name in need)}
            have = ", ".join(sorted(told)) or "none of it"
            fix = f"no node has as much, but {have}: set the run file's ray section to less, or add such nodes"
            raise InputError(f"{run_id}: ray", _told(need, need), fix)


def _told(resources: Resources, named: Iterable[str]) -> str:
    def amount(name: str) -> str:
        value = resources.get(name, 0.0)
        return f"{value / 1e9:.3g} GB memory" if name == "memory" else f"{value:g} {name}"

    return " and ".join(amount(name) for name in named)


def room(need: Resources, here: Sequence[Node], later: Sequence[NodeType]) -> int:
    """How many such runs the cluster holds at once, grown as far as it may."""
    return max(
        1, sum(fits(need, one.resources) for one in here), sum(fits(need, one.resources) * one.most for one in later)
    )


# -------------------------------------------------------------------------------------------------- what nodes are


@cache
def package_digest() -> str:
    """SHA-256 of this package's own code, the first 12 digits."""
    folder = Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def _probe() -> Callable[..., dict[str, Any]]:
    """What is asked of each node. A function within a function is sent as it is: a node may lack this package."""

    def probe(mark: str | None, requirements: list[str]) -> dict[str, Any]:
        import pathlib
        import platform

        try:
            from train_cloud.ray import cluster
        except ImportError as error:
            return {"python": platform.python_version(), "lacks": str(error)}
        return {
            "python": platform.python_version(),
            "package": cluster.package_digest(),
            "version": cluster.package_version(),
            "machine": cluster.machine(),
            "sees": mark is None or pathlib.Path(mark).exists(),
            "lacking": [line for line in requirements if not cluster.is_installed(line)],
        }

    return probe


def package_version() -> str:
    return metadata.version("train-cloud")


def machine() -> str:
    """Tells this machine from others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def is_installed(line: str) -> bool:
    """Whether a line of a requirements file is met here; what is no requirement is not looked at."""
    try:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate():
            return True
        return wanted.specifier.contains(metadata.version(wanted.name), prereleases=True)
    except InvalidRequirement:
        return True
    except metadata.PackageNotFoundError:
        return False


def check_nodes(configs: Sequence[RunFile], root: str, here: Sequence[Node]) -> None:
    """Ask each node what it is.

    :param configs: of the runs
    :param root: of the store; a folder must be the same one everywhere
    :raises InputError: one cannot train these runs, and why
    """
    lines = sorted({line for config in configs for line in (*packages(config), *_own_requirements(config))})
    with _mark(root) as mark:
        answers = _ask(here, mark, lines)
    for node, answer in answers:
        _check_answer(node, answer, root)


def _ask(here: Sequence[Node], mark: str | None, lines: list[str]) -> list[tuple[Node, dict[str, Any]]]:
    probe = ray.remote(num_cpus=0, max_retries=0)(_probe())
    asked = [
        (
            node,
            probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(mark, lines),
        )
        for node in here
    ]
    found = []
    for node, answer in asked:
        try:
            found.append((node, ray.get(answer, timeout=ANSWER_SECONDS)))
        except GetTimeoutError as error:
            fix = f"the node {node.address} does not answer within {ANSWER_SECONDS:g} s: look at `ray status`"
            raise InputError("--address", node.address, fix) from error
        except RayError as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                "--address", node.address, f"the node cannot be asked, mend or remove it: {first}"
            ) from error
    return found


@contextlib.contextmanager
def _mark(root: str) -> Iterator[str | None]:
    """A file in a store that is a folder, for as long as the nodes are asked whether they see it; none in a store that
    is not there yet.
    """
    path = Path(root).expanduser().absolute()
    if "://" in root or not path.is_dir():
        yield None
        return
    mark = path / f".seen-by-all-{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield str(mark)
    finally:
        mark.unlink(missing_ok=True)


def _check_answer(node: Node, answer: Mapping[str, Any], root: str) -> None:
    where = f"the node {node.address}"
    if "lacks" in answer:
        raise InputError("--address", node.address, f"install train-cloud on this node: {answer['lacks']}")
    for name, theirs, ours in (
        ("Python", answer["python"].rpartition(".")[0], platform.python_version().rpartition(".")[0]),
        ("train-cloud", answer["version"], package_version()),
        ("train-cloud's code", answer["package"], package_digest()),
    ):
        if theirs != ours:
            fix = f"{where} has {name} {theirs}, this process {ours}: install the same on both"
            raise InputError("--address", node.address, fix)
    if answer["lacking"]:
        fix = f"{where} does not have this: install it there, in the cluster file's setup_commands"
        raise InputError("--address", answer["lacking"][0], fix)
    other = answer["machine"] != machine()
    if "://" not in root and (not answer["sees"] or (other and not Path(root).expanduser().is_dir())):
        raise InputError("--store", root, f"{where} does not see this folder: name s3://bucket/prefix")


def _own_requirements(config: RunFile) -> list[str]:
    """Of the user's own file."""
    path = config.requirements
    if path is None:
        return []
    lines = (line.partition(" #")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith(("#", "-"))]
