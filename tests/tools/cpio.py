"""Archives as Linux unpacks them into its first file system: cpio's "newc" form.

A member is 110 characters (``070701`` and 13 numbers of eight hexadecimal digits), its name with a
zero, and its content, each padded to four bytes; the member ``TRAILER!!!`` is the last.  See
Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
"""

from __future__ import annotations

import stat

ALIGNMENT = 4
TRAILER = "TRAILER!!!"


class Archive:
    """Collects members; parent directories have to come before what is in them."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._count = 0

    def directory(self, name: str) -> None:
        self._add(name, stat.S_IFDIR | 0o755)

    def file(self, name: str, content: bytes, mode: int = 0o755) -> None:
        self._add(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int) -> None:
        self._add(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def finished(self) -> bytes:
        """The whole archive."""
        self._add(TRAILER, 0)
        return bytes(self._data)

    def _add(
        self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._count += 1
        path = name.encode() + b"\0"
        #         inode        mode  uid gid links time  size       on device
        numbers = (self._count, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0)
        self._data += b"070701" + b"".join(b"%08x" % number for number in numbers)
        for part in (path, content):
            self._data += part
            self._data += bytes(-len(self._data) % ALIGNMENT)
