"""PCI: configuration space, base address registers, interrupts and messages ("PCI" 2.3, 3.0).

One bus, reached by configuration mechanism #1 ("PCI Local Bus" 3.0, section 3.2.2.3.2)::

    CF8h  CONFIG_ADDRESS (32-bit accesses only)   | E |  0  | bus | device | function | register |
    CFCh  CONFIG_DATA                              31  30-24 23-16  15-11     10-8       7-2

The header of a function (type 0, section 6.1)::

    00  vendor ID            02  device ID           2C  subsystem vendor ID, subsystem ID
    04  command              06  status              30  expansion ROM base address
    08  revision, class      0E  header type         34  capabilities pointer
    10  base address registers 0-5                   3C  interrupt line   3D  interrupt pin

What a guest writes is masked: a function declares which bits of its configuration space are
writable and which are cleared by writing a one.  A BAR answers on the bus while the command
register enables it and nobody else is there; a guest that lays two ranges over each other gets
the one that came first until that moves away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

from vdisk.errors import InvalidRequestError
from vdisk.vm.devices.base import Device, State
from vdisk.vm.devices.pci_msix import MsixTable
from vdisk.vm.irq import IrqLine, SharedLine
from vdisk.vm.memory import FOUR_GIB, PAGE_SIZE, PageKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.bus import Bus, IoSpace, Range, Read, Write
    from vdisk.vm.memory import GuestMemory

CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
CONFIG_ENABLE = 1 << 31
CONFIG_SPACE = 256

VENDOR_ID, DEVICE_ID, COMMAND, STATUS, REVISION_ID = 0x00, 0x02, 0x04, 0x06, 0x08
CLASS_CODE, HEADER_TYPE, BAR0, SUBSYSTEM_VENDOR_ID, SUBSYSTEM_ID = 0x09, 0x0E, 0x10, 0x2C, 0x2E
EXPANSION_ROM, CAPABILITIES_POINTER, INTERRUPT_LINE, INTERRUPT_PIN = 0x30, 0x34, 0x3C, 0x3D
BARS = 6
ROM_BAR = 6
"""Index under which the expansion ROM is kept beside the BARs."""
FIRST_CAPABILITY = 0x40

COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER, COMMAND_INTX_DISABLE = 1, 2, 4, 1 << 10
COMMAND_WRITABLE = 0x0547  # I/O, memory, master, parity, SERR#, INTx disable
STATUS_INTERRUPT, STATUS_CAPABILITIES = 1 << 3, 1 << 4
STATUS_CLEARABLE = 0xF900
MULTIFUNCTION = 0x80

BAR_IO, BAR_64, BAR_PREFETCHABLE = 1, 4, 8
ROM_ENABLE = 1
SMALLEST_ROM = PAGE_SIZE
INTX_PINS = 4


class Bar:
    """One range of addresses that a function decodes.

    ``size``: a power of two.  ``moved(address)`` is told where the range lies now (None:
    nowhere) and says whether it could be put there.
    """

    def __init__(
        self, register: int, size: int, flags: int, moved: Callable[[int | None], bool]
    ) -> None:
        self.register = register
        self.size = size
        self.flags = flags
        self.moved = moved
        self.address: int | None = None
        self.wanted: int | None = None

    def release(self, wanted: int | None) -> bool:
        """Note where the range ought to be; leave the old place.  True if one became free."""
        self.wanted = wanted
        if self.address is None or self.address == wanted:
            return False
        self.moved(None)
        self.address = None
        return True

    def occupy(self) -> None:
        """Go to the wanted place, if it is free."""
        if self.address is None and self.wanted is not None and self.moved(self.wanted):
            self.address = self.wanted


class _Window:
    """``moved`` of a BAR whose accesses go to a device's callables."""

    def __init__(self, space: IoSpace, size: int, read: Read, write: Write, name: str) -> None:
        self._space, self._size, self._name = space, size, name
        self._read, self._write = read, write
        self._range: Range | None = None

    def __call__(self, address: int | None) -> bool:
        if self._range is not None:
            self._space.unmap(self._range)
            self._range = None
        if address is not None:
            try:
                self._range = self._space.map(
                    address, self._size, self._read, self._write, self._name
                )
            except InvalidRequestError:  # taken, or outside the address space
                return False
        return True


