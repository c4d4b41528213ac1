"""The host bridge: Intel 440FX, 82441FX PMC (data sheet 290549, section 3.2).

Of its registers these do something here::

    59  PAM0   F0000-FFFFF in bits 5-4
    5A  PAM1   C0000 (1-0), C4000 (5-4)      5D  PAM4   D8000, DC000
    5B  PAM2   C8000, CC000                  5E  PAM5   E0000, E4000
    5C  PAM3   D0000, D4000                  5F  PAM6   E8000, EC000
               bit 0: reads from DRAM, bit 1: writes to DRAM, else to the PCI bus (ROM)

Guest memory has one set of bytes under a ROM page and its shadow, so an area whose writes go to
DRAM is read from there as well: firmware shadows a ROM by copying it onto itself, which looks
the same.  The ROM is as it was after a reset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vdisk.errors import InvalidRequestError
from vdisk.vm.devices.pci import Identity, PciDevice
from vdisk.vm.memory import PAGE_SIZE, PageKind

if TYPE_CHECKING:
    from vdisk.vm.bus import Bus
    from vdisk.vm.memory import GuestMemory

VENDOR, DEVICE, REVISION = 0x8086, 0x1237, 2
HOST_BRIDGE_CLASS = 0x060000
PAM0, SMRAM = 0x59, 0x72
PAM_READ, PAM_WRITE = 1, 2
SMRAM_DEFAULT = 0x02
AREA = 0x4000
AREAS_START, BIOS_START, END = 0xC0000, 0xF0000, 0x100000


def areas() -> list[tuple[int, int, int, int]]:
    """(start, length, register, shift) of each area that PAM0-PAM6 govern."""
    found = [(BIOS_START, END - BIOS_START, PAM0, 4)]
    for number in range((BIOS_START - AREAS_START) // AREA):
        shift = 4 * (number & 1)
        found.append((AREAS_START + number * AREA, AREA, PAM0 + 1 + number // 2, shift))
    return found


class I440fx(PciDevice):
    """Host bridge of slot 0: decides what answers from C0000h to FFFFFh."""

    SAVED: ClassVar[tuple[str, ...]] = PciDevice.SAVED

    def __init__(self, bus: Bus, memory: GuestMemory) -> None:
        identity = Identity(VENDOR, DEVICE, HOST_BRIDGE_CLASS, REVISION, 0x1AF4, 0x1100)
        super().__init__("i440fx", bus, identity)
        self._memory = memory
        self._rom: dict[int, bytes] = {}
        self._shown: dict[int, int] = {}
        for register in range(PAM0, PAM0 + 7):
            self.define(register, 1, 0, writable=0x30 if register == PAM0 else 0x33)
        self.define(SMRAM, 1, SMRAM_DEFAULT, writable=0x78)  # kept; there is no SMM

    def load_rom(self, start: int, image: bytes) -> None:
        """Put a ROM below 1 MiB (the last 128 KiB of a BIOS, say); takes effect at reset."""
        if start % AREA or not AREAS_START <= start < END or start + len(image) > END:
            raise InvalidRequestError(f"no place for a ROM of {len(image)} bytes at {start:#x}")
        for offset in range(0, len(image), PAGE_SIZE):
            self._rom[start + offset] = image[offset : offset + PAGE_SIZE].ljust(PAGE_SIZE, b"\xff")

    def reset(self) -> None:
        super().reset()
        for start, content in self._rom.items():
            self._memory.load_rom(start, content)
        self._shown.clear()
        self._show()

    def config_written(self, offset: int, size: int) -> None:
        if offset < PAM0 + 7 and offset + size > PAM0:
            self._show()

    def restored(self) -> None:
        super().restored()
        self._shown.clear()
        self._show()

    def _show(self) -> None:
        """Let memory be what the PAM registers say."""
        for start, length, register, shift in areas():
            bits = self.config[register] >> shift & 3
            if self._shown.get(start) == bits:
                continue
            self._shown[start] = bits
            for page in range(start, start + length, PAGE_SIZE):
                self._memory.set_kind(page, PAGE_SIZE, self._kind(page, bits))

    def _kind(self, page: int, bits: int) -> PageKind:
        if bits & PAM_WRITE:
            return PageKind.RAM
        if bits & PAM_READ or page in self._rom:
            return PageKind.ROM
        return PageKind.MMIO
