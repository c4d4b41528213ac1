"""``--object``: passphrases and credentials that options refer to by id.

::

    --object secret,id=sec0,file=passphrase.txt
    --object secret,id=sec0,data=c2VzYW1l,format=base64
    --object secret,id=key,file=master.b64,format=base64 \
    --object secret,id=sec0,data=…,keyid=key,iv=…      data encrypted with the secret "key"
    --object tls-creds-x509,id=tls0,dir=/etc/pki/qemu,endpoint=client
    --object tls-creds-psk,id=tls0,dir=/etc/keys,endpoint=client,username=me

What an object of TLS says is read by whoever uses it, a client or a server.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from vdisk.errors import AuthenticationError, InvalidRequestError, NotFoundError, from_os_error
from vdisk.options import OptionBag, parse_keyval

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAX_SECRET = 1 << 20
"""Bytes of a secret's file: a passphrase or a key, not a mistyped name of a disk."""


CREDENTIALS = ("tls-creds-x509", "tls-creds-psk", "tls-creds-anon")


def read_objects(
    definitions: Iterable[str], others: Sequence[str] = ()
) -> dict[str, bytes | Mapping[str, str]]:
    """What ``definitions`` define, by id: secrets, and the properties of credentials.

    ``others``: types of objects that the command takes besides.
    """
    secrets: dict[str, bytes] = {}
    objects: dict[str, bytes | Mapping[str, str]] = {}
    known = ("secret", *CREDENTIALS, *others)
    for definition in definitions:
        properties = parse_keyval(definition, implied_key="qom-type")
        kind = properties.get("qom-type", "")
        if kind not in known:
            raise InvalidRequestError(f"--object {kind}: the types known are {', '.join(known)}")
        bag = OptionBag(properties, f"object {kind!r}")
        identity = bag.required("id")
        if identity in objects:
            raise InvalidRequestError(f"--object: the id {identity!r} is used twice")
        if kind == "secret":
            bag.take("qom-type")
            objects[identity] = secrets[identity] = _secret(bag, secrets)
        else:
            objects[identity] = properties
    return objects


def _secret(bag: OptionBag, others: Mapping[str, bytes]) -> bytes:
    data, path = bag.string("data"), bag.string("file")
    format = bag.choice("format", ("raw", "base64"), "raw")
    keyid, iv = bag.string("keyid"), bag.string("iv")
    bag.finish()
    if (data is None) == (path is None):
        raise InvalidRequestError("object 'secret' needs one of the options 'data' and 'file'")
    if data is not None:
        content = data.encode(errors="surrogateescape")
    else:
        assert path is not None
        content = _read(path)
    if keyid is not None:
        if keyid not in others:
            raise NotFoundError(f"object 'secret': there is no secret {keyid!r} before this one")
        if iv is None:
            raise InvalidRequestError("object 'secret' with 'keyid' needs the option 'iv'")
        content = _decrypt(_base64(content), others[keyid], _base64(iv.encode()))
    return _base64(content) if format == "base64" else content


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_SECRET + 1)
    except OSError as error:
        raise from_os_error(error, path=path, operation="read the secret") from error
    if len(content) > MAX_SECRET:
        raise InvalidRequestError(f"a secret of more than {MAX_SECRET} bytes", path=path)
    return content


def _base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error as error:
        raise InvalidRequestError(f"object 'secret': this is not base64: {error}") from error


def _decrypt(content: bytes, key: bytes, iv: bytes) -> bytes:
    """AES-256 in CBC mode with PKCS#7 padding, which is what QEMU's secrets use."""
    try:
        from cryptography.hazmat.primitives import padding
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError as error:
        raise InvalidRequestError(
            "an encrypted secret needs the 'cryptography' package: pip install 'vdisk[crypto]'"
        ) from error
    if len(key) != 32 or len(iv) != 16:
        raise InvalidRequestError("object 'secret': the key has 32 bytes and the iv 16")
    decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
    try:
        plain = decryptor.update(content) + decryptor.finalize()
        unpadder = padding.PKCS7(128).unpadder()
        return unpadder.update(plain) + unpadder.finalize()
    except ValueError as error:
        raise AuthenticationError("object 'secret': the key does not fit the data") from error
