"""The anti-forensic splitter: LUKS1 On-Disk Format Specification 1.2.3, section 2.4.

A key of 64 bytes may survive deletion in a sector that a disk has remapped.  So it is inflated
into 4000 stripes of its own size, all of which are needed to get it back: lose one, and the key
is gone.  All stripes but the last are random; each is mixed into what the hash function makes
of those before, and the last makes up the difference to the key::

    d(0) = 0        d(k) = H(d(k-1) xor s(k))        s(n) = d(n-1) xor key
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.formats._luks.specification import Hash


def split(
    key: bytes, stripes: int, hash: Hash, random_bytes: Callable[[int], bytes] = os.urandom
) -> bytes:
    """``key`` spread over ``stripes`` stripes of its own length, one after another."""
    noise = random_bytes(len(key) * (stripes - 1))
    return noise + _xor(_fold(noise, len(key), hash), key)


def merge(material: bytes, key_bytes: int, stripes: int, hash: Hash) -> bytes:
    """The key of ``key_bytes`` bytes that was spread over ``material``."""
    last = key_bytes * (stripes - 1)
    return _xor(_fold(material[:last], key_bytes, hash), material[last : last + key_bytes])


def _fold(stripes: bytes, size: int, hash: Hash) -> bytes:
    """d(n): all ``stripes`` of ``size`` bytes, mixed into one."""
    mixed = bytes(size)
    for start in range(0, len(stripes), size):
        mixed = _diffuse(_xor(mixed, stripes[start : start + size]), hash)
    return mixed


def _diffuse(block: bytes, hash: Hash) -> bytes:
    """H: each digest-sized piece replaced by the hash of its number and itself."""
    size = hash.digest_size
    return b"".join(
        hash.digest(number.to_bytes(4, "big") + block[start : start + size])[: len(block) - start]
        for number, start in enumerate(range(0, len(block), size))
    )


def _xor(first: bytes, second: bytes) -> bytes:
    mixed = int.from_bytes(first, "little") ^ int.from_bytes(second, "little")
    return mixed.to_bytes(len(first), "little")
