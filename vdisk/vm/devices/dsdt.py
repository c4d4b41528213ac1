"""The DSDT: what the operating system cannot find out by itself (ACPI 2.0, chapters 5 and 6).

::

    \\_SB.PCI0           PNP0A03, its windows, _PRT: slot and pin to a link
    \\_SB.PCI0.ISA       slot 1.0: PIRQRC as a field; RTC, keyboard, mouse, COM1-4, LPT1, speaker
    \\_SB.LNKA … LNKD    PNP0C0F: an interrupt that the OS chooses, by way of PIRQRC
    \\_SB.CPnn           a processor each
    \\_S3, \\_S5          the types that PM1_CNT takes for suspending to RAM and for power-off
"""

from __future__ import annotations

from typing import NamedTuple

from vdisk.vm.devices import aml, fdc
from vdisk.vm.devices.acpi_pm import SLP_TYP_S3, SLP_TYP_S5
from vdisk.vm.devices.fdc_transfer import CHANNEL
from vdisk.vm.devices.piix3 import NOT_ROUTED, PIRQRC
from vdisk.vm.devices.serial import COM_IRQS, COM_PORTS

LINKS = ("LNKA", "LNKB", "LNKC", "LNKD")
LINK_IRQS = (5, 10, 11)
"""What a link may be routed to: IRQs that no device of the ISA bus has."""
SLOTS = 32
PCI_MEMORY_END = 0xFEC0_0000
"""Below the I/O APIC."""
PRODUCER_IO, PRODUCER_MEMORY, CACHEABLE_MEMORY = 0x03, 0x01, 0x03
PRESENT, DISABLED = 0x0B, 0x09


class Hardware(NamedTuple):
    """What the tables describe.

    ``pci_memory``: where the window for PCI memory begins, below 4 GiB; ``pci_high``: a window
    above RAM for 64-bit BARs, (start, length) or None.  ``serial_ports``: of 0-3, those fitted.
    """

    cpus: int = 1
    pci_memory: int = 0xC000_0000
    pci_high: tuple[int, int] | None = None
    serial_ports: tuple[int, ...] = (0,)
    parallel_port: bool = False
    hpet: bool = False
    diskettes: bool = False


def dsdt(hardware: Hardware) -> bytes:
    """The AML of the definition block (without the table's header)."""
    processors = [aml.processor(f"CP{n:02X}", n) for n in range(hardware.cpus)]
    links = [_link(number) for number in range(len(LINKS))]
    bridge = aml.device("PCI0", *_host_bridge(hardware), _isa(hardware))
    hpet = [_hpet()] if hardware.hpet else []
    devices = aml.scope("\\_SB", *processors, bridge, *links, *hpet)
    return devices + _sleep("\\_S3", SLP_TYP_S3) + _sleep("\\_S5", SLP_TYP_S5)


def _sleep(name: str, kind: int) -> bytes:
    return aml.name(name, aml.package(aml.integer(kind), aml.integer(kind), aml.ZERO, aml.ZERO))


def _host_bridge(hardware: Hardware) -> list[bytes]:
    windows = [
        aml.window(2, 0, 0, 0xFF, 2),
        aml.io(0xCF8, 8),
        aml.window(1, PRODUCER_IO, 0, 0xCF7, 2),
        aml.window(1, PRODUCER_IO, 0xD00, 0xFFFF, 2),
        aml.window(0, CACHEABLE_MEMORY, 0xA0000, 0xBFFFF, 4),
        aml.window(0, PRODUCER_MEMORY, hardware.pci_memory, PCI_MEMORY_END - 1, 4),
    ]
    if hardware.pci_high is not None:
        start, length = hardware.pci_high
        windows.append(aml.window(0, CACHEABLE_MEMORY, start, start + length - 1, 8))
    return [
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_ADR", aml.ZERO),
        aml.name("_UID", aml.ZERO),
        aml.name("_CRS", aml.resources(*windows)),
        aml.name("_PRT", _routing()),
    ]


