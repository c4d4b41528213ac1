"""Key slots: from a passphrase to the master key, and the life of the passphrases.

To unlock a slot, derive its key from the passphrase, decrypt the key material, merge the
stripes, and see whether the digest in the header is that of the result.  (LUKS1 specification,
sections 4.1 to 4.4; "master key" is the key of the data.)

Order of writes.  A slot that is added has its key material on the disk before the header calls
it active.  A slot that is erased loses its key material first, so that no passphrase opens what
a crash leaves behind.  An active slot that is overwritten while it is the only one is copied to
a spare slot before, so there is no moment without a slot that works.
"""

from __future__ import annotations

import hmac
import os
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vdisk.errors import (
    AuthenticationError,
    CorruptImageError,
    InvalidRequestError,
    UnsupportedFeatureError,
    VdiskError,
)
from vdisk.formats._luks import antiforensic
from vdisk.formats._luks import header as phdr
from vdisk.formats._luks.header import Header, KeySlot
from vdisk.formats._luks.options import DEFAULT_ITER_TIME
from vdisk.formats._luks.specification import CipherSpec, Hash
from vdisk.units import round_up

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from vdisk.block import BlockDevice

MIN_ITERATIONS = 1000
"""The least the specification allows."""

MAX_UNLOCK_ROUNDS = 1 << 28
"""HMAC computations spent on trying a passphrase on all slots, 30 s to 2 min of one processor.
Eight slots made with the default time on a fast machine need half of it; a hostile header could
ask for 2**40."""

_CALIBRATION_TIME = 0.05
_CALIBRATION_START = 1 << 14
_MASTER_KEY_SHARE = 8
"""The digest of the master key takes an eighth of the time: it is computed for each slot."""


