"""A device as a file object, for libraries that read and write files.

::

    with vdisk.open("disk.qcow2") as disk, DeviceFile(disk) as file:
        zipfile.ZipFile(io.BufferedReader(file))
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from vdisk.block import BlockDevice


class DeviceFile(io.RawIOBase):
    """The bytes of ``device`` with a position, beginning at 0.

    As long as the device: a write is cut off at its end.  Closing the file flushes the device
    and leaves it open.  Not to be shared between threads, since they would share the position.
    Errors are :class:`~vdisk.errors.VdiskError`, except those of misuse of a file (``ValueError``
    for a closed file, ``io.UnsupportedOperation`` for a read-only one).
    """

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._position = 0

    @property
    def name(self) -> str:
        """The name of the device."""
        return self._device.name

    def readable(self) -> bool:
        self._check_open()
        return True

    def writable(self) -> bool:
        self._check_open()
        return not self._device.readonly

    def seekable(self) -> bool:
        self._check_open()
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._check_open()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._device.size}
        if whence not in bases:
            raise ValueError(f"whence is SEEK_SET, SEEK_CUR or SEEK_END, not {whence}")
        position = bases[whence] + offset
        if position < 0:
            raise ValueError(f"position {position} is before the beginning")
        self._position = position
        return position

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill ``buffer`` as far as the device goes; 0 at its end."""
        self._check_open()
        view = memoryview(buffer).cast("B")
        count = min(len(view), max(self._device.size - self._position, 0))
        if count:
            self._device.read_into(self._position, view[:count])
            self._position += count
        return count

    def write(self, data: Buffer, /) -> int:
        """Write what fits; how many bytes that was."""
        self._check_writable()
        view = memoryview(data).cast("B")
        count = min(len(view), max(self._device.size - self._position, 0))
        if count:
            self._device.write(self._position, view[:count])
            self._position += count
        return count

    def truncate(self, size: int | None = None, /) -> int:
        """Resize the device to ``size`` bytes (None: to the position)."""
        self._check_writable()
        size = self._position if size is None else size
        self._device.truncate(size)
        return size

    def flush(self) -> None:
        """Flush the device, unless either is closed."""
        if not self.closed and not self._device.closed:
            self._device.flush()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _check_writable(self) -> None:
        if not self.writable():
            raise io.UnsupportedOperation("the device was opened read-only")
