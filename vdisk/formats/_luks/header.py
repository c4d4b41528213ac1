"""The LUKS1 header ("phdr"): LUKS1 On-Disk Format Specification 1.2.3, sections 2.1 to 2.3.

All integers are big-endian; positions are in sectors of 512 bytes on the disk, and in bytes
everywhere else in this library::

    0      592     key-slot-0                    key-slot-7            payload-offset
    +------+ - - - +--------------+ - - - - - - -+--------------+ - - -+-----------------
    | phdr |       | key material |              | key material |      | encrypted sectors
    +------+ - - - +--------------+ - - - - - - -+--------------+ - - -+-----------------
                   key-bytes * stripes, each

Parsing is pure: any bytes give a :class:`Header` or a declared error.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import construct as c

from vdisk.errors import CorruptImageError, FormatError, UnsupportedFeatureError
from vdisk.units import round_up

if TYPE_CHECKING:
    from collections.abc import Iterator

SECTOR = 512
MAGIC = b"LUKS\xba\xbe"
VERSION = 1
HEADER_SIZE = 592
DIGEST_SIZE = 20
SALT_SIZE = 32
SLOT_COUNT = 8
SLOTS_OFFSET = 208
SLOT_SIZE = 48
ENABLED = 0x00AC_71F3
DISABLED = 0x0000_DEAD

STRIPES = 4000
"""Anti-forensic stripes of a key.  The specification makes it a constant, and every program
writes it; anything else is damage."""

MATERIAL_ALIGNMENT = 4096
"""Where the first key material begins, and what each is rounded up to: so cryptsetup and QEMU
lay volumes out."""

MAX_KEY_BYTES = 64
"""Two keys of 256 bits, for XTS: no cipher that LUKS names has a longer one."""

SLOT = c.Struct(
    "active" / c.Int32ub,
    "iterations" / c.Int32ub,
    "salt" / c.Bytes(SALT_SIZE),
    "key_material_offset" / c.Int32ub,
    "stripes" / c.Int32ub,
)

PHDR = c.Struct(
    "magic" / c.Const(MAGIC),
    "version" / c.Const(VERSION, c.Int16ub),
    "cipher_name" / c.Bytes(32),
    "cipher_mode" / c.Bytes(32),
    "hash_spec" / c.Bytes(32),
    "payload_offset" / c.Int32ub,
    "key_bytes" / c.Int32ub,
    "mk_digest" / c.Bytes(DIGEST_SIZE),
    "mk_digest_salt" / c.Bytes(SALT_SIZE),
    "mk_digest_iterations" / c.Int32ub,
    "uuid" / c.Bytes(40),
    "slots" / c.Array(SLOT_COUNT, SLOT),
)


class KeySlot(NamedTuple):
    """One of the eight places for the master key; ``offset``: of its key material, in bytes."""

    active: bool
    iterations: int
    salt: bytes
    offset: int
    stripes: int = STRIPES

    def to_bytes(self) -> bytes:
        """The 48 bytes that describe the slot in the header."""
        return bytes(SLOT.build(self._fields_on_disk()))

    def _fields_on_disk(self) -> dict[str, Any]:
        return {
            "active": ENABLED if self.active else DISABLED,
            "iterations": self.iterations,
            "salt": self.salt,
            "key_material_offset": self.offset // SECTOR,
            "stripes": self.stripes,
        }


class Header(NamedTuple):
    """The header's fields by the specification's names; offsets in bytes."""

    cipher_name: str
    cipher_mode: str
    hash_spec: str
    payload_offset: int
    key_bytes: int
    mk_digest: bytes
    mk_digest_salt: bytes
    mk_digest_iterations: int
    uuid: str
    slots: tuple[KeySlot, ...]

    @property
    def material_size(self) -> int:
        """Bytes of one slot's key material: its stripes, in whole sectors."""
        return round_up(self.key_bytes * STRIPES, SECTOR)

    @property
    def active_slots(self) -> list[int]:
        """Numbers of the slots that hold the master key."""
        return [number for number, slot in enumerate(self.slots) if slot.active]

    def with_slot(self, number: int, slot: KeySlot) -> Header:
        """The same header with another slot ``number``."""
        slots = list(self.slots)
        slots[number] = slot
        return self._replace(slots=tuple(slots))

    def to_bytes(self) -> bytes:
        """The 592 bytes of the header."""
        fields = self._asdict() | {
            "cipher_name": _padded(self.cipher_name, 32),
            "cipher_mode": _padded(self.cipher_mode, 32),
            "hash_spec": _padded(self.hash_spec, 32),
            "payload_offset": self.payload_offset // SECTOR,
            "uuid": _padded(self.uuid, 40),
            "slots": [slot._fields_on_disk() for slot in self.slots],
        }
        return bytes(PHDR.build(fields))