class _Rom:
    """``moved`` of an expansion ROM: pages of memory, where nothing else is."""

    def __init__(self, memory: GuestMemory, image: bytes) -> None:
        self._memory, self._image = memory, image
        self._start: int | None = None

    def __call__(self, address: int | None) -> bool:
        size = len(self._image)
        if self._start is not None:
            self._memory.set_kind(self._start, size, PageKind.MMIO)
            self._start = None
        if address is not None:
            if not is_free(self._memory, address, size):
                return False
            self._memory.load_rom(address, self._image)
            self._start = address
        return True


def is_free(memory: GuestMemory, address: int, size: int) -> bool:
    """True if a function's memory may be laid there: below 4 GiB, where there is none yet."""
    end = address + size
    if address < memory.low_end or end > FOUR_GIB:
        return False
    return all(
        start >= end or address >= start + length for start, length, _kind in memory.regions()
    )


class Identity(NamedTuple):
    """What a function says it is.  ``class_code``: base class, subclass, interface (24 bits)."""

    vendor_id: int
    device_id: int
    class_code: int
    revision: int = 0
    subsystem_vendor_id: int = 0
    subsystem_id: int = 0
    interrupt_pin: int = 0


class PciDevice(Device):
    """One function on the bus.

    A subclass declares its registers in its constructor (:meth:`define`, :meth:`add_bar`,
    :meth:`add_capability`) and is then added to a :class:`PciBus`.  ``interrupt_pin``: 1 is
    INTA#; 0 is none.  ``config``: the 256 bytes a guest reads.
    """

    SAVED: ClassVar[tuple[str, ...]] = ("config",)

    def __init__(self, name: str, bus: Bus, identity: Identity) -> None:
        self.name = name
        self.bus = bus
        self.config = bytearray(CONFIG_SPACE)
        self.writable = bytearray(CONFIG_SPACE)
        self.clearable = bytearray(CONFIG_SPACE)
        self.bars: dict[int, Bar] = {}
        self.irq = IrqLine()
        self.msix: MsixTable | None = None
        self.pci_bus: PciBus | None = None
        self._next_capability = FIRST_CAPABILITY
        self._power_on = bytes(CONFIG_SPACE)
        self.define(VENDOR_ID, 2, identity.vendor_id)
        self.define(DEVICE_ID, 2, identity.device_id)
        self.define(COMMAND, 2, 0, writable=COMMAND_WRITABLE)
        self.define(STATUS, 2, 0, clearable=STATUS_CLEARABLE)
        self.define(REVISION_ID, 4, identity.class_code << 8 | identity.revision)
        self.define(SUBSYSTEM_VENDOR_ID, 2, identity.subsystem_vendor_id)
        self.define(SUBSYSTEM_ID, 2, identity.subsystem_id)
        if identity.interrupt_pin:
            self.define(INTERRUPT_LINE, 1, 0, writable=0xFF)
            self.define(INTERRUPT_PIN, 1, identity.interrupt_pin)

    # -- declaring ---------------------------------------------------------------------------

    def define(
        self, offset: int, size: int, value: int, *, writable: int = 0, clearable: int = 0
    ) -> None:
        """Give a register of configuration space its power-on value and its masks."""
        place = slice(offset, offset + size)
        self.config[place] = value.to_bytes(size, "little")
        self.writable[place] = writable.to_bytes(size, "little")
        self.clearable[place] = clearable.to_bytes(size, "little")

    def add_bar(self, index: int, size: int, read: Read, write: Write, flags: int = 0) -> Bar:
        """A BAR whose accesses go to ``read`` and ``write`` (as in :mod:`vdisk.vm.bus`).

        ``flags``: BAR_IO, or any of BAR_64 (takes two registers) and BAR_PREFETCHABLE.
        """
        space = self.bus.ports if flags & BAR_IO else self.bus.mmio
        window = _Window(space, size, read, write, f"{self.name} BAR {index}")
        return self.add_placed_bar(index, size, window, flags)

    def add_placed_bar(
        self, index: int, size: int, moved: Callable[[int | None], bool], flags: int = 0
    ) -> Bar:
        """A BAR that the device maps itself: see :class:`Bar`."""
        smallest = 4 if flags & BAR_IO else 16
        if size < smallest or size & size - 1:
            raise InvalidRequestError(f"{self.name}: a BAR of {size} bytes")
        register = BAR0 + 4 * index
        self.define(register, 4, flags, writable=-size & 0xFFFF_FFFF)
        if flags & BAR_64:
            self.define(register + 4, 4, 0, writable=(-size & (1 << 64) - 1) >> 32)
        self.bars[index] = Bar(register, size, flags, moved)
        return self.bars[index]

    def add_rom(self, image: bytes, memory: GuestMemory) -> None:
        """An expansion ROM, which lies in memory where its base address register says."""
        size = max(1 << (len(image) - 1).bit_length(), SMALLEST_ROM)
        rom = _Rom(memory, image.ljust(size, b"\xff"))
        self.define(EXPANSION_ROM, 4, 0, writable=-size & 0xFFFF_F800 | ROM_ENABLE)
        self.bars[ROM_BAR] = Bar(EXPANSION_ROM, size, 0, rom)

    def add_capability(self, identifier: int, body: bytes, writable: bytes = b"") -> int:
        """Append to the list of capabilities; gives where it lies.

        ``body``: what follows the two bytes of identifier and link; ``writable``: its mask.
        """
        offset = self._next_capability
        end = offset + 2 + len(body)
        if end > CONFIG_SPACE:
            raise InvalidRequestError(f"{self.name}: capabilities do not fit")
        self.config[offset : offset + 2] = bytes([identifier, self.config[CAPABILITIES_POINTER]])
        self.config[offset + 2 : end] = body
        self.writable[offset + 2 : offset + 2 + len(writable)] = writable
        self.config[CAPABILITIES_POINTER] = offset
        self.config[STATUS] |= STATUS_CAPABILITIES
        self._next_capability = end + 3 & ~3
        return offset

    def add_msix(self, vectors: int, bar: int) -> MsixTable:
        """MSI-X with this many vectors, its table and pending bits in a BAR of their own."""
        self.msix = MsixTable(self, vectors, bar)
        return self.msix

    # -- working -----------------------------------------------------------------------------

    @property
    def command(self) -> int:
        """The command register."""
        return self.config[COMMAND] | self.config[COMMAND + 1] << 8

    @property
    def bus_master(self) -> bool:
        """True while the function may access memory and send messages."""
        return bool(self.config[COMMAND] & COMMAND_MASTER)

    def set_intx(self, level: bool) -> None:
        """Assert or release the interrupt pin (a function that uses MSI-X has none)."""
        if level:
            self.config[STATUS] |= STATUS_INTERRUPT
        else:
            self.config[STATUS] &= ~STATUS_INTERRUPT
        self._drive()

    def _drive(self) -> None:
        asserted = bool(self.config[STATUS] & STATUS_INTERRUPT)
        messages = self.msix is not None and self.msix.enabled
        self.irq.set(asserted and not messages and not self.command & COMMAND_INTX_DISABLE)

    def send_msi(self, address: int, data: int) -> None:
        """Send a message-signalled interrupt, if the function is a bus master."""
        if self.bus_master and self.pci_bus is not None:
            self.pci_bus.send_msi(address, data)

    def config_read(self, offset: int, size: int) -> int:
        """A read of configuration space; may be extended for registers that live elsewhere."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """A write by the guest, of which the masks let through what is writable."""
        for place in range(offset, min(offset + size, CONFIG_SPACE)):
            byte, mask = value & 0xFF, self.writable[place]
            merged = self.config[place] & ~mask | byte & mask
            self.config[place] = merged & ~(byte & self.clearable[place])
            value >>= 8
        if offset < EXPANSION_ROM + 4 and offset + size > COMMAND:
            self._drive()
            self.update_bars()
        if self.msix is not None and offset <= self.msix.control < offset + size:
            self._drive()
            self.msix.control_written()
        self.config_written(offset, size)

    def config_written(self, offset: int, size: int) -> None:
        """Called after the guest has written configuration space."""

    def update_bars(self) -> None:
        """Let the BARs lie where configuration space says."""
        freed = [bar.release(self._wanted(bar)) for bar in self.bars.values()]
        if any(freed) and self.pci_bus is not None:
            self.pci_bus.settle()
        else:
            for bar in self.bars.values():
                bar.occupy()

    def _wanted(self, bar: Bar) -> int | None:
        """Where a BAR is to answer; address 0 is what an unassigned one holds."""
        enable = COMMAND_IO if bar.flags & BAR_IO else COMMAND_MEMORY
        value = self.config_dword(bar.register)
        if bar.register == EXPANSION_ROM and not value & ROM_ENABLE:
            return None
        if bar.flags & BAR_64:
            value |= self.config_dword(bar.register + 4) << 32
        address = value & -bar.size
        return address if self.command & enable and address else None

    def config_dword(self, offset: int) -> int:
        """Four bytes of configuration space."""
        return int.from_bytes(self.config[offset : offset + 4], "little")

    def attach(self, pci_bus: PciBus, irq: IrqLine) -> None:
        """Called by :meth:`PciBus.add`: the registers are declared, their values the reset's."""
        self.pci_bus = pci_bus
        self.irq = irq
        self._power_on = bytes(self.config)

    def save_state(self) -> State:
        parts = {} if self.msix is None else {"msix": self.msix.save_state()}
        return super().save_state() | parts

    def load_state(self, state: State) -> None:
        super().load_state(state)
        if self.msix is not None:
            self.msix.load_state(state.get("msix", {}))

    def reset(self) -> None:
        self.config[:] = self._power_on
        self._drive()
        self.update_bars()
        if self.msix is not None:
            self.msix.reset()

    def restored(self) -> None:
        fixed = zip(self.config, self._power_on, self.writable, self.clearable, strict=True)
        for offset, (now, then, writable, clearable) in enumerate(fixed):
            if offset < FIRST_CAPABILITY and offset not in {STATUS, STATUS + 1}:
                same = not (now ^ then) & ~(writable | clearable) & 0xFF
                self.require(same, f"byte {offset:#x} of configuration space")
        self._drive()
        self.update_bars()