class KeySlots:
    """The header and the key material of one volume, in ``area`` from its byte 0 on.

    ``length``: bytes that the header area has (in a qcow2 image; else the file's size).
    ``random_bytes``: the source of salts and stripes.
    Raises :class:`FormatError`, :class:`UnsupportedFeatureError` and
    :class:`CorruptImageError`, as :func:`header.parse`.
    """

    def __init__(
        self,
        area: BlockDevice,
        *,
        base: int = 0,
        length: int | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._area = area
        self._base = base
        self._random_bytes = random_bytes
        room = area.size - base if length is None else min(length, area.size - base)
        with _located(area.name, base):
            self.header = phdr.parse(area.read(base, max(min(room, phdr.HEADER_SIZE), 0)))
            last = max(slot.offset for slot in self.header.slots) + self.header.material_size
            if last > room:
                raise CorruptImageError(
                    f"LUKS header: the key material ends at {last:#x}, past the end ({room:#x})"
                )
        self.spec = CipherSpec.from_header(
            self.header.cipher_name, self.header.cipher_mode, self.header.key_bytes
        )

    # -- reading -------------------------------------------------------------------------------

    def unlock(self, passphrase: bytes) -> bytes:
        """The master key; raises :class:`AuthenticationError` when no slot takes the passphrase."""
        for _, key in self.matches(passphrase):
            return key
        raise AuthenticationError(
            "Invalid password, cannot unlock any keyslot", path=self._area.name
        )

    def matches(
        self, passphrase: bytes, slots: Container[int] | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """The slots (of these, or of all) that the passphrase opens, and the master key."""
        self.spec.check()
        hash = Hash(self.header.hash_spec)
        spent = 0
        for number in self.header.active_slots:
            if slots is not None and number not in slots:
                continue
            spent += self._rounds(self.header.slots[number], hash)
            if spent > MAX_UNLOCK_ROUNDS:
                raise UnsupportedFeatureError(
                    f"LUKS header: trying a passphrase on the slots up to {number} takes {spent} "
                    f"rounds of {hash.name}, more than {MAX_UNLOCK_ROUNDS}",
                    path=self._area.name,
                )
            key = self._try_slot(number, passphrase, hash)
            if key is not None:
                yield number, key

    def _rounds(self, slot: KeySlot, hash: Hash) -> int:
        header = self.header
        return hash.rounds(slot.iterations, header.key_bytes) + hash.rounds(
            header.mk_digest_iterations, phdr.DIGEST_SIZE
        )

    def _try_slot(self, number: int, passphrase: bytes, hash: Hash) -> bytes | None:
        header = self.header
        slot = header.slots[number]
        slot_key = hash.pbkdf2(passphrase, slot.salt, slot.iterations, header.key_bytes)
        material = bytearray(header.material_size)
        self._area.read_into(self._base + slot.offset, material)
        self.spec.cipher(slot_key).decrypt(0, memoryview(material))
        key = antiforensic.merge(bytes(material), header.key_bytes, slot.stripes, hash)
        return key if hmac.compare_digest(_digest(header, key, hash), header.mk_digest) else None

    # -- changing ------------------------------------------------------------------------------

    def add(
        self,
        master_key: bytes,
        passphrase: bytes,
        *,
        slot: int | None = None,
        iter_time: int = DEFAULT_ITER_TIME,
        force: bool = False,
    ) -> int:
        """Let ``passphrase`` open the volume too; the number of the slot, the first free one.

        ``slot``: this one; ``force``: even if it is active.  ``iter_time``: milliseconds.
        """
        free = [n for n in range(phdr.SLOT_COUNT) if n not in self.header.active_slots]
        if slot is None:
            if not free:
                raise InvalidRequestError(
                    "Can't add a keyslot - all keyslots are in use", path=self._area.name
                )
            slot = free[0]
        self._check_number(slot)
        if slot in free:
            self._fill(slot, master_key, passphrase, iter_time)
        elif not force:
            raise InvalidRequestError(
                f"Refusing to overwrite active keyslot {slot} - please erase it first, or force it",
                path=self._area.name,
            )
        elif self.header.active_slots == [slot]:
            spare = free[0]
            self._fill(spare, master_key, passphrase, iter_time)
            self._fill(slot, master_key, passphrase, iter_time)
            self._erase(spare)
        else:
            self._fill(slot, master_key, passphrase, iter_time)
        return slot

    def erase(self, slot: int, *, force: bool = False) -> None:
        """Forget one slot; the last one, and with it all data, only with ``force``."""
        self._check_number(slot)
        active = self.header.active_slots
        if slot not in active and not force:
            raise InvalidRequestError(f"key slot {slot} is not active", path=self._area.name)
        if active == [slot] and not force:
            raise InvalidRequestError(
                f"Attempt to erase the only active keyslot {slot} which will erase all the data in "
                "the image irreversibly - refusing operation (add another passphrase, or force it)",
                path=self._area.name,
            )
        self._erase(slot)

    def erase_matching(self, passphrase: bytes, *, force: bool = False) -> list[int]:
        """Forget every slot that ``passphrase`` opens; their numbers."""
        found = [number for number, _ in self.matches(passphrase)]
        if not found:
            raise AuthenticationError(
                "No keyslots match given (old) password for erase operation",
                path=self._area.name,
            )
        if found == self.header.active_slots and not force:
            raise InvalidRequestError(
                "All the active keyslots match the (old) password that was given and erasing them "
                "will erase all the data in the image irreversibly - refusing operation (add "
                "another passphrase, or force it)",
                path=self._area.name,
            )
        for number in found:
            self._erase(number)
        return found

    def opens(self, slot: int, passphrase: bytes) -> bool:
        """Does ``passphrase`` open this very slot?"""
        self._check_number(slot)
        return any(True for _ in self.matches(passphrase, [slot]))

    def _check_number(self, slot: int) -> None:
        if not 0 <= slot < phdr.SLOT_COUNT:
            raise InvalidRequestError(
                f"key slot {slot} is not between 0 and {phdr.SLOT_COUNT - 1}",
                path=self._area.name,
            )

    def _fill(self, number: int, master_key: bytes, passphrase: bytes, iter_time: int) -> None:
        slot, material = make_slot(
            self.header,
            self.header.slots[number].offset,
            master_key,
            passphrase,
            iter_time,
            self._random_bytes,
        )
        self._area.write(self._base + slot.offset, material)
        self._area.flush()
        self._save_slot(number, slot)

    def _erase(self, number: int) -> None:
        slot = self.header.slots[number]
        self._area.write(self._base + slot.offset, self._random_bytes(self.header.material_size))
        self._area.flush()
        empty = KeySlot(active=False, iterations=0, salt=bytes(phdr.SALT_SIZE), offset=slot.offset)
        self._save_slot(number, empty)

    def _save_slot(self, number: int, slot: KeySlot) -> None:
        """48 bytes that lie inside one sector: on the disk as a whole or not at all."""
        self._area.write(self._base + phdr.slot_position(number), slot.to_bytes())
        self._area.flush()
        self.header = self.header.with_slot(number, slot)

    # -- telling -------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """QAPI's QCryptoBlockInfoLUKS."""
        header, spec = self.header, self.spec
        found: dict[str, Any] = {"ivgen-alg": spec.ivgen}
        if spec.ivgen == "essiv":
            found["ivgen-hash-alg"] = spec.ivgen_hash
        found |= {
            "hash-alg": header.hash_spec,
            "cipher-alg": spec.algorithm,
            "uuid": header.uuid,
            "cipher-mode": spec.mode,
            "slots": [_slot_info(slot) for slot in header.slots],
            "payload-offset": header.payload_offset,
            "master-key-iters": header.mk_digest_iterations,
        }
        return found


@contextmanager
def _located(path: str, offset: int) -> Iterator[None]:
    """Errors raised inside say which file they are about, and where."""
    try:
        yield
    except VdiskError as error:
        if error.path is None:
            error.path, error.offset = path, offset
        raise


def _slot_info(slot: KeySlot) -> dict[str, Any]:
    if not slot.active:
        return {"active": False, "key-offset": slot.offset}
    return {
        "active": True,
        "iters": slot.iterations,
        "key-offset": slot.offset,
        "stripes": slot.stripes,
    }


def _digest(header: Header, key: bytes, hash: Hash) -> bytes:
    return hash.pbkdf2(key, header.mk_digest_salt, header.mk_digest_iterations, phdr.DIGEST_SIZE)


# -- making --------------------------------------------------------------------------------------


def _iterations_a_second(hash: Hash, size: int) -> float:
    iterations = _CALIBRATION_START
    while True:
        start = time.thread_time()
        hash.pbkdf2(b"secret", bytes(phdr.SALT_SIZE), iterations, size)
        taken = time.thread_time() - start
        if taken >= _CALIBRATION_TIME:
            return iterations / taken
        iterations *= 2


def iterations_for(hash: Hash, size: int, milliseconds: int) -> int:
    """Iterations of PBKDF2 for ``size`` bytes that take this long here; at least the minimum.

    Raises :class:`InvalidRequestError` for more than could be unlocked again.
    """
    iterations = int(_iterations_a_second(hash, size) * milliseconds / 1000) if milliseconds else 0
    if hash.rounds(iterations, size) > MAX_UNLOCK_ROUNDS // 2:
        raise InvalidRequestError(
            f"iter-time {milliseconds} makes {iterations} iterations, too many to unlock again"
        )
    return max(iterations, MIN_ITERATIONS)


def make_slot(
    header: Header,
    offset: int,
    master_key: bytes,
    passphrase: bytes,
    iter_time: int,
    random_bytes: Callable[[int], bytes],
) -> tuple[KeySlot, bytes]:
    """An active slot for ``passphrase``, and its key material, which belongs at ``offset``."""
    hash = Hash(header.hash_spec)
    iterations = iterations_for(hash, len(master_key), iter_time)
    slot = KeySlot(True, iterations, random_bytes(phdr.SALT_SIZE), offset)
    slot_key = hash.pbkdf2(passphrase, slot.salt, iterations, len(master_key))
    material = antiforensic.split(master_key, slot.stripes, hash, random_bytes)
    material = material.ljust(round_up(len(material), phdr.SECTOR), b"\0")
    spec = CipherSpec.from_header(header.cipher_name, header.cipher_mode, header.key_bytes)
    return slot, bytes(spec.cipher(slot_key).encrypt(0, memoryview(material)))


def make_volume(
    spec: CipherSpec,
    hash: Hash,
    passphrase: bytes,
    *,
    iter_time: int = DEFAULT_ITER_TIME,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> bytes:
    """A new volume: all its bytes up to the first encrypted sector."""
    spec.check()
    master_key = random_bytes(spec.key_bytes)
    digest_time = iter_time // _MASTER_KEY_SHARE
    spacing = phdr.material_spacing(spec.key_bytes)
    header = Header(
        cipher_name=spec.name,
        cipher_mode=spec.mode_string,
        hash_spec=hash.name,
        payload_offset=phdr.default_payload_offset(spec.key_bytes),
        key_bytes=spec.key_bytes,
        mk_digest=b"",
        mk_digest_salt=random_bytes(phdr.SALT_SIZE),
        mk_digest_iterations=iterations_for(hash, phdr.DIGEST_SIZE, digest_time),
        uuid=str(uuid.UUID(bytes=random_bytes(16), version=4)),
        slots=tuple(
            KeySlot(False, 0, bytes(phdr.SALT_SIZE), phdr.MATERIAL_ALIGNMENT + number * spacing)
            for number in range(phdr.SLOT_COUNT)
        ),
    )
    header = header._replace(mk_digest=_digest(header, master_key, hash))
    offset = header.slots[0].offset
    slot, material = make_slot(header, offset, master_key, passphrase, iter_time, random_bytes)
    header = header.with_slot(0, slot)
    area = bytearray(header.payload_offset)
    area[: phdr.HEADER_SIZE] = header.to_bytes()
    area[offset : offset + len(material)] = material
    return bytes(area)
