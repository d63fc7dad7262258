"""Text on its way out of a process: without the values of secrets, and, to a terminal, without control characters.

Secrets are environment variables, and any exception, address or printed object may show one. Who reads one calls
:func:`hide`; from then on every text that this process writes to a log, a record, a report or a service goes through
:func:`masked`. Processes that it starts find the variables' names in their environment.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import IO, Any
from urllib.parse import quote, quote_plus

#: Names of the variables that a parent process has hidden, for its children.
VARIABLE = "TRAIN_CLOUD_HIDDEN"
#: Shorter ones would make holes in ordinary text.
LEAST_CHARACTERS = 4
_LEAST_LINE = 12

#: Names of variables whose values look like keys.
_KEY_NAME = re.compile(
    r"(^|_)(TOKENS?|KEYS?|APIKEY|SECRETS?|PASSWORDS?|PASSWD|PASSPHRASE|PASS|PWD|CREDENTIALS?|AUTH)(_|$)", re.IGNORECASE
)
#: Fields of a run file, options and headers whose values are shown to nobody.
_PRIVATE_FIELD = re.compile(
    r"(^|\W)(env|secrets|webhook)(\W|$)|token|secret|passw|api_?key|access_?key|private_?key|credential|authorization",
    re.IGNORECASE,
)
_USER_IN_URL = re.compile(r"(?<=://)[^/\s:@'\"]*:[^/\s@'\"]+(?=@)")
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI, as colours (ECMA-48, 5.4)
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"  # OSC, DCS, SOS, PM, APC: up to their terminator
    r"|\x1b[ -/]*[0-~]",
    re.DOTALL,
)
#: C0 but tab and line feed, DEL, C1, and what turns the direction of writing.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

_hidden: dict[str, str] = {}
_pattern: re.Pattern[str] | None = None


def looks_like_a_key(name: str) -> bool:
    """Whether a variable of this name probably holds a secret."""
    return _KEY_NAME.search(name) is not None


def is_private(field: str) -> bool:
    """Whether a field's value may be a secret, and is not to be shown."""
    return _PRIVATE_FIELD.search(field) is not None


def hide(values: Mapping[str, str]) -> None:
    """Mask these from now on, here and in processes started from here, which have them as variables too.

    :param values: by the names of environment variables
    """
    global _pattern
    for name, value in values.items():
        for form in _forms(value):
            _hidden.setdefault(form, f"[{name}]")
    if not _hidden:
        return
    _pattern = re.compile("|".join(re.escape(form) for form in sorted(_hidden, key=len, reverse=True)))
    names = dict.fromkeys([*os.environ.get(VARIABLE, "").split(","), *values])
    os.environ[VARIABLE] = ",".join(filter(None, names))


def adopt() -> None:
    """In a process that was started: hide what its parent hides. What it prints itself, :func:`guard` masks."""
    names = os.environ.get(VARIABLE, "").split(",")
    hide({name: os.environ[name] for name in names if name in os.environ})


def masked(text: str) -> str:
    """The text with the names of hidden values in their place."""
    if "://" in text:
        text = _USER_IN_URL.sub("***", text)
    return text if _pattern is None else _pattern.sub(lambda found: _hidden[found[0]], text)


def masked_values(value: Any) -> Any:
    """The same for every text in JSON values."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {key: masked_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked_values(item) for item in value]
    return value


def clean(text: str) -> str:
    """For a terminal: without what it would take for a command. A carriage return, of a progress bar, ends the line."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


def clean_values(value: Any) -> Any:
    """The same for every text in JSON values."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean_values(key): clean_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_values(item) for item in value]
    return value


def guard() -> None:
    """From here on, what goes through ``sys.stdout`` and ``sys.stderr`` is masked; and the traceback that ends this
    process is masked and cleaned.
    """
    sys.stdout, sys.stderr = (_Masked(stream) for stream in (sys.stdout, sys.stderr))
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = show_traceback


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """:func:`guard`, for as long as this lasts."""
    before = sys.stdout, sys.stderr
    guard()
    try:
        yield
    finally:
        for name, stream in zip(("stdout", "stderr"), before, strict=True):
            if isinstance(getattr(sys, name), _Masked):
                setattr(sys, name, stream)


def show_traceback(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    """As Python does it, masked and cleaned."""
    sys.stderr.write(clean(masked("".join(traceback.format_exception(kind, error, trace)))))


class _Masked:
    """A stream that shows no secret."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(masked(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _forms(value: str) -> Iterator[str]:
    """How a value may stand in a text."""
    plain = value.strip()
    if len(plain) < LEAST_CHARACTERS:
        return
    lines = [line.strip() for line in plain.splitlines()] if "\n" in plain else []
    for form in (value, plain, *(line for line in lines if len(line) >= _LEAST_LINE)):
        yield form
        yield quote(form, safe="")
        yield quote_plus(form)
        yield json.dumps(form)[1:-1]
        yield repr(form)[1:-1]
    encoded = base64.b64encode(plain.encode()).decode().rstrip("=")
    if len(encoded) >= _LEAST_LINE:
        yield encoded
