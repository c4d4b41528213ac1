"""One QMP connection as a state machine: bytes in, commands and answers out.

::

    greeting -> qmp_capabilities -> commands, each answered in order; events between them

A client says ``{"execute": NAME, "arguments": {…}, "id": ANY}``, with ``exec-oob`` for the
commands that overtake others, and gets ``{"return": …, "id": ANY}`` or ``{"error": {"class",
"desc"}, "id": ANY}``.  Facts: docs/interop/qmp-spec.rst, qapi/qmp-dispatch.c.
"""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk import __version__
from vdisk.vm.monitor.json_stream import JsonError, JsonStream
from vdisk.vm.monitor.schema import QmpError, check_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vdisk.vm.monitor.control import MachineEvent
    from vdisk.vm.monitor.schema import Command

_CAPABILITIES = "qmp_capabilities"


def version() -> dict[str, Any]:
    """VersionInfo: clients look at QEMU's numbers, which say whose commands these are."""
    major, minor, micro = (*(int(part) for part in __version__.split(".")[:3]), 0, 0)[:3]
    return {
        "qemu": {"major": major, "minor": minor, "micro": micro},
        "package": f"vdisk {__version__}",
    }


class Call(NamedTuple):
    """A command to carry out and to answer, after those before it unless it is ``out_of_band``.

    ``command``: None for the negotiation of capabilities, which is over.  ``error``: what is wrong
    with it, which is the answer.  ``tag``: holds its ``id``, if it has one.
    """

    command: Command | None
    arguments: dict[str, Any]
    tag: dict[str, Any]
    out_of_band: bool = False
    error: QmpError | None = None


class QmpSession:
    """The server's end, for the commands in ``table``."""

    def __init__(
        self, table: Mapping[str, Command], *, now: Callable[[], float] = time.time
    ) -> None:
        self.negotiated = False
        self.out_of_band = False
        self._table = table
        self._now = now
        self._stream = JsonStream()
        self._output = bytearray()
        self._send({"QMP": {"version": version(), "capabilities": ["oob"]}})

    def data_to_send(self) -> bytes:
        """What is to be sent now."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def receive_data(self, data: bytes) -> list[Call]:
        """The commands in ``data``, in order."""
        calls = []
        for value in self._stream.receive(data):
            tag: dict[str, Any] = {}
            try:
                if isinstance(value, JsonError):
                    raise QmpError(str(value))
                if not isinstance(value, dict):
                    raise QmpError("QMP input must be a JSON object")
                if "id" in value:
                    tag["id"] = value.pop("id")
                calls.append(self._call(value, tag))
            except QmpError as error:
                calls.append(Call(None, {}, tag, error=error))
        return calls

    def _call(self, value: dict[str, Any], tag: dict[str, Any]) -> Call:
        name, arguments, out_of_band = _members(value)
        if not self.negotiated:
            if name != _CAPABILITIES:
                raise QmpError(
                    f"Expecting capabilities negotiation with '{_CAPABILITIES}'", "CommandNotFound"
                )
            self._negotiate(arguments)
            return Call(None, {}, tag)
        if name == _CAPABILITIES:
            raise QmpError(
                "Capabilities negotiation is already complete, command ignored", "CommandNotFound"
            )
        command = self._table.get(name)
        if command is None:
            raise QmpError(f"The command {name} has not been found", "CommandNotFound")
        if out_of_band and not self.out_of_band:
            raise QmpError("QMP input member 'exec-oob' is unexpected")
        if out_of_band and not command.out_of_band:
            raise QmpError(f"The command {name} does not support OOB")
        return Call(command, check_arguments(command, arguments), tag, out_of_band)

    def _negotiate(self, arguments: dict[str, Any]) -> None:
        wanted = arguments.pop("enable", [])
        if arguments:
            raise QmpError(f"Parameter '{next(iter(arguments))}' is unexpected")
        if not isinstance(wanted, list):
            raise QmpError("Invalid parameter type for 'enable', expected: array")
        for one in wanted:
            if one != "oob":
                raise QmpError(f"Parameter 'enable' does not accept value {_shown(one)}")
        self.negotiated = True
        self.out_of_band = bool(wanted)

    # -- answers -----------------------------------------------------------------------------

    def reply(self, tag: dict[str, Any], value: Any) -> None:
        """Answer a command."""
        self._send({"return": value, **tag})

    def reply_error(self, tag: dict[str, Any], error: QmpError) -> None:
        """Answer a command that failed."""
        self._send({"error": {"class": error.error_class, "desc": error.message}, **tag})

    def event(self, event: MachineEvent) -> None:
        """Tell what happened; clients that have not negotiated are not told."""
        if not self.negotiated:
            return
        fraction, seconds = math.modf(self._now())
        stamp = {"seconds": int(seconds), "microseconds": int(fraction * 1_000_000)}
        message: dict[str, Any] = {"timestamp": stamp, "event": event.name}
        self._send({**message, "data": dict(event.data)} if event.data else message)

    def _send(self, value: dict[str, Any]) -> None:
        self._output += json.dumps(value, ensure_ascii=True).encode() + b"\r\n"


def _members(value: dict[str, Any]) -> tuple[str, dict[str, Any], bool]:
    """The name, the arguments, and whether it is out of band."""
    for member in value:
        if member not in ("execute", "exec-oob", "arguments"):
            raise QmpError(f"QMP input member {_shown(member)} is unexpected")
    if "execute" in value and "exec-oob" in value:
        raise QmpError("QMP input member 'execute' clashes with 'exec-oob'")
    member = "exec-oob" if "exec-oob" in value else "execute"
    if member not in value:
        raise QmpError("QMP input lacks member 'execute'")
    name, arguments = value[member], value.get("arguments", {})
    if not isinstance(name, str):
        raise QmpError(f"QMP input member '{member}' must be a string")
    if not isinstance(arguments, dict):
        raise QmpError("QMP input member 'arguments' must be an object")
    return name, dict(arguments), member == "exec-oob"


def _shown(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else json.dumps(value)
