"""A job's container: the real entry point with an ``/opt/ml`` of its own, as a process or from the real image.

A process gets it by a mount namespace (mount_namespaces(7)): what is mounted there is seen by it and its children only,
and is gone with them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import psutil

from train_cloud import child_process
from train_cloud.errors import InputError

_MOUNT = Path(__file__).parent / "mount.sh"
_PLACE = "/opt/ml"


class Container(Protocol):
    """Of one start of a job."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""

    def terminate(self) -> None:
        """SIGTERM to its first process."""

    def kill(self) -> None:
        """SIGKILL to all of it, as when the machine goes; returns when nothing of it is left."""


def prepare(folder: Path, request: Mapping[str, Any]) -> None:
    """What SageMaker puts below ``/opt/ml`` before a container starts ("How Amazon SageMaker AI Provides Training
    Information").
    """
    shutil.rmtree(folder, ignore_errors=True)
    config = folder / "input" / "config"
    config.mkdir(parents=True)
    for name in ("output/data", "model", "input/data"):
        (folder / name).mkdir(parents=True)
    machine = request["ResourceConfig"]["InstanceType"]
    resource = {"current_host": "algo-1", "current_instance_type": machine, "hosts": ["algo-1"]}
    written = {
        "hyperparameters.json": request.get("HyperParameters", {}),
        "resourceconfig.json": {**resource, "network_interface_name": "eth0"},
        "inputdataconfig.json": {},
    }
    for name, content in written.items():
        (config / name).write_text(json.dumps(content))


def lacking() -> str | None:
    """Why no process can have an ``/opt/ml`` of its own here; None where one can."""
    if not sys.platform.startswith("linux"):
        return "that takes Linux"
    if shutil.which("unshare") is None:
        return "that takes the command unshare (Debian's util-linux)"
    done = subprocess.run([*_unshare(), "true"], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return (
        f"the kernel refuses a mount namespace ({done.stderr.strip()}): run it as root, or allow namespaces to users "
        "(sysctl kernel.unprivileged_userns_clone=1), or to this container"
    )


def need() -> None:
    """:raises InputError: this computer cannot do it, and why"""
    why = lacking()
    if why is not None:
        raise InputError("--platform", "sagemaker", f"each job of a rehearsal has an /opt/ml of its own; {why}")


def _unshare() -> list[str]:
    """As root a mount namespace; else one in a user namespace, in which this user is root."""
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *own, "--mount", "--propagation", "private"]


def _with_this_process() -> list[str]:
    """Killed where the thread that has started it ends, however that ends."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") is not None else []


class Process:
    """The entry point as a process of this machine.

    :param folder: becomes ``/opt/ml``
    :param log: receives what it says
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], log: Path) -> None:
        entry = child_process.command("train_cloud", "sagemaker", "train")
        variables = child_process.environment()
        kept = {name: value for name, value in variables.items() if not name.startswith(("TRAIN_CLOUD_", "AWS_"))}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*_with_this_process(), *_unshare(), "sh", str(_MOUNT), str(folder), _PLACE, *entry],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**kept, **environment},
                start_new_session=True,
                cwd="/",
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        try:
            found = psutil.Process(self._process.pid)
            everything = [found, *found.children(recursive=True)]
        except psutil.NoSuchProcess:
            everything = []
        for one in everything:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait()
        psutil.wait_procs(everything, timeout=30)
