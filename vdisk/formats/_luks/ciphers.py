"""Sector ciphers: whole runs of 512-byte sectors at a time.

A sector is encrypted by itself, with an initialisation vector (IV) made from its number, and a
run of sectors must not cost a step of Python for each.  What the library ``cryptography`` does
fast is a block cipher over a long buffer (ECB), 7 GiB/s with AES-256; a call of it for each
sector is 90 MiB/s.  So every mode is built from few calls of ECB over the whole run, and numpy
does what lies between.  ``E``/``D``: ECB; ``C``/``P``: the blocks of all sectors at once::

    xts   C = E(P ^ T) ^ T          T(sector, j) = E2(IV(sector)) * alpha**j in GF(2**128)
    cbc   P = D(C) ^ previous C     (encryption: 32 rounds, each over one block of every sector)
    ctr   C = P ^ E(IV(sector) + j)

alpha**j for all j below 32 is one shift of 128-bit numbers: what leaves at the top, at most 31
bits, comes back multiplied by the polynomial 0x87 (IEEE Std 1619-2007, section 5.2).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.decrepit.ciphers.algorithms import CAST5
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from vdisk.formats._luks.header import SECTOR
from vdisk.formats._luks.specification import CipherSpec, Hash

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Words = NDArray[np.uint64]

RUN = 128 << 10
"""Bytes handled at a time: the temporary arrays, some five of this size, stay in the caches of
the processor and below the size from which ``malloc`` asks the system for each."""

_WORD = np.dtype("<u8")
_ALGORITHMS: dict[str, Any] = {"aes": AES, "cast5": CAST5}
_PLAIN_MASK = 0xFFFF_FFFF


class BlockCipher:
    """A block cipher with its key, over any number of blocks; may be used by several threads."""

    def __init__(self, name: str, key: bytes) -> None:
        self._cipher = Cipher(_ALGORITHMS[name](key), ECB())
        self.block_words = _ALGORITHMS[name].block_size // 64
        self._contexts = threading.local()

    def encrypt(self, words: Words) -> Words:
        """The encrypted blocks, flat and read-only."""
        try:
            update = self._contexts.encrypt
        except AttributeError:
            update = self._contexts.encrypt = self._cipher.encryptor().update
        return np.frombuffer(update(_flat_bytes(words)), _WORD)

    def decrypt(self, words: Words) -> Words:
        """The decrypted blocks, flat and read-only."""
        try:
            update = self._contexts.decrypt
        except AttributeError:
            update = self._contexts.decrypt = self._cipher.decryptor().update
        return np.frombuffer(update(_flat_bytes(words)), _WORD)


def _flat_bytes(words: Words) -> memoryview:
    return np.ascontiguousarray(words).reshape(-1).view(np.uint8).data


class IvGenerator:
    """The IVs of sectors: an array (sectors, words of a block)."""

    def __init__(self, spec: CipherSpec, key: bytes, block_words: int) -> None:
        self._block_words = block_words
        self._mask = _PLAIN_MASK if spec.ivgen == "plain" else None
        self._essiv: BlockCipher | None = None
        if spec.ivgen == "essiv":
            self._essiv = BlockCipher(spec.name, Hash(spec.ivgen_hash).digest(key))

    def vectors(self, sector: int, count: int) -> Words:
        """IVs of ``count`` sectors: their numbers (little-endian), for ESSIV encrypted."""
        vectors = np.zeros((count, self._block_words), _WORD)
        vectors[:, 0] = np.arange(sector, sector + count, dtype=_WORD)
        if self._mask is not None:
            vectors[:, 0] &= np.uint64(self._mask)
        if self._essiv is not None:
            vectors = self._essiv.encrypt(vectors).reshape(count, self._block_words)
        return vectors


class SectorCipher(ABC):
    """Encrypts and decrypts runs of whole sectors; may be used by several threads."""

    def decrypt(self, sector: int, view: memoryview) -> None:
        """Decrypt in place the sectors from number ``sector`` on that fill ``view``."""
        for start in range(0, len(view), RUN):
            words = np.frombuffer(view[start : start + RUN], _WORD)
            self._decrypt(sector + start // SECTOR, words)

    def encrypt(self, sector: int, data: memoryview) -> bytearray:
        """The sectors in ``data``, encrypted as those from number ``sector`` on."""
        result = bytearray(len(data))
        into = memoryview(result)
        for start in range(0, len(data), RUN):
            words = np.frombuffer(data[start : start + RUN], _WORD)
            out = np.frombuffer(into[start : start + RUN], _WORD)
            self._encrypt(sector + start // SECTOR, words, out)
        return result

    @abstractmethod
    def _decrypt(self, sector: int, words: Words) -> None:
        """Decrypt ``words`` in place."""

    @abstractmethod
    def _encrypt(self, sector: int, words: Words, out: Words) -> None:
        """Encrypt ``words`` into ``out``."""


class EcbCipher(SectorCipher):
    """No IV: equal blocks are encrypted equally."""

    def __init__(self, spec: CipherSpec, key: bytes) -> None:
        self._blocks = BlockCipher(spec.name, key)

    def _decrypt(self, sector: int, words: Words) -> None:
        words[:] = self._blocks.decrypt(words)

    def _encrypt(self, sector: int, words: Words, out: Words) -> None:
        out[:] = self._blocks.encrypt(words)


class CbcCipher(SectorCipher):
    """Cipher block chaining, from the IV of each sector on."""

    def __init__(self, spec: CipherSpec, key: bytes) -> None:
        self._blocks = BlockCipher(spec.name, key)
        self._ivs = IvGenerator(spec, key, self._blocks.block_words)

    def _shape(self, words: Words) -> tuple[int, int, int]:
        """(sectors, blocks of a sector, words of a block)"""
        block_words = self._blocks.block_words
        return words.size * 8 // SECTOR, SECTOR // 8 // block_words, block_words

    def _decrypt(self, sector: int, words: Words) -> None:
        shape = self._shape(words)
        chained = words.reshape(shape)
        previous = np.empty(shape, _WORD)
        previous[:, 0] = self._ivs.vectors(sector, shape[0])
        previous[:, 1:] = chained[:, :-1]
        np.bitwise_xor(self._blocks.decrypt(words).reshape(shape), previous, out=chained)

    def _encrypt(self, sector: int, words: Words, out: Words) -> None:
        shape = self._shape(words)
        plain, chained = words.reshape(shape), out.reshape(shape)
        previous = self._ivs.vectors(sector, shape[0])
        for block in range(shape[1]):
            mixed = plain[:, block] ^ previous
            previous = self._blocks.encrypt(mixed).reshape(shape[0], shape[2])
            chained[:, block] = previous


class CtrCipher(SectorCipher):
    """A counter from the IV of each sector on (big-endian), encrypted to a key stream."""

    def __init__(self, spec: CipherSpec, key: bytes) -> None:
        self._blocks = BlockCipher(spec.name, key)
        self._ivs = IvGenerator(spec, key, self._blocks.block_words)
        self._numbers = np.arange(SECTOR // 8 // self._blocks.block_words, dtype=np.uint64)

    def _key_stream(self, sector: int, count: int) -> Words:
        vectors = self._ivs.vectors(sector, count).view(">u8").astype(np.uint64)
        counters = np.empty((count, self._numbers.size, self._blocks.block_words), ">u8")
        last = vectors[:, -1:]
        low = last + self._numbers
        counters[:, :, -1] = low
        if self._blocks.block_words == 2:
            counters[:, :, 0] = vectors[:, :1] + (low < last)
        return self._blocks.encrypt(counters.view(_WORD))

    def _decrypt(self, sector: int, words: Words) -> None:
        self._encrypt(sector, words, words)

    def _encrypt(self, sector: int, words: Words, out: Words) -> None:
        np.bitwise_xor(words, self._key_stream(sector, words.size * 8 // SECTOR), out=out)


_SHIFTS = np.arange(SECTOR // 16, dtype=_WORD)
_REST_SHIFTS = np.uint64(63) - _SHIFTS
_ONE, _TWO, _SEVEN = np.uint64(1), np.uint64(2), np.uint64(7)


class XtsCipher(SectorCipher):
    """XTS: the first half of the key for the data, the second for the tweaks."""

    def __init__(self, spec: CipherSpec, key: bytes) -> None:
        half = len(key) // 2
        self._blocks = BlockCipher(spec.name, key[:half])
        self._tweaks = BlockCipher(spec.name, key[half:])
        self._ivs = IvGenerator(spec, key, 2)

    def _tweak_stream(self, sector: int, count: int) -> Words:
        """T of every block of ``count`` sectors; see the module."""
        first = self._tweaks.encrypt(self._ivs.vectors(sector, count)).reshape(count, 2)
        low, high = first[:, :1], first[:, 1:]
        overflow = (high >> _ONE) >> _REST_SHIFTS
        stream = np.empty((count, _SHIFTS.size, 2), _WORD)
        words = low << _SHIFTS
        words ^= overflow
        words ^= overflow << _ONE
        words ^= overflow << _TWO
        words ^= overflow << _SEVEN
        stream[:, :, 0] = words
        words = (low >> _ONE) >> _REST_SHIFTS
        words |= high << _SHIFTS
        stream[:, :, 1] = words
        return stream.reshape(-1)

    def _decrypt(self, sector: int, words: Words) -> None:
        tweaks = self._tweak_stream(sector, words.size * 8 // SECTOR)
        np.bitwise_xor(self._blocks.decrypt(words ^ tweaks), tweaks, out=words)

    def _encrypt(self, sector: int, words: Words, out: Words) -> None:
        tweaks = self._tweak_stream(sector, words.size * 8 // SECTOR)
        np.bitwise_xor(self._blocks.encrypt(words ^ tweaks), tweaks, out=out)


_MODES: dict[str, Callable[[CipherSpec, bytes], SectorCipher]] = {
    "ecb": EcbCipher,
    "cbc": CbcCipher,
    "ctr": CtrCipher,
    "xts": XtsCipher,
}


def make(spec: CipherSpec, key: bytes) -> SectorCipher:
    """The cipher of a ``spec`` that was checked."""
    return _MODES[spec.mode](spec, key)
