"""Whether a tensor is part of a graph that a later ``backward()`` may go through: no checkpoint can have that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

_MOST_NODES, _MOST_ITEMS = 2000, 100
WHY = "it is a part of a graph that a later backward() may go through, and graphs are not saved: detach() it, or let "
WHY += "a step begin after backward()"


def within(values: Mapping[str, Any]) -> Iterator[str]:
    """Names of values that have such a tensor, directly or in a list, tuple or dict."""
    for name, value in values.items():
        items: Any = (value,)
        if isinstance(value, list | tuple):
            items = value[-_MOST_ITEMS:]
        elif type(value) is dict:
            items = list(value.values())[:_MOST_ITEMS]
        if any(isinstance(one, torch.Tensor) and is_alive(one) for one in items):
            yield name


def is_alive(tensor: torch.Tensor) -> bool:
    """A graph that ``backward()`` has gone through has given up what its nodes had saved."""
    if tensor.grad_fn is None:
        return False
    waiting: list[Any] = [tensor.grad_fn]
    seen, given_up = set[Any](), False
    while waiting and len(seen) < _MOST_NODES:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in dir(node):
            if name.startswith("_raw_saved_"):
                try:
                    kept = getattr(node, name.replace("_raw", ""))
                except RuntimeError:
                    given_up = True
                    continue
                if kept is not None:
                    return True
        waiting += [following for following, _ in node.next_functions]
    return not given_up
