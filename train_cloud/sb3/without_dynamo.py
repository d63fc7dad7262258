"""Training without ``torch._dynamo``, which half of a trainer's start goes into and which only ``torch.compile`` needs.

torch's optimisers import it at their first call, to tell a compiler that may be there to leave them alone
(``torch/_compile.py`` and ``torch/optim/optimizer.py`` of torch 2.4 to 2.13). A module that stands in its place answers
these two questions as they are answered where nothing is compiled. Whatever else it has, a submodule included, loads
the real one when it is asked for, from then on everywhere.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_NAME = "torch._dynamo"
_FOLDER = Path(torch.__file__).parent / "_dynamo"


class _Deferred(ModuleType):
    def __init__(self) -> None:
        super().__init__(_NAME)
        self._left_alone: list[Any] = []

    def disable(self, fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        """torch's own functions as they are: nothing compiles them before the real module is there."""
        if fn is None or not getattr(fn, "__module__", "").startswith("torch."):
            return self._real().disable(fn, recursive, **options)
        self._left_alone.append(fn)
        return fn

    def graph_break(self, *_: Any, **__: Any) -> None:
        """Outside of a compilation it does nothing."""

    def __getattr__(self, name: str) -> Any:
        # pickle, inspect and others ask every module for names of all kinds; that must not load it.
        if name != "__path__" and name not in _names():
            raise AttributeError(f"module {_NAME!r} has no attribute {name!r}")
        return getattr(self._real(), name)

    def _real(self) -> Any:
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
            for fn in self._left_alone:  # to be asked again: from now on something may be compiled
                fn.__dict__.pop("__dynamo_disable", None)
        return importlib.import_module(_NAME)


@functools.cache
def _names() -> frozenset[str]:
    """Every word of the real module's source, and its submodules: among them are all names that it has."""
    words = re.findall(r"[A-Za-z]\w*", (_FOLDER / "__init__.py").read_text())
    return frozenset([*words, *(path.stem for path in _FOLDER.iterdir())])


def defer_dynamo() -> None:
    """Until something asks for it: see the module. Where it is loaded already, it stays."""
    if _NAME not in sys.modules:
        deferred = _Deferred()
        sys.modules[_NAME] = deferred
        torch._dynamo = deferred
