"""The local variables of the functions that a training loop runs in, which are as much its state as the model is.

A running average of the loss, the best value so far, a deque of replayed batches: they live in variables that no
``state_dict`` has. They are read from the loop's frames at the top of an iteration, and put back there when a fresh
process has come to the same place. Only variables are looked at whose value the code can still read from there on:
what the last iteration has computed and the next one computes again first is no state.
"""

from __future__ import annotations

import ctypes
import dis
import functools
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_cloud.installed import is_installed

_ACCESS = re.compile(r"(LOAD|STORE|DELETE)_(?:FAST|NAME|GLOBAL)")
_NEVER_ON = frozenset({
    "JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_ABSOLUTE", "RETURN_VALUE", "RETURN_CONST",
    "RAISE_VARARGS", "RERAISE", "JUMP",
})  # fmt: skip
_LOADS = ("LOAD_METHOD", "LOAD_ATTR", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_FAST")
#: Names with which code reads variables that it does not name.
_BY_ANY_NAME = frozenset({"locals", "vars", "eval", "exec", "globals", "dir"})
_PACKAGE = str(Path(__file__).resolve().parent.parent)


@dataclass
class Place:
    """A function that the loop runs in, at the instruction that it waits at.

    :ivar path: its name for people: ``main``, or ``train`` for what stands outside of functions in ``train.py``
    :ivar at: offset of the instruction
    """

    path: str
    frame: types.FrameType
    at: int

    @property
    def is_module(self) -> bool:
        # Asking for f_locals would read all variables anew, over what was just put there.
        return self.frame.f_code.co_name == "<module>"

    def variables(self) -> dict[str, Any]:
        """Those that can still be read, by name."""
        found = self.frame.f_locals
        return {name: found[name] for name in readable(self.frame.f_code, self.at) if name in found}

    def read_in_the_loop(self) -> dict[str, Any]:
        """Those that the next iteration may read, and not only what comes after the loop."""
        found = self.frame.f_locals
        return {name: found[name] for name in readable(self.frame.f_code, self.at, loop=True) if name in found}

    def unread(self) -> frozenset[str]:
        """Of a module: names that nothing can read before they are set again."""
        code = self.frame.f_code
        return frozenset(_named(code)) - readable(code, self.at)

    def put(self, values: Mapping[str, Any]) -> None:
        """Give variables other values."""
        if not values:
            return
        found = self.frame.f_locals
        found.update(values)
        # Nothing may ask for f_locals in between: that reads them from the frame again.
        if not self.is_module and sys.version_info < (3, 13):  # from there on f_locals writes through (PEP 667)
            ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(self.frame), ctypes.c_int(0))

    def move(self) -> None:
        """To where the function is now."""
        self.at = self.frame.f_lasti

    def surrounding_loop(self, after: int = -1) -> int | None:
        """Line of the innermost ``for`` that is under way here besides the one that this place is the head of.

        :param after: offset of an instruction before which none counts
        """
        code, lines = self.frame.f_code, dict(_lines(self.frame.f_code))
        found = None
        for instruction in dis.get_instructions(code):
            if instruction.opname == "FOR_ITER" and after < instruction.offset < self.at < instruction.argval:
                found = lines.get(instruction.offset, code.co_firstlineno)
        return found

    def reaches(self, name: str) -> bool:
        """Whether the code may come from here to where an attribute or a function of this name is asked for."""
        instructions, follows, here = _graph(self.frame.f_code, self.at)
        waiting, seen = list(follows[here]), set[int]()
        while waiting:
            index = waiting.pop()
            if index in seen:
                continue
            seen.add(index)
            if instructions[index].opname in _LOADS and instructions[index].argval == name:
                return True
            waiting += follows[index]
        return False


def places(frame: types.FrameType | None, entered: types.FrameType | None) -> list[Place]:
    """The functions of the user's own code that a call comes from, innermost first.

    :param frame: the innermost one
    :param entered: the outermost one that counts; where it is not among them, all do
    """
    found = []
    while frame is not None:
        path = frame.f_code.co_filename
        if is_own_file(path):
            name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
            shown = Path(path).stem if frame.f_code.co_name == "<module>" else name.replace("<locals>.", "")
            found.append(Place(shown, frame, frame.f_lasti))
        elif path.startswith(_PACKAGE) and found:
            break
        if frame is entered:
            break
        frame = frame.f_back
    return found


