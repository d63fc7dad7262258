"""Python's global random generator belongs to the training: what draws from it in between changes what is learned.

botocore does, in whatever thread: where it fetches an instance's credentials (``botocore.utils``), and where it waits
before it sends a request again (``botocore.retryhandler``, ``botocore.retries.standard``). Whoever imports boto3 here
calls :func:`leave_to_training`.
"""

from __future__ import annotations

import functools
import random
from typing import Any


@functools.cache
def leave_to_training() -> None:
    """Give botocore a generator of its own."""
    from botocore import retryhandler, utils
    from botocore.retries import standard

    own = random.Random()
    for module in (retryhandler, utils):
        vars(module)["random"] = own
    backoff: Any = standard.ExponentialBackoff  # its default was bound when the module was imported
    backoff.__init__ = functools.partialmethod(backoff.__init__, random=own.random)