def slot_position(number: int) -> int:
    """Where in the header the slot ``number`` is described."""
    return SLOTS_OFFSET + number * SLOT_SIZE


def material_spacing(key_bytes: int) -> int:
    """Bytes from one slot's key material to the next in a volume that is made here."""
    return round_up(key_bytes * STRIPES, MATERIAL_ALIGNMENT)


def default_payload_offset(key_bytes: int) -> int:
    """Where the encrypted data begins in a volume that is made here."""
    return MATERIAL_ALIGNMENT + SLOT_COUNT * material_spacing(key_bytes)


def parse(data: bytes) -> Header:
    """The header at the start of ``data``, its fields checked against each other.

    Raises :class:`FormatError` for bytes that are no LUKS header,
    :class:`UnsupportedFeatureError` for another version, :class:`CorruptImageError` for a
    header that breaks a rule.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise FormatError("not a LUKS volume: its magic is missing")
    version = int.from_bytes(data[6:8], "big")
    if version != VERSION:
        raise UnsupportedFeatureError(f"LUKS version {version}; only version 1 is supported")
    if len(data) < HEADER_SIZE:
        raise CorruptImageError(f"the LUKS header is cut short: {len(data)} of {HEADER_SIZE} bytes")
    header = _from_container(PHDR.parse(data[:HEADER_SIZE]))
    for message in _broken_rules(header):
        raise CorruptImageError(f"LUKS header: {message}")
    return header


def _from_container(fields: Any) -> Header:
    return Header(
        cipher_name=_text(fields.cipher_name, "cipher-name"),
        cipher_mode=_text(fields.cipher_mode, "cipher-mode"),
        hash_spec=_text(fields.hash_spec, "hash-spec"),
        payload_offset=fields.payload_offset * SECTOR,
        key_bytes=fields.key_bytes,
        mk_digest=fields.mk_digest,
        mk_digest_salt=fields.mk_digest_salt,
        mk_digest_iterations=fields.mk_digest_iterations,
        uuid=_text(fields.uuid, "uuid"),
        slots=tuple(_slot(number, slot) for number, slot in enumerate(fields.slots)),
    )


def _slot(number: int, fields: Any) -> KeySlot:
    if fields.active not in (ENABLED, DISABLED):
        raise CorruptImageError(
            f"LUKS header: key slot {number} is neither enabled nor disabled ({fields.active:#x})"
        )
    return KeySlot(
        active=fields.active == ENABLED,
        iterations=fields.iterations,
        salt=fields.salt,
        offset=fields.key_material_offset * SECTOR,
        stripes=fields.stripes,
    )


def _broken_rules(header: Header) -> Iterator[str]:
    """What is wrong with the header; the rules on sizes come before those that rely on them."""
    if not 0 < header.key_bytes <= MAX_KEY_BYTES:
        yield f"key-bytes is {header.key_bytes}, not 1 to {MAX_KEY_BYTES}"
    if not header.mk_digest_iterations:
        yield "mk-digest-iter is 0"
    for number, slot in enumerate(header.slots):
        if slot.stripes != STRIPES:
            yield f"key slot {number} has {slot.stripes} stripes, not {STRIPES}"
        if slot.active and not slot.iterations:
            yield f"key slot {number} has 0 iterations"
    areas = [("the header itself", 0, HEADER_SIZE)]
    areas += [
        (f"key slot {number}", slot.offset, slot.offset + header.material_size)
        for number, slot in enumerate(header.slots)
    ]
    areas.sort(key=lambda area: area[1])
    for (name, _, end), (other, start, _) in pairwise(areas):
        if start < end:
            yield f"{name} and {other} overlap at {start:#x}"
    last, _, end = areas[-1]
    if end > header.payload_offset:
        yield f"{last} overlaps the payload at {header.payload_offset:#x}"


def _text(field: bytes, name: str) -> str:
    """A NUL-terminated or full field of printable ASCII."""
    text = field.partition(b"\0")[0].decode("latin-1")
    if not (text.isascii() and (text.isprintable() or not text)):
        raise CorruptImageError(f"LUKS header: {name} is not ASCII text")
    return text


def _padded(text: str, size: int) -> bytes:
    return text.encode("ascii").ljust(size, b"\0")
