"""A QMP server: programs control the machine through a socket, as they control QEMU.

::

    async with QmpServer(machine) as server:
        await server.listen(parse_address("unix:/run/vm.sock"))

Commands of all connections are carried out one after the other, in worker threads; events go to
everybody.  Whoever can connect can do all that this process can (write files, for one), so listen
on a unix socket, whose directory says who may, or on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

from vdisk.errors import VdiskError
from vdisk.vm.display.serving import ConnectionServer
from vdisk.vm.monitor.commands import COMMANDS
from vdisk.vm.monitor.qmp_session import Call, QmpSession
from vdisk.vm.monitor.schema import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from vdisk.vm.monitor.control import MachineControl, MachineEvent

log = logging.getLogger("vdisk.vm.monitor.qmp")

CONNECTIONS: Final = 16
"""Clients at once: a manager, somebody who watches, a script."""
IN_FLIGHT: Final = 8
"""Commands read ahead of the one at work, as the specification says."""
MOST_UNREAD: Final = 4 << 20
"""Bytes that a client has not read before it is taken for dead."""
LAST_ANSWER_SECONDS: Final = 2.0
"""How long a server that closes waits for the command at work."""
_READ = 1 << 16


class QmpServer(ConnectionServer["_Connection"]):
    """Controls ``machine`` while its ``async with`` block runs."""

    def __init__(self, machine: MachineControl) -> None:
        super().__init__(lambda reader, writer: _Connection(self, reader, writer), CONNECTIONS)
        self.machine = machine
        self.turn = asyncio.Lock()
        self._unsubscribe: Callable[[], None] | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()

        def happened(event: MachineEvent) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before the machine
                loop.call_soon_threadsafe(self._tell, event)

        self._unsubscribe = self.machine.subscribe(happened)
        return self

    async def close(self) -> None:
        """Stop listening; answers that were given are still sent."""
        unsubscribe, self._unsubscribe = self._unsubscribe, None
        if unsubscribe is None:
            return
        unsubscribe()
        self.stop_listening()
        with contextlib.suppress(TimeoutError):  # the command at work may be what ends the machine
            async with asyncio.timeout(LAST_ANSWER_SECONDS), self.turn:
                pass
        await super().close()

    def _tell(self, event: MachineEvent) -> None:
        for connection in list(self.connections):
            connection.tell(event)


class _Connection:
    """One client: a task that reads ahead, one that carries out."""

    def __init__(
        self, server: QmpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.peer = writer.get_extra_info("peername") or "unix socket"
        self._server = server
        self._reader = reader
        self._writer = writer
        self._session = QmpSession(COMMANDS)
        self._waiting: asyncio.Queue[Call | None] = asyncio.Queue(IN_FLIGHT)
        self._overtaking: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the client has left and what it asked for is done."""
        self._flush()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(), name="QMP reader")
                tasks.create_task(self._work(), name="QMP commands")
        except* OSError as errors:
            raise ConnectionError(str(errors.exceptions[0])) from errors

    async def _read(self) -> None:
        while data := await self._reader.read(_READ):
            for call in self._session.receive_data(data):
                if call.out_of_band:
                    self._overtake(call)
                else:
                    await self._waiting.put(call)
        await self._waiting.put(None)

    def _overtake(self, call: Call) -> None:
        if len(self._overtaking) >= IN_FLIGHT:
            self._session.reply_error(call.tag, QmpError("too many commands are out of band"))
            self._flush()
            return
        task = asyncio.create_task(self._answer(call), name="QMP out-of-band command")
        self._overtaking.add(task)
        task.add_done_callback(self._overtaking.discard)

    async def _work(self) -> None:
        while (call := await self._waiting.get()) is not None:
            async with self._server.turn:
                await self._answer(call)
            await self._writer.drain()

    async def _answer(self, call: Call) -> None:
        try:
            self._session.reply(call.tag, await self._carry_out(call))
        except QmpError as error:
            self._session.reply_error(call.tag, error)
        except VdiskError as error:
            self._session.reply_error(call.tag, QmpError(str(error)))
        self._flush()

    async def _carry_out(self, call: Call) -> Any:
        if call.error is not None:
            raise call.error
        if call.command is None:
            return {}
        return await asyncio.to_thread(call.command.run, self._server.machine, call.arguments)

    def tell(self, event: MachineEvent) -> None:
        """Something happened."""
        self._session.event(event)
        self._flush()

    def _flush(self) -> None:
        data = self._session.data_to_send()
        if data and not self._writer.is_closing():
            self._writer.write(data)
            if self._writer.transport.get_write_buffer_size() > MOST_UNREAD:
                log.warning("a client does not read: its connection is ended")
                self._writer.transport.abort()
