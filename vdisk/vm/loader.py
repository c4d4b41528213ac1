"""Booting a kernel without a disk: Linux, Multiboot and PVH, from files.

:func:`read` tells what a file is; :class:`Kernel` places it in guest memory and gives the state
in which the bootstrap processor begins.  Files are untrusted: whatever they say about themselves
is checked against their own length and against the machine's memory before anything is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import FormatError, InvalidRequestError
from vdisk.vm._boot import linux, multiboot, pvh
from vdisk.vm._boot.entry import Entry, MemoryRange, read_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vdisk.vm.memory import GuestMemory

__all__ = ["Entry", "Kernel", "MemoryRange", "read"]


class Kernel(NamedTuple):
    """A kernel file that was understood."""

    image: linux.LinuxImage | multiboot.MultibootImage | pvh.PvhImage

    @property
    def protocol(self) -> str:
        """``linux``, ``multiboot`` or ``pvh``."""
        if isinstance(self.image, pvh.PvhImage):
            return "pvh"
        return "linux" if isinstance(self.image, linux.LinuxImage) else "multiboot"

    @property
    def bits(self) -> int:
        """64 for a kernel that says it runs in 64-bit mode, else 32."""
        if isinstance(self.image, linux.LinuxImage):
            return 64 if 64 in self.image.entries() else 32
        return 64 if isinstance(self.image, pvh.PvhImage) and self.image.wide else 32

    def load(
        self,
        memory: GuestMemory,
        ranges: Sequence[MemoryRange],
        *,
        command_line: str = "",
        initrd: str | None = None,
        bits: int | None = None,
        rsdp: int = 0,
    ) -> Entry:
        """Place everything; gives the state to start in.

        ``ranges``: the firmware's memory map, which the kernel is told.  ``initrd``: a file;
        for Multiboot ``FILE ARGUMENT…,FILE…``, its modules (QEMU's syntax, ``,,`` for a comma).
        ``bits``: which of Linux's entries; ``rsdp``: ACPI's root pointer, or 0.  Raises
        :class:`InvalidRequestError` where something does not fit into memory.
        """
        text = command_line.encode("utf-8", "surrogateescape")
        if isinstance(self.image, linux.LinuxImage):
            return linux.load(
                self.image, memory, ranges,
                command_line=text, initrd=initrd, bits=bits, rsdp=rsdp,
            )  # fmt: skip
        if isinstance(self.image, pvh.PvhImage):
            return pvh.load(
                self.image, memory, ranges, command_line=text, initrd=initrd, rsdp=rsdp
            )  # fmt: skip
        modules = parse_modules(initrd or "")
        return multiboot.load(self.image, memory, ranges, command_line=text, modules=modules)


def read(path: str, *, most: int) -> Kernel:
    """Read a kernel of at most ``most`` bytes (the machine's memory).

    Raises :class:`FormatError` for a file that is neither, and what opening it may raise.
    """
    data = read_file(path, most)
    if linux.is_linux(data):
        return Kernel(linux.parse(path, data))
    if multiboot.find_header(data) is not None:
        return Kernel(multiboot.parse(path, data))
    if pvh.find_entry(data) is not None:
        return Kernel(pvh.parse(path, data))
    raise FormatError(
        "neither a Linux kernel (bzImage, or vmlinux with a PVH entry) nor a Multiboot kernel",
        path=path,
    )


def parse_modules(text: str) -> list[tuple[str, bytes]]:
    """``FILE ARGUMENT…,FILE…`` as (path, whole string) of each module."""
    modules = []
    for word in text.replace(",,", "\0").split(",") if text else []:
        string = word.replace("\0", ",").strip()
        path = string.partition(" ")[0]
        if not path:
            raise InvalidRequestError(f"an empty module name in {text!r}")
        modules.append((path, string.encode("utf-8", "surrogateescape")))
    return modules
