"""What a QMP command takes: its arguments' types, checked before anything acts on them.

A type is ``str``, ``int``, ``bool``, ``dict``, a tuple of words (an enumeration), or a list of
one type; the names and rules are those of QEMU's qapi/*.json.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vdisk.errors import VdiskError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vdisk.vm.monitor.control import MachineControl

Type = Any
"""See the module."""

LARGEST_INTEGER = 1 << 63
_NAMES = {str: "string", int: "integer", bool: "boolean", dict: "object"}


class QmpError(VdiskError):
    """A command that failed: ``error_class`` is one of QapiErrorClass."""

    kind = "qmp"

    def __init__(self, message: str, error_class: str = "GenericError") -> None:
        super().__init__(message)
        self.error_class = error_class


@dataclass(frozen=True)
class Command:
    """A command: ``run(machine, arguments)`` gives what is returned; it may wait.

    ``required`` and ``optional``: the type of each argument.  ``out_of_band``: it never waits for
    the machine, and may overtake commands that do.
    """

    run: Callable[[MachineControl, dict[str, Any]], Any]
    required: Mapping[str, Type] = field(default_factory=dict)
    optional: Mapping[str, Type] = field(default_factory=dict)
    out_of_band: bool = False


def check_arguments(command: Command, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, which are all there, known and of the right type; raises QmpError."""
    for name in arguments:
        if name not in command.required and name not in command.optional:
            raise QmpError(f"Parameter '{name}' is unexpected")
    for name in command.required:
        if name not in arguments:
            raise QmpError(f"Parameter '{name}' is missing")
    types = {**command.required, **command.optional}
    for name, value in arguments.items():
        check_type(name, value, types[name])
    return arguments


def check_type(name: str, value: Any, wanted: Type) -> None:
    """Raise QmpError if ``value`` is not of a type."""
    if isinstance(wanted, list):
        if not isinstance(value, list):
            raise _wrong_type(name, "array")
        for index, item in enumerate(value):
            check_type(f"{name}[{index}]", item, wanted[0])
    elif isinstance(wanted, tuple):
        if not isinstance(value, str):
            raise _wrong_type(name, "string")
        if value not in wanted:
            raise QmpError(f"Parameter '{name}' does not accept value '{value}'")
    elif not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise _wrong_type(name, _NAMES[wanted])
    elif wanted is int and not -LARGEST_INTEGER <= value < LARGEST_INTEGER:
        raise _wrong_type(name, "int64")
    elif wanted is str and "\0" in value:
        raise QmpError(f"Parameter '{name}' holds a NUL character")


def _wrong_type(name: str, expected: str) -> QmpError:
    return QmpError(f"Invalid parameter type for '{name}', expected: {expected}")
