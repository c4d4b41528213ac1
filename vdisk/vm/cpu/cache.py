"""Compiled code kept between runs, in the user's cache directory.

A file holds everything that was compiled by one version of this package with one LLVM for one
kind of processor (its name is their digest), one entry after another::

    magic (4) | bytes of names (4) | bytes of object code (4) | CRC-32 of both (4) | names | object

``names`` are the symbols that the object code defines, joined by newlines.  Entries are appended
under a lock in one write; what is cut off or damaged is not used, nor what follows it.  Native
code is only loaded from a file that belongs to the user and that nobody else can write.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import zlib
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HEADER = Struct("<4sIII")
MAGIC = b"vdc1"
LARGEST_FILE = 256 << 20
"""A file that has grown beyond this is begun anew."""
SOURCES = Path(__file__).parent


def digest(*what: str) -> str:
    """The name for code that depends on these words and on this package's source."""
    total = hashlib.sha256("\0".join(what).encode())
    for path in sorted(SOURCES.rglob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()[:32]


class CodeCache:
    """The entries of one file; a directory that cannot be used makes a cache that keeps nothing."""

    def __init__(self, directory: str | None, name: str) -> None:
        self.path = None if directory is None else os.path.join(directory, f"code-{name}.bin")

    def load(self) -> Iterator[tuple[list[str], bytes]]:
        """(symbols, object code) of each good entry."""
        data = self._read()
        at = 0
        while at + HEADER.size <= len(data):
            magic, names_size, code_size, check = HEADER.unpack_from(data, at)
            at += HEADER.size
            body = data[at : at + names_size + code_size]
            if magic != MAGIC or len(body) != names_size + code_size or zlib.crc32(body) != check:
                return
            at += len(body)
            yield body[:names_size].decode().split("\n"), body[names_size:]

    def _read(self) -> bytes:
        if self.path is None:
            return b""
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                foreign = status.st_uid != os.geteuid()
                if foreign or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    return b""
                return file.read() if status.st_size <= LARGEST_FILE else b""
        except OSError:
            return b""

    def append(self, names: Iterable[str], code: bytes) -> None:
        """Keep one more entry; a cache that cannot be written is no error."""
        if self.path is None:
            return
        listed = "\n".join(names).encode()
        body = listed + code
        entry = HEADER.pack(MAGIC, len(listed), len(code), zlib.crc32(body)) + body
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            self._write(entry)

    def _write(self, entry: bytes) -> None:
        assert self.path is not None
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_size > LARGEST_FILE:
                os.ftruncate(descriptor, 0)
            os.write(descriptor, entry)
        finally:
            os.close(descriptor)


def default_directory() -> str:
    """Where a user's programs keep what can be made again."""
    return os.path.join(os.path.expanduser("~"), ".cache", "vdisk")
