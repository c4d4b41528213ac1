"""What a machine is made of, as its user asked for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError
from vdisk.vm.devices.serial import COM_PORTS

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from vdisk.block import BlockDevice
    from vdisk.vm._machine.boot_choice import BootChoice
    from vdisk.vm._machine.networks import NetworkSpec
    from vdisk.vm._machine.specs import DiskSpec

LARGEST_CPUS = 64
"""Processors: more have no place in an 8-bit logical APIC destination's clusters."""
VIDEO = ("std", "none")
KERNEL_ENTRIES = (None, 16, 32, 64)


@dataclass(slots=True, kw_only=True)
class Options:
    """The keywords of :class:`~vdisk.vm.machine.Machine`, which describes them."""

    memory: int
    cpus: int
    disks: Sequence[str | os.PathLike[str] | DiskSpec | BlockDevice]
    cdroms: Sequence[str | DiskSpec | None]
    floppies: Sequence[str | DiskSpec | None]
    accel: str
    bios: str | None
    boot: BootChoice
    kernel: str | None
    initrd: str | None
    append: str
    kernel_bits: int | None
    vga: str
    vga_memory: int
    vga_size: tuple[int, int]
    apic: bool
    serial_ports: int
    rng: bool
    network: NetworkSpec
    epoch: int | None
    deterministic: bool
    replay: str | None
    progress: Callable[[int, int], None] | None

    def __post_init__(self) -> None:
        if not 1 <= self.cpus <= LARGEST_CPUS:
            raise InvalidRequestError(f"{self.cpus} processors: from 1 to {LARGEST_CPUS}")
        if self.cpus > 1 and not self.apic:
            raise InvalidRequestError("several processors need local APICs")
        if not 0 <= self.serial_ports <= len(COM_PORTS):
            raise InvalidRequestError(f"{self.serial_ports} serial ports: at most {len(COM_PORTS)}")
        if self.vga not in VIDEO:
            raise InvalidRequestError(f"video card {self.vga!r}: one of {', '.join(VIDEO)}")
        if self.network.kind != "none" and (self.deterministic or self.replay):
            raise InvalidRequestError("a deterministic machine has no network")
        self._check_kernel()

    def _check_kernel(self) -> None:
        if self.kernel is None and (self.initrd is not None or self.append):
            raise InvalidRequestError("an initrd or a command line needs a kernel")
        if self.kernel is not None and self.bios is not None:
            raise InvalidRequestError("a kernel is booted by the BIOS of our own: leave bios out")
        if self.kernel_bits not in KERNEL_ENTRIES:
            raise InvalidRequestError(
                f"a kernel's entry has 16, 32 or 64 bits, not {self.kernel_bits}"
            )
