"""What AWS's own service models say of a request: types, patterns, lengths, ranges and lists of names.

botocore ships these models, and itself checks only a part of what they say: neither patterns, nor greatest lengths, nor
lists of names. What is refused here costs no request, and creates nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from train_cloud.errors import suggestion

if TYPE_CHECKING:
    from botocore.model import ServiceModel, Shape

_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "long": (int,),
    "boolean": (bool,),
    "float": (int, float),
    "double": (int, float),
    "list": (list, tuple),
    "map": (dict,),
    "structure": (dict,),
}
_LONGEST_LIST = 6


class Finding(NamedTuple):
    """What AWS would refuse."""

    member: str
    """Where in the request: ``ResourceConfig.InstanceType``."""
    value: object
    fix: str
    """What to give instead, as a clause."""


def service_model(service: str) -> ServiceModel:
    """As botocore ships it."""
    return _model(service)


@cache
def _model(service: str) -> ServiceModel:
    from botocore.session import Session

    return Session().get_service_model(service)


@cache
def regions(service: str) -> tuple[str, ...]:
    """All regions of the usual partition and of GovCloud in which AWS has the service."""
    from botocore.session import Session

    session = Session()
    found = [session.get_available_regions(service, partition) for partition in ("aws", "aws-us-gov")]
    return tuple(sorted(name for names in found for name in names))


def findings(service: str, operation: str, request: Mapping[str, Any]) -> list[Finding]:
    """All that the model of an operation refuses in a request.

    :param operation: by AWS's name, ``CreateTrainingJob``
    :param request: as it is given to boto3
    """
    shape = service_model(service).operation_model(operation).input_shape
    assert shape is not None
    return list(_look(shape, request, ""))


def finding(service: str, operation: str, member: str, value: object) -> Finding | None:
    """What the model refuses in one value.

    :param member: where it stands in the request, ``ResourceConfig.InstanceType``; ``[]`` is any entry of a list,
        ``{}`` any value of a map
    """
    shape: Any = service_model(service).operation_model(operation).input_shape
    for name in member.split("."):
        shape = shape.member if name == "[]" else shape.value if name == "{}" else shape.members[name]
    return next(_look(shape, value, member), None)


def _look(shape: Shape, value: Any, where: str) -> Iterator[Finding]:
    kinds = _KINDS.get(shape.type_name)
    if kinds is not None and (not isinstance(value, kinds) or (bool not in kinds and isinstance(value, bool))):
        yield Finding(where, value, f"give a {shape.type_name}")
        return
    yield from _itself(shape, value, where)
    inside: Any = shape  # botocore's types have no common names for these
    if shape.type_name == "structure":
        for name in inside.required_members:
            if name not in value:
                yield Finding(_below(where, name), None, "it is required")
        for name, item in value.items():
            if name not in inside.members:
                known = suggestion(name, tuple(inside.members))
                yield Finding(_below(where, name), item, f"AWS knows no such member{f': {known}' if known else ''}")
            else:
                yield from _look(inside.members[name], item, _below(where, name))
    elif shape.type_name == "list":
        for number, item in enumerate(value):
            yield from _look(inside.member, item, f"{where}[{number}]")
    elif shape.type_name == "map":
        for key, item in value.items():
            yield from _look(inside.key, key, f"{where}[{key!r}]")
            yield from _look(inside.value, item, f"{where}[{key!r}]")


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _itself(shape: Shape, value: Any, where: str) -> Iterator[Finding]:
    """Without what it consists of."""
    limits: Mapping[str, Any] = shape.metadata
    least, most = limits.get("min"), limits.get("max")
    names: list[str] = getattr(shape, "enum", None) or []
    if names and value not in names:
        listed = ", ".join(names) if len(names) <= _LONGEST_LIST else "a name that AWS knows"
        yield Finding(where, value, suggestion(value, tuple(names)) or f"give {listed}")
    sized = isinstance(value, str | list | tuple | dict)
    size = len(value) if sized else value
    unit = "" if not sized else " characters" if isinstance(value, str) else " entries"
    if least is not None and not isinstance(value, bool) and size < least:
        yield Finding(where, value, f"give at least {least}{unit}")
    if most is not None and not isinstance(value, bool) and size > most:
        yield Finding(where, value, f"it has {size}{unit}: give at most {most}" if sized else f"give at most {most}")
    pattern = limits.get("pattern")
    if pattern is not None and isinstance(value, str) and not python_pattern(pattern).fullmatch(value):
        yield Finding(where, value, f"AWS wants it in the form {pattern}")


@cache
def python_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern of AWS's models, which are Java's."""
    # Java's classes of letters, digits and spaces, as they stand in brackets there.
    for java, python in ((r"\p{L}", r"\w"), (r"\p{N}", r"\d"), (r"\p{Z}", r"\s")):
        pattern = pattern.replace(java, python)
    return re.compile(pattern, re.DOTALL)
