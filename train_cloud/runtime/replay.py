"""A replay: beside the training a fresh process goes on from its first checkpoint, and must come to the same results.

Once a session. The process restores the first checkpoint that the session has committed, trains on to the second one
and leaves its checksums; they are compared with those that the training itself recorded. It has none of what only the
training's process had: what module and class attributes have become, caches, what was opened and never saved. That is
the point: the next session will have none of it either.

It runs at the lowest priority, only where a core is idle and memory holds a second training, and it is killed as soon
as anybody asks the training to stop. It writes nothing that anybody sees: it works in a folder of its own, in which the
files of the working folder are found, and may write nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from train_cloud import child_process
from train_cloud.config import RunFile, parse_run_file
from train_cloud.errors import TrainCloudError
from train_cloud.run.head import Head, Reference
from train_cloud.runtime import reproducibility
from train_cloud.snapshot import is_pretraining
from train_cloud.store import open_store

if TYPE_CHECKING:
    from train_cloud.sb3.digest import Digests, Recording
    from train_cloud.snapshot import Snapshot
    from train_cloud.trainer import Host

log = logging.getLogger(__name__)

_FOLDER = "replay"
_ORDER, _RESULT, _DIGESTS, _LOG = "order.json", "result.json", "digests", "log.txt"
#: How long to look for an idle core, and how often.
_SEARCH_SECONDS, _LOOK_SECONDS = 300.0, 5.0
#: Memory that stays free beside a second training, which takes a fifth more than this one at most.
_SPARE_BYTES, _SHARE = 512 << 20, 1.2
#: Of the working folder so much is copied, so that files that are there can be written; what is larger is only linked.
_COPIED_BYTES, _COPIED_FILES = 64 << 20, 2000


class Replay:
    """The replay of one session.

    :param store: URL of the run
    :param state_dir: where its folder lies
    :param lock: names what is installed
    :param on_result: is told the proof, or None and what differs; from a thread
    """

    def __init__(
        self,
        config: RunFile,
        store: str,
        state_dir: Path,
        lock: Callable[[], str],
        on_result: Callable[[Mapping[str, Any] | None, str], None],
    ) -> None:
        self._config = config
        self._store = store
        self._folder = state_dir / _FOLDER
        self._apart = (state_dir, Path(store.removeprefix("file://")))
        self._lock = lock
        self._on_result = on_result
        self._begin: tuple[Head, Mapping[str, Any]] | None = None
        self._end: tuple[int, Recording] | None = None
        self._known = threading.Event()
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._over = config.reproducibility.replay == "never" or config.data_parallel not in (None, 1)
        self.said = "off" if self._over else ""
        """What became of it, in words."""

    def held(self) -> list[int]:
        """Timesteps of the checkpoint that has to stay for it."""
        return [] if self._over or self._begin is None else [self._begin[0].timesteps]

    def use(self, config: RunFile) -> None:
        """The run file, with what was left to the machine."""
        self._config = config

    def committed(self, head: Head, facts: Mapping[str, Any], recording: Recording) -> None:
        """A checkpoint of this session is committed.

        :param head: that names it
        :param facts: its own
        :param recording: what was recorded since the one before
        """
        if self._over or self._end is not None or head.manifest is None or is_pretraining(facts):
            return
        if self._begin is None:
            self._begin = head, facts
            threading.Thread(target=self._run, name="train-cloud-replay", daemon=True).start()
        elif head.timesteps > self._begin[0].timesteps:
            self._end = head.timesteps, recording
            self._known.set()

    def stop(self) -> None:
        """At once. May be called from a signal handler: takes no lock."""
        self._over = True
        self._ended.set()
        self._known.set()
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()

    def close(self) -> None:
        """:meth:`stop`, and leave no files."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self) -> None:
        try:
            self._attempt()
        except (TrainCloudError, OSError, ValueError) as error:
            self._give_up(f"it failed: {error}")
        finally:
            self._over = True

    def _give_up(self, because: str) -> None:
        if not self._ended.is_set():
            self.said = f"none, because {because}"
            log.info("no replay of this session: %s", because)

    def _attempt(self) -> None:
        from train_cloud.envs.known import is_unchanged, loaded_code

        assert self._begin is not None
        _yield_this_thread()
        begin, facts = self._begin
        assert begin.manifest is not None
        here = {"machine": machine_digest(facts["machine"]), "installed": _digest(self._lock())}
        before = facts.get("proof")
        same = all((before or {}).get(name) == value for name, value in here.items())
        if before is not None and same and is_unchanged(before["code"]):
            self.said = f"proved in session {before['session']}"
            self._on_result(before, "")
            return
        code = loaded_code()
        self._known.wait()
        if self._ended.is_set():
            return
        assert self._end is not None
        until, expected = self._end
        refused = self._wait_for_room(facts)
        if refused is not None:
            self._give_up(refused)
            return
        self.said = f"steps {begin.timesteps:,} to {until:,} are computed again"
        result = self._replayed(begin.manifest, until)
        if result is None:
            return
        if not is_unchanged(code):
            self._give_up("the code has changed since the training began")
            return
        from train_cloud.sb3.digest import first_difference, read_table

        name = f"what a fresh process computed from the checkpoint at {begin.timesteps:,}"
        found = read_table(self._folder / _DIGESTS, name)
        if found is None or until not in found.parameters:
            self._give_up(f"it did not come to step {until:,}")
            return
        difference = first_difference(expected, found)
        if difference is not None:
            self.said = str(difference)
            self._on_result(None, str(difference))
            return
        self.said = f"steps {begin.timesteps:,} to {until:,} came to the same in a fresh process"
        log.info("proved: %s", self.said)
        proof = {**here, "code": code, "session": begin.session, "from": begin.timesteps, "to": until}
        self._on_result(proof, "")

    def _wait_for_room(self, facts: Mapping[str, Any]) -> str | None:
        """None when there is room; else why there is none."""
        deadline = time.monotonic() + _SEARCH_SECONDS
        workers = self._config.environment.n_envs if self._config.environment is not None else 1
        if self._config.environment is None or self._config.environment.vectorization != "subproc":
            workers = 0
        always = self._config.reproducibility.replay == "always"
        while True:
            refused = no_room(facts["machine"]["threads"], workers, cores=not always)
            if refused is None or time.monotonic() >= deadline or always:
                return refused
            if self._ended.wait(_LOOK_SECONDS):
                return "the session ended"

    def _replayed(self, reference: Reference, until: int) -> Mapping[str, Any] | None:
        """What the process leaves; None where it does not come to its end."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        _lay_out(Path.cwd(), self._folder / "work", self._apart)
        order = {
            "run_file": self._config.model_dump(mode="json", exclude_defaults=True),
            "store": self._store,
            "manifest": reference.model_dump(),
            "until": until,
            "parent": os.getpid(),
        }
        (self._folder / _ORDER).write_text(json.dumps(order))
        scratch = self._folder / "tmp"
        scratch.mkdir()
        variables = child_process.environment(
            TMPDIR=str(scratch), MPLCONFIGDIR=str(scratch), PYTHONDONTWRITEBYTECODE="1", WANDB_MODE="disabled"
        )
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
            variables.pop(name, None)
        with (self._folder / _LOG).open("wb") as file:
            if self._ended.is_set():
                return None
            self._process = subprocess.Popen(
                child_process.command("train_cloud.runtime.replay", str(self._folder), user_code=True),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=variables,
                cwd=self._folder / "work",
                start_new_session=True,
            )
            if self._ended.is_set():
                self.stop()
            code = self._process.wait()
        if self._ended.is_set():
            return None
        result = self._folder / _RESULT
        said: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {}
        if said.get("refused"):
            self._give_up(f"the run's code writes to {said['refused']}")
            return None
        if code != 0 or not said:
            last = (self._folder / _LOG).read_text(errors="replace").strip().splitlines()[-1:]
            self._give_up(f"the process ended with {code}{': ' + last[0] if last else ''}")
            return None
        return said


# ------------------------------------------------------------------------------------------ whether there is room


def no_room(threads: int, workers: int, *, cores: bool = True) -> str | None:
    """Why a second training cannot run beside this one unnoticed; None where it can.

    :param threads: of torch
    :param workers: processes of environments
    :param cores: whether it takes an idle one
    """
    if cores:
        there = cores_here()
        if there < threads + workers + 1:
            needed = f"{threads} of torch and {workers} environments" if workers else f"torch's {threads}"
            return f"there is no core beside {needed}: {there:g} in all"
        load = psutil.getloadavg()[0]
        if load > there - 1:
            return f"no core is idle: load {load:.1f} on {there:g}"
    own = psutil.Process()
    taken = own.memory_info().rss
    for child in own.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            taken += child.memory_info().rss
    free = memory_left()
    needed_bytes = int(_SHARE * taken) + _SPARE_BYTES
    if free < needed_bytes:
        return f"memory does not hold a second training: {free / 2**30:.1f} GiB free, {needed_bytes / 2**30:.1f} needed"
    return _no_room_on_gpu()


def _no_room_on_gpu() -> str | None:
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    if not torch.are_deterministic_algorithms_enabled():
        return "the GPU is not deterministic: torch.use_deterministic_algorithms is not set"
    free = torch.cuda.mem_get_info()[0]
    if free < _SHARE * torch.cuda.memory_reserved() + _SPARE_BYTES:
        return "the GPU's memory does not hold a second training"
    return None


def cores_here() -> float:
    """Cores that this process may use: by its affinity, and by its group's quota (Linux, cgroup v2, ``cpu.max``)."""
    count = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for text in _of_the_group("cpu.max"):
        quota, _, period = text.partition(" ")
        if quota != "max":
            count = min(count, int(quota) / int(period))
    return count


