"""What a run's variables hold that nobody is to read: masked in this process, warned about where it stands in clear."""

from __future__ import annotations

import logging
import os

from train_cloud.config import RunFile
from train_cloud.safe_text import hide, looks_like_a_key

log = logging.getLogger(__name__)

#: A shorter value under such a name is more often a word than a key, and would be missed in ordinary text.
_LEAST_CHARACTERS = 8


def hide_variables(run_file: RunFile, *, warn: bool = False) -> None:
    """Mask the values of ``secrets`` that are set here, and of ``env`` where a name looks like a key's.

    :param warn: say once that the latter stand in clear
    """
    keys = {name: value for name, value in run_file.env.items() if looks_like_a_key(name)}
    hide({name: os.environ[name] for name in run_file.secrets if name in os.environ})
    hide({name: value for name, value in keys.items() if len(value) >= _LEAST_CHARACTERS})
    if warn and keys:
        log.warning(
            "env.%s: the name looks like a key's, and what stands in the run file lies in clear in the store and in "
            "each checkpoint: put it into an SSM parameter (here: a variable), and name that under secrets",
            ", env.".join(keys),
        )
