"""Runs that are killed at random, again and again, end bit for bit where the uninterrupted run ends.

A run's life follows from its seed: the algorithm, the store, which machines live, who is killed, paused or aimed at,
and when. Lives have consecutive seeds, so that one that fails can be led again. ``make chaos N=200 SEED=…`` leads lives
until so many processes were killed, CI until its time is over.
"""

from __future__ import annotations

import os
import random
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from sessions import Rehearsed

from train_cloud.checkpoint import read_manifest, restore
from train_cloud.platforms.ec2 import units
from train_cloud.rehearsal.metadata import MetadataService
from train_cloud.run.head import Head, read_head
from train_cloud.run.session import local_session, read_sessions
from train_cloud.sb3.compare import differences

KILLS = int(os.environ.get("TRAIN_CLOUD_CHAOS_KILLS") or 0)
"""0: as many as there is time for."""
SECONDS = float(os.environ.get("TRAIN_CLOUD_CHAOS_SECONDS") or 50)
SEED = int(os.environ.get("TRAIN_CLOUD_CHAOS_SEED") or random.randrange(1 << 31))

NONE = 1 << 31
STARTUP = 0.4
"""Seconds, about, that a session takes before its first step."""
LONGEST = 120.0
"""Seconds that a process may take on a loaded machine."""
OFF: dict[str, Any] = {"learning_starts": 50, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}}
COMMON: dict[str, Any] = {"seed": 3, "preservation": {"last": 2, "every": 100, "best": True}}
PENDULUM: dict[str, Any] = {"id": "Pendulum-v1", "module": "chaos", "normalize": {}}
RUNS: dict[str, dict[str, Any]] = {
    "sac": {
        **COMMON,
        "algorithm": "sac",
        "total_timesteps": 900,
        "save_frequency": 30,
        "environment": PENDULUM,
        "hyperparameters": {**OFF, "buffer_size": 210},
    },
    "ppo": {
        **COMMON,
        "algorithm": "ppo",
        "total_timesteps": 3072,
        "save_frequency": 128,
        "environment": {**PENDULUM, "n_envs": 2, "vectorization": "subproc"},
        "hyperparameters": {"n_steps": 32, "batch_size": 32, "policy_kwargs": {"net_arch": [8]}},
    },
    "td3": {
        **COMMON,
        "algorithm": "td3",
        "total_timesteps": 900,
        "save_frequency": 30,
        "environment": {**PENDULUM, "n_envs": 2},
        "hyperparameters": {**OFF, "action_noise": {"normal": 0.1}},
    },
}
AFTERWARDS = (73, 0, 1)
"""How a process may end whose run another one has: fenced; with nothing left to do; or, where it has taken a run that
is completed at that very moment, with an error, so that systemd starts it again with nothing left to do."""
AIMS = {
    "take": ("swap head", 1),
    "restore": ("get (model|skeleton|normalizer|run|lock|manifest|segment)", 12),
    "commit": ("put (model|skeleton|segment|manifest)|swap head", 20),
    "sweep": ("list (checkpoints|replay)|delete|get manifest", 8),
}
"""What of a session is aimed at: a kind of verb, and the last one of it that may be the chosen one."""


class Twin:
    """The uninterrupted run of one kind, and how long it takes."""

    def __init__(self, context: Any, folder: Path, run: dict[str, Any]) -> None:
        self.run = Rehearsed(context, folder, run)
        began = time.monotonic()
        assert self.run.session() == 0, self.run.log()
        self.seconds = time.monotonic() - began