def memory_left() -> int:
    """Bytes that are free, here and in this process's group (cgroup v2, ``memory.max``)."""
    free = psutil.virtual_memory().available
    for limit, used in zip(_of_the_group("memory.max"), _of_the_group("memory.current"), strict=False):
        if limit != "max":
            free = min(free, int(limit) - int(used))
    return free


def _of_the_group(name: str) -> Iterator[str]:
    """A file of this process's control group, where there is one."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        group = Path("/proc/self/cgroup").read_text().splitlines()[-1].split(":", 2)[2]
        yield (Path("/sys/fs/cgroup") / group.lstrip("/") / name).read_text().strip()


def machine_digest(described: Mapping[str, Any]) -> str:
    """Of the kind of machine: what ``describe`` says of it, and its processor.

    :param described: the machine of the run's facts
    """
    model = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return _digest(json.dumps([described, model], sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _yield_this_thread() -> None:
    with contextlib.suppress(AttributeError, OSError):  # Linux counts threads as processes here
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


# ------------------------------------------------------------------------------------------------ a place to work


def _lay_out(folder: Path, work: Path, apart: Sequence[Path]) -> None:
    """Make ``work`` look like ``folder``: small things are copied, so that what is there can be written; others linked.

    :param apart: is left out: the store and the state folder
    """
    work.mkdir()
    left = [_COPIED_BYTES, _COPIED_FILES]
    outside = [str(path) for path in apart]
    with contextlib.suppress(OSError):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = os.path.realpath(entry.path)
            if any(own == path or own.startswith(path + os.sep) for own in map(os.path.realpath, outside)):
                continue
            size = _size(Path(entry.path), left)
            if size is None:
                (work / entry.name).symlink_to(path)
                continue
            left = [left[0] - size[0], left[1] - size[1]]
            if entry.is_dir():
                shutil.copytree(entry.path, work / entry.name, symlinks=True, ignore_dangling_symlinks=True)
            else:
                shutil.copy2(entry.path, work / entry.name)


def _size(path: Path, limit: Sequence[int]) -> tuple[int, int] | None:
    """Bytes and files below ``path``; None where they are too many, or cannot be copied as files."""
    if path.is_symlink():
        return None
    if path.is_file():
        size = path.stat().st_size
        return (size, 1) if size <= limit[0] and limit[1] > 0 else None
    if not path.is_dir():
        return None
    total = files = 0
    for root, folders, names in os.walk(path):
        for name in (*folders, *names):
            files += 1
            one = Path(root) / name
            total += one.lstat().st_size
            if total > limit[0] or files > limit[1] or not (one.is_symlink() or one.is_file() or one.is_dir()):
                return None
    return total, files


class _Guard:
    """An audit hook (PEP 578) that lets this process write below its own folder only.

    :ivar refused: the first path elsewhere that was to be written; caches in the home folder are refused too, and do
        not count
    """

    def __init__(self, allowed: Path) -> None:
        self._allowed = (os.path.realpath(allowed) + os.sep, "/dev/", "/proc/")
        home = Path.home()
        self._caches = tuple(f"{home / name}{os.sep}" for name in (".cache", ".config", ".local", ".triton"))
        self.refused = ""

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(mode, str) and set(mode) & set("wax+")
            if not writes and not (isinstance(flags, int) and flags & _WRITING):
                return
            self._check(path)
        elif event in _CHANGES:
            for path in arguments[: _CHANGES[event]]:
                self._check(path)

    def _check(self, path: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor, which was opened before
        real = os.path.realpath(os.fsdecode(path))
        if real.startswith(self._allowed) or real == self._allowed[0].rstrip(os.sep):
            return
        if not self.refused and not real.startswith(self._caches):
            self.refused = real
        raise PermissionError(errno.EACCES, "a replay writes nothing outside of its own folder", real)


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
#: Audit events that change files, and how many of their arguments are paths of those.
_CHANGES = {
    "os.mkdir": 1, "os.rmdir": 1, "os.remove": 1, "os.rename": 2, "os.truncate": 1, "os.chmod": 1, "os.chown": 1,
    "os.utime": 1,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- the fresh process


def _host(config: RunFile, restored: Snapshot, until: int, digests: Digests) -> Host:
    """Goes on from a checkpoint, and stops at a later one of the training's."""
    from train_cloud.sb3.callback import IdleHost
    from train_cloud.sb3.digest import sum_of

    class Replaying(IdleHost):
        timesteps = 0

        def stop_deadline(self) -> float | None:
            return float("inf") if self.timesteps >= until else None

        def step(self, timesteps: int) -> None:
            self.timesteps = timesteps

        def submit(self, snapshot: Snapshot) -> None:
            self.digests.kept(snapshot.timesteps, sum_of(snapshot.parts))

    host = Replaying(config.total_timesteps, restored=restored, digests=digests)
    host.schedule_timesteps = config.schedule_timesteps
    return host


