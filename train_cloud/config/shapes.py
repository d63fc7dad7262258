"""The kinds of values that a run file is made of, each checked in one place."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Strict

REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_DEPTH = 32


def matching(pattern: re.Pattern[str], fix: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(fix)
        return value

    return AfterValidator(check)


def _whole(value: object) -> object:
    """``1e6`` is a float in YAML and a step count to everybody who writes it."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _plain(value: Any, depth: int = 0) -> Any:
    """Arguments are recorded as JSON and compared across sessions: only what survives that may stand in them."""
    if depth > _DEPTH:
        raise ValueError(f"nest it at most {_DEPTH} levels deep")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is not text: put it in quotes")
            _plain(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _plain(item, depth + 1)
    elif isinstance(value, float) and math.isnan(value):
        raise ValueError("nan equals nothing, not even itself: give a number")
    elif not isinstance(value, str | int | float | bool | None):
        raise ValueError(f"{type(value).__name__} is no JSON value: give text, a number, true, false, a list or a map")
    return value


Text = Annotated[str, Strict()]
Whole = Annotated[int, BeforeValidator(_whole), Strict()]
Number = Annotated[float, Strict()]
Reference = Annotated[Text, matching(REFERENCE, "write it as module:Name, for example my_project.wrappers:Shift")]
ModuleName = Annotated[Text, matching(MODULE, "write an importable module's name, for example my_project.envs")]
Arguments = Annotated[dict[str, Any], AfterValidator(_plain)]
Values = Annotated[tuple[Any, ...], AfterValidator(_plain)]
VariableName = Annotated[Text, matching(re.compile(r"[A-Za-z_][A-Za-z0-9_]*"), "use letters, digits and underscores")]


class Section(BaseModel):
    """A mapping in the run file: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
