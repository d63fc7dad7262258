"""Functions as holders of state: the variables of a closure, defaults that are changed, attributes that were set.

``pickle`` writes a function down as its name, or refuses. A fresh process has the same functions in the same places;
their variables it has as they were when it began.
"""

from __future__ import annotations

import sys
import types
import zlib
from collections.abc import Mapping
from typing import Any

import gymnasium

#: Whose content is themselves.
PLAIN = frozenset({int, float, complex, str, bytes, bool, type(None)})
#: What a variable stands for that is no state: it is the same in each process, or saved by itself, as layers are.
_NO_STATE = (type, types.ModuleType, types.BuiltinFunctionType, gymnasium.Env)


def is_local(value: object) -> bool:
    """Whether it is a function that no module has."""
    return isinstance(value, types.FunctionType) and "<" in value.__qualname__


def has_variables(value: object) -> bool:
    """Whether it is a function with values of its own, which may change."""
    if not isinstance(value, types.FunctionType):
        return False
    some = value.__closure__ or value.__defaults__ or value.__kwdefaults__ or vars(value)
    return bool(some) and bool(variables_of(value))


def variables_of(function: types.FunctionType) -> dict[str, Any]:
    """By name: first those of the functions around it, then defaults that can be changed, then attributes."""
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[f"variable {name}"] = cell.cell_contents
        except ValueError:  # it has no value yet
            continue
    for position, value in enumerate(function.__defaults__ or ()):
        found[f"default {position}"] = value
    for name, value in (function.__kwdefaults__ or {}).items():
        found[f"default {name}"] = value
    for name, value in vars(function).items():
        if name != "__wrapped__":  # the function around it has it as a variable
            found[f"attribute {name}"] = value
    return {name: value for name, value in found.items() if _may_change(name, value)}


def _may_change(name: str, value: object) -> bool:
    if isinstance(value, types.MethodType):
        value = value.__self__
    if isinstance(value, _NO_STATE) or (name.startswith("default ") and type(value) in PLAIN):
        return False
    return not isinstance(value, types.FunctionType) or is_local(value) or not _is_found_by_name(value)


def _is_found_by_name(function: types.FunctionType) -> bool:
    found: Any = sys.modules.get(function.__module__ or "")
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function


def set_variables(function: types.FunctionType, values: Mapping[str, Any]) -> None:
    """The counterpart of :func:`variables_of`; variables that are not among ``values`` stay."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    defaults = list(function.__defaults__ or ())
    for place, value in values.items():
        what, _, name = place.partition(" ")
        if what == "variable":
            cells[name].cell_contents = value
        elif what == "attribute":
            vars(function)[name] = value
        elif name.isdigit():
            defaults[int(name)] = value
        elif function.__kwdefaults__ is not None:
            function.__kwdefaults__[name] = value
    if any(new is not old for new, old in zip(defaults, function.__defaults__ or (), strict=True)):
        function.__defaults__ = tuple(defaults)


def code_of(function: types.FunctionType) -> str:
    """Tells functions apart that were written down in different places, in any version of Python."""
    code = function.__code__
    constants = [one for one in code.co_consts if type(one) in PLAIN - {type(None)}]
    written = repr((code.co_names, code.co_freevars, code.co_varnames, constants))
    return f"{function.__module__}.{function.__qualname__} {zlib.crc32(written.encode()):08x}"
