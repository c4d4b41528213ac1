"""A console without the speed of a serial line (VIRTIO 1.2, section 5.3); one port::

    queue 0  receive: room that the driver gives for what is typed
    queue 1  transmit: what the guest prints
    configuration  0 columns (16)  2 rows (16)  4 ports (32)  8 emergency write (32)

The other end is a :class:`~vdisk.vm.devices.serial.Stream`; what arrives is handed over with
:meth:`VirtioConsole.feed`, as at a UART.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final

from vdisk.vm.devices.virtio import VirtioDevice
from vdisk.vm.devices.virtqueue import BrokenQueueError, Chain

if TYPE_CHECKING:
    from vdisk.vm.clock import Clock
    from vdisk.vm.devices.base import State
    from vdisk.vm.devices.serial import Stream
    from vdisk.vm.devices.virtio import Slot
    from vdisk.vm.memory import GuestMemory

VIRTIO_CONSOLE_F_SIZE: Final = 1
VIRTIO_CONSOLE_F_EMERG_WRITE: Final = 4
RECEIVE, TRANSMIT = 0, 1
EMERGENCY_WRITE: Final = 8
QUEUE_SIZE: Final = 128

BACKLOG: Final = 1 << 16
"""Bytes that may wait for the guest; whoever has more to give waits for ``space``."""

MAX_PRINTED: Final = 1 << 20
"""Bytes of one buffer: more than any driver prints at once, and little to pass on."""


class VirtioConsole(VirtioDevice):
    """``stream`` None: what is printed is lost.  ``size``: columns and rows."""

    device_type: ClassVar[int] = 3
    class_code: ClassVar[int] = 0x078000

    def __init__(
        self,
        memory: GuestMemory,
        clock: Clock,
        stream: Stream | None = None,
        *,
        size: tuple[int, int] = (80, 25),
        name: str = "virtio-console",
    ) -> None:
        features = VIRTIO_CONSOLE_F_SIZE | VIRTIO_CONSOLE_F_EMERG_WRITE
        super().__init__(name, memory, clock, queues=2, queue_size=QUEUE_SIZE, features=features)
        self.stream = stream
        self._size = size
        self._backlog: deque[int] = deque(maxlen=BACKLOG)

    # -- the far end -------------------------------------------------------------------------

    def space(self) -> int:
        """How many bytes :meth:`feed` takes now."""
        return BACKLOG - len(self._backlog)

    def feed(self, data: bytes) -> None:
        """Bytes arrive; beyond :meth:`space` they are lost."""
        self._backlog.extend(data[: self.space()])
        self.notify(RECEIVE)

    def resize(self, columns: int, rows: int) -> None:
        """The window is another size now."""
        self._size = (columns, rows)
        self.config_changed()

    # -- queues ------------------------------------------------------------------------------

    def ready(self, slot: Slot) -> bool:
        """Room for input is left in its queue until there is input."""
        return slot.index == TRANSMIT or bool(self._backlog)

    def use(self, slot: Slot, chain: Chain) -> int:
        if slot.index == RECEIVE:
            return self._fill(chain)
        if sum(map(len, chain.readable)) > MAX_PRINTED:
            raise BrokenQueueError(f"more than {MAX_PRINTED} bytes printed at once")
        if self.stream is not None:
            self.stream.write(b"".join(chain.readable))
        return 0

    def _fill(self, chain: Chain) -> int:
        if not chain.writable:
            raise BrokenQueueError("a buffer for input without room")
        written = 0
        for view in chain.writable:
            count = min(len(view), len(self._backlog))
            view[:count] = bytes(self._backlog.popleft() for _ in range(count))
            written += count
        chain.dirtied(self.memory)
        return written

    # -- configuration -----------------------------------------------------------------------

    def config(self) -> bytes:
        return struct.pack("<HHII", *self._size, 1, 0)

    def write_config(self, offset: int, data: bytes) -> None:
        """A guest that cannot use its queues yet, or any more, writes single letters."""
        if offset == EMERGENCY_WRITE and self.stream is not None:
            self.stream.write(data[:1])

    # -- life --------------------------------------------------------------------------------

    def save_state(self) -> State:
        return super().save_state() | {"backlog": bytes(self._backlog)}

    def load_state(self, state: State) -> None:
        super().load_state(state)
        backlog = state.get("backlog")
        self.require(isinstance(backlog, bytes) and len(backlog) <= BACKLOG, "what waits")
        self._backlog.clear()
        self._backlog.extend(backlog or b"")
