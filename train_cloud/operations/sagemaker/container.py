"""The entry point of a training job: fetch what was launched, train it, and end with what SageMaker is to know.

It stays beside the trainer, small and without torch, so that a trainer that is killed still has somebody who says so.

Sources: "How Amazon SageMaker AI Provides Training Information" and "How Amazon SageMaker AI Signals Algorithm Success
and Failure" (SageMaker AI Developer Guide): what is below ``/opt/ml``, that exit code 0 is Completed and any other one
Failed, with the first 1024 characters of ``/opt/ml/output/failure`` as the reason. "StopTrainingJob" (API Reference):
SIGTERM, and 120 seconds. "Managed Spot Training Lifecycle" (Developer Guide).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from train_cloud import child_process
from train_cloud.config import load_run_file, variables
from train_cloud.config.pipeline import load_pipeline
from train_cloud.errors import (
    EXIT_COMPLETED,
    CloudError,
    Fenced,
    InputError,
    Interrupted,
    StoreError,
    TrainCloudError,
)
from train_cloud.operations.requirements import pip_arguments
from train_cloud.platforms.sagemaker.job import PLACE, Place
from train_cloud.platforms.sagemaker.jobs import Jobs
from train_cloud.platforms.sagemaker.launched import Launched, fetch_code, read_launch
from train_cloud.platforms.unattended import RUN_ID
from train_cloud.run import layout
from train_cloud.run.exit_record import note_kill
from train_cloud.run.head import Head, read_head
from train_cloud.safe_text import masked
from train_cloud.store import ObjectStore, open_store

ROOT = Path("/opt/ml")
_LONGEST_REASON = 1024
#: With the trainer's own count of failures, which is in the head: these are starts that left nothing there.
_MOST_STARTS = 20
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0
#: SageMaker kills after 120.
_STAY_SECONDS = 150.0
_ASK_SECONDS = 3.0
_INSTALL_SECONDS = 1800.0
log = logging.getLogger(__name__)


class _Ended:
    """How a trainer ended, for the exit record."""

    def __init__(self, code: int) -> None:
        self._code = code

    @property
    def killed(self) -> bool:
        return self._code < 0

    def in_words(self) -> str:
        if not self.killed:
            return f"ended with exit status {self._code}"
        number = -self._code
        name = signal.Signals(number).name if number in set(signal.Signals) else "signal"
        memory = "; SIGKILL is also what a machine without memory sends" if number == signal.SIGKILL else ""
        return f"was killed by {name} ({number}){memory}"


class Container:
    """One container of a job.

    :param root: ``/opt/ml``
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._work = root / "train-cloud"
        self._stop = threading.Event()
        self._trainer: subprocess.Popen[bytes] | None = None
        self._boot_id = uuid.uuid4().hex
        self._job = os.environ.get("TRAINING_JOB_NAME", "")
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()
        trainer = self._trainer
        if trainer is not None and trainer.poll() is None:
            trainer.send_signal(signal.SIGTERM)

    def run(self) -> int:
        """Train to the end of what was launched, or until SageMaker asks to stop.

        :return: the exit code: 0 where there is an outcome that is no failure
        """
        try:
            told = self._told()
            root = open_store(told["store"])
            launched = read_launch(root, told["launch"])
            stores = [open_store(layout.run_url(told["store"], run_id)) for run_id in launched.run_ids]
            code = None if launched.several else self._over(stores)
            if code is not None:
                return code
            environment = self._prepare(root, launched)
            return self._train(launched, told["store"], stores, environment)
        except TrainCloudError as error:
            return self._failed(str(error), error.exit_code)

    def _told(self) -> Mapping[str, str]:
        """:raises InputError: the job was not created by ``train-cloud launch``"""
        path = self._root / "input" / "config" / "hyperparameters.json"
        try:
            told = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(str(path), None, f"it takes a training job that launch has created: {error}") from error
        for name in ("store", "launch"):
            if not isinstance(told.get(name), str):
                raise InputError(f"hyperparameters.{name}", told.get(name), "create the job with train-cloud launch")
        return dict(told)

    def _prepare(self, root: ObjectStore, launched: Launched) -> dict[str, str]:
        """Write what was launched to the job's volume, and install what it needs.

        :return: variables for the trainer
        """
        self._work.mkdir(parents=True, exist_ok=True)
        for name, text in launched.files.items():
            path = self._work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        overrides = self._work / "overrides.json"
        overrides.write_text(json.dumps(dict(launched.overrides)))
        found = {"TRAIN_CLOUD_OVERRIDES": str(overrides)}
        if not launched.several:
            found[RUN_ID] = launched.run_ids[0]
        if launched.code is not None:
            fetch_code(root, launched.code, self._work / "code")
            found["TRAIN_CLOUD_CODE"] = str(self._work / "code")
        place = Place(job=self._job or "unknown", boot_id=self._boot_id, machine=launched.machine)
        found[PLACE] = place.model_dump_json()
        os.environ.update(found)
        self._install(launched)
        return child_process.environment(**found, **{variables.PARENT: str(os.getpid())})

    def _install(self, launched: Launched) -> None:
        """What the runs need besides the image, by pip: where it is there already, this asks no index.

        :raises TrainCloudError: pip fails
        """
        main = self._work / launched.main
        configs = (
            [load_run_file(main)] if not launched.several else [one.config for one in load_pipeline(main).sessions]
        )
        arguments = list(dict.fromkeys(
            word for config in configs for word in pip_arguments(config)
        ))  # fmt: skip
        if not arguments:
            return
        log.info("pip install %s", " ".join(arguments))
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, errors="replace", timeout=_INSTALL_SECONDS
        )
        if done.returncode:
            raise TrainCloudError(f"pip install {' '.join(arguments)}: {done.stderr.strip()[-600:]}")

    def _train(self, launched: Launched, store: str, stores: list[ObjectStore], environment: Mapping[str, str]) -> int:
        state = self._work / "state"
        options = ["--output-dir" if launched.several else "--state-dir", str(state), *launched.options]
        main = str(self._work / launched.main)
        command = child_process.command("train_cloud", *launched.command, main, "--store", store, *options)
        pause = _FIRST_PAUSE
        for _ in range(_MOST_STARTS):
            if self._stop.is_set():
                return self._leave()
            self._trainer = subprocess.Popen(command, env=environment, cwd=self._work, stdin=subprocess.DEVNULL)
            if self._stop.is_set():  # between the two
                self._trainer.send_signal(signal.SIGTERM)
            code = self._trainer.wait()
            if code == EXIT_COMPLETED:
                return self._over(stores) or EXIT_COMPLETED
            if self._stop.is_set():
                return self._leave()
            if code in (InputError.exit_code, Fenced.exit_code) or (launched.several and code > 0):
                reason = self._reason(stores) or _Ended(code).in_words()
                return self._failed("a newer worker has the run" if code == Fenced.exit_code else reason, code)
            over = None if launched.several else self._over(stores)
            if over is not None:
                return over
            ended = _Ended(code)
            log.warning("the trainer %s; it is started again in %.0f s", ended.in_words(), pause)
            state.mkdir(parents=True, exist_ok=True)
            note_kill(state, self._boot_id, ended)
            self._stop.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return self._failed(f"{_MOST_STARTS} starts of the trainer left no outcome: see the log", 1)

    def _over(self, stores: list[ObjectStore]) -> int | None:
        """The exit code, where all runs have an outcome or one has failed; None where there is something to train."""
        heads = [_head(store) for store in stores]
        failed = next((head for head in heads if head is not None and head.outcome == "failed"), None)
        if failed is not None and len(stores) == 1:
            return self._failed(failed.reason or "the run has failed", 1)
        if all(head is not None and head.outcome is not None for head in heads):
            outcomes = ", ".join(sorted({str(head.outcome) for head in heads if head is not None}))
            log.info("nothing to do any more: %s", outcomes)
            return EXIT_COMPLETED
        return None

    def _reason(self, stores: list[ObjectStore]) -> str | None:
        heads = [_head(store) for store in stores]
        return next((head.reason for head in heads if head is not None and head.reason), None)

    def _leave(self) -> int:
        """What is committed is committed; what is left to say is nothing that ends the job wrongly.

        After `stop` the job is Stopping, and any end will do. At a spot interruption it is not: 0 would read as
        Completed and anything else as Failed, and SageMaker would not start it again. So this stays until it is killed.
        """
        until = time.monotonic() + _STAY_SECONDS
        log.info("asked to stop: all is committed; waiting for what SageMaker does")
        while time.monotonic() < until:
            if self._stopping():
                log.info("the job is being stopped: launch it again to go on")
                return EXIT_COMPLETED
            time.sleep(_ASK_SECONDS)
        return self._failed("interrupted with all committed: launch it again to go on", Interrupted.exit_code)

    def _stopping(self) -> bool:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if not (self._job and region):
            return False
        try:
            state = Jobs(region).state(self._job)
        except CloudError as error:
            log.info("%s", error)
            return False
        return state is not None and state.status in ("Stopping", "Stopped")

    def _failed(self, reason: str, code: int) -> int:
        """Leave the reason where SageMaker looks for it."""
        reason = " ".join(masked(reason).split())
        log.error("%s", reason)
        path = self._root / "output" / "failure"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(reason[:_LONGEST_REASON])
        return code or 1


def _head(store: ObjectStore) -> Head | None:
    """None where there is none, or where nobody says."""
    try:
        read = read_head(store)
    except StoreError as error:
        log.warning("%s", error)
        return None
    return read[0] if read is not None else None
