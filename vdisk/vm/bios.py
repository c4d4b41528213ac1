"""The BIOS of our own: real-mode firmware, so that a disk boots with nothing else installed.

A ROM of real-mode code stands at F0000 (and at the top of the first 4 GiB, where the processor
starts).  What it has to do beyond waiting and returning is done here, in Python, whenever it
writes to the trap port: :mod:`vdisk.vm._bios` tells how.

The vCPU whose registers a service sees is the bootstrap processor; a write to the port from
anywhere but the ROM's own traps does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm._bios.boot import DEFAULT_ORDER
from vdisk.vm._bios.call import Call
from vdisk.vm._bios.drives import AtaPorts, DevicePath, Drive, DriveKind, Drives
from vdisk.vm._bios.hardware import Hardware
from vdisk.vm._bios.memory_types import memory_types
from vdisk.vm._bios.rom import ROM_BASE, ROM_SIZE, TRAP_PORT, build
from vdisk.vm._bios.services import Services
from vdisk.vm._bios.space import Space
from vdisk.vm._bios.transfer import Held

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.vm._bios.call import Processor
    from vdisk.vm._bios.tables import AcpiTables
    from vdisk.vm.bus import Bus
    from vdisk.vm.clock import Clock
    from vdisk.vm.memory import GuestMemory

__all__ = [
    "ROM_BASE",
    "AtaPorts",
    "Bios",
    "DevicePath",
    "Drive",
    "DriveKind",
    "memory_types",
    "rom_image",
]

OUT_LENGTH = 2
SECOND = 1_000_000_000
TOP_OF_FIRST_4_GIB = (1 << 32) - ROM_SIZE


def rom_image() -> bytes:
    """The 64 KiB that belong at F0000 and below 4 GiB."""
    return bytes(build().image)


class Bios:
    """Firmware of one machine.

    ``drives``: in the order in which each kind is numbered.  ``order``: in which kinds are
    booted.  ``menu_wait``: seconds for which a key brings a menu of the drives.  ``retry_wait``:
    seconds after which it starts again when nothing could be booted; None: only by a key.
    ``a20``: whether the gate is open.  ``acpi``: tables for the guest.  ``processor``: the
    bootstrap processor; set it before the machine runs.
    """

    def __init__(
        self,
        bus: Bus,
        memory: GuestMemory,
        clock: Clock,
        *,
        drives: Sequence[Drive] = (),
        order: Sequence[DriveKind] = DEFAULT_ORDER,
        menu_wait: float = 0,
        retry_wait: float | None = None,
        a20: Callable[[], bool] = lambda: True,
        acpi: AcpiTables | None = None,
    ) -> None:
        self.processor: Processor | None = None
        self._space = Space(memory, bus.mmio, a20)
        self._rom = build()
        hardware = Hardware(
            bus.ports,
            self._space,
            clock,
            self._rom,
            memory.low_end,
            memory.high_end,
            Drives.of(list(drives)),
        )
        self.services = Services(
            hardware,
            order=order,
            menu_wait=int(menu_wait * SECOND),
            retry_wait=None if retry_wait is None else int(retry_wait * SECOND),
            acpi=acpi,
        )
        self._by_address = _places(self._rom.traps)
        memory.load_rom(TOP_OF_FIRST_4_GIB, rom_image())
        bus.ports.map(TRAP_PORT, 1, lambda _offset, _size: 0xFF, self._trap, "BIOS")

    def boot_from(self, order: Sequence[DriveKind]) -> None:
        """Boot these kinds, in this order, from now on."""
        self.services.boot.order = order

    def boot_instead(self, boot: Callable[[], None]) -> None:
        """Call ``boot()`` when POST is done, in place of looking for a disk; the ROM waits then."""

        def bootstrap(call: Call) -> None:
            call.wait, call.spin = True, False
            boot()

        self.services.traps["bootstrap"] = bootstrap

    def after_post(self, notify: Callable[[], None]) -> None:
        """Call ``notify()`` behind each power-on self test, before anything is booted."""
        post = self.services.traps["post"]

        def both(call: Call) -> None:
            post(call)
            notify()

        self.services.traps["post"] = both

    def _trap(self, _offset: int, _size: int, _value: int) -> None:
        """The ROM has asked for a service."""
        if self.processor is None:
            return
        call = Call(self.processor, self._space)
        name = self._by_address.get(call.code_address)
        if name is None:
            return
        try:
            self.services.traps[name](call)
        except Held:
            call = Call(self.processor, self._space)
            call.wait = call.spin = True
        call.finish()


def _places(traps: dict[int, str]) -> dict[int | None, str]:
    """Physical addresses that RIP may show: the OUT itself, or what follows it.

    That must not be a trap again, or the two could not be told apart.
    """
    places: dict[int | None, str] = {}
    for at, name in traps.items():
        for address in (ROM_BASE + at, ROM_BASE + at + OUT_LENGTH):
            if places.setdefault(address, name) != name:
                raise AssertionError(f"the trap {name} follows {places[address]} at once")
    return places
