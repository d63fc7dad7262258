"""Jobs' containers from the real image: built by podman from ``docker/Dockerfile`` and a base that is on this computer.

The base is the root file system of the machines' rehearsal, the wheels are theirs too, so nothing is downloaded that
they do not need. Tried with Debian's podman 4.3 as root, with runc: crun refuses inside of containers, and so do the
limits that podman would raise.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from train_cloud import shipped
from train_cloud.config import RunFile
from train_cloud.errors import InputError, TrainCloudError
from train_cloud.operations.requirements import packages
from train_cloud.rehearsal.machine.image import Image, missing, prepare
from train_cloud.rehearsal.sagemaker.containers import Container

#: Program → Debian package that has it.
NEEDED = {"podman": "podman", "runc": "runc"}
_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096")
_RUNTIME = ("--runtime", "runc")
_BASE, _IMAGE = "localhost/train-cloud-base", "localhost/train-cloud"
_CONTEXT = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "train_cloud")
_BUILD_SECONDS = 1800.0


def lacking() -> list[str]:
    """What this computer lacks for containers from the real image, each in words."""
    gone = [package for program, package in NEEDED.items() if shutil.which(program, path=_path()) is None]
    return [*missing(), *([f"Debian packages: apt-get install {' '.join(gone)}"] if gone else [])]


def build(config: RunFile, say: Callable[[str], None]) -> Callable[[Path, dict[str, str], Path], Container]:
    """Build the image, once for each state of the package, and return what starts containers from it.

    :raises InputError: this computer lacks something
    :raises TrainCloudError: podman fails
    """
    found = lacking()
    if found:
        raise InputError("--machine", "this computer", "it needs " + "; ".join(found))
    image = prepare(config.requirements, packages(config), say=say)
    base = f"{_BASE}:{image.root.name}"
    if subprocess.run(["podman", "image", "exists", base], env=_variables()).returncode:
        say("importing the base of the image, once")
        _import(image.root, base)
    say("building the image from docker/Dockerfile")
    with tempfile.TemporaryDirectory(prefix="train-cloud-image-") as folder:
        shipped.copy((*_CONTEXT, "docker"), Path(folder))
        _podman(
            *("build", *_RUNTIME, "--isolation", "chroot", "--net", "host", *_LIMITS, "--quiet", "--tag", _IMAGE),
            *("--build-arg", f"BASE={base}", "--volume", f"{image.wheelhouse}:/opt/wheelhouse:ro"),
            *("--file", f"{folder}/docker/Dockerfile", folder),
        )

    def start(place: Path, variables: dict[str, str], log: Path) -> Container:
        return Podman(place, variables, log, image)

    return start


def _import(root: Path, name: str) -> None:
    with subprocess.Popen(
        ["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as tar:
        done = subprocess.run(
            ["podman", "import", "--quiet", "-", name],
            stdin=tar.stdout,
            capture_output=True,
            text=True,
            env=_variables(),
        )
    if done.returncode or tar.returncode:
        raise TrainCloudError(f"podman import ended with {done.returncode}: {done.stderr.strip()[-1000:]}")


class Podman:
    """A container from the image.

    :param folder: is mounted as ``/opt/ml``
    :param log: receives what it says
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], log: Path, image: Image) -> None:
        self._name = f"train-cloud-{uuid.uuid4().hex[:12]}"
        variables = [part for name, value in environment.items() for part in ("--env", f"{name}={value}")]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *("podman", "run", *_RUNTIME, "--name", self._name, "--rm", "--net", "host", *_LIMITS),
                    *("--log-driver", "none", "--pull", "never"),
                    *("--volume", f"{folder}:/opt/ml", "--volume", f"{image.wheelhouse}:/opt/wheelhouse:ro"),
                    *(*variables, _IMAGE, "train"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_variables(),
                start_new_session=True,
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        self._signal("TERM")

    def kill(self) -> None:
        if self._process.poll() is None:
            self._signal("KILL")
        self._process.wait()

    def _signal(self, name: str) -> None:
        subprocess.run(
            ["podman", *_RUNTIME, "kill", "--signal", name, self._name],
            capture_output=True,
            env=_variables(),
            timeout=60,
        )


def _podman(*arguments: str) -> None:
    done = subprocess.run(
        ["podman", *arguments], capture_output=True, text=True, env=_variables(), timeout=_BUILD_SECONDS
    )
    if done.returncode:
        raise TrainCloudError(f"podman {arguments[0]} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")


def _variables() -> dict[str, str]:
    return {**os.environ, "PATH": _path()}


def _path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