class PciBus(Device):
    """The bus: functions by number, configuration by mechanism #1, INTx and messages.

    ``pirq``: four wires, PIRQA#…PIRQD#, for an interrupt router to connect.  ``send_msi``:
    where memory writes of interrupt messages go; set by whoever owns the local APICs.
    ``reset_control``: byte accesses to CF9h, which lies inside CONFIG_ADDRESS (PIIX3).
    """

    SAVED: ClassVar[tuple[str, ...]] = ("_address",)
    name = "pci"

    def __init__(self, bus: Bus) -> None:
        self.functions: dict[int, PciDevice] = {}
        self.pirq = [IrqLine() for _ in range(INTX_PINS)]
        self.send_msi: Callable[[int, int], None] = lambda _address, _data: None
        self.reset_control: tuple[Callable[[], int], Callable[[int], None]] | None = None
        self._pins = [SharedLine(line.set) for line in self.pirq]
        self._address = 0
        bus.ports.map(CONFIG_ADDRESS, 4, self._read_address, self._write_address, "PCI address")
        bus.ports.map(CONFIG_DATA, 4, self._read_data, self._write_data, "PCI data")

    def add(self, device: PciDevice, slot: int, function: int = 0) -> None:
        """Plug a function in.

        A pin of slot n leads to PIRQ (pin + n - 1) modulo 4, as on PIIX3 boards: slot 1's INTA#
        to PIRQA#, slot 2's to PIRQB#, and so on.
        """
        number = slot << 3 | function
        if not 0 <= slot < 32 or not 0 <= function < 8 or number in self.functions:
            raise InvalidRequestError(f"PCI {slot:#x}.{function} is not free")
        pin = device.config[INTERRUPT_PIN]
        irq = self._pins[(pin - 1 + slot - 1) % INTX_PINS].line() if pin else IrqLine()
        self.functions[number] = device
        if function:
            first = self.functions.get(slot << 3)
            if first is None:
                raise InvalidRequestError(f"PCI {slot:#x}.0 has to be added first")
            first.config[HEADER_TYPE] |= MULTIFUNCTION
            first.attach(self, first.irq)
        device.attach(self, irq)

    def settle(self) -> None:
        """An address has become free: let whoever waits for one have it."""
        for device in self.functions.values():
            for bar in device.bars.values():
                bar.occupy()

    def reset(self) -> None:
        """Only the bus's own register; functions are devices of their own."""
        self._address = 0

    # -- mechanism #1 ------------------------------------------------------------------------

    def _read_address(self, offset: int, size: int) -> int:
        if size == 4:
            return self._address
        if offset == 1 and size == 1 and self.reset_control is not None:
            return self.reset_control[0]()
        return 0xFFFF_FFFF

    def _write_address(self, offset: int, size: int, value: int) -> None:
        if size == 4:
            self._address = value & 0x80FF_FFFC
        elif offset == 1 and size == 1 and self.reset_control is not None:
            self.reset_control[1](value)

    def _selected(self) -> PciDevice | None:
        """The function that CONFIG_ADDRESS names; there is bus 0 only."""
        if self._address & CONFIG_ENABLE and not self._address & 0xFF_0000:
            return self.functions.get(self._address >> 8 & 0xFF)
        return None

    def _read_data(self, offset: int, size: int) -> int:
        device = self._selected()
        if device is None:
            return 0xFFFF_FFFF
        return device.config_read((self._address & 0xFC) + offset, size)

    def _write_data(self, offset: int, size: int, value: int) -> None:
        device = self._selected()
        if device is not None:
            device.config_write((self._address & 0xFC) + offset, size, value)
