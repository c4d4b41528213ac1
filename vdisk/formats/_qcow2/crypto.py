"""Encrypted guest clusters.  Metadata, and therefore backing files' names, are never encrypted.

Two methods, by the header's ``crypt_method``:

=====  ====  ==================================================================================
luks   2     A whole LUKS1 volume header, with its key material, stands in clusters that the
             header extension 0x0537be77 names.  A sector's IV is made from its *host* offset,
             so a cluster can be moved only by encrypting it anew.
aes    1     AES-128 in CBC mode; the key is the passphrase itself, cut or zero-padded to 16
             bytes; IVs are made from *guest* sector numbers.  Weak: kept to read old images.
=====  ====  ==================================================================================

Either way the plain bytes of a cluster are those of an
:class:`~vdisk.formats._luks.view.EncryptedView`; :meth:`Encryption.place` gives it.  For "aes"
it is shifted so that its offsets are guest offsets::

    place(data, host, guest)   luks: (view of data, host)
                               aes:  (view of data that begins at host - guest, guest)

What the image calls:

* :func:`open_encryption` when opening; options ``encrypt.key-secret`` and ``encrypt.format``;
* :func:`create_encrypted` when creating, :func:`choose_encryption` when measuring;
* :meth:`Encryption.info` and :meth:`Encryption.amend`.

Without a passphrase the image is locked: its metadata can be read, checked and changed, and
guest data is an :class:`~vdisk.errors.AuthenticationError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk.errors import (
    CorruptImageError,
    FormatError,
    InvalidRequestError,
    UnsupportedFeatureError,
)
from vdisk.formats._gate import Gate
from vdisk.formats._luks import requests
from vdisk.formats._luks.header import default_payload_offset
from vdisk.formats._luks.keyslots import KeySlots
from vdisk.formats._luks.specification import CipherSpec
from vdisk.formats._luks.view import EncryptedView, LockedSectors
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.core import Core
from vdisk.formats._qcow2.create import write_empty_image
from vdisk.options import OptionBag, nest
from vdisk.units import round_up

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vdisk.block import BlockDevice
    from vdisk.formats._luks.view import Sectors
    from vdisk.formats._qcow2.header import Header

PREFIX = "encrypt."
KEY_SECRET = "encrypt.key-secret"
METHODS = {"aes": layout.CRYPT_AES, "luks": layout.CRYPT_LUKS}

AES_SPEC = CipherSpec("aes", 16, "cbc", "plain64")


class Encryption(ABC):
    """How the guest clusters of an open image are encrypted."""

    format: str

    @abstractmethod
    def place(self, data: BlockDevice, host: int, guest: int) -> tuple[BlockDevice, int]:
        """The device of plain bytes, and the offset in it, of what stands at ``host`` of ``data``.

        ``data`` is the same in every call, and never closed through the view.  The answer holds
        as far as guest and host offsets grow together: to the end of an extent.
        """

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """QAPI's ImageInfoSpecificQCow2Encryption."""

    @abstractmethod
    def amend(self, options: Mapping[str, Any], *, force: bool = False) -> None:
        """Change passphrases; ``options``: without the prefix ``encrypt.``."""


class LuksEncryption(Encryption):
    """Method 2; see the module."""

    format = "luks"

    def __init__(
        self,
        file: BlockDevice,
        place: tuple[int, int],
        passphrase: bytes | None,
        secrets: Mapping[str, bytes],
    ) -> None:
        offset, length = place
        try:
            self.slots = KeySlots(file, base=offset, length=length)
        except FormatError as error:
            raise CorruptImageError(
                f"encryption header: {error.message}", path=file.name, offset=offset
            ) from error
        self._secrets = secrets
        self._master_key = None if passphrase is None else self.slots.unlock(passphrase)
        self._sectors: Sectors = (
            LockedSectors(file.name, KEY_SECRET)
            if self._master_key is None
            else self.slots.spec.cipher(self._master_key)
        )
        self._writers = Gate(fair=True)
        self._view: EncryptedView | None = None

    def place(self, data: BlockDevice, host: int, guest: int) -> tuple[BlockDevice, int]:
        view = self._view
        if view is None:
            view = self._view = EncryptedView(data, self._sectors, gate=self._writers)
        return view, host

    def info(self) -> dict[str, Any]:
        return {"format": self.format, **self.slots.info()}

    def amend(self, options: Mapping[str, Any], *, force: bool = False) -> None:
        requests.amend_slots(self.slots, self._master_key, options, self._secrets, force=force)


class AesEncryption(Encryption):
    """Method 1; see the module."""

    format = "aes"

    def __init__(self, file: BlockDevice, passphrase: bytes | None) -> None:
        self._writers = Gate(fair=True)
        self._sectors: Sectors = (
            LockedSectors(file.name, KEY_SECRET)
            if passphrase is None
            else AES_SPEC.cipher(passphrase[:16].ljust(16, b"\0"))
        )

    def place(self, data: BlockDevice, host: int, guest: int) -> tuple[BlockDevice, int]:
        return EncryptedView(data, self._sectors, base=host - guest, gate=self._writers), guest

    def info(self) -> dict[str, Any]:
        return {"format": self.format}

    def amend(self, options: Mapping[str, Any], *, force: bool = False) -> None:
        raise UnsupportedFeatureError("encryption method aes has no key slots to amend")


