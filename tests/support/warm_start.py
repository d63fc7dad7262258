"""Python processes that begin with their imports done: forked from one that has imported everything, once.

Half of what a short training, a trial of an environment or an evaluation costs is importing torch and
Stable-Baselines3. Under :func:`warm_starts` the project's commands that a test begins with :class:`subprocess.Popen`,
and those that these begin, are forked from such a process instead. They are the caller's own children all the same:
their number, exit code, signals, pipes, sessions and variables are what they would be, and so is what they do from the
first line of their main module on. What is no command of the project, or asks for what only a new interpreter can give
(another hash seed, an interpreter's switches, ``preexec_fn``), is started as ever.

What differs: modules that a command need not have are loaded. Tests about that start real processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from train_cloud import forking
from train_cloud.child_process import restore_variables
from train_cloud.forking import Job

#: What a command of the project imports sooner or later.
MODULES = (
    "torch.utils.tensorboard",
    "tensorboard",
    "gymnasium.envs.classic_control",
    "cloudpickle",
    "train_cloud.cli.train",
    "train_cloud.sb3.callback",
    "train_cloud.sb3.check",
    "train_cloud.sb3.export",
    "train_cloud.sb3.scalars",
    "train_cloud.evaluate",
    "train_cloud.store.s3",
    "train_cloud.runtime.train",
)
#: What it imports of others: for a command that runs another copy of the package than the one that is tested from, such
#: as the one that a machine was sent.
FOREIGN = (
    *("boto3", "cloudpickle", "gymnasium.envs.classic_control", "jinja2", "matplotlib.figure", "obstore", "psutil"),
    *("pydantic", "requests", "rich.console", "ruamel.yaml", "stable_baselines3", "tensorboard"),
    *("torch.utils.tensorboard", "typer"),
)
#: The same for the embedded AWS, which has its own; and what moto reads when it is imported.
AWS = "train_cloud.rehearsal.moto_gaps"
AWS_MODULES = (
    "moto.backends",
    "moto.moto_server.werkzeug_app",
    *(
        f"moto.{service}.{part}"
        for service in ("autoscaling", "ec2", "iam", "logs", "s3", "sns", "ssm", "sts")
        for part in ("models", "responses")
    ),
)
AWS_VARIABLES = {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true", "MOTO_ENABLE_AMI_VALIDATION": "true"}
#: What a source is for that none of the project's modules is in.
_UPLOADED = "uploaded"
#: Commands of the project that start processes of it themselves.
_STARTING = {"train", "prove", "validate", "finish", "pipeline", "rehearse", "seeds"}
#: Variables that are looked at before the first line of a main module, or by torch when it is imported.
_AT_START = ("PYTHON", "OMP_", "MKL_", "OPENBLAS_", "LD_", "ATEN_", "ONEDNN_", "CUDA_", "MALLOC_", "KMP_")
#: Of these, what can be done for a forked process too, or does not matter to it.
_LATER = {
    "PYTHONPATH",
    "PYTHONHASHSEED",
    "PYTHONUNBUFFERED",
    "PYTHONDONTWRITEBYTECODE",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
}
_HASH_SEED = "PYTHONHASHSEED"
_MARK = "INVOCATION_ID"  # of a process of a unit of systemd's
#: Which signal a process that is forked gets when its parent ends; it does not see this variable.
_DEATH_SIGNAL = "WARM_START_DEATH_SIGNAL"
#: prctl(2): PR_SET_MM and of this PR_SET_MM_MAP.
_MEMORY, _MAP = 35, 14
_Popen = subprocess.Popen

_BEGIN = (
    "import sys; sys.path.insert(0, {folder!r}); import warm_start; del sys.path[0]; "
    "warm_start.serve({descriptor}, {modules!r})"
)


def _show_in_proc(command: Sequence[str], environment: dict[str, str]) -> bool:
    """In ``/proc/<pid>/cmdline`` and ``environ``, by which the rehearsal finds a unit's processes.

    :return: whether this kernel can
    """
    lines = [f"{name}={value}" for name, value in environment.items()]
    arguments, variables = (b"".join(os.fsencode(one) + b"\0" for one in given) for given in (command, lines))
    memory = ctypes.create_string_buffer(arguments + variables, len(arguments) + len(variables))
    begin, between, end = (ctypes.addressof(memory) + at for at in (0, len(arguments), len(memory)))
    sbrk = ctypes.CDLL(None).sbrk
    sbrk.restype = ctypes.c_size_t
    # proc_pid_stat(5): fields 26, 27 and 45 to 47 are code, data and brk, 28 is the stack.
    fields = ["", "", "", *Path("/proc/self/stat").read_text().rpartition(")")[2].split()]
    layout = [int(fields[at]) for at in (26, 27, 45, 46, 47)] + [sbrk(0), int(fields[28])]
    packed = struct.pack("<11QQII", *layout, begin, between, between, end, 0, 0, 0xFFFFFFFF)
    map_of = ctypes.create_string_buffer(packed, len(packed))
    _kept.append(memory)
    return forking.prctl(_MEMORY, _MAP, ctypes.addressof(map_of), len(packed))


_kept: list[Any] = []


class _Source:
    """The process that others are forked from, as seen by the one whose children these are."""

    def __init__(self, connection: socket.socket, pid: int, given: dict[str, str], shows: bool) -> None:
        self._connection, self._lock = connection, threading.Lock()
        self.pid, self.given, self.shows, self._of = pid, given, shows, os.getpid()

    def begin(self, job: Job, descriptors: Sequence[int]) -> int | None:
        """
        :return: number of the process, a child of this one; None if the source is gone
        """
        if os.getpid() != self._of:
            return None
        with self._lock:
            return forking.fork(self._connection, job, descriptors)

    def close(self) -> None:
        self._connection.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


_source: Callable[[Job], _Source] | None = None
_uploaded = False
_HERE = Path(forking.__file__).parents[1]
#: In a warm process, its variables when it began.
_given = dict(os.environ)
#: In a warm process, whether none of the project's modules is loaded that a command needs.
_bare = False


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """A process of the project's, forked from the warm one where that is the same."""

    def __init__(self, args: Any, *more: Any, **options: Any) -> None:
        self._job: Job | None = None
        if _source is not None and not more and _plain(options):
            self._job = job = _job(args, options)
            if job is not None and not _can_begin(job, _source(job)):
                self._job = None
        super().__init__(args, *more, **options)

    def _execute_child(self, *given: Any) -> None:
        # As of Python 3.10 to 3.13: at 10 to 15 the ends of the pipes, the child's at 10, 13 and 15, or -1.
        ends, pid = given[10:16], None
        if self._job is not None and _source is not None:
            descriptors = [mine if end == -1 else end for mine, end in enumerate((ends[0], ends[3], ends[5]))]
            pid = _source(self._job).begin(self._job, descriptors)
        if pid is None:
            super()._execute_child(*given)  # type: ignore[misc]
            return
        self.pid, self._child_created = pid, True
        self._close_pipe_fds(*ends)  # type: ignore[attr-defined]


