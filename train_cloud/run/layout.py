"""Where the objects of one run lie, relative to ``<root>/runs/<run_id>/``. One builder per key, used by every writer
and reader.
"""

from __future__ import annotations

import re

from train_cloud.errors import InputError

HEAD = "head.json"
RUN_YAML = "run.yaml"
RUN_JSON = "run.json"
OVERRIDES = "overrides-"
CHECKPOINTS = "checkpoints/"
#: Of a checkpoint's parts, the one with scalars and rows of tables that had not been sent (artifacts/logged.py).
LOGGED = "logged"
#: The one with the digests of the code folder's files, as they were when the run was launched (config/code.py).
CODE = "code"
#: Parts that are the content of large arrays of others: behind it the content's name.
CONTENT = "content/"
REPLAY = "replay/"
SESSIONS = "sessions/"
BOOTS = "boots/"
TOLD = "told/"
LAUNCHED = "launched/"
ARTIFACTS = "artifacts/"
TENSORBOARD = "artifacts/tensorboard/"
FINAL = "artifacts/final/"
SESSION_LOGS = "artifacts/logs/"
BOOT_LOGS = "logs/"
EVALUATIONS = "evaluations/"
#: Jobs of a service that were created for it, and what each was told to do.
JOBS = "jobs/"
LAUNCHES = "launches/"
#: That somebody wants a run to go on which a callback had ended.
CONTINUED = "continued/"


def is_run_id(name: str) -> bool:
    """Whether a run can be called so (``run_id`` in docs/run-file.md)."""
    return re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name) is not None


def run_url(root: str, run_id: str) -> str:
    """The URL of one run's folder under a store root (``s3://bucket/prefix`` or a local folder).

    :raises InputError: the root is empty: below nothing, a run would lie in the root of the file system
    """
    if not root.strip() or root.rstrip("/") in ("s3:", "file:"):
        raise InputError("--store", root, "give s3://bucket/prefix or a local folder")
    return f"{root.rstrip('/')}/{run_folder(run_id)}"


def run_folder(run_id: str) -> str:
    """A run's folder, relative to the store's root."""
    return f"runs/{run_id}"


def experiment_key(experiment: str) -> str:
    """What a launch says of an experiment, relative to the store's root."""
    return f"experiments/{experiment}/experiment.json"


def pipeline_folder(pipeline_id: str) -> str:
    """What is a pipeline's own, relative to the store's root: files for readers; on AWS what its machines boot from,
    and the head that says how it ended. Its runs lie where all runs do.
    """
    return f"pipelines/{pipeline_id}"


def run_id_of(url: str) -> str:
    """Id of the run whose folder has this URL: its last part."""
    return url.rstrip("/").rsplit("/", 1)[-1]


def root_of(url: str) -> str:
    """The store root that a run's folder lies under, as :func:`run_url` was given it; a URL of another form stays."""
    return url.rstrip("/").removesuffix(f"/runs/{run_id_of(url)}")


def token_text(token: tuple[int, int]) -> str:
    """A fencing token as it stands in keys: sorts as text the way it sorts as numbers."""
    return f"{token[0]:06d}.{token[1]:04d}"


def checkpoint_prefix(timesteps: int, token: tuple[int, int], seq: int) -> str:
    """Folder of one checkpoint's manifest and parts, with a trailing slash."""
    return f"{CHECKPOINTS}{timesteps:012d}-{token_text(token)}-{seq:06d}/"


def segment_key(stream: str, first: int, last: int, token: tuple[int, int], seq: int) -> str:
    """A slice ``[first, last)`` of an append-only stream of rows, e.g. the replay buffer."""
    return f"{REPLAY}{stream}/{first:012d}-{last:012d}-{token_text(token)}-{seq:06d}"


_MANIFEST = re.compile(r"checkpoints/(\d{12,})-(\d{6,})\.(\d{4,})-(\d{6,})/manifest\.json")
_SEGMENT = re.compile(r"replay/.+/\d{12,}-\d{12,}-(\d{6,})\.(\d{4,})-(\d{6,})")
_RECORD = re.compile(r"sessions/(\d{6,})/(start|progress|end(?:-\d+)?|notice-\d+)\.json")


def manifest_of(key: str) -> tuple[int, tuple[int, int], int] | None:
    """Timesteps, token and number of the checkpoint whose manifest has this key; None for any other key."""
    found = _MANIFEST.fullmatch(key)
    return (int(found[1]), (int(found[2]), int(found[3])), int(found[4])) if found else None


def segment_of(key: str) -> tuple[tuple[int, int], int] | None:
    """Token and number of the segment with this key; None for any other key."""
    found = _SEGMENT.fullmatch(key)
    return ((int(found[1]), int(found[2])), int(found[3])) if found else None


def record_of(key: str) -> tuple[int, str, int] | None:
    """Session, kind (``start``, ``progress``, ``end`` or ``notice``) and number of the record with this key; None for
    any other key.
    """
    found = _RECORD.fullmatch(key)
    if found is None:
        return None
    kind, _, number = found[2].partition("-")
    return int(found[1]), kind, int(number or 0)


def start_key(session: int) -> str:
    return f"{SESSIONS}{session:06d}/start.json"


def end_key(session: int, restart: int = 0) -> str:
    """How a session's process ended; each restart within a boot ends once."""
    return f"{SESSIONS}{session:06d}/end{f'-{restart}' if restart else ''}.json"


def progress_key(session: int) -> str:
    return f"{SESSIONS}{session:06d}/progress.json"


def notice_key(session: int, number: int) -> str:
    return f"{SESSIONS}{session:06d}/notice-{number}.json"


def overrides_key(number: int) -> str:
    return f"{OVERRIDES}{number}.json"


def overrides_number(key: str) -> int | None:
    """The inverse of :func:`overrides_key`; None for any other key."""
    found = re.fullmatch(rf"{OVERRIDES}(\d+)\.json", key)
    return int(found[1]) if found else None


def boot_key(number: int, instance_id: str) -> str:
    return f"{BOOTS}{number:06d}-{instance_id}"


def session_log_key(session: int) -> str:
    """What a session's training process has said."""
    return f"{SESSION_LOGS}session-{session:06d}.log"


def evaluation_key(timesteps: int) -> str:
    """What the evaluation of the checkpoint at ``timesteps`` found."""
    return f"{EVALUATIONS}{timesteps:012d}.json"


def evaluated_at(key: str) -> int | None:
    """The inverse of :func:`evaluation_key`; None for any other key."""
    found = re.fullmatch(rf"{EVALUATIONS}(\d{{12,}})\.json", key)
    return int(found[1]) if found else None


def job_key(name: str) -> str:
    """That a job of this name was created, or was about to be."""
    return f"{JOBS}{name}.json"


def launch_key(digest: str) -> str:
    """What a job was told to do, by the SHA-256 (hexadecimal) of its bytes."""
    return f"{LAUNCHES}{digest}.json"


def told_key(session: int, news: str) -> str:
    """A record that people were told how a session went; without its ``.json`` a prefix of such keys."""
    return f"{TOLD}{session:06d}-{news}"


def continued_key(timesteps: int) -> str:
    """A record that the run is to go on where a callback had ended it at ``timesteps``."""
    return f"{CONTINUED}{timesteps:012d}.json"
