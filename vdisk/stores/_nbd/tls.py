"""Credentials of a TLS client, where libnbd and QEMU keep them.

X.509: a directory with ``ca-cert.pem`` (who may have signed the server's certificate), and if the
server wants to know us ``client-cert.pem`` and ``client-key.pem``; perhaps ``ca-crl.pem``.
Without a directory the system's authorities count.
PSK: a file of keys (:mod:`vdisk.tls`).

Whether to use TLS follows from the name: ``nbds://`` demands it; ``nbd://`` with any of the
parameters about TLS uses it where the server can; ``nbd://`` alone does not, since encryption to
nobody in particular protects little and costs much.
"""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import (
    AuthenticationError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedFeatureError,
    from_os_error,
)
from vdisk.nbd.session import TlsMode
from vdisk.nbd.uri import NbdUri, TlsType, Transport
from vdisk.options import OptionBag
from vdisk.tls import KEY_FILE, no_password, password_of_key, read_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class TlsSettings(NamedTuple):
    """How a client uses TLS.

    ``hostname``: what the server's certificate must be for; None: any name that an accepted
    authority has signed, as libnbd has it for URIs with a unix socket, where there is no host.
    """

    mode: TlsMode = TlsMode.OFF
    context: ssl.SSLContext | None = None
    hostname: str | None = None


class Credentials(NamedTuple):
    """What a client shows, and by what it knows the server.

    ``password``: of the client's key, if that is encrypted.
    """

    directory: str | None = None
    verify_peer: bool = True
    password: bytes | None = None
    psk_file: str | None = None
    username: str | None = None


def settings_for(uri: NbdUri, given: Credentials | None = None) -> TlsSettings:
    """TLS as a URI wants it; ``given``: credentials from elsewhere, which TLS then requires.

    Those check the server's name as QEMU does, so over a unix socket somebody has to say it.
    """
    _check(uri)
    mentioned = (
        uri.tls_type,
        uri.tls_hostname,
        uri.tls_verify_peer,
        uri.tls_certificates,
        uri.tls_psk_file,
    )
    if uri.tls or given is not None:
        mode = TlsMode.REQUIRE
    elif any(value is not None for value in mentioned):
        mode = TlsMode.ALLOW
    else:
        return TlsSettings()
    credentials = given or Credentials(
        directory=uri.tls_certificates,
        verify_peer=uri.tls_verify_peer is not False,
        psk_file=uri.tls_psk_file,
        username=uri.user,
    )
    if uri.tls_type is TlsType.PSK and credentials.psk_file is None:
        raise InvalidRequestError("tls-type=psk needs the parameter tls-psk-file")
    hostname = uri.tls_hostname
    if hostname is None and uri.transport is Transport.TCP:
        hostname = uri.host or "localhost"
    if credentials.psk_file is not None:
        return TlsSettings(mode, _psk_context(credentials), hostname)
    if given is not None and given.verify_peer and hostname is None:
        raise InvalidRequestError(
            "No hostname for certificate validation: name the one in the server's certificate "
            "(tls-hostname)"
        )
    return TlsSettings(mode, _x509_context(credentials, hostname), hostname)


def _check(uri: NbdUri) -> None:
    if uri.tls_type is TlsType.ANON:
        raise UnsupportedFeatureError(
            "tls-type=anon: anonymous TLS protects from nobody who can change what is sent; use "
            "x509 or psk"
        )
    if uri.tls_type is TlsType.X509 and uri.tls_psk_file is not None:
        raise InvalidRequestError("tls-type=x509 and tls-psk-file exclude each other")


def credentials_of(
    identity: str, objects: Mapping[str, Mapping[str, str]], secrets: Mapping[str, bytes]
) -> Credentials:
    """What ``--object tls-creds-x509|tls-creds-psk,id=identity,…`` says, as QEMU reads it.

    ``secrets``: passphrases by id, for ``passwordid``.
    """
    if identity not in objects:
        raise NotFoundError(f"there is no object {identity!r}: define it with --object tls-creds-…")
    properties = dict(objects[identity])
    kind = properties.pop("qom-type", None)
    if kind not in ("tls-creds-x509", "tls-creds-psk"):
        raise InvalidRequestError(f"object {kind!r} holds no TLS credentials of a client")
    bag = OptionBag(properties, f"object {kind!r}")
    bag.take("id")
    if bag.choice("endpoint", ("client", "server"), "client") != "client":
        raise InvalidRequestError(f"object {kind!r}: a client's credentials have endpoint=client")
    directory = bag.required("dir")
    verify = bag.boolean("verify-peer", True)
    if kind == "tls-creds-psk":  # whose peers always prove that they have the key
        username = bag.string("username", "qemu")
        found = Credentials(psk_file=os.path.join(directory, KEY_FILE), username=username)
    else:
        bag.boolean("sanity-check", True)  # the handshake checks more than QEMU does here
        password = password_of_key(bag, secrets)
        found = Credentials(directory, verify, password)
    bag.finish()
    return found


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def _x509_context(credentials: Credentials, hostname: str | None) -> ssl.SSLContext:
    context = _context()
    context.check_hostname = credentials.verify_peer and hostname is not None
    if not credentials.verify_peer:
        context.verify_mode = ssl.CERT_NONE
    if credentials.directory is None:
        context.load_default_certs()
        return context
    if not os.path.isdir(credentials.directory):
        raise NotFoundError(
            "there is no such directory of certificates", path=credentials.directory
        )
    try:
        _load(context, credentials.directory, credentials)
    except ssl.SSLError as error:
        raise AuthenticationError(
            f"these are no credentials of a client: {error}", path=credentials.directory
        ) from error
    except OSError as error:
        raise from_os_error(
            error, path=credentials.directory, operation="load the client's credentials"
        ) from error
    return context


def _load(context: ssl.SSLContext, directory: str, credentials: Credentials) -> None:
    verify = credentials.verify_peer
    if verify:
        context.load_verify_locations(os.path.join(directory, "ca-cert.pem"))
    revoked = os.path.join(directory, "ca-crl.pem")
    if verify and os.path.exists(revoked):
        context.load_verify_locations(revoked)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    certificate = os.path.join(directory, "client-cert.pem")
    if os.path.exists(certificate):
        key = os.path.join(directory, "client-key.pem")
        context.load_cert_chain(certificate, key, credentials.password or no_password)


def _psk_context(credentials: Credentials) -> ssl.SSLContext:
    context = _context()
    set_callback: Callable[[Callable[[str | None], tuple[str, bytes]]], None] | None
    set_callback = getattr(context, "set_psk_client_callback", None)
    if set_callback is None:
        raise UnsupportedFeatureError(
            "TLS with pre-shared keys needs Python 3.13 or newer: use certificates"
        )
    assert credentials.psk_file is not None
    keys = read_keys(credentials.psk_file)
    username = credentials.username or next(iter(keys), "")
    if username not in keys:
        raise AuthenticationError(f"there is no key of {username!r}", path=credentials.psk_file)
    # Keys and TLS 1.3 go together only through a callback that Python does not offer.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # who has the key is the right server
    context.set_ciphers("PSK")
    set_callback(lambda _hint: (username, keys[username]))
    return context
