"""The firmware that processors begin with: a file such as SeaBIOS's ``bios.bin``.

A BIOS image ends at 4 GiB, where the reset vector is, and its last 128 KiB show below 1 MiB::

    E0000           100000                          4 GiB - size            4 GiB
    +---------------+                               +-----------------------+
    | last 128 KiB  |                               | image                 |
    +---------------+                               +-----------------------+
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.errors import FormatError
from vdisk.vm._boot.entry import read_file
from vdisk.vm.memory import FOUR_GIB

if TYPE_CHECKING:
    from vdisk.vm.devices.i440fx import I440fx
    from vdisk.vm.memory import GuestMemory

LARGEST = 16 << 20
"""Bytes: what chip sets decode below 4 GiB."""
UNIT = 64 << 10
LOW_WINDOW = 128 << 10
MIB = 1 << 20


class FirmwareFile:
    """A BIOS image read from a file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.image = read_file(path, LARGEST)
        if not self.image or len(self.image) % UNIT:
            raise FormatError(
                f"a BIOS image of {len(self.image)} bytes: not whole 64 KiB", path=path
            )

    def install(self, memory: GuestMemory, bridge: I440fx) -> None:
        """Put it where processors find it; the bridge shows its end below 1 MiB after a reset."""
        memory.load_rom(FOUR_GIB - len(self.image), self.image)
        low = self.image[-LOW_WINDOW:]
        bridge.load_rom(MIB - len(low), low)
