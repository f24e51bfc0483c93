"""Records: compared, hashed, shown and copied by what they hold."""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own would cost importing typing
if TYPE_CHECKING:
    from typing import Any, TypeVar

    V = TypeVar("V", bound="Record")


class Record:
    """A record. What a frozen dataclass with slots is, at a third of the time to import.

    (dataclasses brings inspect with it, and the two take longer than all of this package.)

    A subclass names its fields in `__slots__`, in the order of its arguments; a leading
    underscore means that a property shows the field, so that it cannot be changed. A `__dict__`
    there holds what is computed from the fields.
    """

    __slots__: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return fields(self) == fields(other)

    def __hash__(self) -> int:
        return hash((type(self), *fields(self).values()))

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in fields(self).items())
        return f"{type(self).__name__}({', '.join(shown)})"

    def __reduce__(self) -> tuple[type[Record], tuple[Any, ...]]:
        return type(self), tuple(fields(self).values())


def fields(record: Record) -> dict[str, Any]:
    """What a record holds, by its arguments' names and in their order."""
    names = [name for name in record.__slots__ if name != "__dict__"]
    return {name.removeprefix("_"): getattr(record, name) for name in names}


def replace(record: V, **changes: object) -> V:
    """A record that differs from `record` in these fields."""
    return type(record)(**fields(record) | changes)
