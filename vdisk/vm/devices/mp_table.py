"""The MP tables: processors and interrupts for systems that do not read ACPI's.

"MultiProcessor Specification" 1.4, chapter 4::

    _MP_ floating pointer, 16 bytes   anchor, address of the table, 1, 4, checksum, features
    PCMP configuration table          header of 44 bytes, then entries by type:
         0 processor (20 bytes)   1 bus   2 I/O APIC   3 I/O interrupt   4 local interrupt
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vdisk.vm.devices import ioapic
from vdisk.vm.devices.isa_irqs import IRQS
from vdisk.vm.devices.pci import INTX_PINS

if TYPE_CHECKING:
    from collections.abc import Sequence

REVISION = 4  # of the specification: 1.4
POINTER_LENGTH = 16
LOCAL_APIC, LOCAL_APIC_VERSION = 0xFEE0_0000, 0x14
ENABLED, BOOTSTRAP = 1, 2
CPU_FEATURES = 0x0000_0201  # FPU and APIC
PCI_BUS, ISA_BUS = 0, 1
INT, NMI, EXTINT = 0, 1, 3
CONFORMS, ACTIVE_HIGH_LEVEL = 0x00, 0x0D
ALL_APICS = 0xFF
CASCADE = 2


def mp_tables(
    address: int,
    cpus: int,
    pins: Sequence[tuple[int, int]] = (),
    pirq: Sequence[int] = (10, 10, 11, 11),
    signature: int = 0x600,
) -> bytes:
    """The floating pointer, to lie at ``address`` below 1 MiB, and the table behind it.

    ``pins``: (slot, pin) of each PCI interrupt in use, pin 0 being INTA#.  ``pirq``: the IRQ to
    which firmware has routed PIRQA#-PIRQD#.  ``signature``: CPUID.1:EAX of the processors.
    """
    table = _table(cpus, pins, pirq, signature)
    pointer = struct.pack("<4sIBBB5s", b"_MP_", address + POINTER_LENGTH, 1, REVISION, 0, bytes(5))
    return _summed(pointer, 10) + _summed(table, 7)


def _table(
    cpus: int, pins: Sequence[tuple[int, int]], pirq: Sequence[int], signature: int
) -> bytes:
    entries = [_processor(number, signature) for number in range(cpus)]
    entries += [struct.pack("<BB6s", 1, PCI_BUS, b"PCI   ")]
    entries += [struct.pack("<BB6s", 1, ISA_BUS, b"ISA   ")]
    entries += [struct.pack("<BBBBI", 2, 0, ioapic.VERSION, ENABLED, ioapic.BASE)]
    entries += _pci_interrupts(pins, pirq)
    entries += _isa_interrupts({pirq[_line(slot, pin)] for slot, pin in pins})
    entries += [_local(EXTINT, 0), _local(NMI, 1)]
    body = b"".join(entries)
    head = struct.pack("<4sHBB8s12s", b"PCMP", 44 + len(body), REVISION, 0, b"VDISK", b"PC")
    return head + struct.pack("<IHHIHBB", 0, 0, len(entries), LOCAL_APIC, 0, 0, 0) + body


def _processor(number: int, signature: int) -> bytes:
    flags = ENABLED | (BOOTSTRAP if number == 0 else 0)
    head = struct.pack("<BBBB", 0, number, LOCAL_APIC_VERSION, flags)
    return head + struct.pack("<II8x", signature, CPU_FEATURES)


def _line(slot: int, pin: int) -> int:
    """The PIRQ that a pin leads to (see :meth:`PciBus.add`)."""
    return (slot - 1 + pin) % INTX_PINS


def _pci_interrupts(pins: Sequence[tuple[int, int]], pirq: Sequence[int]) -> list[bytes]:
    """Level-triggered, active high as the lines of this machine are."""
    return [
        _interrupt(PCI_BUS, slot << 2 | pin, pirq[_line(slot, pin)], ACTIVE_HIGH_LEVEL)
        for slot, pin in pins
    ]


def _isa_interrupts(taken: set[int]) -> list[bytes]:
    """IRQ 0 on pin 2, the others on their own; those of PCI belong to PCI."""
    return [
        _interrupt(ISA_BUS, irq, ioapic.TIMER_PIN if irq == 0 else irq, CONFORMS)
        for irq in range(IRQS)
        if irq != CASCADE and irq not in taken
    ]


def _interrupt(bus: int, source: int, pin: int, flags: int) -> bytes:
    return struct.pack("<BBHBBBB", 3, INT, flags, bus, source, 0, pin)


def _local(kind: int, lint: int) -> bytes:
    return struct.pack("<BBHBBBB", 4, kind, CONFORMS, ISA_BUS, 0, ALL_APICS, lint)


def _summed(data: bytes, place: int) -> bytes:
    """Let the bytes sum to zero."""
    total = -sum(data) & 0xFF
    return data[:place] + bytes([total]) + data[place + 1 :]
