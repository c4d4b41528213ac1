"""The human monitor at a socket: for ``nc -U``, ``socat`` or ``telnet``, and for scripts.

::

    async with HmpServer(machine) as server:
        await server.listen(parse_address("unix:/run/vm.mon"))

A client sends lines and gets what is said, each time with a prompt after it; line editing is its
own.  What :mod:`vdisk.vm.monitor.qmp` says of who may connect holds here too.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from vdisk.vm.display.serving import ConnectionServer
from vdisk.vm.monitor import hmp
from vdisk.vm.monitor.prompt import GREETING, PROMPT

if TYPE_CHECKING:
    from vdisk.vm.monitor.control import MachineControl

CONNECTIONS: Final = 16
"""People and scripts at once."""
STALL_SECONDS: Final = 60.0
"""How long a client may not read what it asked for."""
_TELNET = re.compile(rb"\xff(?:[\xfb-\xfe].|[^\xff])", re.DOTALL)
"""What telnet negotiates (RFC 854): there is nothing to agree on."""


class HmpServer(ConnectionServer["_Line"]):
    """Takes lines for ``machine`` while its ``async with`` block runs."""

    def __init__(self, machine: MachineControl) -> None:
        super().__init__(lambda reader, writer: _Line(machine, reader, writer), CONNECTIONS)


class _Line:
    """One client."""

    def __init__(
        self, machine: MachineControl, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.peer = writer.get_extra_info("peername") or "unix socket"
        self._session = hmp.Session(machine)
        self._reader = reader
        self._writer = writer

    async def run(self) -> None:
        await self._say(GREETING + PROMPT)
        while line := await self._line():
            text = _TELNET.sub(b"", line).decode("utf-8", "surrogateescape").strip("\r\n")
            said = await asyncio.to_thread(self._session.execute, text)
            await self._say(said + PROMPT)

    async def _line(self) -> bytes:
        """A line with its end, a last one without; b"" when the client has left."""
        try:
            return await self._reader.readline()
        except ValueError:  # longer than the reader's limit
            await self._say("the line is too long\n")
            return b""

    async def _say(self, text: str) -> None:
        self._writer.write(text.replace("\n", "\r\n").encode("utf-8", "surrogateescape"))
        async with asyncio.timeout(STALL_SECONDS):
            await self._writer.drain()
