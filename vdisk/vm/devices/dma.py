"""Two 8237A DMA controllers as the PC/AT has them (Intel 8237A data sheet; 82371SB, section 2.5).

::

    first, channels 0-3, bytes       00-07  address and count of each channel, low byte first
    second, channels 4-7, words      C0-CE  the same, at every other port
                                     08 / D0  status, command      09 / D2  request
                                     0A / D4  single mask          0B / D6  mode
                                     0C / D8  clear the flip-flop  0D / DA  temporary, master clear
                                     0E / DC  clear mask           0F / DE  write all masks
    81-8F  page registers: the address's upper bits (87 83 81 82, - 8B 89 8A: channels 0-7)

    mode: 7-6 demand, single, block, cascade   5 decrement   4 autoinitialize   3-2 verify, to
    memory, from memory   1-0 channel

A device asks by :meth:`Dma.request`, and moves its data when it is called.  A count of n moves
n + 1; then terminal count ends the transfer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vdisk.errors import OutOfRangeError
from vdisk.vm.devices.base import Device

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.bus import Bus
    from vdisk.vm.memory import GuestMemory

FIRST_PORT, SECOND_PORT, PAGE_PORT, PAGE_PORTS = 0x00, 0xC0, 0x81, 15
PAGES = (0x87, 0x83, 0x81, 0x82, 0x8F, 0x8B, 0x89, 0x8A)
CHANNELS = 4
STATUS, REQUEST, SINGLE_MASK, MODE, CLEAR_FLIP_FLOP, MASTER_CLEAR, CLEAR_MASK, ALL_MASKS = (
    *range(0x08, 0x10),
)
COMMAND_DISABLE = 0x04
MODE_TYPE, TO_MEMORY, FROM_MEMORY, AUTOINITIALIZE, DECREMENT = 0x0C, 0x04, 0x08, 0x10, 0x20


class Controller(Device):
    """One 8237A.  ``changed()``: after anything that may let a request through."""

    SAVED: ClassVar[tuple[str, ...]] = (
        *("_base_address", "_base_count", "addresses", "counts", "_modes"),
        *("masks", "_command", "_terminal", "_high_byte"),
    )
    name = "8237A"

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self.reset()

    def reset(self) -> None:
        self._base_address, self._base_count = [0] * CHANNELS, [0] * CHANNELS
        self.addresses, self.counts = [0] * CHANNELS, [0] * CHANNELS
        self._modes = [0] * CHANNELS
        self._master_clear()

    def _master_clear(self) -> None:
        """Addresses, counts and modes stay."""
        self.masks, self._command, self._terminal, self._high_byte = 0x0F, 0, 0, False

    def enabled(self, channel: int) -> bool:
        return not (self.masks >> channel & 1 or self._command & COMMAND_DISABLE)

    def mode(self, channel: int) -> int:
        return self._modes[channel]

    def advance(self, channel: int, units: int) -> bool:
        """So many were moved; True if the count has run out."""
        step = -units if self._modes[channel] & DECREMENT else units
        self.addresses[channel] = (self.addresses[channel] + step) & 0xFFFF
        left = self.counts[channel] - units
        self.counts[channel] = left & 0xFFFF
        if left >= 0:
            return False
        self._terminal |= 1 << channel
        if self._modes[channel] & AUTOINITIALIZE:
            self.addresses[channel] = self._base_address[channel]
            self.counts[channel] = self._base_count[channel]
        else:
            self.masks |= 1 << channel
        return True

    def read(self, register: int) -> int:
        if register < 2 * CHANNELS:
            channel, values = register >> 1, self.counts if register & 1 else self.addresses
            shift = 8 if self._high_byte else 0
            self._high_byte = not self._high_byte
            return values[channel] >> shift & 0xFF
        if register == STATUS:
            terminal, self._terminal = self._terminal, 0
            return terminal
        return self.masks | 0xF0 if register == ALL_MASKS else 0

    def write(self, register: int, value: int) -> None:
        if register < 2 * CHANNELS:
            self._write_half(register, value)
        elif register == STATUS:
            self._command = value
        elif register == SINGLE_MASK:
            bit = 1 << (value & 3)
            self.masks = self.masks | bit if value & 4 else self.masks & ~bit
        elif register == MODE:
            self._modes[value & 3] = value
        elif register == CLEAR_FLIP_FLOP:
            self._high_byte = False
        elif register == MASTER_CLEAR:
            self._master_clear()
        elif register == CLEAR_MASK:
            self.masks = 0
        elif register == ALL_MASKS:
            self.masks = value & 0x0F
        self._changed()

    def _write_half(self, register: int, value: int) -> None:
        """Half of an address or a count, as the flip-flop says: base and current."""
        channel = register >> 1
        base, current = (
            (self._base_count, self.counts)
            if register & 1
            else (self._base_address, self.addresses)
        )
        shift = 8 if self._high_byte else 0
        self._high_byte = not self._high_byte
        base[channel] = base[channel] & ~(0xFF << shift) | value << shift
        current[channel] = base[channel]

    def restored(self) -> None:
        words = (*self._base_address, *self._base_count, *self.addresses, *self.counts)
        self.require(all(0 <= word <= 0xFFFF for word in words), "a register of 17 bits")
        small = (*self._modes, self.masks, self._command, self._terminal)
        self.require(all(0 <= value <= 0xFF for value in small), "a register of 9 bits")


class Dma(Device):
    """Both controllers and the page registers."""

    SAVED: ClassVar[tuple[str, ...]] = ("_controllers", "_pages")
    name = "dma"

    def __init__(self, bus: Bus, memory: GuestMemory) -> None:
        self._memory = memory
        self._pages = bytearray(PAGE_PORTS)
        self._controllers = {"first": Controller(self._look), "second": Controller(self._look)}
        self._requests: dict[int, Callable[[], None]] = {}
        for controller, port, shift in (
            (self._controllers["first"], FIRST_PORT, 0),
            (self._controllers["second"], SECOND_PORT, 1),
        ):
            self._map(bus, controller, port, shift)
        bus.ports.map(PAGE_PORT, PAGE_PORTS, self._read_page, self._write_page, "DMA pages")

    def _map(self, bus: Bus, controller: Controller, port: int, shift: int) -> None:
        def read(offset: int, _size: int) -> int:
            return controller.read(offset >> shift)

        def write(offset: int, _size: int, value: int) -> None:
            controller.write(offset >> shift, value & 0xFF)

        bus.ports.map(port, 16 << shift, read, write, self.name)

    def reset(self) -> None:
        for controller in self._controllers.values():
            controller.reset()
        self._pages[:] = bytes(PAGE_PORTS)
        self._requests.clear()

    def _read_page(self, offset: int, _size: int) -> int:
        return self._pages[offset]

    def _write_page(self, offset: int, _size: int, value: int) -> None:
        self._pages[offset] = value & 0xFF

    # -- devices -----------------------------------------------------------------------------

    def request(self, channel: int, serve: Callable[[], None]) -> None:
        """Call ``serve()``, once, as soon as the channel lets a device move its data."""
        self._requests[channel] = serve
        self._look()

    def withdraw(self, channel: int) -> None:
        """The device does not ask any more."""
        self._requests.pop(channel, None)

    def _look(self) -> None:
        for channel in list(self._requests):
            if self._of(channel).enabled(channel & 3):
                self._requests.pop(channel)()

    def _of(self, channel: int) -> Controller:
        return self._controllers["second" if channel >= CHANNELS else "first"]

    def to_memory(self, channel: int, data: bytes | bytearray | memoryview) -> bool:
        """A device has bytes: True if terminal count came with them, and took no more.

        A channel in another mode (verify) moves none of them but counts.
        """
        wanted = self._of(channel).mode(channel & 3) & MODE_TYPE == TO_MEMORY
        done, terminal = 0, False
        while done < len(data) and not terminal:
            place, size = self._run(channel, len(data) - done)
            if wanted:
                self._store(place, data[done : done + size])
            done += size
            terminal = self._moved(channel, size)
        return terminal

    def from_memory(self, channel: int, length: int) -> tuple[bytes, bool]:
        """A device wants bytes: as many as there are until terminal count, and whether it is."""
        data, terminal = b"", False
        while len(data) < length and not terminal:
            place, size = self._run(channel, length - len(data))
            data += self._fetch(place, size)
            terminal = self._moved(channel, size)
        return data, terminal

    def _run(self, channel: int, wanted: int) -> tuple[int, int]:
        """Where the next bytes lie that are one after another, and how many of them."""
        controller, number, words = self._of(channel), channel & 3, channel >= CHANNELS
        page, address = self._pages[PAGES[channel] - PAGE_PORT], controller.addresses[number]
        left = min(controller.counts[number] + 1, 0x10000 - address)
        if controller.mode(number) & DECREMENT:
            left = 1
        if words:
            return (page & 0xFE) << 16 | address << 1, min(left * 2, wanted)
        return page << 16 | address, min(left, wanted)

    def _moved(self, channel: int, size: int) -> bool:
        units = -(-size // 2) if channel >= CHANNELS else size
        return self._of(channel).advance(channel & 3, units)

    def _store(self, place: int, data: bytes | bytearray | memoryview) -> None:
        try:
            self._memory.write(place, data)
        except OutOfRangeError:
            return  # nobody is there

    def _fetch(self, place: int, size: int) -> bytes:
        try:
            return self._memory.read(place, size)
        except OutOfRangeError:
            return b"\xff" * size
