"""What the machines of the rehearsal are made from, made once and kept: a root file system, and wheels for pip.

Both lie in a cache outside the repository, each under a digest of what it was made from. Needs root, Linux with
namespaces, and the Debian packages of :data:`NEEDED`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests
from filelock import FileLock
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from train_cloud import shipped
from train_cloud.errors import InputError, TrainCloudError

#: Program → Debian package that has it.
NEEDED = {
    "systemd-nspawn": "systemd-container",
    "journalctl": "systemd",
    "mmdebstrap": "mmdebstrap",
    "dnsmasq": "dnsmasq-base",
    "ip": "iproute2",
    "unshare": "util-linux",
    "dpkg-deb": "dpkg",
}
_HERE = Path(__file__).parent
_LIMIT = 1200.0
"""seconds; making the image takes about 40 on an idle machine, filling the wheelhouse about 20"""

_SUITE, _MIRROR = "bookworm", "http://deb.debian.org/debian"
_PACKAGES = (
    *("systemd", "systemd-sysv", "systemd-resolved", "dbus", "udev", "iproute2", "netplan.io", "isc-dhcp-client"),
    *("cloud-init", "ca-certificates", "curl", "unzip", "zstd", "sudo", "procps", "kmod", "netbase"),
    *("python3", "python3-venv"),
    # what the AWS CLI imports
    *("python3-colorama", "python3-cryptography", "python3-dateutil", "python3-distro", "python3-docutils"),
    *("python3-jmespath", "python3-prompt-toolkit", "python3-ruamel.yaml", "python3-urllib3"),
)
#: AWS's own archive of the CLI is out of reach of a machine without internet. This is the same program as Debian 13
#: packages it, put into the image beforehand; user-data finds it new enough. How it fetches one where an image has only
#: version 1: tests/test_bootstrap.py.
_CLI = f"{_MIRROR}/pool/main/a/awscli/awscli_2.23.6-1_all.deb"
_CLI_SHA256 = "09645cccbeece0553786ea7532d28901a9e7375d761fe5676490dbb4e7180569"
_CRT = "awscrt==0.38.0"

_FILES = {
    # One entry: cloud-init takes it without probing. Its default list of addresses costs a DNS time-out.
    "etc/cloud/cloud.cfg.d/90_rehearsal.cfg": """
datasource_list: [Ec2]
datasource: {Ec2: {metadata_urls: ["http://169.254.169.254"], max_wait: 60, timeout: 5}}
locale: false
updates: {network: {when: [boot-new-instance]}}
""",
    "etc/systemd/journald.conf.d/90-rehearsal.conf": "[Journal]\nStorage=persistent\nForwardToConsole=no\n",
    # A veth has no permanent address, by which netplan, told by cloud-init, would look for the device.
    "etc/systemd/network/05-rehearsal.network": """
