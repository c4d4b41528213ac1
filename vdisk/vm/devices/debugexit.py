"""Two devices for tests: QEMU's isa-debug-exit, and the debug console of Bochs at port E9h.

::

    F4h (4 ports)  write n: the machine stops with exit status 2 * n + 1
    E9h            write: a character for the developer; read: E9h says that it is there
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vdisk.vm.devices.base import Device

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.bus import Bus
    from vdisk.vm.devices.serial import Stream

EXIT_PORT, EXIT_PORTS = 0xF4, 4
CONSOLE_PORT = 0xE9


class DebugExit(Device):
    """``stop(status)`` is called when the guest writes; status is odd, as QEMU's."""

    name = "isa-debug-exit"

    def __init__(self, bus: Bus, stop: Callable[[int], None], port: int = EXIT_PORT) -> None:
        self._stop = stop
        bus.ports.map(port, EXIT_PORTS, lambda _offset, _size: 0, self._write, self.name)

    def reset(self) -> None:
        """It has no state."""

    def _write(self, _offset: int, _size: int, value: int) -> None:
        self._stop(value << 1 | 1)


class DebugConsole(Device):
    """Port E9h; SeaBIOS and QEMU's debugcon use it at 402h."""

    SAVED: ClassVar[tuple[str, ...]] = ()
    name = "debugcon"

    def __init__(self, bus: Bus, stream: Stream, port: int = CONSOLE_PORT) -> None:
        self._stream = stream
        bus.ports.map(port, 1, lambda _offset, _size: CONSOLE_PORT, self._write, self.name)

    def reset(self) -> None:
        """It has no state."""

    def _write(self, _offset: int, _size: int, value: int) -> None:
        self._stream.write(bytes([value]))
