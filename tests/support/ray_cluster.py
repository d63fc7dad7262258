"""A Ray cluster of several raylets on this machine, in a network of its own.

Ray listens on all addresses of the machine that it runs on. So the cluster, and whoever talks to it, run in a network
namespace that has nothing but a loopback device. Its processes are children of one program (this file), which does what
lines of JSON on its input say, and ends all of them with itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

#: What Ray is started with: it waits for a busy machine, tells nobody, and writes nothing into the user's home folder.
VARIABLES = {
    "RAY_raylet_start_wait_time_s": "60",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "RAY_enable_metrics_collection": "0",
    "RAY_memory_monitor_refresh_ms": "0",
}
#: A raylet ends itself where its agent is not there within 15 seconds, which no variable changes: on a busy machine it
#: is begun again.
_ATTEMPTS = 4
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


class RayCluster:
    """Seen from the tests.

    :ivar address: of its head
    """

    def __init__(self, process: subprocess.Popen[str], variables: dict[str, str]) -> None:
        self._process, self._variables = process, variables
        self.address = str(self._answer()["address"])
        self.added: list[str] = []
        """Nodes that are there, without the head."""
        self.variables: dict[str, str] = {}
        """For the nodes that are added from now on."""

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise AssertionError(f"the cluster has ended with {self._process.wait()}")

    def _do(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def add(self, **resources: float) -> str:
        """
        :param resources: by Ray's names
        :return: the node's number
        """
        self.added.append(str(self._do(add=resources, variables=self.variables)["node"]))
        return self.added[-1]

    def remove(self, node: str) -> None:
        """It, and what runs on it."""
        self.added.remove(node)
        self._do(remove=node)

    def kill(self, node: str) -> None:
        """As a power cut does: the raylet and all that runs on its node, trainings too."""
        raylet = psutil.Process(int(self._do(pid=node)["pid"]))
        tree = [raylet, *raylet.children(recursive=True)]
        for each in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.suspend()  # nobody sees the others go
        for each in [*tree, *raylet.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self.added.remove(node)
        self._do(forget=node)

    def drain(self, node: str, seconds: int) -> None:
        """Say that a node goes, as an autoscaler does."""
        self._do(drain=node, seconds=seconds)

    def tree(self, node: str) -> list[psutil.Process]:
        """What runs on a node."""
        return list(psutil.Process(int(self._do(pid=node)["pid"])).children(recursive=True))

    def listener(self) -> socket.socket:
        """A listening socket in the cluster's network; setns(2) changes the network of one thread."""
        found: list[socket.socket] = []

        def make() -> None:
            with Path(f"/proc/{self._process.pid}/ns/net").open() as network:
                if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), 0) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            found.append(socket.create_server(("127.0.0.1", 0)))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return found[0]

    def inside(self, command: Sequence[str]) -> list[str]:
        """How to run a command in the cluster's network."""
        return ["nsenter", f"--net=/proc/{self._process.pid}/ns/net", *command]

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, **self._variables, **more}


@contextlib.contextmanager
def ray_cluster(folder: Path, **head: float) -> Iterator[RayCluster]:
    """
    :param head: the head's resources
    """
    if os.geteuid() != 0:
        assert os.environ.get("CI") != "true", "CI runs as root"
        pytest.skip("needs root, for a network of its own")
    # Names of sockets may not be long.
    short = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    (short / "ray").mkdir()
    variables = {**VARIABLES, "HOME": str(folder), "RAY_TMPDIR": str(short)}
    command = ["unshare", "--net", sys.executable, __file__, str(short), json.dumps(head)]
    log = folder / "cluster.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            command,
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,
        )
    try:
        yield RayCluster(process, variables)
    finally:
        assert process.stdin is not None
        tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()
        for each in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        for each in psutil.process_iter():  # of a start that had failed: each names the session's folder
            with contextlib.suppress(psutil.Error):
                if any(str(short) in word for word in each.cmdline()):
                    each.kill()
        shutil.rmtree(short, ignore_errors=True)


# ----------------------------------------------------------------------------------------------------- the program


def _raise_loopback() -> None:
    """netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        name = b"lo".ljust(16, b"\0")
        flags = struct.unpack("16sh", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, name + bytes(2))[:18])[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh", name, flags | _IFF_UP))


def _begun(begin: Callable[[], Any]) -> Any:
    for attempt in range(_ATTEMPTS):
        try:
            return begin()
        except Exception as error:
            if attempt + 1 == _ATTEMPTS:
                raise
            print(f"once more: {error}", file=sys.stderr, flush=True)
    return None


def _serve(folder: str, head: dict[str, float]) -> None:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.cluster_utils import Cluster

    def arguments(resources: dict[str, float]) -> dict[str, Any]:
        own = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
        return {
            "num_cpus": resources.get("CPU", 0),
            "num_gpus": resources.get("GPU", 0),
            "resources": own,
            "object_store_memory": 80_000_000,
            "include_dashboard": False,
            "temp_dir": folder,
        }

    def made() -> Any:
        return Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args=arguments(head))

    cluster = _begun(made)
    nodes = {}
    print(json.dumps({"address": cluster.address}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any] = {}
        if "add" in order:
            before = dict(os.environ)
            os.environ.update(order["variables"])
            own = {name: value for name, value in arguments(order["add"]).items() if name != "temp_dir"}
            node = _begun(functools.partial(cluster.add_node, wait=True, **own))
            os.environ.clear()
            os.environ.update(before)
            nodes[node.node_id] = node
            answer = {"node": node.node_id}
        elif "pid" in order:
            (raylet,) = (
                one for name, each in nodes[order["pid"]].all_processes.items() if name == "raylet" for one in each
            )
            answer = {"pid": raylet.process.pid}
        elif "forget" in order:
            node = nodes.pop(order["forget"])
            cluster.worker_nodes.discard(node)
            node.kill_all_processes(check_alive=False, allow_graceful=False)
        elif "remove" in order:
            cluster.remove_node(nodes.pop(order["remove"]), allow_graceful=False)
        elif "drain" in order:
            import time

            when = int((time.time() + order["seconds"]) * 1000)
            agreed, why = GcsClient(address=cluster.address).drain_node(order["drain"], 2, "a test", when)
            assert agreed, why
        print(json.dumps(answer), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _raise_loopback()
    _serve(sys.argv[1], json.loads(sys.argv[2]))
