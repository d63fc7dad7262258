"""One run's machines: each that the group launches is booted, interrupted, killed, or lives to the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from train_cloud.config import RunFile
from train_cloud.errors import TrainCloudError
from train_cloud.platforms.ec2.units import FINISH, TRAIN, UnitState
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.instance import Instance, InstanceDriver
from train_cloud.rehearsal.systemd import Line
from train_cloud.rehearsal.timeline import Timeline

#: Seconds until a wait is given up.
LIMIT = 1200.0


class Scenario:
    """Plays EC2 and Auto Scaling for one run's group: an instance for each that it wants, and what befalls it. Several
    may share one AWS and be lived in threads of their own.

    :param folder: receives a disk for each instance
    :param limit: seconds until a wait is given up
    """

    def __init__(
        self,
        aws: EmbeddedAws,
        group: str,
        config: RunFile,
        folder: Path,
        timeline: Timeline,
        driver: Callable[..., InstanceDriver] = Instance,
        *,
        limit: float = LIMIT,
    ) -> None:
        self.aws, self.group, self.config = aws, group, config
        self._folder, self._timeline, self._driver = folder, timeline, driver
        self._limit = limit
        self._instance: InstanceDriver | None = None
        self._closed = False
        self.reached: dict[str, int] = {}
        """Instance id → the last step that its process took."""
        self.ended_by: dict[str, str] = {}
        self.noticed: dict[str, datetime] = {}
        """Instance id → when its interruption was announced."""
        self.shown_scalars: list[str] | None = None
        """By TensorBoard on the last machine; None where there is none."""
        self.seconds: dict[str, dict[str, float]] = {}
        """Instance id → how long things took on it."""

    def boot(self) -> InstanceDriver:
        """Wait for the group to launch an instance that is not there yet, and boot it until its trainer is started."""
        instance_id = ""

        def launched() -> bool:
            nonlocal instance_id
            found = [
                item["InstanceId"] for item in self._group()["Instances"] if item["InstanceId"] not in self.reached
            ]
            instance_id = found[0] if found else ""
            if not found and self.reached and self.desired_capacity() == 0:
                raise TrainCloudError(
                    "the training was over before it could be interrupted: rehearse it with more timesteps, "
                    f"for example --set total_timesteps={100 * self.config.total_timesteps}"
                )
            return bool(found)

        self.until(None, "an instance", launched)
        self._timeline.add("group", f"launched {instance_id}")
        self._launched = time.monotonic()
        self._instance = self._driver(
            self.aws,
            self.group,
            instance_id,
            self._folder / "machines" / instance_id,
            environment=threads(),
            on_line=self._on_line,
        )
        self.seconds[instance_id] = {}
        self.until(self._instance, "the trainer is started", lambda: "boot_seconds" in self.seconds[instance_id])
        took = self.seconds[instance_id]["boot_seconds"]
        self._timeline.add("aws", f"{instance_id}: run file and code fetched and verified, trainer started, {took} s")
        return self._instance

    def reach(self, instance: InstanceDriver, timesteps: int) -> None:
        """Let it train until it has taken so many steps.

        :raises TrainCloudError: the training ended before
        """

        def there() -> bool:
            over = instance.state(TRAIN).over
            if over and instance.timesteps < timesteps:
                raise TrainCloudError(
                    f"the training ended before {timesteps:,} timesteps: {self._last_words(instance)}"
                )
            return instance.timesteps >= timesteps

        self.until(instance, f"{timesteps:,} timesteps", there)

    def announce(self, instance: InstanceDriver) -> None:
        """Post a spot interruption notice."""
        self.noticed[instance.instance_id] = datetime.now(timezone.utc)
        instance.metadata.interrupt(seconds=120)
        self._timeline.add("aws", f"spot interruption notice for {instance.instance_id}: two minutes left")

    def interrupt(self, instance: InstanceDriver) -> None:
        """Wait until it has done what follows an announced interruption; then its time has come."""
        self.until(instance, "the trainer has left", lambda: all(instance.state(u).over for u in (TRAIN, FINISH)))
        self._gone(instance, "notice", lambda: instance.power_off(30), "the announced time has come; powered off")

    def kill(self, instance: InstanceDriver) -> None:
        """Without a word."""
        self._gone(instance, "kill", instance.lose_power, "gone without a notice")

    def complete(self, instance: InstanceDriver) -> None:
        """Let it train to the end of the run, lower the group's capacity to 0 and go."""
        self.until(instance, "capacity 0", lambda: self.desired_capacity() == 0)
        self._timeline.add("group", "desired capacity is 0")
        self.until(instance, "instance terminated", lambda: self._state(instance) in ("terminated", "shutting-down"))
        self.until(instance, "finish is over", lambda: instance.state(FINISH).over)
        self.until(None, "TensorBoard to show what was logged", instance.shows_all_scalars)
        self.shown_scalars = instance.shown_scalars()
        self._gone(instance, "completed", lambda: instance.power_off(30), "terminated, powered off")

    def until(self, instance: InstanceDriver | None, what: str, condition: Callable[[], bool]) -> None:
        """
        :param instance: what is trained on meanwhile; its progress is told
        :raises TrainCloudError: the training failed, or it took too long
        """
        deadline = time.monotonic() + self._limit
        shown = 0
        while True:
            over = condition()
            if instance is not None:
                state = instance.state(TRAIN)
                self._time(instance, state)  # also where it was quicker than the first look
            if over:
                return
            if self._closed:
                raise TrainCloudError(f"given up while it waited for: {what}")
            if time.monotonic() > deadline:
                raise TrainCloudError(f"waited {self._limit:.0f} s for: {what}")
            if instance is not None:
                if state.active == "failed" and what != "capacity 0":
                    raise TrainCloudError(f"the training failed: {self._last_words(instance)}")
                tenth = 10 * instance.timesteps // self.config.total_timesteps
                if tenth > shown:
                    shown = tenth
                    self._timeline.add("train", f"at {instance.timesteps:,} timesteps")
            time.sleep(0.1)

    def close(self) -> None:
        """End its machine; a thread that waits for something gives up."""
        self._closed = True
        if self._instance is not None:
            self._instance.close()

    def desired_capacity(self) -> int:
        return int(self._group()["DesiredCapacity"])

    def _gone(self, instance: InstanceDriver, ended_by: str, end: Callable[[], None], what: str) -> None:
        end()
        self.reached[instance.instance_id] = instance.timesteps
        self.ended_by[instance.instance_id] = ended_by
        self._timeline.add("aws", f"{instance.instance_id} at {instance.timesteps:,} timesteps: {what}")
        self.aws.client("ec2").terminate_instances(InstanceIds=[instance.instance_id])

    def _time(self, instance: InstanceDriver, train: UnitState) -> None:
        """How long a boot took, and from there to the first new step. Both as seen from here, by looking often."""
        seconds, since_launch = self.seconds[instance.instance_id], time.monotonic() - self._launched
        if train.active != "inactive":
            seconds.setdefault("boot_seconds", round(since_launch, 1))
        if instance.timesteps > 0 and "boot_seconds" in seconds:
            seconds.setdefault("resume_seconds", round(since_launch - seconds["boot_seconds"], 1))

    def _last_words(self, instance: InstanceDriver) -> str:
        return " / ".join(line.text for line in instance.journal(TRAIN)[-15:])

    def _group(self) -> dict[str, Any]:
        client = self.aws.client("autoscaling")
        group: dict[str, Any] = client.describe_auto_scaling_groups(AutoScalingGroupNames=[self.group])[
            "AutoScalingGroups"
        ][0]
        return group

    def _state(self, instance: InstanceDriver) -> str:
        found = self.aws.client("ec2").describe_instances(InstanceIds=[instance.instance_id])
        return str(found["Reservations"][0]["Instances"][0]["State"]["Name"])

    def _on_line(self, line: Line) -> None:
        unit = line.unit.removeprefix("train-cloud-").removesuffix(".service")
        self._timeline.add({"cloud-final": "user-data"}.get(unit, unit), line.text, at=line.at)


def threads() -> dict[str, str]:
    """Two trainings share this machine: half of its cores each. The same for both, since results depend on it."""
    number = str(max(1, (psutil.cpu_count() or 2) // 2))
    return {"TRAIN_CLOUD_THREADS": number, "OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number}
