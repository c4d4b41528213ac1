"""What both halves of the handshake are: a buffer, a state, a table of transitions, an event.

A half names its states and triggers in enums of its own, and its transitions in a table; any state
also goes to the closed one, when the other side ends the handshake or breaks the protocol.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from vdisk.nbd._buffer import ReceiveBuffer
from vdisk.nbd.errors import LocalProtocolError, RemoteProtocolError
from vdisk.nbd.session import HeaderStyle, MetaContext

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vdisk.nbd.limits import Limits

State = TypeVar("State", bound=Enum)
Trigger = TypeVar("Trigger", bound=Enum)
Event = TypeVar("Event")


class Haggling(Generic[State, Trigger, Event]):
    """A half of the handshake, without what it says.  ``deaf``: states that take no input."""

    transitions: ClassVar[Mapping[Any, Any]]
    deaf: ClassVar[frozenset[Any]]

    def __init__(self, limits: Limits, start: State, closed: State, secured: Trigger) -> None:
        self._limits = limits
        self._inbox = ReceiveBuffer(limits.receive_buffer)
        self._outbox: list[bytes] = []
        self._state = start
        self._closed = closed
        self._secured = secured
        self._event: Event | None = None
        self._tls = False
        self._headers = HeaderStyle.SIMPLE
        self._contexts: tuple[MetaContext, ...] = ()
        self._contexts_export = ""

    @property
    def state(self) -> State:
        return self._state

    @property
    def tls_active(self) -> bool:
        return self._tls

    @property
    def trailing_data(self) -> bytes:
        """After SessionStarted: received bytes that belong to the transmission phase."""
        return self._inbox.take_all()

    def data_to_send(self) -> bytes:
        """What to send now; empty when there is nothing."""
        data = b"".join(self._outbox)
        self._outbox.clear()
        return data

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes of the other side; ``next_event`` says what they mean."""
        if self._state in self.deaf:
            raise LocalProtocolError(f"received data in the state {self._state.name}")
        self._inbox.append(data)

    def tls_started(self) -> None:
        """The connection is encrypted: haggling starts again, nothing of before counts."""
        self._advance(self._secured)
        self._tls = True
        self._headers = HeaderStyle.SIMPLE
        self._contexts = ()

    def _selected_contexts(self, export_name: str) -> tuple[MetaContext, ...]:
        """The selected contexts hold for the export name they were selected with, only."""
        return self._contexts if self._contexts_export == export_name else ()

    def _advance(self, trigger: Trigger) -> None:
        state: State | None = self.transitions.get((self._state, trigger))
        if state is None:
            raise LocalProtocolError(f"{trigger.name} in the state {self._state.name}")
        self._state = state

    def _violation(self, message: str) -> RemoteProtocolError:
        self._state = self._closed
        return RemoteProtocolError(message, operation="negotiate")