class Life:
    """One run, from its first session to its completion.

    :param seed: decides what happens to it
    :param bucket: makes one
    """

    def __init__(
        self, context: Any, folder: Path, seed: int, twins: dict[str, Twin], bucket: Callable[[], str]
    ) -> None:
        self.chance = random.Random(seed)
        self.name = name = self.chance.choice(sorted(RUNS))
        on_s3 = self.chance.random() < 0.25
        self.twin = twins[name]
        self.run = Rehearsed(context, folder, RUNS[name], root=f"s3://{bucket()}/prefix" if on_s3 else None)
        self.wanted = self.chance.randint(3, 8)
        self.kills = 0
        self.story = [f"{name} on {'s3' if on_s3 else 'folder'}"]
        self.machines = 1
        self.reached = 0

    def lead(self, metadata: str) -> None:
        self.environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")} | {
            "TRAIN_CLOUD_AUTOSCALING_GROUP": "a-group",
            "TRAIN_CLOUD_MAX_ATTEMPTS": "1000",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata,
            "AIM_STORE": self.run.root,
        }
        while self.kills < self.wanted and not self.over():
            what = self.chance.choices(("kill", "aim", "successor", "replacement"), (4, 3, 2, 2))[0]
            getattr(self, what)()
            self.check()
        for _ in range(3):  # the first may find the run completed just now
            if self.end(self.start()) == 0:
                break
        assert differences(self.run.final(), self.twin.run.final()) == []
        logged, expected = self.run.scalars(shown=True), self.twin.run.scalars()
        assert logged.keys() == expected.keys()
        for tag, points in expected.items():
            assert logged[tag] == points, tag
        starts = [record.number for record in read_sessions(self.run.store)]
        assert starts == list(range(1, len(starts) + 1))

    # ---------------------------------------------------------------------------------------------- what happens to it

    def kill(self) -> None:
        """At any moment of the process: while it starts, restores, trains, commits, sweeps or ends."""
        process, after = self.start(), self.moment()
        process.join(after)
        self.killed(process, f"killed after {after:.2f} s")

    def aim(self) -> None:
        part = self.chance.choice(sorted(AIMS))
        kind, last = AIMS[part]
        number, when = self.chance.randint(1, last), self.chance.choice(("before", "amid", "after"))
        process = self.start(AIM=f"{when} {number} {kind}")
        process.join(STARTUP + self.moment())
        hit = process.exitcode is not None
        self.killed(process, f"killed {when} verb {number} of {part}" if hit else f"killed on the way to a {part}")

    def replacement(self) -> None:
        """The machine is gone, and the next one goes on from what it has left."""
        self.kill()
        self.machines += 1

    def successor(self) -> None:
        """A newer machine takes the run while the older one lives, perhaps paused in the middle of something."""
        older, number = self.start(), self.machines
        older.join(self.moment())
        paused = self.chance.random() < 0.5 and older.exitcode is None
        if paused:
            os.kill(older.pid, signal.SIGSTOP)
        self.machines += 1
        newer = self.start()
        deadline = time.monotonic() + (5.0 if paused else LONGEST)  # it may be paused while it holds the store's lock
        while not self.owned(self.machines) and newer.exitcode is None and time.monotonic() < deadline:
            newer.join(0.02)
        newer.join(self.chance.uniform(0, 0.5))
        if paused:
            os.kill(older.pid, signal.SIGCONT)
        deadly = self.chance.random() < 0.3
        if deadly:
            older.join(self.chance.uniform(0, 0.3))
            self.killed(older, "killed beside its successor", 73)
        else:
            code = self.end(older, *AFTERWARDS)
            self.story.append(f"{'paused, ' if paused else ''}older one ended with {code}")
            assert code == 73 or self.over(), self.run.log()[-3000:]
        if self.chance.random() < 0.5 and self.number(number) < self.head_session():
            again = self.end(self.start(number), *AFTERWARDS)
            assert again == 73 or self.over(), "an older machine that starts again may not train"
            self.story.append(f"and again with {again}")
        newer.join(self.moment())
        # An older machine that was paused before it had a number has taken a later one.
        overtaken = self.number(self.machines) < self.number(number) < NONE
        self.killed(newer, "successor killed", *((73,) if overtaken else ()))
        if overtaken:
            self.machines += 1

    # -------------------------------------------------------------------------------------------------- its parts

    def start(self, machine: int | None = None, **env: str) -> Any:
        return self.run.start(state=f"machine-{machine or self.machines}", env={**self.environment, **env})

    def moment(self) -> float:
        """Seconds, uniformly over most of what the next session takes if nothing happens to it."""
        head = self.head()
        left = 1.0 - head.timesteps / RUNS[self.name]["total_timesteps"] if head else 1.0
        return self.chance.uniform(0, STARTUP + 0.8 * left * max(0.0, self.twin.seconds - STARTUP))

    def killed(self, process: Any, how: str, *codes: int) -> None:
        """:param codes: that it may have ended with just before"""
        process.kill()
        code = self.end(process, -signal.SIGKILL, *AFTERWARDS)
        if code == -signal.SIGKILL:
            self.kills += 1
            self.story.append(how)
        else:
            assert code in codes or self.over(), f"{code}: {self.run.log()[-3000:]}"

    def end(self, process: Any, *codes: int) -> int:
        process.join(LONGEST)
        if process.exitcode is None:
            process.kill()
            process.join()
            pytest.fail(f"it did not end: {self.run.log()[-3000:]}")
        # 64: it began when all was over, and says that there is nothing to do.
        late = process.exitcode == 64 and self.over()
        assert not codes or late or process.exitcode in codes, f"{process.exitcode}: {self.run.log()[-3000:]}"
        return int(process.exitcode)

    def head(self) -> Head | None:
        read = read_head(self.run.store)
        return read[0] if read else None

    def head_session(self) -> int:
        head = self.head()
        return head.session if head else 0

    def number(self, machine: int) -> int:
        """The session number that a machine has taken; ``NONE`` where it has none yet."""
        session = local_session(self.run.folder / f"machine-{machine}", units.boot_id())
        return session.number if session else NONE

    def owned(self, machine: int) -> bool:
        return self.number(machine) <= self.head_session()

    def over(self) -> bool:
        head = self.head()
        return head is not None and head.outcome is not None

    def check(self) -> None:
        """Nobody lives: what the head names is whole, and no older than what was there before."""
        head = self.head()
        if head is None or head.manifest is None:
            assert self.reached == 0
            return
        assert head.timesteps >= self.reached, "the head went back"
        assert head.outcome in (None, "completed"), head.reason
        self.reached = head.timesteps
        found = restore(self.run.store, read_manifest(self.run.store, head.manifest))
        assert found.timesteps == head.timesteps
        for rows in found.streams.values():
            assert sum(len(next(iter(columns.values()))) for _, columns in rows.chunks) == rows.last - rows.first


