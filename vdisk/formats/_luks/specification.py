"""What a volume is encrypted with, by name: ``aes``, ``xts-plain64``, ``sha256``.

The header says it in three strings (LUKS1 specification, section 3 and appendix B), and
``qemu-img`` in five options.  :class:`CipherSpec` is both::

    cipher-name   cipher-mode               cipher-alg  cipher-mode  ivgen-alg  ivgen-hash-alg
    "aes"         "cbc-essiv:sha256"  <->   aes-256     cbc          essiv      sha256
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import InvalidRequestError, UnsupportedFeatureError

if TYPE_CHECKING:
    from vdisk.formats._luks.ciphers import SectorCipher

HASHES = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160")
MODES = ("ecb", "cbc", "ctr", "xts")
IV_GENERATORS = ("plain", "plain64", "essiv")
KEY_SIZES = {"aes": (16, 24, 32), "cast5": (16,)}
"""Bytes of a key, for the ciphers that can be had; XTS takes two keys."""


class Hash:
    """A hash function by its LUKS name; raises :class:`UnsupportedFeatureError`."""

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            if name not in HASHES:
                raise ValueError(name)
            self.digest_size = hashlib.new(name, usedforsecurity=False).digest_size
        except ValueError as error:
            raise UnsupportedFeatureError(f"hash {name!r} is not supported here") from error

    def digest(self, data: bytes) -> bytes:
        return hashlib.new(self.name, data, usedforsecurity=False).digest()

    def pbkdf2(self, secret: bytes, salt: bytes, iterations: int, size: int) -> bytes:
        """``size`` bytes derived from ``secret`` (RFC 8018, with HMAC of this hash)."""
        return hashlib.pbkdf2_hmac(self.name, secret, salt, iterations, size)

    def rounds(self, iterations: int, size: int) -> int:
        """How often :meth:`pbkdf2` computes the HMAC."""
        return iterations * -(-size // self.digest_size)


class CipherSpec(NamedTuple):
    """``key_bytes``: of the whole key, so of both keys where ``mode`` is "xts"."""

    name: str
    key_bytes: int
    mode: str
    ivgen: str
    ivgen_hash: str = ""

    @classmethod
    def from_header(cls, cipher_name: str, cipher_mode: str, key_bytes: int) -> CipherSpec:
        """Any strings are taken; what cannot be done is refused by :meth:`check`."""
        mode, _, generator = cipher_mode.partition("-")
        ivgen, _, ivgen_hash = generator.partition(":")
        return cls(cipher_name, key_bytes, mode, ivgen, ivgen_hash)

    @classmethod
    def from_options(
        cls, cipher_alg: str, cipher_mode: str, ivgen_alg: str, ivgen_hash_alg: str
    ) -> CipherSpec:
        """As ``qemu-img create -o`` names it: "aes-256", "xts", "plain64", ""."""
        name, _, bits = cipher_alg.rpartition("-")
        if not bits.isdigit():
            raise InvalidRequestError(
                f"cipher-alg is a cipher and its bits, such as aes-256, not {cipher_alg!r}"
            )
        key_bytes = int(bits) // 8 * (2 if cipher_mode == "xts" else 1)
        if ivgen_alg == "essiv" and not ivgen_hash_alg:
            ivgen_hash_alg = "sha256"
        spec = cls(name, key_bytes, cipher_mode, ivgen_alg, ivgen_hash_alg)
        spec.check()
        return spec

    @property
    def algorithm(self) -> str:
        """QEMU's name for cipher and key size: "aes-256"."""
        return f"{self.name}-{self.cipher_key_bytes * 8}"

    @property
    def cipher_key_bytes(self) -> int:
        return self.key_bytes // 2 if self.mode == "xts" else self.key_bytes

    @property
    def mode_string(self) -> str:
        """The header's cipher-mode."""
        generator = f"-{self.ivgen}" if self.ivgen else ""
        return self.mode + generator + (f":{self.ivgen_hash}" if self.ivgen_hash else "")

    def check(self) -> None:
        """Raise :class:`UnsupportedFeatureError` naming what cannot be done."""
        if self.cipher_key_bytes not in KEY_SIZES.get(self.name, ()):
            raise UnsupportedFeatureError(
                f"cipher {self.algorithm} is not supported (the library 'cryptography' has AES "
                "and CAST5, but neither Serpent nor Twofish)"
            )
        if self.mode not in MODES or (self.mode == "xts" and self.name == "cast5"):
            raise UnsupportedFeatureError(f"cipher mode {self.mode!r} of {self.name} is unknown")
        if self.ivgen not in IV_GENERATORS and not (self.mode == "ecb" and not self.ivgen):
            raise UnsupportedFeatureError(f"IV generator {self.ivgen!r} is not supported")
        if self.ivgen == "essiv":
            size = Hash(self.ivgen_hash).digest_size
            if self.name != "aes" or size not in KEY_SIZES["aes"]:
                raise UnsupportedFeatureError(
                    f"IV generator essiv:{self.ivgen_hash} makes keys of {8 * size} bits, and "
                    f"{self.name} takes none of that size"
                )

    def cipher(self, key: bytes) -> SectorCipher:
        """The cipher with ``key``; raises :class:`UnsupportedFeatureError`."""
        self.check()
        try:
            from vdisk.formats._luks import ciphers
        except ImportError as error:
            raise UnsupportedFeatureError(
                f"encrypted images need the extra packages of vdisk[crypto] ({error}): "
                "pip install vdisk[crypto]"
            ) from error
        return ciphers.make(self, key)