# A program that holds one holds what it would hold otherwise.
Popen.__module__, Popen.__qualname__ = _Popen.__module__, _Popen.__qualname__


def _plain(options: dict[str, Any]) -> bool:
    """Nothing is asked for that a forked process cannot have."""
    simple = {
        "stdin", "stdout", "stderr", "env", "cwd", "text", "encoding", "errors", "bufsize", "start_new_session",
        "universal_newlines",
    }  # fmt: skip
    return {name for name, value in options.items() if value is not None} <= simple


def _job(args: Any, options: dict[str, Any]) -> Job | None:
    """None where it has to be started as ever."""
    if isinstance(args, (str, bytes, os.PathLike)):
        return None
    command, death_signal = [os.fspath(word) for word in args], 0
    if len(command) > 4 and Path(command[0]).name == "setpriv" and command[1] == "--pdeathsig" and command[3] == "--":
        death_signal, command = getattr(signal, f"SIG{command[2]}"), command[4:]
    if not command or not all(isinstance(word, str) for word in command):
        return None
    if command[0] != sys.executable:
        script = Path(command[0])
        if not script.is_absolute() or not _is_python(script):
            return None
        command = [sys.executable, *command]
    if len(command) < 2 or not _is_ours(command):
        return None
    environment = dict(os.environ if options.get("env") is None else options["env"])
    environment.setdefault(_HASH_SEED, "0")
    try:
        folder = os.fspath(options.get("cwd") or Path.cwd())
    except OSError:
        return None
    if death_signal:
        environment[_DEATH_SIGNAL] = str(int(death_signal))
    return Job(command, environment, str(folder), bool(options.get("start_new_session")))