def _routing() -> bytes:
    """Pin p of slot n leads to link (n + p - 1) modulo 4, as the board is wired."""
    entries = [
        aml.package(
            aml.integer(slot << 16 | 0xFFFF),
            aml.integer(pin),
            aml.path(f"\\_SB.{LINKS[(slot + pin - 1) % 4]}"),
            aml.ZERO,
        )
        for slot in range(SLOTS)
        for pin in range(4)
    ]
    return aml.package(*entries)


def _link(number: int) -> bytes:
    """An interrupt link: its methods read and write PIRQRC[number]."""
    register = aml.path(f"PRQ{number}")
    return aml.device(
        LINKS[number],
        aml.name("_HID", aml.eisa_id("PNP0C0F")),
        aml.name("_UID", aml.integer(number)),
        aml.name("_PRS", aml.resources(aml.interrupt(*LINK_IRQS))),
        aml.method(
            "_STA",
            0,
            aml.if_(
                aml.and_(register, aml.integer(NOT_ROUTED)), aml.return_(aml.integer(DISABLED))
            ),
            aml.return_(aml.integer(PRESENT)),
        ),
        aml.method("_DIS", 0, aml.or_(register, aml.integer(NOT_ROUTED), register)),
        aml.serialized_method(
            "_CRS",
            0,
            aml.name("BUFF", aml.resources(aml.interrupt(0))),
            aml.create_dword_field(aml.path("BUFF"), 5, "NUMB"),
            aml.and_(register, aml.integer(0x0F), aml.path("NUMB")),
            aml.return_(aml.path("BUFF")),
        ),
        aml.serialized_method(
            "_SRS",
            1,
            aml.create_dword_field(aml.ARG0, 5, "NUMB"),
            aml.store(aml.path("NUMB"), register),
        ),
    )


def _isa(hardware: Hardware) -> bytes:
    """The ISA bridge, with what lies behind it."""
    fields = tuple((f"PRQ{number}", 8) for number in range(len(LINKS)))
    serial = [_serial(number) for number in hardware.serial_ports]
    parallel = [_plain("LPT1", "PNP0400", aml.io(0x378, 8), aml.irq(7))]
    return aml.device(
        "ISA",
        aml.name("_ADR", aml.integer(1 << 16)),
        aml.operation_region("PIRQ", aml.PCI_CONFIG, PIRQRC, len(LINKS)),
        aml.scope("\\_SB", aml.field("PCI0.ISA.PIRQ", aml.BYTE_ACCESS, *fields)),
        _plain("RTC", "PNP0B00", aml.io(0x70, 2), aml.irq(8)),
        _plain("KBD", "PNP0303", aml.io(0x60, 1), aml.io(0x64, 1), aml.irq(1)),
        _plain("MOU", "PNP0F13", aml.irq(12)),
        _plain("SPKR", "PNP0800", aml.io(0x61, 1)),
        *serial,
        *(parallel if hardware.parallel_port else []),
        *(_diskettes() if hardware.diskettes else []),
    )


def _diskettes() -> list[bytes]:
    """The controller's ports around IDE's 3F6h."""
    ports = aml.io(fdc.BASE, 6), aml.io(fdc.BASE + fdc.DIR, 1)
    return [_plain("FDC0", "PNP0700", *ports, aml.irq(fdc.IRQ), aml.dma(CHANNEL))]


def _plain(label: str, identifier: str, *descriptors: bytes) -> bytes:
    return aml.device(
        label,
        aml.name("_HID", aml.eisa_id(identifier)),
        aml.name("_CRS", aml.resources(*descriptors)),
    )


def _serial(number: int) -> bytes:
    return aml.device(
        f"COM{number + 1}",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(number + 1)),
        aml.name("_CRS", aml.resources(aml.io(COM_PORTS[number], 8), aml.irq(COM_IRQS[number]))),
    )


def _hpet() -> bytes:
    return _plain("HPET", "PNP0103", aml.memory_fixed(0xFED0_0000, 0x400))
