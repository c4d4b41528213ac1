"""MONITOR and MWAIT: wait until somebody stores to a line (SDM volume 2; volume 3, section 9.10.5).

MONITOR notes the line and what it holds.  MWAIT leaves :meth:`~vdisk.vm.accel.base.Vcpu.run`, and
whoever called that waits as for HLT, looking at the line from time to time
(:mod:`vdisk.vm._machine.processor`): what generated code and devices store is in memory at once,
and no store has to look whether it is watched.  A store of what is there already is not noticed;
such a wait ends by itself after a while, as the manual lets it.

Hints (EAX of MWAIT, EDX of MONITOR) ask for nothing that is here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iced_x86 import Register

from vdisk.errors import CorruptImageError
from vdisk.vm.accel.base import VcpuExit
from vdisk.vm.cpu import descriptors as d
from vdisk.vm.cpu import faults, paging
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.instruction import SEGMENT_NAMES, Instruction, on

if TYPE_CHECKING:
    from vdisk.vm.cpu.core import Core

LINE = 64
"""Bytes that are watched together: what CPUID's leaf 5 says."""
ENABLED = 1 << 18
"""Of IA32_MISC_ENABLE: without it neither instruction is there."""
MASKED_INTERRUPTS_WAKE = 1
"""Of MWAIT's ECX."""


class WatchedLine:
    """A line of RAM at ``address`` (physical), and what it held when MONITOR was executed.

    ``spent``: an MWAIT has waited for it; another one does not.
    """

    def __init__(self, address: int, ram: memoryview, seen: bytes | None = None) -> None:
        self.address = address
        self._ram = ram
        self.seen = bytes(ram) if seen is None else seen
        self.spent = False

    def changed(self) -> bool:
        """True if something else is there by now."""
        return self._ram != self.seen


def _check(core: Core, extensions: int) -> None:
    """#UD where the instructions are not there, #GP(0) for extensions that are not."""
    state = core.state
    if state.cpl or core.virtual_8086 or not state.misc_enable & ENABLED:
        raise GuestFault(faults.UD)
    count = state.rcx if state.mode == 64 else state.rcx & 0xFFFF_FFFF
    if count & ~extensions:
        raise GuestFault(faults.GP)


@on("MONITOR")
def _monitor(core: Core, n: Instruction) -> None:
    """The address is checked like that of a load of one byte; where it is not RAM, nothing is
    watched, and MWAIT goes on at once."""
    _check(core, 0)
    width = int(n.i.op_code().address_size)
    segment = "ds" if n.i.segment_prefix == Register.NONE else SEGMENT_NAMES[n.i.segment_prefix]
    linear = d.segment_linear(core, segment, core.state.rax & (1 << width) - 1, 1)
    address = core.walk(linear, paging.READ, user=False) & -LINE
    ram = core.ram(address, LINE)
    if ram is not None:
        core.load(linear, 1)  # data breakpoints see it
    core.watched = None if ram is None else WatchedLine(address, ram)


@on("MWAIT")
def _mwait(core: Core, _: Instruction) -> None:
    _check(core, MASKED_INTERRUPTS_WAKE)
    line = core.watched
    if line is None or line.spent or line.changed():
        return
    line.spent = True
    core.masked_interrupts_wake = bool(core.state.rcx & MASKED_INTERRUPTS_WAKE)
    core.halted = VcpuExit.MWAIT


def from_saved(core: Core, extra: dict[str, int | bytes]) -> WatchedLine:
    """The line of a saved processor; raises :class:`CorruptImageError`."""
    address, seen, spent = (extra.get(name) for name in ("line", "line_seen", "line_spent"))
    if isinstance(address, int) and isinstance(seen, bytes) and spent in (0, 1):
        ram = core.ram(address, LINE)
        if ram is not None and len(seen) == LINE and address % LINE == 0:
            line = WatchedLine(address, ram, seen)
            line.spent = bool(spent)
            return line
    raise CorruptImageError(f"the watched line of processor {core.index}: {address!r}")
