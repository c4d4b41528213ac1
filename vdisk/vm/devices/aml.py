"""ACPI Machine Language, as much of it as a small DSDT needs (ACPI 2.0, chapters 17 and 6.4).

Each function gives the bytes of one term, so that a table reads like its source::

    scope("\\\\_SB", device("LNKA", name("_HID", eisa_id("PNP0C0F")), …))

Names are written as in ASL: ``PCI0``, ``\\\\_SB.PCI0``, ``^PRQ0``; segments shorter than four
characters are padded with underscores.
"""

from __future__ import annotations

from vdisk.errors import InvalidRequestError

ZERO, ONE, ONES = b"\x00", b"\x01", b"\xff"
ARG0, LOCAL0 = b"\x68", b"\x60"
SYSTEM_IO, PCI_CONFIG = 1, 2
BYTE_ACCESS = 1


def pkg_length(body: bytes) -> bytes:
    """The body with its length before it (PkgLength counts its own bytes)."""
    if len(body) + 1 < 1 << 6:
        return bytes([len(body) + 1]) + body
    for extra in (1, 2, 3):
        length = len(body) + 1 + extra
        if length < 1 << 4 + 8 * extra:
            head = bytes([extra << 6 | length & 0xF])
            return head + (length >> 4).to_bytes(extra, "little") + body
    raise InvalidRequestError("an AML package of more than 256 MiB")


def _segment(text: str) -> bytes:
    return text.ljust(4, "_").encode("ascii")


def path(text: str) -> bytes:
    """A NameString."""
    prefix = text[: len(text) - len(text.lstrip("\\^"))]
    segments = [_segment(part) for part in text[len(prefix) :].split(".") if part]
    head = prefix.encode("ascii")
    if not segments:
        return head + b"\x00"
    if len(segments) == 1:
        return head + segments[0]
    if len(segments) == 2:
        return head + b"\x2e" + b"".join(segments)
    return head + b"\x2f" + bytes([len(segments)]) + b"".join(segments)


def integer(value: int) -> bytes:
    """An integer in its shortest form."""
    if value in {0, 1}:
        return bytes([value])
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * size:
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise InvalidRequestError(f"an AML integer of more than 64 bits: {value:#x}")


def string(text: str) -> bytes:
    """A String."""
    return b"\x0d" + text.encode("ascii") + b"\x00"


def eisa_id(text: str) -> bytes:
    """A compressed EISA identifier such as PNP0A03, as an integer."""
    letters = [ord(letter) - 0x40 for letter in text[:3]]
    number = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return b"\x0c" + number.to_bytes(4, "big")


def buffer(data: bytes) -> bytes:
    """A Buffer with contents."""
    return b"\x11" + pkg_length(integer(len(data)) + data)


def package(*elements: bytes) -> bytes:
    """A Package."""
    return b"\x12" + pkg_length(bytes([len(elements)]) + b"".join(elements))


def name(text: str, value: bytes) -> bytes:
    """Name (text, value)."""
    return b"\x08" + path(text) + value


def scope(text: str, *terms: bytes) -> bytes:
    """Scope (text) { terms }."""
    return b"\x10" + pkg_length(path(text) + b"".join(terms))


def device(text: str, *terms: bytes) -> bytes:
    """Device (text) { terms }."""
    return b"\x5b\x82" + pkg_length(path(text) + b"".join(terms))


def processor(text: str, number: int) -> bytes:
    """Processor (text, number, 0, 0) {}."""
    return b"\x5b\x83" + pkg_length(path(text) + bytes([number]) + bytes(5))


def method(text: str, arguments: int, *terms: bytes) -> bytes:
    """Method (text, arguments, NotSerialized) { terms }."""
    return b"\x14" + pkg_length(path(text) + bytes([arguments]) + b"".join(terms))


def serialized_method(text: str, arguments: int, *terms: bytes) -> bytes:
    """Method (text, arguments, Serialized) { terms }: one that creates names."""
    return b"\x14" + pkg_length(path(text) + bytes([arguments | 8]) + b"".join(terms))


def operation_region(text: str, space: int, offset: int, length: int) -> bytes:
    """OperationRegion (text, space, offset, length)."""
    return b"\x5b\x80" + path(text) + bytes([space]) + integer(offset) + integer(length)


def field(region: str, access: int, *units: tuple[str, int]) -> bytes:
    """Field (region, access, NoLock, Preserve) { name, bits … }, of fewer than 64 bits each."""
    body = path(region) + bytes([access])
    body += b"".join(_segment(unit) + bytes([bits]) for unit, bits in units)
    return b"\x5b\x81" + pkg_length(body)


def return_(value: bytes) -> bytes:
    """Return (value)."""
    return b"\xa4" + value


def store(value: bytes, target: bytes) -> bytes:
    """Store (value, target)."""
    return b"\x70" + value + target


def and_(left: bytes, right: bytes, target: bytes = ZERO) -> bytes:
    """And (left, right, target)."""
    return b"\x7b" + left + right + target


def or_(left: bytes, right: bytes, target: bytes = ZERO) -> bytes:
    """Or (left, right, target)."""
    return b"\x7d" + left + right + target


def if_(condition: bytes, *terms: bytes) -> bytes:
    """If (condition) { terms }."""
    return b"\xa0" + pkg_length(condition + b"".join(terms))


def create_dword_field(source: bytes, offset: int, text: str) -> bytes:
    """CreateDWordField (source, offset, text)."""
    return b"\x8a" + source + integer(offset) + path(text)


# -- resources (ACPI 2.0, section 6.4) -----------------------------------------------------------


def resources(*descriptors: bytes) -> bytes:
    """ResourceTemplate () { descriptors }."""
    return buffer(b"".join(descriptors) + b"\x79\x00")


def io(first: int, length: int) -> bytes:
    """IO (Decode16, first, first, 1, length)."""
    return b"\x47\x01" + 2 * first.to_bytes(2, "little") + bytes([1, length])


def irq(number: int) -> bytes:
    """IRQNoFlags () { number }: edge-triggered, active high."""
    return b"\x22" + (1 << number).to_bytes(2, "little")


def dma(channel: int) -> bytes:
    """A channel of the 8237s: compatibility mode, bytes (6.4.2.2)."""
    return bytes([0x2A, 1 << channel, 0x00])


def interrupt(*numbers: int) -> bytes:
    """Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { numbers }."""
    body = bytes([0x09, len(numbers)]) + b"".join(n.to_bytes(4, "little") for n in numbers)
    return b"\x89" + len(body).to_bytes(2, "little") + body


def memory_fixed(base: int, length: int) -> bytes:
    """Memory32Fixed (ReadWrite, base, length)."""
    return b"\x86\x09\x00\x01" + base.to_bytes(4, "little") + length.to_bytes(4, "little")


def window(kind: int, flags: int, first: int, last: int, size: int) -> bytes:
    """A Word (2), DWord (4) or QWord (8) address space that a bridge produces: [first, last].

    ``kind``: 0 memory, 1 I/O, 2 bus numbers.  ``flags``: those of the type.
    """
    tag = {2: 0x88, 4: 0x87, 8: 0x8A}[size]
    numbers = (0, first, last, 0, last - first + 1)
    body = bytes([kind, 0x0C, flags]) + b"".join(n.to_bytes(size, "little") for n in numbers)
    return bytes([tag]) + len(body).to_bytes(2, "little") + body
