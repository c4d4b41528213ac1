"""MSI-X: a table of messages and a row of pending bits ("PCI Local Bus" 3.0, section 6.8.2)::

    table entry n, 16 bytes                      capability 11h
    +00  message address                         +2  message control: 15 enable, 14 function mask,
    +04  message upper address                                        10-0 vectors - 1
    +08  message data                            +4  table offset (31-3), BAR (2-0)
    +0C  vector control: bit 0 mask              +8  PBA offset (31-3), BAR (2-0)

Table and pending bits lie in one BAR, the pending bits behind the table.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, ClassVar

from vdisk.errors import InvalidRequestError
from vdisk.vm.devices.base import Device

if TYPE_CHECKING:
    from vdisk.vm.devices.pci import PciDevice

CAPABILITY = 0x11
ENTRY = 16
LARGEST_TABLE = 2048
ENABLE, FUNCTION_MASK = 0x80, 0x40  # in the upper byte of message control
VECTOR_MASKED = 1
_MESSAGE = Struct("<QI")


class MsixTable(Device):
    """The MSI-X structures of one function.

    ``control``: where in configuration space the upper byte of message control lies.
    """

    SAVED: ClassVar[tuple[str, ...]] = ("_table", "_pending")

    def __init__(self, function: PciDevice, vectors: int, bar: int) -> None:
        if not 0 < vectors <= LARGEST_TABLE:
            raise InvalidRequestError(f"{function.name}: {vectors} MSI-X vectors")
        self.name = f"{function.name} MSI-X"
        self.vectors = vectors
        self._function = function
        self._table = bytearray(vectors * ENTRY)
        self._pending = bytearray((vectors + 63) // 64 * 8)
        self._pba = max(-(-len(self._table) // 2048) * 2048, 2048)
        body = (vectors - 1).to_bytes(2, "little") + bar.to_bytes(4, "little")
        body += (self._pba | bar).to_bytes(4, "little")
        self.control = function.add_capability(CAPABILITY, body, b"\x00\xc0") + 3
        size = 1 << max(self._pba + len(self._pending) - 1, 4095).bit_length()
        function.add_bar(bar, size, self._read, self._write)
        self.reset()

    @property
    def enabled(self) -> bool:
        """True while the guest uses MSI-X: the function then sends no INTx."""
        return bool(self._function.config[self.control] & ENABLE)

    def reset(self) -> None:
        self._table[:] = (bytes(12) + b"\x01\x00\x00\x00") * self.vectors
        self._pending[:] = bytes(len(self._pending))

    def notify(self, vector: int) -> None:
        """Send the message of a vector, or leave it pending while it is masked.

        A vector that is not there (drivers write 0xFFFF for none) sends nothing.
        """
        control, entry = self._function.config[self.control], vector * ENTRY
        if not control & ENABLE or not 0 <= vector < self.vectors:
            return
        if control & FUNCTION_MASK or self._table[entry + 12] & VECTOR_MASKED:
            self._pending[vector >> 3] |= 1 << (vector & 7)
            return
        self._function.send_msi(*_MESSAGE.unpack_from(self._table, entry))

    def control_written(self) -> None:
        """Message control has changed: what waited may go."""
        if self.enabled and any(self._pending):
            for vector in range(self.vectors):
                self._retry(vector)

    def _masked(self, entry: int) -> bool:
        control = self._function.config[self.control]
        return bool(control & FUNCTION_MASK or self._table[entry + 12] & VECTOR_MASKED)

    def _retry(self, vector: int) -> None:
        place, bit = vector >> 3, 1 << (vector & 7)
        if self._pending[place] & bit and not self._masked(vector * ENTRY):
            self._pending[place] &= ~bit
            self.notify(vector)

    def _read(self, offset: int, size: int) -> int:
        if offset < len(self._table):
            return int.from_bytes(self._table[offset : offset + size], "little")
        offset -= self._pba
        if 0 <= offset < len(self._pending):
            return int.from_bytes(self._pending[offset : offset + size], "little")
        return 0

    def _write(self, offset: int, size: int, value: int) -> None:
        end = min(offset + size, len(self._table))
        if offset >= end:
            return
        self._table[offset:end] = value.to_bytes(size, "little")[: end - offset]
        for vector in range(offset // ENTRY, (end - 1) // ENTRY + 1):
            control = vector * ENTRY + 12
            self._table[control : control + 4] = bytes(
                [self._table[control] & VECTOR_MASKED, 0, 0, 0]
            )
            self._retry(vector)
