"""The IDE function of the PIIX3 (Intel 82371SB data sheet, section 2.3 and 3.4).

Two channels at their legacy places, each with a bus master in the I/O range of BAR 4::

              command block   control   IRQ   bus master
    primary   1F0-1F7         3F6       14    BAR 4 + 0
    secondary 170-177         376       15    BAR 4 + 8

Configuration space has timings (40h-44h) that a driver sets and nothing here depends on.  Drivers
look at bit 15 of each channel's timing, which firmware sets; a machine that starts a kernel
without any has them set from the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vdisk.vm.devices.atapi import AtapiDrive
from vdisk.vm.devices.ide_channel import IdeChannel
from vdisk.vm.devices.ide_disk import AtaDisk
from vdisk.vm.devices.ide_dma import BusMaster
from vdisk.vm.devices.pci import BAR_IO, Identity, PciDevice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vdisk.emu_blockdev import EmuBlockDevice
    from vdisk.vm.bus import Bus
    from vdisk.vm.clock import Clock
    from vdisk.vm.devices.base import State
    from vdisk.vm.irq import IrqLine
    from vdisk.vm.memory import GuestMemory

VENDOR_INTEL, DEVICE_PIIX3_IDE = 0x8086, 0x7010
CLASS_IDE: Final = 0x010180  # with a bus master, both channels at their legacy places
BUS_MASTER_BAR: Final = 4
PORTS: Final = ((0x1F0, 0x3F6), (0x170, 0x376))
IDETIM: Final = 0x40
DECODE_ENABLE: Final = 0x8000


class Piix3Ide(PciDevice):
    """``irqs``: IRQ 14 and IRQ 15.  Drives are plugged in with :meth:`plug`."""

    def __init__(
        self, bus: Bus, memory: GuestMemory, clock: Clock, irqs: Sequence[IrqLine]
    ) -> None:
        super().__init__("ide", bus, Identity(VENDOR_INTEL, DEVICE_PIIX3_IDE, CLASS_IDE))
        for register in (IDETIM, IDETIM + 2):
            self.define(register, 2, DECODE_ENABLE, writable=0xFFFF)
        self.define(0x44, 1, 0, writable=0xFF)
        self.channels: list[IdeChannel] = []
        for number, (command, control) in enumerate(PORTS):
            name = f"ide{number}"
            dma = BusMaster(f"{name} bus master", memory, lambda: self.bus_master)
            channel = IdeChannel(name, irqs[number], dma, clock)
            bus.ports.map(
                command,
                8,
                channel.read,
                channel.write,
                name,
                read_many=channel.read_many,
                write_many=channel.write_many,
            )
            bus.ports.map(
                control, 1, channel.read_control, channel.write_control, f"{name} control"
            )
            self.channels.append(channel)
        self.add_bar(BUS_MASTER_BAR, 16, self._read_dma, self._write_dma, BAR_IO)

    def plug(self, disk: EmuBlockDevice, channel: int, drive: int, *, cdrom: bool = False) -> None:
        """Plug a drive in: channel 0 or 1, drive 0 (master) or 1 (slave)."""
        name = f"ide{channel}-{'cd' if cdrom else 'hd'}{drive}"
        kind = AtapiDrive if cdrom else AtaDisk
        self.channels[channel].attach(kind(name, disk), drive)

    def _read_dma(self, offset: int, size: int) -> int:
        return self.channels[offset >> 3].dma.read(offset & 7, size)

    def _write_dma(self, offset: int, size: int, value: int) -> None:
        self.channels[offset >> 3].dma.write(offset & 7, size, value)

    def reset(self) -> None:
        super().reset()
        for channel in self.channels:
            channel.reset()

    def save_state(self) -> State:
        return super().save_state() | {
            channel.name: channel.save_state() for channel in self.channels
        }

    def load_state(self, state: State) -> None:
        super().load_state(state)
        for channel in self.channels:
            channel.load_state(state.get(channel.name, {}))
