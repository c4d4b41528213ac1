"""What is written to a disk, and what it must hold then."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vdisk.block import BlockDevice

MiB = 1 << 20


def content(size: int = 8 * MiB, seed: int = 1) -> bytes:
    """Data with a hole in every third mebibyte."""
    source = random.Random(seed)
    parts = [source.randbytes(MiB) if n % 3 else bytes(MiB) for n in range(size // MiB)]
    return b"".join(parts)


def exercise(store: BlockDevice, size: int, seed: int = 5) -> bytearray:
    """Writes, zeroes and discards of all lengths; the content that results, as far as known."""
    chance = random.Random(seed)
    model = bytearray(store.read(0, size))
    for _ in range(60):
        offset = chance.randrange(size)
        length = min(chance.choice([1, 512, 4096, 70_000, 3 * MiB]), size - offset)
        if chance.random() < 0.3:
            store.write_zeroes(offset, length, unmap=chance.random() < 0.5)
            model[offset : offset + length] = bytes(length)
        else:
            data = chance.randbytes(length)
            store.write(offset, data)
            model[offset : offset + length] = data
        assert store.read(offset, length) == model[offset : offset + length]
    store.flush()
    assert store.read(0, size) == model
    return model
