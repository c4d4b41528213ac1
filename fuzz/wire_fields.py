"""Where the numbers of an NBD byte stream are: behind the magics that its messages begin with."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING

from fuzz.mutate import Field, Means, change_bytes, change_fields
from vdisk.nbd import wire

if TYPE_CHECKING:
    import random

_COOKIE = (8, 8, Means.COUNT)
_KINDS = [(4, 2, Means.FLAGS), (6, 2, Means.COUNT), _COOKIE]
_LAYOUTS = {
    struct.pack(">Q", wire.IHAVEOPT): [(8, 4, Means.COUNT), (12, 4, Means.COUNT)],
    struct.pack(">Q", wire.NBD_REP_MAGIC): [(8 + 4 * n, 4, Means.COUNT) for n in range(3)],
    struct.pack(">I", wire.NBD_REQUEST_MAGIC): [
        *_KINDS,
        (16, 8, Means.COUNT),
        (24, 4, Means.COUNT),
    ],
    struct.pack(">I", wire.NBD_EXTENDED_REQUEST_MAGIC): [
        *_KINDS,
        (16, 8, Means.COUNT),
        (24, 8, Means.COUNT),
    ],
    struct.pack(">I", wire.NBD_SIMPLE_REPLY_MAGIC): [(4, 4, Means.COUNT), _COOKIE],
    struct.pack(">I", wire.NBD_STRUCTURED_REPLY_MAGIC): [*_KINDS, (16, 4, Means.COUNT)],
    struct.pack(">I", wire.NBD_EXTENDED_REPLY_MAGIC): [
        *_KINDS,
        (16, 8, Means.COUNT),
        (24, 8, Means.COUNT),
    ],
}
"""The fields behind each magic; those of a payload follow, see :func:`_payload`."""
_HEADERS = {
    magic: max(offset + size for offset, size, _ in layout) for magic, layout in _LAYOUTS.items()
}
MOST_PAYLOAD = 48
"""Bytes of a payload that are taken for numbers."""


def messages(stream: bytes) -> list[bytes]:
    """The stream cut before each magic."""
    cuts = {0, len(stream)}
    for magic in _LAYOUTS:
        position = stream.find(magic)
        while position >= 0:
            cuts.add(position)
            position = stream.find(magic, position + 1)
    places = sorted(cuts)
    return [stream[start:end] for start, end in pairwise(places)]


def _fields(message: bytes) -> list[Field]:
    for magic, layout in _LAYOUTS.items():
        if message.startswith(magic):
            return [*(Field(*one) for one in layout), *_payload(message, _HEADERS[magic])]
    return _payload(message, 0)


def _payload(message: bytes, start: int) -> list[Field]:
    """What follows is numbers of 16, 32 or 64 bits or text: nobody knows here."""
    end = min(len(message), start + MOST_PAYLOAD)
    return [
        Field(offset, size, Means.COUNT)
        for size in (2, 4, 8)
        for offset in range(start, end - size + 1, 2)
    ]


def change_stream(stream: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """A stream with a message changed, doubled, moved, left out or taken from another stream."""
    parts = messages(stream) or [b""]
    number = rng.randrange(len(parts))
    match rng.randrange(10):
        case 0:
            parts.insert(number, parts[number])
        case 1:
            del parts[number]
        case 2:
            rng.shuffle(parts)
        case 3:
            other = messages(rng.choice(others)) or [b""]
            parts.insert(number, rng.choice(other))
        case 4:
            changed = bytearray(parts[number])
            change_bytes(changed, rng, 4)
            parts[number] = bytes(changed)
        case _:
            changed = bytearray(parts[number])
            change_fields(changed, {"message": _fields(parts[number])}, rng, 4)
            parts[number] = bytes(changed)
    return b"".join(parts)
