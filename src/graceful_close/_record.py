"""Records: values that are compared, hashed, shown and copied by their fields."""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing for its TYPE_CHECKING takes time
if TYPE_CHECKING:
    from typing import Any, TypeVar

    V = TypeVar("V", bound="Record")


class Record:
    """A record: like a frozen dataclass with slots, with a third of its import time.

    (dataclasses imports inspect, and the two take longer than this whole package.)

    A subclass names its fields in `__slots__`, in the order of its arguments. A leading underscore
    means that a property shows the field, so that it is read-only. A `__dict__` in `__slots__`
    holds values computed from the fields.
    """

    __slots__: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _values(self) == _values(other)

    def __hash__(self) -> int:
        return hash((type(self), *_values(self)))

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in fields(self).items())
        return f"{type(self).__name__}({', '.join(shown)})"

    def __reduce__(self) -> tuple[type[Record], tuple[Any, ...]]:
        return type(self), tuple(fields(self).values())


def fields(record: Record) -> dict[str, Any]:
    """Return the fields of a record, by the names of its arguments and in their order."""
    names = [name for name in record.__slots__ if name != "__dict__"]
    return {name.removeprefix("_"): getattr(record, name) for name in names}


def _values(record: Record) -> list[Any]:
    """Return the fields as they are compared: an exception by its type and its arguments."""
    return [
        (type(value), value.args) if isinstance(value, BaseException) else value
        for value in fields(record).values()
    ]


def replace(record: V, **changes: object) -> V:
    """Return a copy of `record` with these fields changed."""
    return type(record)(**fields(record) | changes)