@functools.cache
def is_own_file(path: str) -> bool:
    """Whether code is neither installed, nor part of Python, nor ours."""
    if path.startswith("<") or not Path(path).exists():
        return False
    full = str(Path(path).resolve())
    library = str(Path(dis.__file__).resolve().parent)
    return not (full.startswith((_PACKAGE + "/", library + "/")) or is_installed(full))


@functools.lru_cache(maxsize=256)
def readable(code: types.CodeType, at: int, *, loop: bool = False) -> frozenset[str]:
    """Names of variables that may be read after an instruction before they are set: a backward analysis of the code.

    :param at: offset of the instruction
    :param loop: where the instruction is the head of a ``for``: only where that goes on
    """
    every = frozenset(_named(code))
    if _handlers(code) is None or _BY_ANY_NAME & set(code.co_names):
        return every
    instructions, follows, here = _graph(code, at)
    before: dict[int, set[int]] = {}
    for index, after in enumerate(follows):
        for other in after:
            before.setdefault(other, set()).add(index)
    live: list[frozenset[str]] = [frozenset()] * len(instructions)
    waiting = list(range(len(instructions)))
    while waiting:
        index = waiting.pop()
        out = frozenset[str]().union(*(live[other] for other in follows[index]))
        found = _through(instructions[index], out)
        if found != live[index]:
            live[index] = found
            waiting += before.get(index, ())
    after = follows[here][:1] if loop and instructions[here].opname == "FOR_ITER" else follows[here]
    out = frozenset[str]().union(*(live[other] for other in after))
    return (out | _always(code)) & every


def _graph(code: types.CodeType, at: int) -> tuple[list[dis.Instruction], list[list[int]], int]:
    """The instructions, for each the numbers of those that may follow it, and the number of the one at an offset."""
    instructions = list(dis.get_instructions(code))
    offsets = [instruction.offset for instruction in instructions]
    position = {offset: index for index, offset in enumerate(offsets)}
    entries = _handlers(code) or ()
    follows = [_following(instructions, index, position, entries) for index in range(len(instructions))]
    return instructions, follows, max((index for index, offset in enumerate(offsets) if offset <= at), default=0)


def _named(code: types.CodeType) -> tuple[str, ...]:
    if code.co_flags & 1:  # CO_OPTIMIZED: a function
        return (*code.co_varnames, *code.co_cellvars, *code.co_freevars)
    return code.co_names


def _always(code: types.CodeType) -> frozenset[str]:
    """What functions within the code may read whenever they are called."""
    if code.co_flags & 1:
        return frozenset((*code.co_cellvars, *code.co_freevars))
    return frozenset(name for inner in _within(code) for name in inner.co_names)


def _within(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _within(constant)


def _handlers(code: types.CodeType) -> Sequence[tuple[int, int, int]] | None:
    """(start, end, handler) of each try; empty where instructions show them (Python 3.10), None where nobody knows."""
    parse: Any = getattr(dis, "_parse_exception_table", None)
    if parse is None:
        return () if hasattr(dis, "opmap") and "SETUP_FINALLY" in dis.opmap else None
    return [(entry.start, entry.end, entry.target) for entry in parse(code)]


def _following(
    instructions: Sequence[dis.Instruction],
    index: int,
    position: Mapping[int, int],
    entries: Sequence[tuple[int, int, int]],
) -> list[int]:
    instruction = instructions[index]
    found = []
    if instruction.opname not in _NEVER_ON and index + 1 < len(instructions):
        found.append(index + 1)
    if instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs:
        found += [position[instruction.argval]] if instruction.argval in position else []
    found += [
        position[target] for start, end, target in entries if start <= instruction.offset < end and target in position
    ]
    return found


def _through(instruction: dis.Instruction, live: frozenset[str]) -> frozenset[str]:
    """What is live before an instruction, from what is live after it."""
    accesses = _ACCESS.findall(instruction.opname)
    if not accesses:
        return live
    names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
    for access, name in reversed(list(zip(accesses, names, strict=False))):
        live = live | {name} if access == "LOAD" else live - {name}
    return live


def _lines(code: types.CodeType) -> Iterator[tuple[int, int]]:
    line = code.co_firstlineno
    starts = dict(dis.findlinestarts(code))
    for instruction in dis.get_instructions(code):
        line = starts.get(instruction.offset) or line
        yield instruction.offset, line