def _can_begin(job: Job, source: _Source) -> bool:
    """Whether its variables are those of the warm process, as far as an interpreter or torch reads them at once."""
    read = {name: value for name, value in job.environment.items() if name.startswith(_AT_START) and name not in _LATER}
    same = job.environment[_HASH_SEED] == "0" and all(source.given.get(name) == value for name, value in read.items())
    return same and (source.shows or _MARK not in job.environment)


def _is_python(script: Path) -> bool:
    try:
        with script.open("rb") as file:
            first = file.readline(4096).decode(errors="replace").rstrip()
        named, ours = Path(first.removeprefix("#!")), Path(sys.executable)
        return first.startswith("#!") and named.name.startswith("python") and named.parent.samefile(ours.parent)
    except OSError:
        return False


def _is_ours(command: Sequence[str]) -> bool:
    """``-m train_cloud…``, what ``train_cloud.child_process.command`` writes, or a script."""
    if command[1] == "-m":
        return len(command) > 2 and command[2].split(".")[0] == "train_cloud"
    if command[1] == "-c":
        return (
            len(command) > 3 and "from runpy import run_module" in command[2] and command[3].startswith("train_cloud")
        )
    return command[1].endswith(".py") or _is_python(Path(command[1]))


@contextlib.contextmanager
def warm_starts() -> Iterator[None]:
    """While this holds, the project's commands begin with their imports done. The warm processes begin when they are
    wanted first.
    """
    sources: dict[str, _Source] = {}
    lock = threading.Lock()

    kinds = {AWS: (AWS_MODULES, AWS_VARIABLES), _UPLOADED: (FOREIGN, {}), "": (MODULES, {})}

    def get(job: Job) -> _Source:
        kind = AWS if AWS in job.command else _UPLOADED if _uploaded and _runs_another_copy(job) else ""
        with lock:
            if kind not in sources:
                sources[kind] = _begin(*kinds[kind])
            return sources[kind]

    with _put(get):
        yield
    for source in sources.values():
        source.close()


def cold_starts() -> contextlib.AbstractContextManager[None]:
    """While this holds, they do not."""
    return _put(None)


@contextlib.contextmanager
def uploaded_packages() -> Iterator[None]:
    """While this holds, what is to run another copy of the package runs that one: only what it imports of others is
    loaded when it begins."""
    global _uploaded
    _uploaded = True
    try:
        yield
    finally:
        _uploaded = False


def _runs_another_copy(job: Job) -> bool:
    first = job.environment.get("PYTHONPATH", "").split(os.pathsep)[0]
    return bool(first) and (Path(first) / "train_cloud").is_dir() and not Path(first).samefile(_HERE)


@contextlib.contextmanager
def _put(get: Callable[[Job], _Source] | None) -> Iterator[None]:
    global _source
    before = _source
    _source, subprocess.Popen = get, _Popen if get is None else Popen  # type: ignore[misc]
    try:
        yield
    finally:
        _source, subprocess.Popen = before, _Popen if before is None else Popen  # type: ignore[misc]


