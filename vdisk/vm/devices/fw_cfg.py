"""fw_cfg: how a virtual machine hands files to its firmware (QEMU, docs/specs/fw_cfg).

::

    510h  selector (16-bit write)            512… -
    511h  data, a byte at a time             514h  DMA address: high, low (big-endian, 32 bits each)

    key 0000 "QEMU"   0001 features (bit 0 ports, bit 1 DMA)   0019 directory   0020… files
    directory: count, then for each file  size, key, reserved, name[56]      (big-endian)
    DMA access: control (31-16 key; 4 write, 3 select, 2 skip, 1 read, 0 error), length, address

Writing the low half of the DMA address starts the transfer.  Items here are read-only.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, ClassVar

from vdisk.errors import InvalidRequestError, OutOfRangeError
from vdisk.vm.devices.base import Device

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.bus import Bus
    from vdisk.vm.memory import GuestMemory

PORT, PORTS = 0x510, 12
DATA, DMA_ADDRESS = 1, 4
SIGNATURE, ID, FILE_DIRECTORY, FIRST_FILE = 0x0000, 0x0001, 0x0019, 0x0020
RAM_SIZE, NOGRAPHIC, CPUS, BOOT_MENU, MAX_CPUS = 0x0003, 0x0004, 0x0005, 0x000E, 0x000F
ID_PORTS, ID_DMA = 1, 2
DMA_SIGNATURE = b"QEMU CFG"
DMA_ERROR, DMA_READ, DMA_SKIP, DMA_SELECT, DMA_WRITE = 1, 2, 4, 8, 16
NAME_LENGTH = 56
MOST_FILES = 0x4000 - FIRST_FILE  # keys have 14 bits
E820_RAM, E820_RESERVED = 1, 2
_ACCESS = struct.Struct(">IIQ")
_FILE = struct.Struct(f">IHH{NAME_LENGTH}s")


class FwCfg(Device):
    """The interface; items are added before the machine starts and belong to its configuration."""

    SAVED: ClassVar[tuple[str, ...]] = ("_key", "_offset", "_dma_address")
    name = "fw_cfg"

    def __init__(self, bus: Bus, memory: GuestMemory) -> None:
        self._memory = memory
        self._items: dict[int, bytes] = {}
        self._files: dict[str, int] = {}
        self._updates: dict[int, Callable[[], None]] = {}
        self.add_item(SIGNATURE, b"QEMU")
        self.add_item(ID, (ID_PORTS | ID_DMA).to_bytes(4, "little"))
        self._write_directory()
        self.reset()
        bus.ports.map(PORT, PORTS, self._read, self._write, self.name)

    def reset(self) -> None:
        self._key = self._offset = self._dma_address = 0

    # -- filling -----------------------------------------------------------------------------

    def add_item(self, key: int, data: bytes) -> None:
        """An item that firmware knows by its number."""
        self._items[key] = data

    def add_number(self, key: int, value: int, size: int = 2) -> None:
        """An item that is a little-endian number."""
        self.add_item(key, value.to_bytes(size, "little"))

    def add_file(self, name: str, data: bytes) -> None:
        """A file that firmware finds by name; the same name again replaces it."""
        if len(name.encode()) >= NAME_LENGTH or len(self._files) >= MOST_FILES:
            raise InvalidRequestError(f"fw_cfg has no place for a file called {name!r}")
        key = self._files.setdefault(name, FIRST_FILE + len(self._files))
        self._items[key] = data
        self._write_directory()

    def before_reading(self, name: str, update: Callable[[], None]) -> None:
        """Call ``update`` when firmware is about to read a file: it may replace its bytes."""
        self._updates[self._files[name]] = update

    def add_memory_map(self, ranges: list[tuple[int, int, int]]) -> None:
        """``etc/e820``: (start, length, type) of RAM and reserved ranges."""
        self.add_file("etc/e820", b"".join(struct.pack("<QQI", *each) for each in ranges))

    def add_boot_order(self, paths: list[str]) -> None:
        """``bootorder``: Open Firmware paths of devices, first choice first."""
        self.add_file("bootorder", "\n".join(paths).encode() + b"\x00")

    def _write_directory(self) -> None:
        entries = [
            _FILE.pack(len(self._items[key]), key, 0, name.encode())
            for name, key in sorted(self._files.items())
        ]
        self._items[FILE_DIRECTORY] = len(entries).to_bytes(4, "big") + b"".join(entries)

    # -- reading -----------------------------------------------------------------------------

    def _select(self, key: int) -> None:
        self._key, self._offset = key, 0
        update = self._updates.get(key)
        if update is not None:
            update()

    def _read(self, offset: int, size: int) -> int:
        if offset >= DMA_ADDRESS:
            place = offset - DMA_ADDRESS
            return int.from_bytes(DMA_SIGNATURE[place : place + size], "little")
        if offset != DATA or size != 1:
            return 0
        item = self._items.get(self._key, b"")
        value = item[self._offset] if self._offset < len(item) else 0
        self._offset += 1
        return value

    def _write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and size == 2:
            self._select(value)
        elif offset == DMA_ADDRESS and size == 4:
            high = int.from_bytes(value.to_bytes(4, "little"), "big")
            self._dma_address = high << 32
        elif offset == DMA_ADDRESS + 4 and size == 4:
            low = int.from_bytes(value.to_bytes(4, "little"), "big")
            address, self._dma_address = self._dma_address | low, 0
            self._transfer(address)

    def _transfer(self, access: int) -> None:
        """Carry out the access described at a guest address, and say how it went."""
        try:
            view = self._memory.view(access, _ACCESS.size)
        except OutOfRangeError:
            return  # nowhere to say so
        control, length, address = _ACCESS.unpack(view)
        if control & DMA_SELECT:
            self._select(control >> 16)
        result = 0
        if control & DMA_READ:
            result = self._copy_out(address, length)
        elif control & DMA_WRITE:
            result = DMA_ERROR
        elif control & DMA_SKIP:
            self._offset += length
        self._memory.write(access, result.to_bytes(4, "big"))

    def _copy_out(self, address: int, length: int) -> int:
        """Copy ``length`` bytes of the item to memory; zeros follow its end."""
        try:
            view = self._memory.view(address, length)
        except OutOfRangeError:
            return DMA_ERROR
        item = self._items.get(self._key, b"")[self._offset : self._offset + length]
        view[: len(item)] = item
        view[len(item) :] = bytes(length - len(item))
        self._memory.dirtied(address, length)
        self._offset += length
        return 0

    def restored(self) -> None:
        self.require(0 <= self._key <= 0xFFFF and self._offset >= 0, "a position")
        self.require(0 <= self._dma_address < 1 << 64, "an address")
