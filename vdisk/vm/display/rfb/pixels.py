"""Pixel formats (RFC 6143, section 7.4), and turning pixels from ours into a client's.

A client's pixel is 8, 16 or 32 bits; of a true-colour one each colour is ``value & max`` shifted
left by ``shift``.  Conversion works on whole planes: the bytes of one colour are translated by a
table into what they add to one byte of the client's pixel, and planes are combined as very long
integers, so the time is that of a few copies of the picture, whatever the format.

Formats without true colour (8 bits a pixel) get a fixed map of 3-3-2 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from vdisk.vm.display.base import BYTES_PER_PIXEL
from vdisk.vm.display.rfb import wire
from vdisk.vm.display.rfb.wire import RfbProtocolError

_PLANES = (2, 1, 0)
"""Where red, green and blue are in one of our pixels."""


@dataclass(frozen=True)
class PixelFormat:
    """PIXEL_FORMAT.  ``maxima`` and ``shifts``: of red, green, blue."""

    bits_per_pixel: int
    depth: int
    big_endian: bool
    true_colour: bool
    maxima: tuple[int, int, int]
    shifts: tuple[int, int, int]

    @classmethod
    def parse(cls, data: bytes) -> PixelFormat:
        """Read one from the wire.  Raises :class:`RfbProtocolError` where it means nothing."""
        bits, depth, big, true, *rest = wire.PIXEL_FORMAT.unpack(data)
        red, green, blue, *shifts = rest
        wanted = cls(bits, depth, bool(big), bool(true), (red, green, blue), tuple(shifts))
        wanted._check()
        return wanted if wanted.true_colour else COLOUR_MAPPED

    def _check(self) -> None:
        if self.bits_per_pixel not in (8, 16, 32):
            raise RfbProtocolError(f"pixels of {self.bits_per_pixel} bits")
        if not self.true_colour:
            if self.bits_per_pixel != 8:
                raise RfbProtocolError(f"a colour map for {self.bits_per_pixel} bits a pixel")
            return
        if not 0 < self.depth <= self.bits_per_pixel:
            raise RfbProtocolError(f"a depth of {self.depth} bits")
        used = 0
        for most, shift in zip(self.maxima, self.shifts, strict=True):
            mask = most << shift
            if most & (most + 1) or not most or mask >> self.bits_per_pixel or mask & used:
                raise RfbProtocolError(f"colours at {self.shifts} of at most {self.maxima}")
            used |= mask

    def pack(self) -> bytes:
        """As it goes over the wire."""
        return wire.PIXEL_FORMAT.pack(
            self.bits_per_pixel,
            self.depth,
            self.big_endian,
            self.true_colour,
            *self.maxima,
            *self.shifts,
        )

    @property
    def size(self) -> int:
        """Bytes of a pixel."""
        return self.bits_per_pixel // 8

    @cached_property
    def _tables(self) -> list[list[tuple[int, bytes]]]:
        """For each byte of a pixel: which planes make it, and the table of each."""
        order = range(self.size - 1, -1, -1) if self.big_endian else range(self.size)
        tables = []
        for byte in order:
            parts = []
            for plane, most, shift in zip(_PLANES, self.maxima, self.shifts, strict=True):
                table = bytes(
                    (value * most + 127) // 255 << shift >> 8 * byte & 0xFF for value in range(256)
                )
                if any(table):
                    parts.append((plane, table))
            tables.append(parts)
        return tables

    def convert(self, pixels: bytes) -> bytes:
        """Our pixels as the client wants them."""
        if self == NATIVE:
            return pixels
        return self._interleave(pixels, self._tables)

    @cached_property
    def compact(self) -> bool:
        """Whether a CPIXEL (section 7.7.5) is 3 bytes of the 4."""
        return self.bits_per_pixel == 32 and self.depth <= 24 and any(self._spare_bytes)

    @property
    def _spare_bytes(self) -> tuple[bool, bool]:
        """Whether the most and the least significant byte of a pixel are unused."""
        used = 0
        for most, shift in zip(self.maxima, self.shifts, strict=True):
            used |= most << shift
        return not used >> 24, not used & 0xFF

    @cached_property
    def _compact_tables(self) -> list[list[tuple[int, bytes]]]:
        high, _low = self._spare_bytes
        first = 1 if high == self.big_endian else 0
        return self._tables[first : first + 3]

    def convert_compact(self, pixels: bytes) -> bytes:
        """Our pixels as CPIXELs."""
        if not self.compact:
            return self.convert(pixels)
        return self._interleave(pixels, self._compact_tables)

    @property
    def compact_size(self) -> int:
        """Bytes of a CPIXEL."""
        return 3 if self.compact else self.size

    @staticmethod
    def _interleave(pixels: bytes, tables: list[list[tuple[int, bytes]]]) -> bytes:
        count = len(pixels) // BYTES_PER_PIXEL
        result = bytearray(count * len(tables))
        planes = {plane: pixels[plane::BYTES_PER_PIXEL] for plane in _PLANES}
        for byte, parts in enumerate(tables):
            pieces = [planes[plane].translate(table) for plane, table in parts]
            if len(pieces) == 1:
                result[byte :: len(tables)] = pieces[0]
            elif pieces:
                total = 0
                for piece in pieces:
                    total |= int.from_bytes(piece, "little")
                result[byte :: len(tables)] = total.to_bytes(count, "little")
        return bytes(result)


NATIVE = PixelFormat(32, 24, False, True, (255, 255, 255), (16, 8, 0))
"""How :mod:`vdisk.vm.display.base` has pixels, and what a client has until it asks for more."""

COLOUR_MAPPED = PixelFormat(8, 8, False, False, (7, 7, 3), (0, 3, 6))
"""What a client with a colour map gets: indices into :func:`colour_map`."""


def colour_map() -> bytes:
    """SetColourMapEntries for :data:`COLOUR_MAPPED`: 256 colours of 16 bits each part."""
    entries = bytearray(wire.COLOUR_MAP_ENTRIES.pack(wire.SET_COLOUR_MAP_ENTRIES, 0, 256))
    for index in range(256):
        for most, shift in zip(COLOUR_MAPPED.maxima, COLOUR_MAPPED.shifts, strict=True):
            entries += ((index >> shift & most) * 0xFFFF // most).to_bytes(2, "big")
    return bytes(entries)
