"""The file of a saved machine: sections, written and read one after the other.

::

    header    8 bytes "VDISKVM\\0"   4 version (1)   4 zero                       little-endian
    section   4 kind   4 CRC-32 of the data   8 length   data
              "CONF"   the shape of the machine            a state (below), compressed
              "CHIP"   chips, processors, the clock        a state, compressed
              "RAM "   8 gpa   4 form (0 raw, 1 zstd)   4 length   the bytes     up to 1 MiB of RAM
              "END "   nothing follows

RAM that is all zeroes has no section.  A state is JSON (so nothing in it can run), bytes in it as
``{"$": base64}``, compressed by zstd.  Whoever reads bounds everything: the file is part of a disk
image, which anybody may have made.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import zstandard

from vdisk.errors import CorruptImageError, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAGIC, VERSION = b"VDISKVM\0", 1
HEADER = struct.Struct("<8sII")
SECTION = struct.Struct("<4sIQ")
RAM_HEAD = struct.Struct("<QII")
CONFIGURATION, CHIPS, RAM, END = b"CONF", b"CHIP", b"RAM ", b"END "
RAW, ZSTD = 0, 1
RAM_CHUNK = 1 << 20
LARGEST_STATE = 256 << 20
"""Bytes of a state, unpacked: video memory of 32 MiB in base64, several times over."""
LARGEST_SECTION = LARGEST_STATE
BYTES_KEY = "$"


class Section(NamedTuple):
    """One section as it was read."""

    kind: bytes
    data: bytes


class Writer:
    """Writes sections at increasing offsets by ``write(offset, data)``."""

    def __init__(self, write: Callable[[int, bytes], None]) -> None:
        self._write = write
        self._compressor = zstandard.ZstdCompressor(level=1)
        self.size = 0
        self._append(HEADER.pack(MAGIC, VERSION, 0))

    def _append(self, data: bytes) -> None:
        self._write(self.size, data)
        self.size += len(data)

    def section(self, kind: bytes, data: bytes) -> None:
        """Write one section."""
        self._append(SECTION.pack(kind, zlib.crc32(data), len(data)) + data)

    def state(self, kind: bytes, state: Any) -> None:
        """Write a state."""
        text = json.dumps(state, default=_encode, separators=(",", ":")).encode()
        self.section(kind, self._compressor.compress(text))

    def ram(self, gpa: int, view: memoryview) -> None:
        """Write a piece of RAM of at most :data:`RAM_CHUNK` bytes, unless it is all zeroes."""
        if not any_set(view):
            return
        packed = self._compressor.compress(view)
        form, data = (ZSTD, packed) if len(packed) < len(view) else (RAW, bytes(view))
        self.section(RAM, RAM_HEAD.pack(gpa, form, len(view)) + data)

    def finish(self) -> int:
        """Write the end; gives the size of it all."""
        self.section(END, b"")
        return self.size


def any_set(view: memoryview) -> bool:
    """True if a byte is not zero."""
    return view.nbytes > 0 and (view[0] != 0 or view[1:] != view[:-1])


def sections(read: Callable[[int, int], bytes], size: int) -> Iterator[Section]:
    """All sections up to the end; raises :class:`FormatError` or :class:`CorruptImageError`."""
    if size < HEADER.size:
        raise FormatError("this snapshot has no state of a machine")
    magic, version, _reserved = HEADER.unpack(read(0, HEADER.size))
    if magic != MAGIC:
        raise FormatError("the machine state is not vdisk's (QEMU's, perhaps)")
    if version != VERSION:
        raise FormatError(f"the machine state has version {version}; this program knows {VERSION}")
    offset = HEADER.size
    while True:
        if offset + SECTION.size > size:
            raise CorruptImageError("the machine state is cut off")
        kind, check, length = SECTION.unpack(read(offset, SECTION.size))
        offset += SECTION.size
        if kind == END:
            return
        if length > min(LARGEST_SECTION, size - offset):
            raise CorruptImageError(f"the machine state has a section of {length} bytes")
        data = read(offset, length)
        if zlib.crc32(data) != check:
            raise CorruptImageError(f"section {kind!r} of the machine state has a wrong checksum")
        yield Section(kind, data)
        offset += length


def read_state(section: Section) -> Any:
    """The state in a section."""
    try:
        text = _unpack(section.data, LARGEST_STATE)
        return json.loads(text, object_hook=_decode)
    except (ValueError, RecursionError) as error:
        raise CorruptImageError(
            f"section {section.kind!r} of the machine state: {error}"
        ) from error


def read_ram(section: Section) -> tuple[int, bytes]:
    """Where a piece of RAM belongs, and its bytes."""
    if len(section.data) < RAM_HEAD.size:
        raise CorruptImageError("a piece of RAM in the machine state is cut off")
    gpa, form, length = RAM_HEAD.unpack_from(section.data)
    data = section.data[RAM_HEAD.size :]
    if not 0 < length <= RAM_CHUNK or form not in {RAW, ZSTD}:
        raise CorruptImageError(f"a piece of RAM of {length} bytes in form {form}")
    try:
        data = _unpack(data, length) if form == ZSTD else data
    except ValueError as error:
        raise CorruptImageError(f"RAM at {gpa:#x} of the machine state: {error}") from error
    if len(data) != length:
        raise CorruptImageError(f"RAM at {gpa:#x} of the machine state has a wrong length")
    return gpa, data


def _unpack(data: bytes, most: int) -> bytes:
    """Unpack one zstd frame of at most ``most`` bytes; raises ``ValueError``."""
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= most:
            raise ValueError(f"{size} bytes unpacked")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=most)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _encode(value: object) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return {BYTES_KEY: base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} cannot be saved")


def _decode(value: dict[str, Any]) -> Any:
    if value.keys() == {BYTES_KEY} and isinstance(value[BYTES_KEY], str):
        try:
            return base64.b64decode(value[BYTES_KEY], validate=True)
        except binascii.Error as error:
            raise ValueError(f"bytes: {error}") from error
    return value
