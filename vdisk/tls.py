"""What the credentials of TLS servers and of clients have in common.

Pre-shared keys are in a file as GnuTLS' ``psktool`` writes it, lines of
``identity:hexadecimal key``.  QEMU looks for one called ``keys.psk`` in the directory of a
``tls-creds-psk`` object; nbdkit and libnbd take the file itself.

The private key of a certificate may be encrypted: ``passwordid`` of ``tls-creds-x509`` is the id
of the secret that opens it.

OpenSSL keeps the errors of a thread, not those of a connection, and from Python 3.13 on the one of
a connection that broke stays there: the next operation on any other connection of the thread fails
with it.  :func:`apart` keeps them apart.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vdisk.errors import (
    AuthenticationError,
    InvalidRequestError,
    NotFoundError,
    from_os_error,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vdisk.options import OptionBag

_Result = TypeVar("_Result")

KEY_FILE: Final = "keys.psk"

MAX_KEY_FILE: Final = 1 << 20
"""Bytes of a file of keys: ten thousand identities."""


def parse_keys(text: str) -> dict[str, bytes]:
    """The keys of a file by identity; raises :class:`InvalidRequestError` that names the line."""
    keys: dict[str, bytes] = {}
    for index, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        identity, _, digits = line.rpartition(":")
        try:
            key = bytes.fromhex(digits)
        except ValueError:
            key = b""
        if not identity or not key:
            raise InvalidRequestError(f"line {index} of the keys is not 'identity:hexadecimal key'")
        keys[identity] = key
    return keys


def read_keys(path: str) -> dict[str, bytes]:
    """The keys in a file, by identity; raises :class:`~vdisk.errors.VdiskError`."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_KEY_FILE + 1)
    except OSError as error:
        raise from_os_error(error, path=path, operation="read the keys") from error
    except UnicodeError as error:
        raise InvalidRequestError("the file of keys is not UTF-8", path=path) from error
    if len(text) > MAX_KEY_FILE:
        raise InvalidRequestError(f"more than {MAX_KEY_FILE} bytes of keys", path=path)
    try:
        return parse_keys(text)
    except InvalidRequestError as error:
        error.path = path
        raise


def password_of_key(bag: OptionBag, secrets: Mapping[str, bytes]) -> bytes | None:
    """The secret that ``passwordid`` of an object's properties names."""
    identity = bag.string("passwordid")
    if identity is None:
        return None
    if identity not in secrets:
        raise NotFoundError(f"{bag.owner}: No secret with id {identity!r}")
    return secrets[identity]


def no_password() -> str:
    """Instead of OpenSSL's own question on the terminal."""
    raise AuthenticationError("the key is encrypted: name the secret that opens it (passwordid)")


def apart(operation: Callable[..., _Result], *arguments: Any) -> _Result:
    """``operation(*arguments)``, a method of an SSL socket or object.

    Raises what that raises, except for what is another connection's error: that operation is
    tried again (OpenSSL looks for errors only where it could not go on, so nothing was done).
    """
    import ssl

    for last in (False, True):
        try:
            return operation(*arguments)
        except ssl.SSLError:
            raise
        except OSError:
            _forget_errors()
            if last:
                raise
    raise AssertionError("one of the two has ended it")


def _forget_errors() -> None:
    """Empty OpenSSL's queue, as Python does when it refuses a list of ciphers."""
    import ssl

    with contextlib.suppress(ssl.SSLError):
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ciphers("none")
