"""A VNC server: the screen, keyboard and mouse of a machine for any client of RFB (RFC 6143).

::

    async with VncServer(machine.screen, machine.input, password="…") as server:
        address = await server.listen(parse_address("localhost:1", base=VNC_PORT))

Each client gets updates when it asks for them and has taken the last: one encoded update is all
that the server ever holds for it, and nobody waits for another.  Clients are untrusted
(:class:`VncLimits`).  Without a password anybody who can connect is let in, so listen on loopback
or on a unix socket; VNC passwords are weak (:mod:`vdisk.vm.display.rfb.auth`).
"""

from __future__ import annotations

import enum
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdisk.vm.display.changes import ScreenWatch
from vdisk.vm.display.rfb.auth import PasswordCheck
from vdisk.vm.display.rfb.wire import CHALLENGE_LENGTH
from vdisk.vm.display.serving import ConnectionServer, InputThread
from vdisk.vm.display.vnc_client import VncClient

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from vdisk.vm.display.base import InputSink, Screen

__all__ = ["VNC_PORT", "Share", "VncLimits", "VncServer"]

log = logging.getLogger("vdisk.vm.display.vnc")

VNC_PORT = 5900
"""The port of display 0; display N has N more."""


class Share(enum.Enum):
    """What a client may ask for when it connects: QEMU's ``-vnc share=``."""

    ALLOW_EXCLUSIVE = "allow-exclusive"
    """A client that does not want to share ends the others' connections."""
    FORCE_SHARED = "force-shared"
    """Such a client is refused."""
    IGNORE = "ignore"
    """All share, whatever they ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VncLimits:
    """What clients can make a server hold, and how long it waits for them (seconds)."""

    clients: int = 32
    """Connections: more than people who look at one machine; each holds one picture at most."""
    handshake_seconds: float = 30
    """Until a client is in: a person may be asked for the password meanwhile."""
    stall_seconds: float = 60
    """How long a client may not take what it asked for."""
    refusal_seconds: float = 1
    """How long a wrong password keeps its connection, so that guessing takes long."""


class VncServer(ConnectionServer[VncClient]):
    """Serves a screen while its ``async with`` block runs."""

    def __init__(
        self,
        screen: Screen,
        sink: InputSink,
        *,
        name: str = "vdisk",
        password: str | None = None,
        share: Share = Share.ALLOW_EXCLUSIVE,
        limits: VncLimits = VncLimits(),
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        super().__init__(self._client, limits.clients)
        self.name = name
        self.limits = limits
        self.watch = ScreenWatch(screen)
        self.input = InputThread(sink)
        self._check = None if password is None else PasswordCheck(password)
        self._share = share
        self._random = random

    async def close(self) -> None:
        """Stop listening and end all connections."""
        await super().close()
        self.input.close()

    def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> VncClient:
        return VncClient(self, reader, writer, self._random(CHALLENGE_LENGTH), self._check)

    def admit(self, newcomer: VncClient, *, shared: bool) -> bool:
        """Whether a client that wants to share, or not, is let in; may end other connections."""
        others = [client for client in self.connections if client is not newcomer and client.is_in]
        if self._share is Share.IGNORE:
            return True
        if self._share is Share.FORCE_SHARED:
            return shared
        if shared:
            return not any(client.exclusive for client in others)
        for client in others:
            log.info("%s: ended for a client that does not share", client.peer)
            if (task := self.connections[client]) is not None:
                task.cancel()
        return True