def main(folder: Path) -> int:
    """In the fresh process: replay what ``folder`` says."""
    order = json.loads((folder / _ORDER).read_text())
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    _end_with(order["parent"])
    _lowest_priority()
    guard = _Guard(folder)
    sys.addaudithook(guard)
    try:
        _train(parse_run_file(order["run_file"]), order, folder)
    except Exception:  # whatever the user's code raises: the log's last line says what
        log.exception("the replay failed")
        (folder / _RESULT).write_text(json.dumps({"refused": guard.refused}))
        return 1
    (folder / _RESULT).write_text(json.dumps({"refused": guard.refused}))
    return 0


def _train(config: RunFile, order: Mapping[str, Any], folder: Path) -> None:
    from train_cloud.checkpoint import read_manifest, restore
    from train_cloud.config.current import training

    reproducibility.pin_instructions()
    store = open_store(order["store"])
    manifest = read_manifest(store, Reference.model_validate(order["manifest"]))
    with child_process.code_on_path(config.code.folder), training(config, folder / "artifacts"):
        from train_cloud.runtime.pretraining import pretraining_of
        from train_cloud.sb3 import precision
        from train_cloud.sb3.build import build_callbacks, build_model
        from train_cloud.sb3.callback import hosted_by, learn
        from train_cloud.sb3.digest import Digests
        from train_cloud.sb3.hardware import completed
        from train_cloud.sb3.script import prepare
        from train_cloud.trainer import TrainingStopped

        reproducibility.pin_threads(manifest.facts["machine"])
        precision.begin(config)
        digests = Digests(folder / _DIGESTS, keep_all=True)
        host = _host(config, restore(store, manifest), order["until"], digests)
        if config.entry_point is not None:
            script = prepare(config)
            with contextlib.suppress(TrainingStopped), hosted_by(host):
                script()
            return
        callbacks = build_callbacks(config)
        config = completed(config, manifest.facts.get("hardware"))
        built = build_model(config, manifest.facts.get("environment_trial"))
        try:
            with contextlib.suppress(TrainingStopped):
                learn(
                    built.model,
                    host,
                    callbacks,
                    built.choice,
                    pretraining_of(config, built.model, manifest.facts),
                    run_file=config,
                )
        finally:
            built.close()


def _end_with(parent: int) -> None:
    """A training that was killed cannot end its replay."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="train-cloud-parent", daemon=True).start()


def _lowest_priority() -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.nice(19)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # environments' processes that ignore SIGTERM would be waited for