def _begin(modules: Sequence[str], variables: dict[str, str]) -> _Source:
    from train_cloud.runtime.reproducibility import PINNED, pin_instructions

    with contextlib.ExitStack() as stack:
        for name in PINNED:
            stack.callback(restore_variables, {name: os.environ.pop(name, None)})
        pin_instructions()
        given = {**os.environ, **variables, _HASH_SEED: "0"}
    given.pop("PYTHONPATH", None)
    ours, theirs = socket.socketpair()
    text = _BEGIN.format(folder=str(Path(__file__).parent), descriptor=theirs.fileno(), modules=list(modules))
    process = _Popen([sys.executable, "-c", text], env=given, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    process.returncode = 0  # waited for by _Source
    said = forking.receive(ours)
    if said is None:
        raise RuntimeError("the warm process did not start")
    return _Source(ours, process.pid, given, shows=said[0] == b"shows")


def serve(descriptor: int, modules: Sequence[str]) -> NoReturn:
    """The warm process, and each that is forked from it."""
    forking.outlive_signals(detached=False)
    global _bare
    for module in modules:
        importlib.import_module(module)
    _bare = "train_cloud.runtime.train" not in sys.modules and AWS_MODULES[0] not in sys.modules
    for service in ("autoscaling", "ec2", "s3", "sts"):  # read once for all, see _keep_service_models
        importlib.import_module("boto3").Session(region_name="us-east-1").client(service)
    connection = socket.socket(fileno=descriptor)
    forking.send(connection, b"shows" if _show_in_proc(sys.orig_argv, dict(os.environ)) else b"ready")
    gc.collect()
    gc.freeze()  # so that the collector leaves these pages shared
    _live(connection)


def _live(connection: socket.socket) -> NoReturn:
    job = forking.wait_for_job(connection)
    if job is None:
        os._exit(0)
    if death_signal := os.environ.pop(_DEATH_SIGNAL, None):
        forking.prctl(forking.DEATH_SIGNAL, int(death_signal))
    _show_in_proc(job.command, dict(os.environ))
    forking.end_as_an_interpreter(lambda: _run(job))


def _run(job: Job) -> None:
    words = job.command[1:]
    sys.orig_argv[:] = job.command
    if _bare:
        _forget_the_package()
    elsewhere = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    base = sys.path[1:]
    if any(word in _STARTING for word in words[:4]):
        begin_below()
    for name in ("sys", "warm_start"):  # of the warm process's main module
        sys.modules["__main__"].__dict__.pop(name, None)
    _hide()
    if words[0] == "-m":
        sys.argv = ["-m", *words[2:]]
        sys.path[:] = [job.folder, *elsewhere, *base]
        runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path[:] = ["", *elsewhere, *base]
        exec(compile(words[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv = words
        sys.path[:] = [str(Path(words[0]).resolve().parent), *elsewhere, *base]
        runpy.run_path(words[0], run_name="__main__")


def _forget_the_package() -> None:
    """The few modules that this one needs: what is imported next is the copy on the path."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "train_cloud"]:
        del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("train_cloud.")]


def _keep_service_models() -> None:
    """botocore reads the description of a service anew for each session, for a tenth of a second each; our code makes a
    session for each client, so that it has the credentials of that moment.
    """
    from botocore.loaders import JSONFileLoader

    read, known = JSONFileLoader.load_file, {}

    def load_file(self: JSONFileLoader, file_path: str) -> Any:
        if file_path not in known:
            known[file_path] = read(self, file_path)
        return known[file_path]

    JSONFileLoader.load_file = load_file  # type: ignore[method-assign]


def _hide() -> None:
    """This module is none that a training's state could be in."""
    sys.modules.pop(__name__, None)


def begin_below() -> None:
    """In a process that is forked: a warm one for those that it starts, forked while nothing of a user's is in it."""
    global _source
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        ours.close()
        forking.outlive_signals(detached=True)
        _live(theirs)
    theirs.close()
    # cv2 for one adds to LD_LIBRARY_PATH when it is imported.
    source = _Source(ours, pid, {**_given, **os.environ}, _show_in_proc(sys.orig_argv, dict(os.environ)))
    _source, subprocess.Popen = lambda _: source, Popen  # type: ignore[misc]
    _hide()


_keep_service_models()
