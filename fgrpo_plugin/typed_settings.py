"""Settings whose ranges stand in their types: pydantic checks them strictly, and an error is one sentence."""

import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as validated_dataclass
from pydantic.fields import FieldInfo

Class = TypeVar("Class", bound=type)


@dataclass(frozen=True)
class Expected:
    """What a value must be, in words, where the type alone does not say it."""

    words: str


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""A number in [0, 1]."""
Name = Annotated[str, Field(min_length=1), Expected("a name")]


@dataclass_transform(frozen_default=True)
def typed_settings(prefix: str = "") -> Callable[[Class], Class]:
    """Make a class a frozen dataclass whose fields are checked when it is constructed.

    Nothing can be assigned afterwards, which nothing would check: ``dataclasses.replace`` makes another instance.
    A number in quotes is no number, true and false are none, and an unknown name is refused. The text under a field is
    its description.

    Args:
        prefix: of the fields' names in errors.

    Returns:
        The decorator. What the class raises is a ValueError of one sentence: setting, value (its
        first 200 characters), what it must be.
    """
    config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)

    def decorate(cls: Class) -> Class:
        made: Any = validated_dataclass(config=config, frozen=True)(cls)
        construct = made.__init__

        @wraps(construct)
        def __init__(self: Any, *args: Any, **values: Any) -> None:
            try:
                construct(self, *args, **values)
            except ValidationError as error:
                raise ValueError(_sentence(made, error, prefix, values)) from None

        made.__init__ = __init__
        return made

    return decorate


def settings_of(cls: type) -> Iterator[tuple[str, Any, str, str]]:
    """Each setting of a class: name, default, what it must be, and its description in one line."""
    for name, field in _fields(cls).items():
        default = field.get_default(call_default_factory=True)
        yield name, default, expected(field.annotation, field.metadata), " ".join((field.description or "").split())


def expected(annotation: Any, metadata: Any = ()) -> str:
    """Return what a value of this type must be, in words: "a number > 0, or null"."""
    said = [item.words for item in metadata if isinstance(item, Expected)]
    if said:
        return said[-1]
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        constraints = [c for item in more for c in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return expected(inner, constraints)
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        nullable = len(parts) < len(get_args(annotation))
        return ", or ".join([*(expected(part, metadata) for part in parts), *(["null"] if nullable else [])])
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    if get_origin(annotation) is list:
        return f"a list of {expected(get_args(annotation)[0])}"
    kind = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}.get(annotation, "a mapping")
    bounds = {type(item): item for item in metadata}
    if Ge in bounds and Le in bounds:
        return f"{kind} in [{bounds[Ge].ge:g}, {bounds[Le].le:g}]"
    low = f" > {bounds[Gt].gt:g}" if Gt in bounds else f" >= {bounds[Ge].ge:g}" if Ge in bounds else ""
    return kind + low


def _fields(cls: type) -> dict[str, FieldInfo]:
    return cls.__pydantic_fields__  # type: ignore[attr-defined]


def _sentence(cls: type, error: ValidationError, prefix: str, values: dict[str, Any]) -> str:
    """The first error in one sentence; of a union each branch has one, all about the same field."""
    found = error.errors()[0]
    reason = found.get("ctx", {}).get("error")
    if isinstance(reason, ValueError):  # ours, from a check of several fields
        return str(reason)
    name, known = str(found["loc"][0]), _fields(cls)
    if name not in known:
        return f"{prefix}{name:.200} is not known; choose among {', '.join(known)}."
    must = expected(known[name].annotation, known[name].metadata)
    given = f"{prefix}{name}={values[name]!r:.200}" if name in values else f"{prefix}{name} is missing: it"
    return f"{given} must be {must}."


def require_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse an argument that is not among the allowed words; the message lists them."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r:.200} must be one of {', '.join(allowed)}.")
