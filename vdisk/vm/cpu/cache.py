"""Compiled code kept between runs, in the user's cache directory.

A file holds what was compiled by one version of this package with one LLVM for one kind of
processor (its name has their digest), one entry after another::

    magic (4) | bytes of label (4) | of code (4) | CRC-32 of label (4) | of code (4) | label | code

A label says what the code is: whoever looks for something reads labels only, and the check of the
code itself is left until it is used.  Entries are appended under a lock in one write; a file is cut
off where an entry is not whole, so that one damaged byte does not make all later ones useless.
Native code is only loaded from a file that belongs to the user and that nobody else can write.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
import zlib
from importlib.util import source_hash
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = Struct("<4sIIII")
MAGIC = b"vdc2"
LARGEST_FILE = 64 << 20
"""A file that has grown beyond this loses the older half of what it holds."""
LARGEST_DIRECTORY = 256 << 20
LONGEST_UNUSED = 30 * 24 * 3600.0
"""Seconds.  What other versions of this package have left is removed after this, or sooner where
all files together are larger than :data:`LARGEST_DIRECTORY`."""
SOURCES = os.path.dirname(__file__)


def digest(*what: str) -> str:
    """The name for code that depends on these words and on this package's source."""
    # PEP 552's hash of a source: 64 bits, and no OpenSSL to load.
    hashes = [source_hash("\0".join(what).encode()), *map(source_hash, _sources())]
    return source_hash(b"".join(hashes)).hex()


def _sources() -> Iterator[bytes]:
    for folder, folders, names in os.walk(SOURCES):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".py"):
                with open(os.path.join(folder, name), "rb") as file:
                    yield file.read()


class Entry(NamedTuple):
    """One entry as it was found."""

    label: bytes
    content: memoryview
    check: int

    def code(self) -> bytes | None:
        """The code; None where it is not what was written."""
        code = bytes(self.content)
        return code if zlib.crc32(code) == self.check else None


def entries(data: bytes) -> Iterator[tuple[Entry, int]]:
    """The entries that are whole, and where each ends."""
    view, at = memoryview(data), 0
    while at + HEADER.size <= len(data):
        magic, label_size, code_size, label_check, check = HEADER.unpack_from(data, at)
        start = at + HEADER.size + label_size
        label, end = data[at + HEADER.size : start], start + code_size
        if magic != MAGIC or end > len(data) or zlib.crc32(label) != label_check:
            return
        yield Entry(label, view[start:end], check), end
        at = end


class CodeCache:
    """One file; a directory that cannot be used makes a cache that keeps nothing."""

    def __init__(self, directory: str | None, name: str, largest: int = LARGEST_FILE) -> None:
        self.path = None if directory is None else os.path.join(directory, f"{name}.bin")
        self.largest = largest

    def load(self) -> list[Entry]:
        """What is there, oldest first."""
        if self.path is None:
            return []
        with contextlib.suppress(OSError):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if not is_own(descriptor):
                    return []
                os.utime(descriptor)  # it is in use
                data = file.read()
                found = list(entries(data))
                whole = found[-1][1] if found else 0
                if whole < len(data):
                    os.ftruncate(descriptor, whole)
                return [entry for entry, _ in found]
        return []

    def append(self, label: bytes, code: bytes) -> Entry:
        """Keep one more entry, which is given; a cache that cannot be written is no error."""
        entry = Entry(label, memoryview(code), zlib.crc32(code))
        if self.path is not None:
            header = HEADER.pack(MAGIC, len(label), len(code), zlib.crc32(label), entry.check)
            with contextlib.suppress(OSError):
                os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
                self._write(header + label + code)
        return entry

    def _write(self, entry: bytes) -> None:
        assert self.path is not None
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            if size + len(entry) > self.largest:
                self._make_room(descriptor, size)
            os.write(descriptor, entry)
        finally:
            os.close(descriptor)

    def _make_room(self, descriptor: int, size: int) -> None:
        """Drop the older half."""
        data = os.pread(descriptor, size, 0) if size <= 2 * self.largest else b""
        end, start = 0, 0
        for _, end in entries(data):
            if size - end >= self.largest // 2:
                start = end
        os.ftruncate(descriptor, 0)
        os.write(descriptor, data[start:end])


def is_own(descriptor: int) -> bool:
    """True for a file of this user that nobody else can write."""
    status = os.fstat(descriptor)
    others = stat.S_IWGRP | stat.S_IWOTH
    return status.st_uid == os.geteuid() and not status.st_mode & others


def prune(directory: str | None, now: float | None = None) -> None:
    """Remove what nobody uses any more."""
    if directory is None:
        return
    oldest = (time.time() if now is None else now) - LONGEST_UNUSED
    with contextlib.suppress(OSError):
        found = [each for each in os.scandir(directory) if each.name.endswith(".bin")]
        total = 0
        for each in sorted(found, key=lambda file: file.stat().st_mtime, reverse=True):
            total += each.stat().st_size
            if each.stat().st_mtime < oldest or total > LARGEST_DIRECTORY:
                os.unlink(each.path)


def default_directory() -> str:
    """Where a user's programs keep what can be made again (XDG Base Directory Specification)."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    root = chosen if os.path.isabs(chosen) else os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(root, "vdisk")
