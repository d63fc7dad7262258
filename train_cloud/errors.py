"""The exception tree. Only the CLI turns one of these into a message and an exit code.

::

    TrainCloudError                    1   failed
    ├── InputError (ValueError)       64   a run file, option or variable is wrong: fix it, nothing was changed
    │   ├── Findings                  64   several of them at once, a line each
    │   └── NotYet                    64   valid in the schema, not implemented in this version
    ├── Refused                       64   the same, found by a process of ours
    ├── NotInstalled                  64   it takes an extra of the package that is not installed
    ├── Interrupted                   75   stopped by a signal after a commit; the next session goes on from it
    ├── Fenced                        73   a newer worker owns the run; this one may not commit
    ├── NotExact                       1   interrupted and resumed, a run came to another result than uninterrupted
    ├── CorruptCheckpoint              1   an object's size or checksum is not what its manifest says
    │   └── HeadMissing                1   a run has left checkpoints or sessions, and its head is gone
    ├── DataError                      1   an object of the training data is damaged, or no image
    │   └── DataChanged                1   the objects are not those that the index names any more
    ├── StoreError                     1
    │   ├── ObjectMissing              1   a LIST shows that the key does not exist
    │   ├── ConditionFailed            1   create: the key exists; swap: the object is not the one that was read
    │   ├── StoreForbidden             1   the credentials may not do this
    │   │   └── CredentialsExpired     1   they could until a while ago, or S3 knows no such ones
    │   ├── BucketMissing              1   there is no such bucket; a file stands where the local folder should be
    │   └── StoreUnavailable           1   network, time-out, 5xx, throttling: worth another try
    └── CloudError                     1   the metadata service, Auto Scaling or systemd refused
        ├── CloudForbidden             1   the role or credentials may not do this
        └── CloudUnavailable           1   network, time-out, 5xx, throttling, nonsense: worth another try

The exit codes follow sysexits.h: 64 EX_USAGE, 73 EX_CANTCREAT, 75 EX_TEMPFAIL.
"""

from __future__ import annotations

from collections.abc import Sequence

from train_cloud.safe_text import is_private, masked

EXIT_COMPLETED = 0


class TrainCloudError(Exception):
    """Root of every error that this package raises on purpose."""

    exit_code = 1


class InputError(TrainCloudError, ValueError):
    """A value given by the user cannot be used.

    :param field: what the user wrote it under, e.g. ``save_frequency`` or ``environment.id``
    :param value: the refused value
    :param fix: what to write or do instead, as a clause: "give a number of at least 1"
    """

    exit_code = 64
    beside: tuple[InputError, ...] = ()
    """What was found besides, where all is told at once."""

    def __init__(self, field: str, value: object, fix: str) -> None:
        self.field = field
        self.value = value
        self.fix = fix
        super().__init__(f"{field}: {_shown(field, value)}: {fix}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, object, str]]:
        """From process to process: an exception's own way gives the constructor the message alone."""
        return type(self), (self.field, self.value, self.fix)


def _shown(field: str, value: object) -> str:
    """Of what may be a secret not even a wrong one is shown."""
    if value is None:
        return "None"
    if is_private(field) or (field == "--set" and is_private(str(value))):
        return "***"
    if isinstance(value, dict):
        value = {key: "***" if is_private(str(key)) else item for key, item in value.items()}
    return masked(repr(value))


class Findings(InputError):
    """Several values that cannot be used; each is told on a line of its own.

    :ivar every: the findings, at least one
    """

    def __init__(self, every: Sequence[InputError]) -> None:
        self.every = tuple(every)
        first = self.every[0]
        super().__init__(first.field, first.value, first.fix)
        self.args = ("\n".join(str(each) for each in self.every),)

    def __reduce__(self) -> tuple[type[Findings], tuple[tuple[InputError, ...]]]:  # type: ignore[override]
        return type(self), (self.every,)


class Refused(TrainCloudError):
    """A process of ours has refused what the user gave; the message is its own."""

    exit_code = InputError.exit_code


class NotInstalled(TrainCloudError):
    """A library is missing that an extra of the package brings.

    :param module: that cannot be imported
    :param extra: brings it
    :param what: needs it, as the subject of a sentence
    """

    exit_code = InputError.exit_code

    def __init__(self, module: str, extra: str, what: str) -> None:
        self.module, self.extra, self.what = module, extra, what
        super().__init__(f"{what} needs {module}, which is not installed: pip install 'train-cloud[{extra}]'")

    def __reduce__(self) -> tuple[type[NotInstalled], tuple[str, str, str]]:
        return type(self), (self.module, self.extra, self.what)


class NotYet(InputError):
    """A section of the run file that the schema knows and this version does not carry out."""


class Interrupted(TrainCloudError):
    """The run was stopped by a signal; what it had reached is committed."""

    exit_code = 75


class Fenced(TrainCloudError):
    """Another worker has taken the run since; nothing was written."""

    exit_code = 73


class NotExact(TrainCloudError):
    """A run that was interrupted and resumed came to another result than the same run without interruption."""


class CorruptCheckpoint(TrainCloudError):
    """A stored object differs from what its manifest (or the head) says about it."""


class HeadMissing(CorruptCheckpoint):
    """The head is gone, and what lies there shows that there was one: no new run may begin on top of it."""


class DataError(TrainCloudError):
    """Something among the training data cannot be used; the message names it."""


class DataChanged(DataError):
    """What lies there is not what the index names any more; the message says which objects."""


class StoreError(TrainCloudError):
    """An object store did not do what was asked."""


class ObjectMissing(StoreError):
    """The key does not exist; established by a LIST, never by a 403 or 404 alone."""


class ConditionFailed(StoreError):
    """A conditional write lost: the key exists already, or its e-tag has changed."""


class StoreForbidden(StoreError):
    """The credentials are not allowed to do this."""


class CredentialsExpired(StoreForbidden):
    """The credentials are no longer valid; others may come in their place."""


class BucketMissing(StoreError):
    """The bucket does not exist."""


class StoreUnavailable(StoreError):
    """Temporary: network, time-out, throttling or a server error, after the client's own retries."""


class CloudError(TrainCloudError):
    """The instance's surroundings (metadata service, Auto Scaling, systemd) did not do what was asked."""


class CloudForbidden(CloudError):
    """The instance's role, or the user's credentials, are not allowed to do this."""


class CloudUnavailable(CloudError):
    """Temporary: network, time-out, throttling, a server error, or an answer that makes no sense."""


def suggestion(name: str, known: tuple[str, ...]) -> str | None:
    """``did you mean …?`` where one of the known names is close."""
    from difflib import get_close_matches

    close = get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else None