@pytest.mark.slow
@pytest.mark.timeout(max(600, 3 * SECONDS, 30 * KILLS))
def test_whatever_is_killed_the_end_is_the_same(
    warm: Any, aws_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socketserver.BaseServer.handle_error", lambda *arguments: None)  # whose client was killed
    began = time.monotonic()
    print(f"chaos: make chaos N={KILLS or 200} SEED={SEED}")
    twins = {name: Twin(warm, tmp_path / f"twin-{name}", run) for name, run in RUNS.items()}

    def bucket() -> str:
        name = f"chaos-{uuid.uuid4().hex[:12]}"
        boto3.client("s3", endpoint_url=aws_endpoint).create_bucket(Bucket=name)
        return name

    seed, kills, longest = SEED, 0, 0.0
    with MetadataService("i-0123456789abcdef0") as metadata:
        while not kills or (kills < KILLS if KILLS else time.monotonic() - began + longest < SECONDS):
            life, life_began = Life(warm, tmp_path / f"life-{seed}", seed, twins, bucket), time.monotonic()
            try:
                life.lead(metadata.endpoint)
            except BaseException:
                print(f"chaos: {'; '.join(life.story)}\nto repeat it: make chaos N=1 SEED={seed}")
                raise
            seconds = time.monotonic() - life_began
            longest = max(longest, seconds)
            kills += life.kills
            print(f"chaos: {seed} ({seconds:.1f} s): {'; '.join(life.story)}", flush=True)
            seed += 1
    print(f"chaos: {kills} kills in {seed - SEED} runs, {time.monotonic() - began:.0f} s; SEED={SEED}")