[Match]
Name=eth0
[Network]
DHCP=ipv4
LinkLocalAddressing=no
IPv6AcceptRA=no
""",
    # For each part that is asked for moto reads the whole object, and large parts of what it is sent it copies often.
    "root/.aws/config": "[default]\ns3 =\n    multipart_chunksize = 32MB\n",
    "etc/pip.conf": "[global]\nno-index = true\nfind-links = /opt/wheelhouse\n",
    "etc/machine-id": "",
}
_MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service")


@dataclass(frozen=True)
class Image:
    """What :func:`prepare` made. Both folders are read only for whoever uses them."""

    root: Path
    wheelhouse: Path


def missing() -> list[str]:
    """What this computer lacks for a machine of the rehearsal, each in words; empty where nothing is."""
    if not sys.platform.startswith("linux"):
        return [f"Linux (this is {platform.system()})"]
    lacking = []
    if os.geteuid() != 0:
        lacking.append("root (run it with sudo)")
    elif subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True).returncode:
        lacking.append("the right to make mount, network and process namespaces (a container without privileges?)")
    packages = {package for program, package in NEEDED.items() if shutil.which(program, path=_search_path()) is None}
    if packages:
        lacking.append(f"Debian packages: apt-get install {' '.join(sorted(packages))}")
    if platform.machine() != "x86_64":
        lacking.append(f"an x86_64 processor (this is {platform.machine()})")
    if sys.version_info[:2] != (3, 11):
        lacking.append(f"a virtual environment made with Python 3.11, which the worker has (this is {sys.version[:4]})")
    return lacking


def prepare(requirements: Path | None = None, packages: Sequence[str] = (), *, say: Callable[[str], None]) -> Image:
    """The image and the wheels, from the cache where they are there.

    :param requirements: the user's own, beside the package's
    :param packages: what the run needs of others' (``worker.requirements.packages``)
    :param say: told what is being made, since that takes a while
    :raises InputError: this computer lacks something
    :raises TrainCloudError: a download or an installation failed
    """
    lacking = missing()
    if lacking:
        raise InputError("--machine", "this computer", "it needs " + "; ".join(lacking))
    return Image(_base(say), _wheelhouse(requirements, packages, say))


def _base(say: Callable[[str], None]) -> Path:
    first = (_HERE / "rehearsal-init.sh").read_text()
    inputs = [_SUITE, _MIRROR, _PACKAGES, _CLI, _CLI_SHA256, _CRT, _FILES, _MASKED, first]

    def make(folder: Path) -> None:
        say("making the machines' image, once: Debian 12 with systemd, cloud-init and the AWS CLI")
        left_out = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("man", "locale", "doc")]
        # In namespaces of its own: whatever it mounts below the folder is gone with it, also after a kill.
        _run(
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--include={','.join(_PACKAGES)}"),
            *(*left_out, "--dpkgopt=force-unsafe-io", _SUITE, str(folder), _MIRROR),
        )
        archive = folder / "cli.deb"
        archive.write_bytes(_download(_CLI, _CLI_SHA256))
        _run("dpkg-deb", "--extract", str(archive), str(folder))
        archive.unlink()
        python = folder / "usr/lib/python3/dist-packages"
        shutil.rmtree(python / "awscli/examples")
        _pip("install", "--no-deps", "--target", str(python), "--only-binary=:all:", "--python-version=3.11", _CRT)
        for path, text in _FILES.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        (folder / "etc/hostname").unlink(missing_ok=True)
        (folder / "opt/wheelhouse").mkdir()
        program = folder / "usr/local/sbin/rehearsal-init"
        program.write_text(first)
        program.chmod(0o755)
        _run("chroot", str(folder), "systemctl", "enable", "systemd-networkd", "systemd-resolved")
        _run("chroot", str(folder), "systemctl", "mask", *_MASKED)
        _run("chroot", str(folder), "aws", "--version")

    return _kept("image", inputs, make)


def _wheelhouse(requirements: Path | None, packages: Sequence[str], say: Callable[[str], None]) -> Path:
    """Wheels of the package's dependencies in this very environment's versions: the control run computes alike."""
    wanted = [*_wanted(), *packages]
    pins = _installed(wanted)
    pins["torch"] = f"{pins['torch'].partition('+')[0]}+cpu"  # PyPI's build brings gigabytes of CUDA
    constraints = "".join(sorted(f"{name}=={version}\n" for name, version in pins.items()))
    own = requirements.read_text() if requirements is not None else ""
    inputs = [constraints, wanted, own, platform.libc_ver()]

    def make(folder: Path) -> None:
        say("filling the machines' wheelhouse, once")
        folder.mkdir()
        (folder / "constraints.txt").write_text(constraints)
        (folder / "requirements.txt").write_text("\n".join(wanted) + "\n" + own)
        arguments = ["wheel", "--wheel-dir", str(folder), "-c", str(folder / "constraints.txt")]
        arguments += ["-r", str(folder / "requirements.txt")]
        try:
            _pip(*arguments)
        except TrainCloudError:  # a torch for the CPU is in no index that pip is configured with
            _pip(*arguments, "--extra-index-url", "https://download.pytorch.org/whl/cpu")

    return _kept("wheels", inputs, make)


def _wanted() -> list[str]:
    """What every worker installs, and what building the package takes."""
    project = shipped.find("pyproject.toml").read_text()
    content = importlib.import_module("tomllib").loads(project)  # Python 3.11's; nobody older gets here
    trainer = content["project"]["optional-dependencies"]["sb3"]
    return [*content["project"]["dependencies"], *trainer, *content["build-system"]["requires"]]


def _installed(wanted: Sequence[str]) -> dict[str, str]:
    """The versions here of these requirements and all that they require, but for those that do not meet them: a virtual
    environment begins with an old setuptools, which nobody needs who installs wheels.
    """
    found: dict[str, str] = {}
    unfit: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    due = [Requirement(text) for text in wanted]
    while due:
        requirement = due.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if not requirement.specifier.contains(importlib.metadata.version(name), prereleases=True):
                unfit.add(name)
        asked = (name, frozenset(requirement.extras))
        if asked in seen:
            continue
        seen.add(asked)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # pip takes what it likes
            found[name] = importlib.metadata.version(name)
            due += [Requirement(text) for text in importlib.metadata.requires(name) or ()]
            for nested in map(Requirement, importlib.metadata.requires(name) or ()):
                if nested.marker and any(nested.marker.evaluate({"extra": extra}) for extra in requirement.extras):
                    nested.marker = None  # it has been asked
                    due.append(nested)
    return {name: version for name, version in found.items() if name not in unfit}


def _kept(kind: str, inputs: object, make: Callable[[Path], None]) -> Path:
    """The folder of what these inputs make; whole, or not there. Two that want it at once make it once."""
    digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
    folder = shipped.cache() / f"{kind}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        for stale in folder.parent.glob(f"{folder.name}.????????"):  # of somebody who was killed
            shutil.rmtree(stale)
        if not folder.exists():
            partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}")
            try:
                make(partial)
                partial.rename(folder)
            finally:
                if partial.exists():
                    shutil.rmtree(partial)
    return folder


def _download(url: str, sha256: str) -> bytes:
    try:
        answer = requests.get(url, timeout=60)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise TrainCloudError(f"{url}: {error}") from error
    if hashlib.sha256(answer.content).hexdigest() != sha256:
        raise TrainCloudError(f"{url} is not what its SHA-256 {sha256} names")
    return answer.content


def _pip(*arguments: str) -> None:
    _run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def _run(*command: str) -> None:
    environment = {**os.environ, "PATH": _search_path(), "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_LIMIT)
    except subprocess.TimeoutExpired as error:
        raise TrainCloudError(f"{command[0]} took longer than {_LIMIT:.0f} s") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        # pip's and Debian's programs mark the lines that say why; before them stand pages.
        said = " ".join([line for line in lines if line.startswith(("ERROR:", "E:"))] or lines[-5:])
        raise TrainCloudError(f"{' '.join(command)[:200]} … ended with {done.returncode}: {said[-1000:]}")


def _search_path() -> str:
    """Where programs for root lie, also when PATH is a user's."""
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
