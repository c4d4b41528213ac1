"""Credentials of a TLS server, where QEMU keeps them.

X.509, ``tls-creds-x509``: a directory with ``server-cert.pem``, ``server-key.pem``,
``ca-cert.pem`` (by which clients' certificates are verified) and perhaps ``ca-crl.pem``.
PSK, ``tls-creds-psk``: a directory with ``keys.psk`` (:mod:`vdisk.tls`).
"""

from __future__ import annotations

import os
import ssl
from typing import NamedTuple

from vdisk.errors import AuthenticationError, UnsupportedFeatureError, from_os_error
from vdisk.nbd.session import TlsMode
from vdisk.tls import KEY_FILE, no_password, read_keys


class TlsSettings(NamedTuple):
    """How a server uses TLS.  ``psk``: keys by identity, instead of certificates."""

    mode: TlsMode = TlsMode.OFF
    context: ssl.SSLContext | None = None
    psk: bool = False


def certificates(
    directory: str | os.PathLike[str],
    *,
    verify_peer: bool = True,
    password: bytes | None = None,
    mode: TlsMode = TlsMode.REQUIRE,
) -> TlsSettings:
    """The credentials in a directory laid out as QEMU's ``tls-creds-x509`` has them.

    ``verify_peer``: clients must show a certificate that the authority in it signed.
    ``password``: of the server's key, if that is encrypted.
    Raises :class:`AuthenticationError`, :class:`NotFoundError`.
    """
    directory = os.fspath(directory)
    context = _context()
    try:
        context.load_cert_chain(
            os.path.join(directory, "server-cert.pem"),
            os.path.join(directory, "server-key.pem"),
            password or no_password,
        )
        if verify_peer:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(os.path.join(directory, "ca-cert.pem"))
            revoked = os.path.join(directory, "ca-crl.pem")
            if os.path.exists(revoked):
                context.load_verify_locations(revoked)
                context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except ssl.SSLError as error:
        raise AuthenticationError(
            f"these are no credentials of a server: {error}", path=directory, operation="load"
        ) from error
    except OSError as error:
        raise from_os_error(error, path=directory, operation="load server credentials") from error
    return TlsSettings(mode, context)


def pre_shared_keys(
    directory: str | os.PathLike[str], *, mode: TlsMode = TlsMode.REQUIRE
) -> TlsSettings:
    """The keys in a directory laid out as QEMU's ``tls-creds-psk`` has them.

    Raises :class:`UnsupportedFeatureError` before Python 3.13.
    """
    context = _context()
    set_callback = getattr(context, "set_psk_server_callback", None)
    if set_callback is None:
        raise UnsupportedFeatureError(
            "TLS with pre-shared keys needs Python 3.13 or newer: use certificates"
        )
    keys = read_keys(os.path.join(os.fspath(directory), KEY_FILE))
    # Keys and TLS 1.3 go together only through a callback that Python does not offer.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("PSK")
    set_callback(lambda identity: keys.get(identity or "", b""))
    return TlsSettings(mode, context, psk=True)


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context
