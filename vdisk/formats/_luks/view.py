"""A device of plain bytes over a device of encrypted sectors.

It serves a LUKS payload (``base`` is where it begins) and the clusters of a qcow2 image
(``base`` 0: there a sector's number is its place in the file).  Whole sectors go through the
cipher as they are; a request that begins or ends inside a sector reads that sector first, and
nobody else may write meanwhile, or the bytes beside the request would be lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Protocol

from vdisk.block import BlockDevice
from vdisk.errors import AuthenticationError
from vdisk.formats._gate import Gate
from vdisk.formats._luks.header import SECTOR
from vdisk.units import round_down, round_up

if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNK = 1 << 20
"""Bytes encrypted before they are written: bounds the memory that a large write takes."""


class Sectors(Protocol):
    """What encrypts: a sector cipher, or what stands in for one where there is no key."""

    def decrypt(self, sector: int, view: memoryview) -> None:
        """Decrypt whole sectors in place."""

    def encrypt(self, sector: int, data: memoryview) -> bytearray:
        """The same sectors, encrypted."""


class LockedSectors:
    """Stands in for the cipher of a volume whose passphrase was not given."""

    def __init__(self, name: str, option: str) -> None:
        self._name = name
        self._option = option

    def decrypt(self, sector: int, view: memoryview) -> None:
        self._refuse()

    def encrypt(self, sector: int, data: memoryview) -> bytearray:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise AuthenticationError(
            f"the image is encrypted, and no passphrase was given: name a secret with the option "
            f"{self._option}",
            path=self._name,
        )


class EncryptedView(BlockDevice):
    """The plain bytes of ``file`` from ``base`` on, which is sector 0 of ``cipher``.

    Grows as ``file`` does.  What was never written reads as noise.  Closing it closes ``file``.
    ``gate``: shared by views of the same sectors, if there are several; a fair one.
    """

    verbatim = False

    def __init__(
        self,
        file: BlockDevice,
        cipher: Sectors,
        *,
        base: int = 0,
        gate: Gate | None = None,
    ) -> None:
        self.file = file
        self.name = file.name
        self.readonly = file.readonly
        self.growable = file.growable
        self._cipher = cipher
        self._base = base
        self._writers = gate or Gate(fair=True)

    @property
    def size(self) -> int:
        return max(self.file.size - self._base, 0)

    def _read_into(self, offset: int, view: memoryview) -> None:
        if _is_whole(offset, len(view)):
            self.file.read_into(self._base + offset, view)
            self._cipher.decrypt(offset // SECTOR, view)
        else:
            first, plain = self._read_around(offset, len(view))
            view[:] = plain[first : first + len(view)]

    def _read_around(self, offset: int, length: int) -> tuple[int, memoryview]:
        """The whole sectors that hold a range, and where in them it begins."""
        start = round_down(offset, SECTOR)
        plain = memoryview(bytearray(round_up(offset + length, SECTOR) - start))
        available = max(self.file.size - self._base - start, 0)
        stored = plain if self.file.growable else plain[:available]
        self.file.read_into(self._base + start, stored)
        self._cipher.decrypt(start // SECTOR, plain)
        return offset - start, plain

    def _write(self, offset: int, view: memoryview) -> None:
        if _is_whole(offset, len(view)):
            with self._writers.shared:
                self._write_whole(offset, view)
        else:
            with self._writers.alone:
                first, plain = self._read_around(offset, len(view))
                plain[first : first + len(view)] = view
                self._write_whole(offset - first, plain)

    def _write_whole(self, offset: int, view: memoryview) -> None:
        for start in range(0, len(view), CHUNK):
            encrypted = self._cipher.encrypt(
                (offset + start) // SECTOR, view[start : start + CHUNK]
            )
            self.file.write(self._base + offset + start, encrypted)

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        if any(len(view) % SECTOR for view in views):
            self._write(offset, memoryview(b"".join(views)))
        else:
            super()._writev(offset, views)

    def _readv(self, offset: int, views: Sequence[memoryview]) -> None:
        if any(len(view) % SECTOR for view in views):
            gathered = memoryview(bytearray(sum(map(len, views))))
            self._read_into(offset, gathered)
            for view in views:
                view[:] = gathered[: len(view)]
                gathered = gathered[len(view) :]
        else:
            super()._readv(offset, views)

    def _flush(self) -> None:
        self.file.flush()

    def _close(self) -> None:
        self.file.close()


def _is_whole(offset: int, length: int) -> bool:
    return not (offset | length) % SECTOR
