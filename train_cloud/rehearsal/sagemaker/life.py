"""The life of a training job, from its creation to its last status, around a container of it.

The order of the statuses is that of "Managed Spot Training Lifecycle" (SageMaker AI Developer Guide) and of
"DescribeTrainingJob" (API Reference).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from train_cloud.errors import TrainCloudError
from train_cloud.rehearsal.sagemaker.containers import Container, prepare
from train_cloud.rehearsal.sagemaker.service import Job
from train_cloud.runtime.heartbeat import read_timesteps

#: From SIGTERM to SIGKILL.
STOP_SECONDS = 120.0
_LOOK_SECONDS = 0.1
_LONGEST_REASON = 1024


class Life:
    """Plays one job. Whoever directs it says when the machine is taken, or its time is over.

    :param folder: receives an ``ml`` folder and a log for each start of the container
    :param start: starts a container: its ``/opt/ml``, variables, and a log file
    :param tell: is told what happens
    :param capacity: whether there is a spot machine for it
    """

    def __init__(
        self,
        job: Job,
        folder: Path,
        start: Callable[[Path, dict[str, str], Path], Container],
        tell: Callable[[str], None],
        *,
        capacity: bool = True,
    ) -> None:
        self.job = job
        self._folder, self._start, self._tell, self._capacity = folder, start, tell, capacity
        self._cut, self._out_of_time, self._gone = threading.Event(), threading.Event(), threading.Event()
        self.container: Container | None = None
        self.starts = 0
        self.exit_codes: list[int | None] = []
        """Of the containers, in order; None where the machine went first."""
        self.stop_seconds: list[float] = []
        """From SIGTERM to the end of each container that got one."""
        self.error: BaseException | None = None

    # ---------------------------------------------------------------------------------------- for who directs it

    def cut(self) -> None:
        """The spot machine is taken: SIGTERM, and two minutes; :meth:`machine_goes` ends them."""
        self._cut.set()

    def out_of_time(self) -> None:
        """MaxRuntimeInSeconds are over; of a job that waits for a machine, MaxWaitTimeInSeconds."""
        self._out_of_time.set()

    def machine_goes(self) -> None:
        """The machine that was cut goes now."""
        self._gone.set()

    def close(self) -> None:
        """End what is left of it."""
        self.job.stop_asked.set()
        if self.container is not None:
            self.container.kill()

    def log(self) -> str:
        """All that its containers have said."""
        return "".join(path.read_text(errors="replace") for path in sorted(self._folder.glob("container-*.log")))

    @property
    def timesteps(self) -> int:
        """That the trainer in its newest container has taken; 0 before it trains."""
        try:
            return read_timesteps(self._folder / f"ml-{self.starts}" / "train-cloud" / "state")
        except FileNotFoundError:
            return 0

    # -------------------------------------------------------------------------------------------------- the life

    def play(self) -> None:
        """To its last status."""
        try:
            self._play()
        except BaseException as error:
            self.error = error
            self.job.failure = f"InternalServerError: {error}"
            self._enter("Failed", "Training job failed")
            raise

    def _enter(self, secondary: str, message: str = "") -> None:
        self._tell(secondary + (f": {message}" if message else ""))
        self.job.enter(secondary, message)

    def _play(self) -> None:
        if not self._capacity and not self._wait_for_capacity():
            return
        while True:
            self._enter("Downloading", "Downloading the training image")
            self.container = container = self._new_container()
            self._enter("Training", "Training image download completed. Training in progress.")
            while not (container.poll() is not None or self._asked()):
                time.sleep(_LOOK_SECONDS)
            if container.poll() is not None and not self._asked():
                self._exited(container)
                return
            if self.job.stop_asked.is_set() or self._out_of_time.is_set():
                self._stopped(container)
                return
            self._interrupted(container)

    def _asked(self) -> bool:
        return any(event.is_set() for event in (self.job.stop_asked, self._cut, self._out_of_time))

    def _wait_for_capacity(self) -> bool:
        while not self._asked():
            time.sleep(_LOOK_SECONDS)
        late = self._out_of_time.is_set()
        self._enter("Stopping", "Stopping the training job")
        self._enter("MaxWaitTimeExceeded" if late else "Stopped", "No spot machine came in time" if late else "")
        return False

    def _new_container(self) -> Container:
        self.starts += 1
        place = self._folder / f"ml-{self.starts}"
        prepare(place, self.job.request)
        variables = {
            **self.job.request.get("Environment", {}),
            "TRAINING_JOB_NAME": self.job.name,
            "TRAINING_JOB_ARN": self.job.arn,
        }
        return self._start(place, variables, self._folder / f"container-{self.starts}.log")

    def _exited(self, container: Container) -> None:
        code = container.poll()
        self.exit_codes.append(code)
        if code == 0:
            self._enter("Uploading", "Uploading generated training model")
            self._enter("Completed", "Training job completed")
            return
        path = self._folder / f"ml-{self.starts}" / "output" / "failure"
        said = path.read_text()[:_LONGEST_REASON] if path.is_file() else ""
        self.job.failure = f"AlgorithmError: {said}, exit code: {code}"
        self._enter("Uploading", "Uploading generated training model")
        self._enter("Failed", "Training job failed")

    def _stopped(self, container: Container) -> None:
        late = self._out_of_time.is_set()
        self._enter("Stopping", "Stopping the training job")
        self._end(container, lambda: container.poll() is not None)
        self._enter("Uploading", "Uploading generated training model")
        self._enter("MaxRuntimeExceeded" if late else "Stopped", "Training job runtime exceeded" if late else "")

    def _interrupted(self, container: Container) -> None:
        self._end(container, self._gone.is_set)
        if container.poll() is not None and self.exit_codes[-1] is not None:
            raise TrainCloudError(f"a container that a spot machine was taken from left with {self.exit_codes[-1]}")
        self._cut.clear()
        self._gone.clear()
        self._enter("Interrupted", "The spot machine was taken")
        self._enter("Starting", "Launching requested ML instances")

    def _end(self, container: Container, over: Callable[[], bool]) -> None:
        began = time.monotonic()
        container.terminate()
        while not over() and container.poll() is None and time.monotonic() < began + STOP_SECONDS:
            time.sleep(_LOOK_SECONDS)
        self.stop_seconds.append(time.monotonic() - began)
        self.exit_codes.append(container.poll())
        container.kill()
