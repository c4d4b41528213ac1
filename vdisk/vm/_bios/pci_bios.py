"""The PCI BIOS (PCI BIOS Specification 2.1): int 1Ah AH=B1h, and by a far call through BIOS32."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vdisk.vm._bios import pci
from vdisk.vm._bios.rom import ROM_BASE, ROM_SIZE

if TYPE_CHECKING:
    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.hardware import Hardware

OK, NOT_SUPPORTED, BAD_VENDOR, NOT_FOUND, BAD_REGISTER = 0x00, 0x81, 0x83, 0x86, 0x87
SET_FAILED, BUFFER_TOO_SMALL = 0x88, 0x89
SIGNATURE, SERVICE = 0x20494350, 0x49435024  # "PCI ", "$PCI"
MECHANISM_1, VERSION = 0x01, 0x0210
BIOS32_ENTRY, PCI_ENTRY = "bios32_directory", "protected_mode_call"
ROUTABLE = 0x0DF8  # IRQ 3-8, 10, 11: what a PIRQ can be led to, and 12 not


class PciBiosService:
    """Configuration space for those who do not touch the ports themselves."""

    def __init__(self, hardware: Hardware) -> None:
        self.hw = hardware
        self._functions = {
            0x01: self._installed,
            0x02: self._find_device,
            0x03: self._find_class,
            0x08: self._read,
            0x09: self._read,
            0x0A: self._read,
            0x0B: self._write,
            0x0C: self._write,
            0x0D: self._write,
            0x0E: self._routing,
            0x0F: self._set_irq,
        }

    def service(self, call: Call) -> None:
        """int 1Ah: carry on the stack."""
        call.ah = self._carry_out(call)
        call.carry = call.ah != OK

    def far_call(self, call: Call) -> None:
        """From 32-bit code: carry in the flags themselves."""
        call.ah = self._carry_out(call)
        call.wait = call.ah != OK

    def _carry_out(self, call: Call) -> int:
        function = self._functions.get(call.al & 0x7F)
        return NOT_SUPPORTED if function is None else function(call)

    def directory(self, call: Call) -> None:
        """The BIOS32 service directory: where the service in EAX is."""
        if call.eax != SERVICE or call.bl != 0:
            call.al = 0x81 if call.bl else 0x80
            return
        call.al = 0
        call.ebx, call.ecx = ROM_BASE, ROM_SIZE
        call.edx = self.hw.rom.labels[PCI_ENTRY]

    # -- finding -----------------------------------------------------------------------------

    def _installed(self, call: Call) -> int:
        call.edx, call.al, call.bx, call.cl = SIGNATURE, MECHANISM_1, VERSION, 0
        call.edi = ROM_BASE + self.hw.rom.labels[PCI_ENTRY]
        return OK

    def _nth(self, call: Call, matching: list[pci.Function]) -> int:
        if call.si >= len(matching):
            return NOT_FOUND
        found = matching[call.si]
        call.bh, call.bl = found.bus, found.device << 3 | found.function
        return OK

    def _find_device(self, call: Call) -> int:
        if call.dx == pci.NOBODY:
            return BAD_VENDOR
        wanted = call.cx << 16 | call.dx
        found = [each for each in pci.functions(self.hw.ports) if each.read(0, 4) == wanted]
        return self._nth(call, found)

    def _find_class(self, call: Call) -> int:
        wanted = call.ecx & 0xFFFFFF
        every = pci.functions(self.hw.ports)
        return self._nth(call, [one for one in every if one.read(pci.CLASS, 4) >> 8 == wanted])

    # -- configuration space -----------------------------------------------------------------

    def _place(self, call: Call) -> tuple[pci.Function, int, int] | None:
        size = {8: 1, 9: 2, 0xA: 4, 0xB: 1, 0xC: 2, 0xD: 4}[call.al & 0x7F]
        if call.di % size or call.di > 0xFF:
            return None
        function = pci.Function(self.hw.ports, call.bh, call.bl >> 3, call.bl & 7)
        return function, call.di, size

    def _read(self, call: Call) -> int:
        place = self._place(call)
        if place is None:
            return BAD_REGISTER
        function, offset, size = place
        value = function.read(offset, size)
        if size == 1:
            call.cl = value
        elif size == 2:
            call.cx = value
        else:
            call.ecx = value
        return OK

    def _write(self, call: Call) -> int:
        place = self._place(call)
        if place is None:
            return BAD_REGISTER
        function, offset, size = place
        function.write(offset, size, call.ecx)
        return OK

    # -- interrupts --------------------------------------------------------------------------

    def _routing(self, call: Call) -> int:
        """The slots of the routing table to the buffer that ES:DI describes."""
        at = call.system.es.base + (call.di if call.in_real_mode else call.edi)
        room, offset, segment = struct.unpack("<HHH", call.read(at, 6))
        slots = routing_slots(self.hw)
        call.write(at, len(slots).to_bytes(2, "little"))
        if room < len(slots):
            return BUFFER_TOO_SMALL
        if call.in_real_mode:
            target = (segment << 4) + offset
        else:
            target = int.from_bytes(call.read(at + 2, 4), "little")
        call.write(target, slots)
        call.bx = exclusive_lines()
        return OK

    def _set_irq(self, call: Call) -> int:
        """Lead pin CL (0Ah is INTA#) of a function to line CH."""
        pirq = (call.bl >> 3) - 1 + call.cl - 0x0A
        if not 0x0A <= call.cl <= 0x0D or not ROUTABLE >> call.ch & 1 or call.ch > 15:
            return SET_FAILED
        for function in pci.functions(self.hw.ports):
            if function.class_code == pci.ISA_BRIDGE:
                function.write(pci.PIRQ_ROUTES + pirq % 4, 1, call.ch)
                return OK
        return SET_FAILED


def exclusive_lines() -> int:
    """IRQs that only PCI uses."""
    return sum(1 << line for line in {*pci.PIRQ_LINES})


def routing_slots(hardware: Hardware) -> bytes:
    """16 bytes a device: bus, device, link and possible lines of INTA#-INTD#, slot number."""
    devices = sorted({each.device for each in pci.functions(hardware.ports)} - {0})
    slots = b""
    for slot, device in enumerate(devices, 1):
        links = (pci.PIRQ_ROUTES + (device - 1 + pin) % 4 for pin in range(4))
        pins = b"".join(struct.pack("<BH", link, ROUTABLE) for link in links)
        slots += bytes([0, device << 3]) + pins + bytes([slot, 0])
    return slots


def routing_table(hardware: Hardware) -> bytes:
    """The $PIR table (Microsoft, "PCI IRQ Routing Table Specification" 1.0)."""
    slots = routing_slots(hardware)
    bridges = [each for each in pci.functions(hardware.ports) if each.class_code == pci.ISA_BRIDGE]
    router = bridges[0].device << 3 | bridges[0].function if bridges else 0
    table = bytearray(
        struct.pack(
            "<4sHHBBHII11sB",
            *(b"$PIR", 0x0100, 32 + len(slots), 0, router, exclusive_lines()),
            *(0x70008086, 0, bytes(11), 0),  # compatible with the PIIX3's router
        )
    )
    table += slots
    table[31] = -sum(table) & 0xFF
    return bytes(table)


def bios32_header(entry: int) -> bytes:
    """The "_32_" structure by which 32-bit code finds the directory."""
    header = bytearray(struct.pack("<4sIBBB5s", b"_32_", entry, 0, 1, 0, bytes(5)))
    header[10] = -sum(header) & 0xFF
    return bytes(header)
