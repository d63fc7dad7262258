"""The program's own environment variables, which are numbers."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

from train_cloud.errors import InputError


class _Variable(NamedTuple):
    least: float
    whole: bool = False


THREADS = "TRAIN_CLOUD_THREADS"
STORE_RETRY_TIMEOUT = "TRAIN_CLOUD_STORE_PATIENCE"
STOP_SECONDS = "TRAIN_CLOUD_STOP_SECONDS"
PRICE_SECONDS = "TRAIN_CLOUD_PRICE_SECONDS"
MAX_ATTEMPTS = "TRAIN_CLOUD_MAX_ATTEMPTS"
#: Set by ours for ours: the process whose end is this one's too.
PARENT = "TRAIN_CLOUD_PARENT"
_VARIABLES = {
    THREADS: _Variable(1, whole=True),
    STORE_RETRY_TIMEOUT: _Variable(1e-3),
    STOP_SECONDS: _Variable(0),
    PRICE_SECONDS: _Variable(0),
    MAX_ATTEMPTS: _Variable(1, whole=True),
    PARENT: _Variable(0, whole=True),
}


def number(name: str, default: float) -> float:
    """The variable's value, or the default where it is not set or empty.

    :raises InputError: it is no number, or too small
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    least, whole = _VARIABLES[name]
    try:
        value: float = int(text) if whole else float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise InputError(name, text, f"give a {'whole ' if whole else ''}number of at least {least:g}, or unset it")
    return value


def check_all() -> None:
    """:raises InputError: one of them is wrong; for whoever reads them later, where nobody could be told"""
    for name in _VARIABLES:
        number(name, 0)