def open_encryption(
    file: BlockDevice,
    header: Header,
    options: Mapping[str, Any],
    secrets: Mapping[str, bytes],
) -> Encryption | None:
    """The encryption of the image in ``file``, unlocked if ``options`` name a secret.

    ``options``: the image's run-time options, of which those under "encrypt" are read.
    """
    bag = OptionBag(nest(options).get("encrypt", {}), "option 'encrypt'")
    identity, wanted = bag.string("key-secret"), bag.string("format")
    bag.finish()
    found = next((name for name, method in METHODS.items() if method == header.crypt_method), None)
    if wanted is not None and wanted != found:
        raise InvalidRequestError(
            f"the image's encryption is {found or 'none'}, not {wanted!r} (encrypt.format)",
            path=file.name,
        )
    if found is None and identity is not None:
        raise InvalidRequestError(
            f"the image is not encrypted, but {KEY_SECRET} was given", path=file.name
        )
    passphrase = None if identity is None else requests.find_secret(secrets, identity)
    if header.crypto is not None:
        _check_area(file, header, *header.crypto)
        return LuksEncryption(file, header.crypto, passphrase, secrets)
    return None if found is None else AesEncryption(file, passphrase)


def _check_area(file: BlockDevice, header: Header, offset: int, length: int) -> None:
    if offset % header.cluster_size or not offset:
        raise CorruptImageError(
            "the encryption header does not begin at a cluster boundary behind the header",
            path=file.name,
            offset=offset,
        )
    if offset + length > round_up(file.size, header.cluster_size):
        raise CorruptImageError(
            f"the encryption header ({length} bytes) reaches past the end of the file",
            path=file.name,
            offset=offset,
        )


# -- creating --------------------------------------------------------------------------------------


class NewEncryption(NamedTuple):
    """What ``create`` options ask for.  ``luks``: the options of the volume, without prefix."""

    format: str
    luks: Mapping[str, Any]

    @property
    def header_size(self) -> int:
        """Bytes of the encryption header; 0 where the method has none."""
        if self.format != "luks":
            return 0
        return default_payload_offset(requests.spec_of(self.luks).key_bytes)


def choose_encryption(options: Mapping[str, Any]) -> NewEncryption | None:
    """What ``create`` options such as ``encrypt.format=luks`` ask for; None: no encryption.

    Raises :class:`InvalidRequestError`, :class:`UnsupportedFeatureError`.
    """
    given = {
        name.removeprefix(PREFIX): value
        for name, value in options.items()
        if name.startswith(PREFIX) and value is not None
    }
    if options.get("encryption"):
        if "format" in given:
            raise InvalidRequestError("encryption and encrypt.format say the same: give one")
        given["format"] = "aes"
    if not given:
        return None
    format = given.pop("format", None)
    if format not in METHODS:
        raise InvalidRequestError(f"options {PREFIX}* need encrypt.format=luks or aes")
    if format == "aes" and given.keys() - {"key-secret"}:
        raise InvalidRequestError(
            "encrypt.format=aes has no options but encrypt.key-secret: its cipher is fixed"
        )
    return NewEncryption(format, given)


def create_encrypted(
    file: BlockDevice, header: Header, options: Mapping[str, Any], secrets: Mapping[str, bytes]
) -> Encryption | None:
    """Write an empty image, encrypted as ``options`` say, and give its encryption, unlocked.

    Deriving the key takes seconds, and is done before anything is written.
    """
    chosen = choose_encryption(options)
    area = b""
    passphrase = b""
    if chosen is not None:
        passphrase = requests.passphrase_of(chosen.luks, secrets, prefix=PREFIX)
        if chosen.format == "luks":
            area = requests.make_volume(chosen.luks, secrets, prefix=PREFIX)
    write_empty_image(file, header)
    if chosen is None:
        return None
    if area:
        header.crypto = (_store_area(file, header, area), len(area))
    header.crypt_method = METHODS[chosen.format]
    file.write(0, header.to_bytes())
    if header.crypto is None:
        return AesEncryption(file, passphrase)
    return LuksEncryption(file, header.crypto, passphrase, secrets)


def _store_area(file: BlockDevice, header: Header, area: bytes) -> int:
    """Put the LUKS header into clusters of its own; where it begins."""
    core = Core(file, header, readonly=False)
    clusters = -(-len(area) // core.cluster_size)
    first, _fresh = core.allocate(clusters)
    offset = first << core.cluster_bits
    file.truncate(max(file.size, offset + clusters * core.cluster_size))
    file.write(offset, area.rstrip(b"\0"))  # unused key slots stay holes
    core.settle()
    return offset
