"""Which action an Atari console repeats: the one thing that the Arcade Learning Environment's state leaves out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

#: An ``ALEState`` with its generator, and the calls since: names and arguments.
Window: TypeAlias = tuple[Any, list[tuple[str, tuple[Any, ...]]]]

#: Calls of a window at least: a clone takes half as long as one frame's emulation.
_CALLS = 64
#: That the action in force is older than a whole window.
_CHANCE = 1e-15


class StickyALE:
    """Stands in for an ``ALEInterface``, and remembers from what the action in force follows.

    At each frame ALE goes on with the action that it has, instead of taking the one that it is given, with
    ``repeat_action_probability`` (0.25 in Gymnasium's ``v5``; Machado et al. 2018, "Revisiting the Arcade Learning
    Environment"). ``cloneState(include_rng=True)`` has the generator that decides, but not the action
    (``m_player_a_action`` in ALE's ``stella_environment.hpp``), and nothing tells it. A reset sets it to no-op; from
    there on it follows from the generator and the actions given, of which only the last few matter. So this keeps a
    state from some frames ago with the calls since, and repeats these in the console that is to go on.

    Repeating them also brings back what else a clone lacks of the last frames: the screen, and up to ALE 0.12.1 whether
    the last one was cut short, without which Qbert and Tetris went on otherwise (ALE's pull request 732).

    :param ale: an ``ALEInterface``; best before its first reset, as what was in force before is not known
    """

    _ale: Any = None

    def __init__(self, ale: Any) -> None:
        self._ale = ale
        #: The last two: together never shorter than one that is full, unless the reset is nearer.
        self._windows: list[Window] = []
        self._full = _CALLS

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ale, name)

    def act(self, action: Any, paddle_strength: float = 1.0) -> Any:
        self._note("act", action, paddle_strength)
        return self._ale.act(action, paddle_strength)

    def restoreState(self, state: Any) -> None:
        """Changes the generator, not the action in force."""
        self._note("restoreState", state)
        self._ale.restoreState(state)

    def restoreSystemState(self, state: Any) -> None:
        self.restoreState(state)

    def reset_game(self) -> None:
        self._ale.reset_game()
        self._windows = []
        self._begin()

    def loadROM(self, path: str | Path) -> Any:
        """Another console, with another generator."""
        self._windows = []
        return self._ale.loadROM(path)

    def windows(self) -> list[Window]:
        """For :meth:`resume`; references."""
        if not self._windows:
            self._begin()
        return self._windows

    def resume(self, machine: Any, windows: Sequence[Window]) -> None:
        """Do next what another console would have done.

        :param machine: its ``cloneState(include_rng=True)``
        :param windows: its :meth:`windows` at the same time; none leaves no-op in force
        """
        self._ale.reset_game()
        for state, _ in windows[:1]:
            self._ale.restoreState(state)
        for _, calls in windows:
            for name, arguments in calls:
                getattr(self._ale, name)(*arguments)
        self._ale.restoreState(machine)
        self._windows = list(windows)
        self._full = self._calls_that_decide()

    def _note(self, name: str, *arguments: Any) -> None:
        if not self._windows or len(self._windows[-1][1]) >= self._full:
            self._begin()
        self._windows[-1][1].append((name, arguments))

    def _begin(self) -> None:
        self._windows = [*self._windows[-1:], (self._ale.cloneState(include_rng=True), [])]
        self._full = self._calls_that_decide()

    def _calls_that_decide(self) -> int:
        """After so many it does not matter any more what was in force before them."""
        repeats = float(self._ale.getFloat("repeat_action_probability"))
        if not 0 < repeats < 1:
            return _CALLS  # each call decides, or none
        return max(_CALLS, math.ceil(math.log(_CHANCE) / math.log(repeats)))
