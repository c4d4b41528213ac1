"""Any header: key slots that survive being written and read, or a VdiskError; ≤ 256 MiB, ≤ 2 s.

A passphrase is tried only where the header asks for little work: how much it may ask for at
most is ``MAX_UNLOCK_ROUNDS``, which is more than 2 seconds, and that more is refused is checked.
"""

from __future__ import annotations

import hashlib
import random
from contextlib import suppress
from functools import cache

from fuzz.mutate import Field, Means, change_bytes, change_fields
from vdisk.errors import UnsupportedFeatureError, VdiskError
from vdisk.formats import OpenContext
from vdisk.formats._luks import header as phdr
from vdisk.formats._luks import keyslots
from vdisk.formats._luks.keyslots import KeySlots
from vdisk.formats.luks import DRIVER
from vdisk.stores.memory import MemoryStore

LONGEST = phdr.HEADER_SIZE
SIZE = 3 << 20
CHEAP = 20_000
"""Iterations, all together, that a passphrase is tried for."""

PASSPHRASE = b"passphrase"
_HEADER = [
    *[Field(6, 2, Means.COUNT), Field(104, 4, Means.COUNT), Field(108, 4, Means.COUNT)],
    Field(164, 4, Means.COUNT),
    *[Field(offset, 1, Means.BYTES) for offset in (*range(8, 40), *range(40, 72), *range(72, 104))],
]
_SLOTS = [
    Field(phdr.slot_position(number) + offset, 4, Means.COUNT)
    for number in range(phdr.SLOT_COUNT)
    for offset in (0, 4, 40, 44)
]
_NAMES = [
    *[(8, 32, name) for name in (b"aes", b"serpent", b"twofish", b"cast5", b"")],
    *[(40, 32, mode) for mode in (b"xts-plain64", b"cbc-essiv:sha256", b"ecb", b"cbc-plain", b"x")],
    *[(72, 32, name) for name in (b"sha1", b"sha512", b"ripemd160", b"md5", b"whirlpool")],
]


@cache
def volume() -> bytes:
    """The beginning of a volume with one cheap passphrase, without the payload."""
    area = MemoryStore(bytes(SIZE))
    rng = random.Random(0)
    key = rng.randbytes(32)
    header = phdr.Header(
        cipher_name="aes",
        cipher_mode="xts-plain64",
        hash_spec="sha256",
        payload_offset=phdr.default_payload_offset(32),
        key_bytes=32,
        mk_digest=hashlib.pbkdf2_hmac("sha256", key, bytes(32), 1000, phdr.DIGEST_SIZE),
        mk_digest_salt=bytes(phdr.SALT_SIZE),
        mk_digest_iterations=1000,
        uuid="00000000-0000-0000-0000-000000000000",
        slots=tuple(
            phdr.KeySlot(
                False,
                0,
                bytes(phdr.SALT_SIZE),
                phdr.MATERIAL_ALIGNMENT + number * phdr.material_spacing(32),
            )
            for number in range(phdr.SLOT_COUNT)
        ),
    )
    area.write(0, header.to_bytes())
    KeySlots(area, random_bytes=rng.randbytes).add(key, PASSPHRASE, iter_time=0)
    return area.content()


def seeds() -> dict[str, bytes]:
    return {"one slot": volume()[: phdr.HEADER_SIZE]}


def mutate(data: bytes, rng: random.Random) -> bytes:
    header = bytearray(data)
    match rng.randrange(4):
        case 0:
            offset, size, text = rng.choice(_NAMES)
            header[offset : offset + size] = text.ljust(size, b"\0")
        case 1:
            change_bytes(header, rng, 16)
        case _:
            change_fields(header, {"header": _HEADER, "slots": _SLOTS}, rng, 8)
    return bytes(header)


def run(data: bytes) -> None:
    try:
        header = phdr.parse(data)
    except VdiskError:
        return
    assert phdr.parse(header.to_bytes()) == header
    file = MemoryStore(data + volume()[len(data) :], growable=False)
    with suppress(VdiskError), DRIVER.open(file, OpenContext()) as image:
        image.format_info()
        assert image.locked
    slots = [slot for slot in header.slots if slot.active]
    work = [slot.iterations + header.mk_digest_iterations for slot in slots]
    if sum(work) <= CHEAP:
        with suppress(VdiskError):
            KeySlots(file).unlock(PASSPHRASE)
    elif work and work[0] > keyslots.MAX_UNLOCK_ROUNDS:
        with suppress(VdiskError):
            _refused(KeySlots(file))


def _refused(slots: KeySlots) -> None:
    slots.spec.check()
    try:
        slots.unlock(PASSPHRASE)
    except UnsupportedFeatureError:
        return
    raise AssertionError("the passphrase was tried")
