"""Which callback ended a training before its total: SB3 itself keeps no word of that."""

from __future__ import annotations

import weakref

from stable_baselines3.common.callbacks import BaseCallback, CallbackList

_stopped: weakref.WeakKeyDictionary[BaseCallback, list[BaseCallback]] = weakref.WeakKeyDictionary()


class _Noting(CallbackList):
    """SB3's list, which notes who asked to stop: a call for each step and callback, as before."""

    def _on_step(self) -> bool:
        proceed = True
        for callback in self.callbacks:
            if not callback.on_step():
                _stopped.setdefault(self, []).append(callback)
                proceed = False
        return proceed


def watch(root: BaseCallback) -> None:
    """Called when a ``learn`` begins.

    :param root: its outermost callback; a list of SB3's own kind can be watched
    """
    _stopped.pop(root, None)
    if type(root) is CallbackList:
        root.__class__ = _Noting


def stopped_by(root: BaseCallback) -> str | None:
    """The callback that returned False since :func:`watch`, by its class and those that it asks; None for nobody."""
    found = _stopped.get(root)
    return None if not found else ", ".join(map(_named, found))


def _named(callback: BaseCallback) -> str:
    asked = [getattr(callback, name, None) for name in ("callback", "callback_on_new_best")]
    within = [child for child in asked if isinstance(child, BaseCallback)]
    if isinstance(callback, CallbackList):
        within = list(callback.callbacks)
    name = type(callback).__name__
    return f"{name} ({' or '.join(map(_named, within))})" if within else name
