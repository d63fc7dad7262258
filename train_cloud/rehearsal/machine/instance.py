"""An instance of the Auto Scaling group on a real machine: what EC2 puts around it, and what befalls it."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from train_cloud.artifacts.tensorboard import read_scalars
from train_cloud.platforms.ec2.units import UnitState
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.instance import Launch
from train_cloud.rehearsal.machine.container import ADDRESS, GATEWAY, METADATA, Container, Journal
from train_cloud.rehearsal.machine.image import Image
from train_cloud.rehearsal.machine.network import Authority, Relay
from train_cloud.rehearsal.systemd import Line
from train_cloud.run import layout
from train_cloud.runtime.heartbeat import read_timesteps

_UNITS = ("cloud-final.service", "train-cloud-*.service")
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_LOGS = ("var/log/train-cloud-boot.log", "var/log/cloud-init.log", "var/log/cloud-init-output.log")
_STATE = "/var/lib/train-cloud"
_TENSORBOARD = 6006
_ASKED_AGAIN_SECONDS = 0.5
"""A unit's state is asked for by a process in the machine: not more often than this."""


class MachineInstance:
    """A running instance of the group, booting when this returns.

    :param folder: receives its logs
    :param environment: set for every service of the machine
    :param on_line: called with each line of the worker's journal, from another thread
    :param nvidia: it has a PCI device of NVIDIA's, with nothing behind it
    :param programs: name → shell script: commands of its own, found before the image's
    """

    def __init__(
        self,
        aws: EmbeddedAws,
        group: str,
        instance_id: str,
        folder: Path,
        *,
        image: Image,
        environment: dict[str, str],
        on_line: Callable[[Line], None],
        nvidia: bool = False,
        programs: Mapping[str, str] | None = None,
    ) -> None:
        self.instance_id = instance_id
        self.gone = False
        self._timesteps = 0
        self._asked: dict[str, tuple[float, UnitState]] = {}
        launch = Launch(aws, group, instance_id)
        authority = Authority()
        with contextlib.ExitStack() as made:  # what was made is unmade if the next thing cannot be
            self.container = made.enter_context(
                Container(
                    image,
                    folder,
                    files={_BUNDLE: authority.certificate},
                    # boto3 and the AWS CLI bring certificates of their own.
                    environment={**environment, "AWS_CA_BUNDLE": _BUNDLE},
                    nvidia=nvidia,
                    programs=programs,
                )
            )
            self.metadata = made.enter_context(launch.metadata(self.container.listen(METADATA, 80)))
            for path, text in _network_entries(self.container.mac).items():
                self.metadata.set(path, text)
            self.metadata.set("dynamic/instance-identity/document", _document(launch, instance_id))
            port = urlsplit(aws.endpoint).port
            assert port is not None
            self.aws = Relay(self.container.listen(GATEWAY, 443), port, authority.context)
            made.callback(self.aws.close)
            self._journal = Journal(self.container, _UNITS, on_line)
            made.callback(self._journal.close)
            self.container.boot()
            made.pop_all()

    @property
    def timesteps(self) -> int:
        """How far the training process got, to the step; also of a machine that is gone."""
        if not self.gone:
            with contextlib.suppress(FileNotFoundError):
                self._timesteps = read_timesteps(self.container.path(_STATE))
        return self._timesteps

    def state(self, unit: str) -> UnitState:
        """Of a systemd unit, at most half a second old."""
        asked, state = self._asked.get(unit, (0.0, None))
        if state is None or time.monotonic() - asked > _ASKED_AGAIN_SECONDS:
            state = self.container.state(unit)
            self._asked[unit] = (time.monotonic(), state)
        return state

    def journal(self, unit: str) -> list[Line]:
        return [line for line in list(self._journal.lines) if line.unit == unit]

    def shown_scalars(self) -> list[str]:
        """The curves that TensorBoard on it shows to whoever may reach its port; none while it does not answer."""
        link = http.client.HTTPConnection(ADDRESS, _TENSORBOARD, timeout=10)
        try:
            link.sock = self.container.connect(_TENSORBOARD)
            link.request("GET", "/data/plugin/scalars/tags")
            runs: dict[str, dict[str, object]] = json.loads(link.getresponse().read())
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            return []
        finally:
            link.close()
        return sorted({tag for tags in runs.values() for tag in tags})

    def shows_all_scalars(self) -> bool:
        """Whether these are all that the event files on its disk have, which TensorBoard reads every few seconds."""
        return {*read_scalars(self.container.path(_STATE) / layout.TENSORBOARD)} <= {*self.shown_scalars()}

    def power_off(self, grace: float) -> None:
        """What EC2 does when the announced time has come: the operating system is told, then it is over."""
        self.container.power_off(grace)
        self.close()

    def lose_power(self) -> None:
        """Every process is gone at this instant."""
        self.container.pull_plug()
        self.close()

    def close(self) -> None:
        """Pull the plug, if need be; only the logs stay."""
        if self.gone:
            return
        try:
            self.container.pull_plug()
            self._journal.close()
            self._timesteps = self.timesteps
            self._keep_logs()
        finally:
            self.gone = True
            self.container.close()
            self.aws.close()
            self.metadata.close()

    def _keep_logs(self) -> None:
        for name in _LOGS:
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(self.container.path(name), self.container.folder)
        folder = self.container.path("/var/log/journal")
        with (self.container.folder / "journal.txt").open("wb") as file:
            command = ["journalctl", f"--directory={folder}", "--no-pager", "--quiet", "--output=short-precise"]
            subprocess.run(command, stdout=file, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


def _network_entries(mac: str) -> dict[str, str]:
    """What cloud-init configures the network by."""
    name = f"ip-{ADDRESS.replace('.', '-')}.ec2.internal"
    device = f"meta-data/network/interfaces/macs/{mac}"
    return {
        "meta-data/local-ipv4": ADDRESS,
        "meta-data/hostname": name,
        "meta-data/local-hostname": name,
        "meta-data/mac": mac,
        f"{device}/mac": mac,
        f"{device}/device-number": "0",
        f"{device}/local-ipv4s": ADDRESS,
        f"{device}/subnet-ipv4-cidr-block": "10.0.0.0/24",
    }


def _document(launch: Launch, instance_id: str) -> str:
    """ "Instance identity documents", Amazon EC2 User Guide: the fields that cloud-init reads."""
    zone = launch.availability_zone
    return json.dumps(
        {"instanceId": instance_id, "region": zone[:-1], "availabilityZone": zone, "architecture": "x86_64"}
    )
