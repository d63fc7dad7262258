"""prove: the same run trained once without interruption and once with, and compared.

Each session is an ordinary ``train-cloud train`` in a fresh process, on a store in a temporary folder. One is stopped
by SIGTERM and one killed, each at a step that is a multiple of nothing, and the next goes on from what was committed.
Whatever a user's code does happens as in any training, in the same working folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train_cloud import child_process
from train_cloud.artifacts import tensorboard
from train_cloud.checkpoint import read_manifest, restore
from train_cloud.config import RunFile, load_run_file
from train_cloud.errors import EXIT_COMPLETED, InputError, Interrupted, Refused, TrainCloudError
from train_cloud.report.status import run_status
from train_cloud.run import layout
from train_cloud.run.head import read_head
from train_cloud.runtime.exporting import is_pytorch
from train_cloud.runtime.masking import hide_variables
from train_cloud.runtime.proof_session import VARIABLE, Trial, graphs_beside
from train_cloud.store import open_store

if TYPE_CHECKING:
    from train_cloud.sb3.digest import Difference, Recording

#: By default at least so many steps, and no more unless they are asked for.
_LEAST, _MOST, _SCRIPT = 1_000, 20_000, 5_000
_LEAST_QUICK = 300
#: Steps that are learned from beyond ``learning_starts``.
_BEYOND_START = 500
_FEWEST = 20
#: Shares of all steps: between two commits, and where a session is stopped and one is killed.
_SAVE, _STOP, _KILL = 0.23, 0.37, 0.68
#: In rollouts: in the first one there is nothing to resume from.
_STOP_ROLLOUT, _KILL_ROLLOUT = 1.37, 2.43
_LOG_CHARACTERS = 2000
_REFUSAL = "train-cloud: "


@dataclass(frozen=True)
class Proof:
    """What came of it.

    :ivar timesteps: that each of the two was trained for
    :ivar interruptions: signal and step
    :ivar first: the first step whose results differ; None where none does
    :ivar reproducible: whether the two are equal until the first interruption
    :ivar differences: paths of what differs at the end
    :ivar because: why the interrupted run itself says that it is not exact; None where it does not
    :ivar compared: what was compared and is equal
    :ivar attributes: that were equal after a resume, at the least of all resumes; 0 where there was none
    :ivar unaccounted: paths of attributes that were not, and that nothing names
    :ivar reached: what happened in these steps
    :ivar missed: what did not, so that nothing is shown of it
    """

    timesteps: int
    interruptions: tuple[tuple[str, int], ...]
    first: Difference | None
    reproducible: bool
    differences: list[str]
    because: str | None
    compared: tuple[str, ...]
    reached: tuple[str, ...]
    missed: tuple[str, ...]
    attributes: int
    unaccounted: tuple[str, ...]
    provider: str = ""
    """What brought the environment's state back; empty where nothing was tried."""

    @property
    def equal(self) -> bool:
        return self.first is None and not self.differences


