"""Streams of accesses to devices: how they are written down, recorded and changed.

::

    kind (8)  size (8)  address (16)  value (32)        and after MEMORY: the bytes
    0 port read   1 port write   2 MMIO read   3 MMIO write   4 MEMORY   5 time passes

An MMIO address counts from the base that a target has.  MEMORY is what a guest itself writes:
``address`` bytes at ``value``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from vdisk.vm.bus import Bus
    from vdisk.vm.memory import GuestMemory

PORT_READ, PORT_WRITE, MMIO_READ, MMIO_WRITE, MEMORY, TIME = range(6)
SIZES = (1, 2, 4, 8)
MOST = 3000
"""Accesses of one input."""

_HEAD = struct.Struct("<BBHI")


class Access(NamedTuple):
    """One access; ``data``: of MEMORY."""

    kind: int
    size: int
    address: int
    value: int
    data: bytes = b""


def encode(accesses: Sequence[Access]) -> bytes:
    """The stream as bytes."""
    return b"".join(
        _HEAD.pack(a.kind, a.size, a.address & 0xFFFF, a.value & 0xFFFF_FFFF) + a.data
        for a in accesses
    )


def decode(data: bytes) -> list[Access]:
    """Any bytes as a stream."""
    found: list[Access] = []
    place = 0
    while place + _HEAD.size <= len(data) and len(found) < MOST:
        kind, size, address, value = _HEAD.unpack_from(data, place)
        place += _HEAD.size
        kind %= 6
        content = b""
        if kind == MEMORY:
            address = min(address, 4096, len(data) - place)
            content = data[place : place + address]
            place += address
        found.append(
            Access(kind, size if size in SIZES else SIZES[size % 4], address, value, content)
        )
    return found


class Recorder:
    """Remembers what a driver does: puts itself before a bus and a memory."""

    def __init__(self, bus: Bus, memory: GuestMemory, mmio_base: int = 0) -> None:
        self.accesses: list[Access] = []
        self._base = mmio_base
        self._wrap(bus.ports, PORT_READ, 0)
        self._wrap(bus.mmio, MMIO_READ, mmio_base)
        write: Callable[..., None] = memory.write

        def recorded(gpa: int, data: bytes) -> None:
            self.accesses.append(Access(MEMORY, 1, len(data), gpa, bytes(data)))
            write(gpa, data)

        memory.write = recorded  # type: ignore[method-assign, assignment]

    def _wrap(self, space: object, kind: int, base: int) -> None:
        read, write = space.read, space.write  # type: ignore[attr-defined]

        def recorded_read(address: int, size: int) -> int:
            self.accesses.append(Access(kind, size, address - base, 0))
            value: int = read(address, size)
            return value

        def recorded_write(address: int, size: int, value: int) -> None:
            self.accesses.append(Access(kind + 1, size, address - base, value))
            write(address, size, value)

        space.read, space.write = recorded_read, recorded_write  # type: ignore[attr-defined]


def change(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """A neighbour: accesses dropped, doubled, moved, changed, or taken from another stream."""
    accesses = decode(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        place = rng.randrange(len(accesses) + 1)
        kind = rng.randrange(6)
        if kind == 0 and accesses:
            del accesses[place : place + rng.choice([1, 1, 5])]
        elif kind == 1 and accesses:
            start = rng.randrange(len(accesses))
            accesses[place:place] = accesses[start : start + rng.choice([1, 2, 8])]
        elif kind == 2:
            other = decode(rng.choice(others))
            start = rng.randrange(len(other) + 1)
            accesses[place:place] = other[start : start + rng.choice([1, 4, 20])]
        elif place < len(accesses):
            accesses[place] = _changed(accesses[place], rng)
    return encode(accesses)


def _changed(access: Access, rng: random.Random) -> Access:
    if access.data and rng.random() < 0.8:
        content = bytearray(access.data)
        for _ in range(rng.choice([1, 1, 3])):
            place = rng.randrange(len(content))
            content[place] = rng.choice([0, 1, 2, 4, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        return access._replace(data=bytes(content))
    if access.kind == MEMORY:
        return access._replace(value=access.value + rng.choice([-16, -1, 1, 2, 16, 4096]))
    field = rng.randrange(3)
    if field == 0:
        value = rng.choice(
            [0, 1, 0x80, 0xFF, 0xFFFF, 0xFFFF_FFFF, access.value ^ 1 << rng.randrange(32)]
        )
        return access._replace(value=value)
    if field == 1:
        return access._replace(address=(access.address + rng.choice([-4, -1, 1, 2, 4])) & 0xFFFF)
    return access._replace(size=rng.choice(SIZES))


def change_with_settings(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """The same where a first byte says how the device is made; it seldom changes."""
    settings = rng.randrange(256) if rng.random() < 0.05 else data[0] if data else 0
    return bytes([settings]) + change(data[1:], [other[1:] for other in others], rng)
