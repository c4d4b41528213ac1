"""The room for a machine's state, behind the end of the active disk.

A virtual machine saves its memory there before a snapshot is taken, which then keeps it::

    guest offsets   0                disk size      vm_state_offset
                    +------------------+-------------+---------------------…
                    | the disk         | rest of L2  | machine state
                    +------------------+-------------+---------------------…
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.block import BlockDevice, execute_read
from vdisk.formats._qcow2.snapshots import drop_vm_state, vm_state_offset, write_vm_state

if TYPE_CHECKING:
    from vdisk.formats._qcow2.core import Core
    from vdisk.formats._qcow2.mapping import Mapping


class VmStateArea(BlockDevice):
    """The machine state of the active disk, as a device that grows; ``truncate(0)`` empties it."""

    growable = True

    def __init__(self, core: Core, mapping: Mapping, *, readonly: bool) -> None:
        self._core = core
        self._mapping = mapping
        self.name = core.file.name
        self.readonly = readonly

    @property
    def offset(self) -> int:
        """Guest offset at which the area begins."""
        return vm_state_offset(self._core, self._core.header.size)

    @property
    def size(self) -> int:
        """As much as the L1 table describes at present."""
        described = len(self._core.l1.words) * self._core.header.l2_coverage
        return max(described - self.offset, 0)

    def _read_into(self, offset: int, view: memoryview) -> None:
        start = self.offset + offset
        with self._core.working():
            execute_read(self._mapping.extents(start, len(view)), start, view)

    def _write(self, offset: int, view: memoryview) -> None:
        with self._core.gate.alone:
            write_vm_state(self._core, self._mapping, view, offset)

    def _truncate(self, size: int) -> None:
        """Give clusters back; the area grows by itself when it is written."""
        with self._core.gate.alone:
            drop_vm_state(self._core, self._mapping, self.size, size)