def prove(
    run_file: Path,
    *,
    steps: int | None = None,
    overrides: Sequence[str] = (),
    quick: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Proof:
    """Train, interrupt, resume and compare.

    :param steps: timesteps to train for, instead of the run file's; by default enough for an update, the end of an
        episode, the first learning and a commit, and few
    :param quick: fewer steps, and one interruption
    :param say: is told what happens
    :raises InputError: bad run file; too few steps
    :raises TrainCloudError: a session failed
    """
    config = load_run_file(run_file, overrides)
    if config.seeds is not None:
        raise InputError("seeds", list(config.seeds), "several runs: add --set seeds=null for one of them")
    if config.initial_model is not None and config.initial_model.run is not None:
        fix = "prove trains in a store of its own, which has no other run: export that model, and name its model.zip"
        raise InputError("initial_model", config.initial_model.source, fix)
    os.environ.update(config.env)
    hide_variables(config)
    kind = _Kind.of(config)
    timesteps = steps or kind.steps(quick)
    if timesteps < _FEWEST:
        raise InputError("--steps", timesteps, f"give at least {_FEWEST}")
    save = max(1, int(_SAVE * timesteps))
    stops = kind.interruptions(timesteps, quick)
    changes = [
        *overrides,
        *(f"total_timesteps={timesteps}", f"schedule_total={config.schedule_timesteps}"),
        *(f"save_frequency={save}", "max_seconds_at_risk=null", "preservation={}", "limits={}", "experiment=null"),
        *("evaluation=null", "wandb=null", "webhook=null", "reproducibility.replay=never"),
    ]
    with _temporary_folder() as folder:
        control, run = (_Run(run_file, changes, folder / name) for name in ("uninterrupted", "interrupted"))
        say(f"{timesteps:,} timesteps without interruption")
        control.session(None)
        for name, at in stops:
            say(f"the same, {'stopped' if name == 'SIGTERM' else 'killed'} at step {at:,}")
            run.session((name, at))
        say("resumed in a fresh process, to the end")
        run.session(None)
        say("comparing")
        return _compared(config, control, run, timesteps, stops, kind)


@dataclass(frozen=True)
class _Kind:
    """What decides how many steps show something.

    :ivar rollout: timesteps of a rollout; 0 where the algorithm trains every few steps, or is not known
    :ivar starts: timesteps before anything is learned
    :ivar episode: timesteps after which an episode of each environment is over at the latest; 0 where nobody says
    """

    rollout: int = 0
    starts: int = 0
    episode: int = 0
    script: bool = False

    @classmethod
    def of(cls, config: RunFile) -> _Kind:
        if config.entry_point is not None:
            return cls(script=True)
        import inspect

        import gymnasium

        from train_cloud.config.run_file import MULTIAGENT
        from train_cloud.sb3.algorithms import load_algorithm
        from train_cloud.sb3.hardware import completed

        with child_process.code_on_path(config.code.folder):
            algorithm, config = load_algorithm(config), completed(config)
        assert config.environment is not None
        known = inspect.signature(algorithm.__init__).parameters
        given = {name: parameter.default for name, parameter in known.items()} | dict(config.hyperparameters)
        episode = 0
        if config.algorithm != MULTIAGENT:
            with contextlib.suppress(gymnasium.error.Error, ImportError):  # a module of the user's may register it
                episode = gymnasium.spec(config.environment.id).max_episode_steps or 0
        envs = config.environment.n_envs
        starts = given.get("learning_starts", 0)
        rollout = 0 if "learning_starts" in known else int(given.get("n_steps") or 0) * envs
        return cls(rollout, int(starts) if isinstance(starts, int) else 0, episode * envs)

    def steps(self, quick: bool) -> int:
        if self.script:
            return _SCRIPT
        if self.rollout:
            return max(_LEAST_QUICK if quick else _LEAST, (1 if quick else 2) * self.rollout + 1)
        wanted = self.starts + (_BEYOND_START // 5 if quick else _BEYOND_START)
        if not quick:
            wanted = max(wanted, self.episode * 11 // 10)
        return min(_MOST, max(_LEAST_QUICK if quick else _LEAST, wanted))

    def interruptions(self, timesteps: int, quick: bool) -> tuple[tuple[str, int], ...]:
        """Signals, and steps that are multiples of nothing."""
        stop, kill = ("SIGTERM", int(_STOP * timesteps) | 1), ("SIGKILL", int(_KILL * timesteps) | 1)
        if self.rollout < timesteps < 4 * self.rollout:
            # A signal stops the training at the next rollout's start: in the last one it would just complete.
            stop, kill = (
                (name, int(share * self.rollout) | 1)
                for name, share in (("SIGTERM", _STOP_ROLLOUT), ("SIGKILL", _KILL_ROLLOUT))
            )
            if timesteps <= 2 * self.rollout:
                return (("SIGKILL", stop[1]),)
        return (stop,) if quick else (stop, kill)


class _Run:
    """One run in a store of its own.

    :param changes: to the run file, as for ``--set``
    """

    def __init__(self, run_file: Path, changes: Sequence[str], folder: Path) -> None:
        self.root = str(folder / "store")
        self._folder = folder
        self.digests: list[Path] = []
        """Of each session, its file of checksums."""
        self._command = [
            *child_process.command("train_cloud", "train", str(run_file), user_code=True),
            *("--store", self.root, "--state-dir", str(folder / "state")),
            *(part for change in changes for part in ("--set", change)),
        ]

    def session(self, interruption: tuple[str, int] | None) -> None:
        """Train until it ends.

        :raises TrainCloudError: otherwise than it should
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self.digests.append(self._folder / f"digests-{len(self.digests)}")
        name, at = interruption or ("", 0)
        trial = Trial(self.digests[-1], getattr(signal, name) if name else None, at)
        variables = child_process.environment()
        environment = {key: value for key, value in variables.items() if not _is_of_a_worker(key)}
        log = self._folder / "log.txt"
        with log.open("wb") as file:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**environment, VARIABLE: trial.text()},
                start_new_session=True,  # Ctrl-C is for us, who end it
            )
            try:
                code = process.wait()
            finally:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        expected = {"": EXIT_COMPLETED, "SIGTERM": Interrupted.exit_code, "SIGKILL": -signal.SIGKILL}[name]
        if code == expected:
            return
        said = log.read_text(errors="replace")[-_LOG_CHARACTERS:].strip()
        if code == EXIT_COMPLETED:
            fix = f"the run was over before its step {at:,}, where it was to be interrupted: give more"
            raise InputError("--steps", at, fix)
        refused = [line for line in said.splitlines() if line.startswith(_REFUSAL)]
        if code == Refused.exit_code and refused:
            raise Refused(refused[-1].removeprefix(_REFUSAL))
        what = f"ended with {code}" if name else f"did not complete (exit code {code})"
        raise TrainCloudError(f"a session of the proof {what}: {said}")

    def recording(self, session: int, name: str) -> Recording:
        from train_cloud.sb3.digest import Recording, read_table

        found = read_table(self.digests[session], name)
        if found is None:
            import numpy as np

            return Recording(name, np.zeros(0, [("timesteps", "u8"), ("rolled", "u8", (4,))]), {})
        return found

    @property
    def sessions(self) -> int:
        return len(self.digests)


def _is_of_a_worker(name: str) -> bool:
    return name.startswith("TRAIN_CLOUD_") and name not in ("TRAIN_CLOUD_THREADS", "TRAIN_CLOUD_PATIENCE")


def _compared(
    config: RunFile,
    control: _Run,
    run: _Run,
    timesteps: int,
    stops: tuple[tuple[str, int], ...],
    kind: _Kind,
) -> Proof:
    from train_cloud.sb3.compare import differences
    from train_cloud.sb3.digest import first_difference, say_for_loops

    stores = [open_store(layout.run_url(each.root, config.run_id)) for each in (control, run)]
    manifests = []
    for store in stores:
        read = read_head(store)
        assert read is not None and read[0].manifest is not None
        manifests.append(read_manifest(store, read[0].manifest))
    one, other = (restore(store, manifest) for store, manifest in zip(stores, manifests, strict=True))
    found = differences(one, other, config.code.folder)
    trials = [manifest.facts.get("environment_trial") or {} for manifest in manifests]
    ways = [trial.get("provider", "") for trial in trials]
    if len(set(ways)) > 1:  # then the states are not of one kind
        found = [each for each in found if not each.startswith("state.environments")]
        told = "; ".join(f"{way}, because {trial.get('because')}" for way, trial in zip(ways, trials, strict=True))
        found.append(f"how the environment's state is saved, which was tried in each run by itself: {told}")
    scalars = [_scalars(store) for store in stores]
    tags = sorted({*scalars[0], *scalars[1]})
    found += [f"scalar {tag}" for tag in tags if scalars[0].get(tag) != scalars[1].get(tag)]
    whole = control.recording(0, "")
    firsts = [
        first_difference(whole, run.recording(session, "the uninterrupted run")) for session in range(run.sessions)
    ]
    first = min((each for each in firsts if each is not None), key=lambda each: each.timesteps, default=None)
    status = run_status(run.root, config.run_id)
    facts = manifests[0].facts
    updates = _updates(facts)
    missed = []
    if not updates:
        starts = f", learning starts at {kind.starts:,}" if kind.starts else ""
        missed.append(f"an update (trained for {timesteps:,} timesteps{starts})")
    if facts.get("episode_return") is None:
        missed.append("the end of an episode")
    if any(not session.first_timestep for session in status.sessions[1:]):
        missed.append("a checkpoint before an interruption")
    reached = [f"{updates:,} updates"] if updates else []
    reached += ["ends of episodes"] if facts.get("episode_return") is not None else []
    compared = ["parameters", "optimisers", *(["replay buffer"] if one.streams else []), "environments", "callbacks"]
    attributes, unaccounted = _accounted(run, facts.get("not_kept", ()))
    compared += ["generators", f"{len(tags)} scalars", f"observations, actions and rewards of {timesteps:,} steps"]
    if is_pytorch(facts):
        say_for_loops()
        reached, missed = (
            [f"{one.timesteps:,} iterations"],
            [each for each in missed if each.startswith("a checkpoint")],
        )
        compared = ["tensors", "optimisers", *(["rows"] if one.streams else []), "variables", "objects"]
        compared += [f"{len(tags)} scalars", f"generators and logged values of {timesteps:,} iterations"]
    return Proof(
        timesteps=one.timesteps,
        interruptions=stops,
        first=first,
        reproducible=firsts[0] is None,
        differences=found,
        because=None if status.exact is not False else status.because,
        compared=tuple(compared),
        reached=tuple(reached),
        missed=tuple(missed),
        attributes=attributes,
        unaccounted=tuple(unaccounted),
        provider=ways[0],
    )


def _accounted(run: _Run, not_kept: Sequence[str]) -> tuple[int, list[str]]:
    """Of each resume: what was there where the checkpoint was taken, and what was there once it was restored."""
    from train_cloud.sb3.accounting import RESTORED, SNAPSHOT, account, read

    taken: dict[int, Any] = {}
    equal: list[int] = []
    unaccounted: list[str] = []
    for digests in run.digests:
        for timesteps, after in read(graphs_beside(digests), RESTORED).items():
            if timesteps in taken:
                found = account(taken[timesteps], after, not_kept)
                equal.append(found.equal)
                unaccounted += found.unaccounted
        taken |= read(graphs_beside(digests), SNAPSHOT)
    return min(equal, default=0), list(dict.fromkeys(unaccounted))


def _updates(facts: Mapping[str, Any]) -> int:
    learners = facts.get("learners") or {"": facts}
    return sum(int(learner.get("algorithm", {}).get("_n_updates", 0)) for learner in learners.values())


def _scalars(store: Any) -> dict[str, list[tuple[int, float]]]:
    with tempfile.TemporaryDirectory() as folder:
        tensorboard.pull(store, Path(folder))
        found = tensorboard.read_scalars(Path(folder))
    return {tag: points for tag, points in found.items() if not tag.startswith(("time/", "system/"))}


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Gone afterwards, also when SIGTERM ends the command."""
    before: Any = None
    main = threading.current_thread() is threading.main_thread()
    if main:  # no other thread may set a handler
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="train-cloud-prove-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if main:
            signal.signal(signal.SIGTERM, before)
