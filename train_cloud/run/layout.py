"""Where the objects of one run lie, relative to ``<root>/runs/<run_id>/``. One builder per key, used by every writer
and reader.
"""

from __future__ import annotations

import re

HEAD = "head.json"
RUN_YAML = "run.yaml"
RUN_JSON = "run.json"
OVERRIDES = "overrides-"
CHECKPOINTS = "checkpoints/"
#: Of a checkpoint's parts, the one with scalars and rows of tables that had not been sent (artifacts/logged.py).
LOGGED = "logged"
#: The one with the digests of the code folder's files, as they were when the run was launched (config/code.py).
CODE = "code"
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


def run_url(root: str, run_id: str) -> str:
    """The URL of one run's folder under a store root (``s3://bucket/prefix`` or a local folder)."""
    return f"{root.rstrip('/')}/runs/{run_id}"


def token_text(token: tuple[int, int]) -> str:
    """A fencing token as it stands in keys: sorts as text the way it sorts as numbers."""
    return f"{token[0]:06d}.{token[1]:04d}"


def checkpoint_prefix(timesteps: int, token: tuple[int, int], seq: int) -> str:
    """Folder of one checkpoint's manifest and parts, with a trailing slash."""
    return f"{CHECKPOINTS}{timesteps:012d}-{token_text(token)}-{seq:06d}/"


def segment_key(stream: str, first: int, last: int, token: tuple[int, int], seq: int) -> str:
    """A slice ``[first, last)`` of an append-only stream of rows, e.g. the replay buffer."""
    return f"{REPLAY}{stream}/{first:012d}-{last:012d}-{token_text(token)}-{seq:06d}"


def start_key(session: int) -> str:
    return f"{SESSIONS}{session:06d}/start.json"


def end_key(session: int) -> str:
    return f"{SESSIONS}{session:06d}/end.json"


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


def told_key(session: int, news: str) -> str:
    """A record that people were told how a session went; without its ``.json`` a prefix of such keys."""
    return f"{TOLD}{session:06d}-{news}"
