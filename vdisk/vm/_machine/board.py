"""The board: an i440FX/PIIX3 PC, its chips made and wired to each other.

::

    CPU0 … CPUn -- local APICs ---- ApicBus ---- I/O APIC ---+
        |             ^ LINT0                                |
        |             +------------ 8259 pair ---------------+-- IRQ 0-15 (IsaIrqs)
    host bus: GuestMemory, Bus
        |
    i440FX (slot 0, host bridge) --- PCI --- slot 1: PIIX3 (.0), IDE (.1), ACPI PM (.3)
                                       |     slot 2: VGA, 3: network, 4…: virtio disks
        ISA: 8254, RTC/CMOS, 8042, UARTs, LPT1, ports 61h, 92h, E9h, F4h

A board knows its chips, not how processors run nor where pictures go; what chips ask of the
machine is in :class:`Requests`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from vdisk.vm.devices.acpi_pm import SCI_IRQ, AcpiPm
from vdisk.vm.devices.apic_bus import ApicBus
from vdisk.vm.devices.debugexit import CONSOLE_PORT, DebugConsole, DebugExit
from vdisk.vm.devices.dma import Dma
from vdisk.vm.devices.edid import PREFERRED
from vdisk.vm.devices.fdc import FITTED, Fdc
from vdisk.vm.devices.fdc import IRQ as FDC_IRQ
from vdisk.vm.devices.fw_cfg import FwCfg
from vdisk.vm.devices.hpet import Hpet, IrqGate
from vdisk.vm.devices.i440fx import I440fx
from vdisk.vm.devices.ide import Piix3Ide
from vdisk.vm.devices.ioapic import IoApic
from vdisk.vm.devices.isa_irqs import IsaIrqs
from vdisk.vm.devices.lapic import Lapic
from vdisk.vm.devices.parallel import ParallelPort
from vdisk.vm.devices.pci import PciBus, PciDevice
from vdisk.vm.devices.pic import PicPair
from vdisk.vm.devices.piix3 import Piix3
from vdisk.vm.devices.pit import Pit
from vdisk.vm.devices.port92 import Port92
from vdisk.vm.devices.ps2 import KeyboardController
from vdisk.vm.devices.ps2_keyboard import Keyboard
from vdisk.vm.devices.ps2_mouse import Mouse
from vdisk.vm.devices.rtc import RESUMING, SHUTDOWN_STATUS, Rtc
from vdisk.vm.devices.serial import COM_IRQS, COM_PORTS, Uart
from vdisk.vm.devices.speaker import Speaker
from vdisk.vm.devices.vga import MEMORY_SIZE as VGA_MEMORY
from vdisk.vm.devices.vga import Vga
from vdisk.vm.devices.virtio_blk import VirtioBlk
from vdisk.vm.devices.virtio_net import VirtioNet
from vdisk.vm.devices.virtio_pci import VirtioPci
from vdisk.vm.devices.virtio_rng import VirtioRng

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.emu_blockdev import EmuBlockDevice
    from vdisk.vm._machine.console import SerialConsole
    from vdisk.vm._machine.drives import MachineDrive
    from vdisk.vm._machine.processor import Processor
    from vdisk.vm.accel.base import Accelerator
    from vdisk.vm.bus import Bus
    from vdisk.vm.clock import Clock
    from vdisk.vm.devices.base import Device
    from vdisk.vm.devices.serial import Stream
    from vdisk.vm.devices.virtio_net import Network
    from vdisk.vm.irq import IrqLine
    from vdisk.vm.memory import GuestMemory

ISA_BRIDGE, PIIX3_IDE, PIIX3_PM = (1, 0), (1, 1), (1, 3)
IDE_IRQS = (14, 15)
VGA_SLOT, NETWORK_SLOT, FIRST_FREE_SLOT = 2, 3, 4


class Requests(NamedTuple):
    """What chips ask of the machine; all called with the bus lock held, so none may wait."""

    reset: Callable[[], None]
    power_off: Callable[[], None]
    suspend: Callable[[], None]
    debug_exit: Callable[[int], None]


class Video(NamedTuple):
    """The video card.  ``rom``: a video BIOS for firmware that has none itself.

    ``preferred``: width and height that its monitor likes best.
    """

    memory_size: int = VGA_MEMORY
    rom: bytes = b""
    preferred: tuple[int, int] = PREFERRED


class Board:
    """All chips but processors' own; :attr:`devices` is in the order of power-on and saving.

    ``epoch``: the time of day at power-on, seconds since 1970.  ``consoles``: for COM1 to COM4;
    None: no such port.  ``video`` None: no video card.
    """

    def __init__(
        self,
        memory: GuestMemory,
        bus: Bus,
        clock: Clock,
        accelerator: Accelerator,
        requests: Requests,
        *,
        epoch: int,
        consoles: Sequence[SerialConsole | None],
        debug_console: Stream,
        video: Video | None,
    ) -> None:
        self.memory, self.bus, self.clock = memory, bus, clock
        self.requests = requests
        self.devices: list[Device] = []
        self._next_slot = FIRST_FREE_SLOT
        self._accelerator = accelerator
        self._make_interrupt_controllers()
        self._make_bridges()
        self._make_timers(epoch)
        self._make_keyboard()
        self._make_ports(consoles, debug_console)
        self.fdc: Fdc | None = None
        self.vga: Vga | None = None
        if video is not None:
            self.vga = Vga(
                bus, memory, clock,
                memory_size=video.memory_size, preferred=video.preferred, rom=video.rom,
            )  # fmt: skip
            self.plug(self.vga, VGA_SLOT)

    def add(self, device: Device) -> None:
        """Another chip, which is reset and saved with the others."""
        self.devices.append(device)

    def plug(self, device: PciDevice, slot: int | None = None, function: int = 0) -> int:
        """Put a function on the PCI bus; gives its slot (None: the next that is free)."""
        if slot is None:
            slot, self._next_slot = self._next_slot, self._next_slot + 1
        self.pci.add(device, slot, function)
        self.add(device)
        return slot

    def line(self, irq: int) -> IrqLine:
        """A new wire to an ISA interrupt."""
        return self.irqs.line(irq)

    def plug_floppies(self, drives: Sequence[MachineDrive]) -> None:
        """Fit a diskette controller with these drives; without any there is none."""
        if not drives:
            return
        disks: list[EmuBlockDevice | None] = [None] * FITTED
        for drive in drives:
            disks[drive.place] = drive.disk
        self.fdc = Fdc(self.bus, self.dma, self.irqs.line(FDC_IRQ), disks)
        self.add(self.fdc)

    def plug_disk(self, drive: MachineDrive) -> None:
        """Put a drive where it belongs: behind the IDE function, or on the PCI bus."""
        if drive.spec.interface == "ide":
            cdrom = drive.spec.media == "cdrom"
            self.ide.plug(drive.disk, drive.place >> 1, drive.place & 1, cdrom=cdrom)
            return
        queues = drive.spec.queues or 1
        device = VirtioBlk(drive.disk, self.memory, self.clock, name=drive.name, queues=queues)
        drive.slot = self.plug(VirtioPci(self.bus, device))

    def plug_rng(self, source: Callable[[int], bytes] | None) -> None:
        """Put a virtio source of randomness on the PCI bus; None: the host's."""
        device = VirtioRng(self.memory, self.clock, source=source or os.urandom)
        self.plug(VirtioPci(self.bus, device))

    def plug_network(self, network: Network, mac: bytes) -> None:
        """Put a network card on the PCI bus."""
        card = VirtioNet(network, self.memory, self.clock, mac=mac)
        self.plug(VirtioPci(self.bus, card), NETWORK_SLOT)

    # -- making the chips --------------------------------------------------------------------------

    def _make_interrupt_controllers(self) -> None:
        self.apics = ApicBus()
        self.pic = PicPair(self.bus)
        self.ioapic = IoApic(self.bus, self.apics.send_msi)
        self.apics.on_eoi(self.ioapic.end_of_interrupt)
        self.irqs = IsaIrqs(self.pic.set_irq, self.ioapic.set_irq)
        for device in (self.pic, self.ioapic):
            self.add(device)

    def _make_bridges(self) -> None:
        self.pci = PciBus(self.bus)
        self.pci.send_msi = self.apics.send_msi
        self.add(self.pci)
        self.host_bridge = I440fx(self.bus, self.memory)
        self.plug(self.host_bridge, 0)
        self.piix3 = Piix3(self.bus, self.pci, self.irqs, self.requests.reset)
        self.plug(self.piix3, *ISA_BRIDGE)
        ide_irqs = [self.irqs.line(number) for number in IDE_IRQS]
        self.ide = Piix3Ide(self.bus, self.memory, self.clock, ide_irqs)
        self.plug(self.ide, *PIIX3_IDE)
        sci = self.irqs.line(SCI_IRQ)
        self.power = AcpiPm(
            self.bus, self.clock, sci, self.requests.power_off, self.requests.suspend
        )
        self.plug(self.power, *PIIX3_PM)

    def _make_timers(self, epoch: int) -> None:
        gates = IrqGate(self.irqs.line(0)), IrqGate(self.irqs.line(8))
        self.pit = Pit(self.bus, self.clock, gates[0].input)
        self.rtc = Rtc(self.bus, self.clock, gates[1].input, epoch)
        self.rtc.alarm = self.power.alarm
        legacy = self.irqs.line(0), self.irqs.line(8)
        self.hpet = Hpet(self.bus, self.clock, self.ioapic.set_pin, legacy, gates)
        self.speaker = Speaker(self.bus, self.clock, self.pit)
        self.dma = Dma(self.bus, self.memory)
        for device in (self.pit, self.rtc, self.hpet, self.speaker, self.dma):
            self.add(device)

    def _make_keyboard(self) -> None:
        def set_a20(enabled: bool) -> None:
            self._accelerator.a20 = enabled

        self.keyboard, self.mouse = Keyboard(), Mouse()
        self.keyboard_controller = KeyboardController(
            self.bus, self.clock, self.keyboard, self.mouse,
            irq1=self.irqs.line(1), irq12=self.irqs.line(12),
            set_a20=set_a20, reset_processor=self.requests.reset,
        )  # fmt: skip
        self.port92 = Port92(self.bus, set_a20, self.requests.reset)
        for device in (self.keyboard, self.mouse, self.keyboard_controller, self.port92):
            self.add(device)

    def _make_ports(self, consoles: Sequence[SerialConsole | None], debug_console: Stream) -> None:
        for number, console in enumerate(consoles):
            if console is None:
                continue
            port, irq = COM_PORTS[number], COM_IRQS[number]
            uart = Uart(self.bus, self.clock, self.irqs.line(irq), port, console, f"serial{number}")
            console.connect(uart, self.clock)
            self.add(uart)
        self.fw_cfg = FwCfg(self.bus, self.memory)
        self.add(self.fw_cfg)
        self.add(ParallelPort(self.bus, self.irqs.line(7)))
        self.add(DebugExit(self.bus, self.requests.debug_exit))
        self.add(DebugConsole(self.bus, debug_console, CONSOLE_PORT))
        self.add(DebugConsole(self.bus, debug_console, 0x402))

    # -- processors --------------------------------------------------------------------------------

    def connect_processor(self, processor: Processor, *, apic: bool) -> None:
        """Wire a processor to its interrupts: by a local APIC, or to the 8259 pair."""
        if not apic:
            processor.connect(self.pic, None)
            if processor.index == 0:
                self.pic.output.connect(lambda level: processor.interrupt() if level else None)
            return
        lapic = Lapic(processor.index, self.apics, self.clock, processor, self.pic)
        processor.lapic = lapic
        processor.connect(lapic, lapic)
        self.add(lapic)
        if processor.index == 0:
            self.pic.output.connect(self.apics.set_lint0)

    def reset(self) -> None:
        """RESET# to every chip."""
        for device in self.devices:
            device.reset()
        self._accelerator.a20 = True

    def wake(self) -> None:
        """RESET# behind S3: the host bridge keeps what stands in RAM for ROM, as QEMU's does."""
        events = self.power.wakers
        for device in self.devices:
            if device is not self.host_bridge:
                device.reset()
        self._accelerator.a20 = True
        self.rtc.memory[SHUTDOWN_STATUS] = RESUMING
        self.power.woken(events)
