"""NBD URIs: where a server listens, which export, and how TLS is to be used.

::

    nbd://user@example.com:10809/export?tls-type=x509
    nbds+unix:///export?socket=/run/nbd.sock&tls-hostname=example.com
    nbd+vsock://2:10809/export

    scheme     nbd, nbds           TCP; port 10809 (QEMU also says nbd+tcp)
               nbd+unix, ...       a unix socket, the parameter "socket"
               nbd+vsock, ...      AF_VSOCK; host is the context id (CID), default 2, the host
               The s: TLS, or no connection; without it TLS is used where both sides can.
    userinfo   the user name of TLS-PSK
    path       the export name, without its first "/"
    query      socket, tls-type (anon, x509, psk), tls-hostname, tls-verify-peer (0, 1);
               x-... are kept; anything else is an error

Specification: NetworkBlockDevice/nbd, doc/uri.md; the tls-certificates, tls-psk-file and vsock
forms are those of libnbd.  An export name that needs it is percent-encoded, UTF-8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote_to_bytes

from vdisk.errors import InvalidRequestError
from vdisk.nbd.wire import NBD_DEFAULT_PORT, encode_string

if TYPE_CHECKING:
    from collections.abc import Iterator

VMADDR_CID_HOST: Final = 2
"""The context id under which a virtual machine reaches its host."""


class Transport(Enum):
    TCP = ""
    UNIX = "+unix"
    VSOCK = "+vsock"


class TlsType(Enum):
    ANON = "anon"
    X509 = "x509"
    PSK = "psk"


@dataclass(frozen=True, slots=True)
class NbdUri:
    """A parsed NBD URI; raises InvalidRequestError for what no URI can say.

    ``host``, ``port``: for TCP; an IPv6 address without brackets, an empty host for localhost.
    ``cid``, ``port``: for AF_VSOCK.  ``socket``: for a unix socket, beginning with a NUL for the
    abstract namespace.  ``tls``: the connection must be encrypted.  Names of sockets and files are
    any bytes, as :func:`os.fsdecode` gives them; all other texts are UTF-8.
    """

    transport: Transport = Transport.TCP
    tls: bool = False
    host: str = ""
    port: int = NBD_DEFAULT_PORT
    cid: int = VMADDR_CID_HOST
    socket: str = ""
    export: str = ""
    user: str | None = None
    tls_type: TlsType | None = None
    tls_hostname: str | None = None
    tls_verify_peer: bool | None = None
    tls_certificates: str | None = None
    tls_psk_file: str | None = None
    experimental: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        largest_port = 2**32 - 1 if self.transport is Transport.VSOCK else 2**16 - 1
        if not 0 <= self.port <= largest_port:
            raise InvalidRequestError(f"port {self.port} is not in 0..{largest_port}")
        if not 0 <= self.cid < 2**32:
            raise InvalidRequestError(f"context id {self.cid} is not in 0..2^32-1")
        if self.transport is Transport.UNIX and not self.socket:
            raise InvalidRequestError("a unix socket needs the parameter socket=")
        used = _USED[self.transport]
        for name, default in _PLACE.items():
            if name not in used and getattr(self, name) != default:
                raise InvalidRequestError(f"{name} has no meaning in {self.scheme}://")
        encode_string(self.export)
        if self.host:
            _check_host(self.host)
        for text in (self.user, self.tls_hostname, *chain(*self.experimental)):
            _check_utf8(text or "")

    @property
    def scheme(self) -> str:
        return ("nbds" if self.tls else "nbd") + self.transport.value

    def __str__(self) -> str:
        return format_uri(self)


_PLACE: Final = {"host": "", "port": NBD_DEFAULT_PORT, "cid": VMADDR_CID_HOST, "socket": ""}
_USED: Final = {
    Transport.TCP: {"host", "port"},
    Transport.UNIX: {"socket"},
    Transport.VSOCK: {"cid", "port"},
}
_SCHEMES: Final = {
    secure + transport.value: (transport, secure == "nbds")
    for transport in Transport
    for secure in ("nbd", "nbds")
} | {"nbd+tcp": (Transport.TCP, False)}
_TEXT_PARAMETERS: Final = {
    "socket": "socket",
    "tls-hostname": "tls_hostname",
    "tls-certificates": "tls_certificates",
    "tls-psk-file": "tls_psk_file",
}
_CHOICE_PARAMETERS: Final[dict[str, tuple[str, dict[str, object]]]] = {
    "tls-type": ("tls_type", {kind.value: kind for kind in TlsType}),
    "tls-verify-peer": ("tls_verify_peer", {"0": False, "1": True}),
}


def is_nbd_uri(text: str) -> bool:
    """Whether *text* begins like an NBD URI."""
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme.lower() in _SCHEMES


# --- parsing --------------------------------------------------------------------------------------


def parse_uri(text: str) -> NbdUri:
    """Parse an NBD URI.  Raises InvalidRequestError, which names the part that is wrong."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in _SCHEMES:
        raise InvalidRequestError(f"{text!r} is no NBD URI: it begins with none of {_known()}")
    if "#" in rest:
        raise InvalidRequestError("an NBD URI has no fragment; write %23 for '#'")
    transport, tls = _SCHEMES[scheme.lower()]
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    fields = _parse_authority(transport, authority) | _parse_query(query)
    return NbdUri(transport=transport, tls=tls, export=_unquote(path), **fields)


def _known() -> str:
    return ", ".join(f"{scheme}://" for scheme in _SCHEMES)


def _parse_authority(transport: Transport, authority: str) -> dict[str, Any]:
    """``[user@][host][:port]``"""
    fields: dict[str, Any] = {}
    user, separator, place = authority.rpartition("@")
    if separator:
        fields["user"] = _unquote(user)
    host, port = _split_port(place)
    if port:
        fields["port"] = _number(port, "port")
    if host and transport is Transport.VSOCK:
        fields["cid"] = _number(host, "context id")
    elif host:
        fields["host"] = host
    return fields


def _split_port(place: str) -> tuple[str, str]:
    if place.startswith("["):
        address, bracket, port = place[1:].partition("]")
        if not bracket or ":" not in address or (port and not port.startswith(":")):
            raise InvalidRequestError(f"{place!r} is no [IPv6 address]:port")
        return _unquote(address), port[1:]
    host, _, port = place.partition(":")
    if ":" in port:
        raise InvalidRequestError(f"{place!r}: an IPv6 address is written in brackets")
    return _unquote(host), port


def _parse_query(query: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    experimental: list[tuple[str, str]] = []
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        key, value = _unquote(key), _unquote(value)
        if key.startswith("x-"):
            experimental.append((key, value))
            continue
        name, parsed = _parse_parameter(key, value)
        if name in fields:
            raise InvalidRequestError(f"the parameter {key!r} appears twice")
        fields[name] = parsed
    return fields | {"experimental": tuple(experimental)}


def _parse_parameter(key: str, value: str) -> tuple[str, object]:
    if key in _TEXT_PARAMETERS:
        return _TEXT_PARAMETERS[key], value
    if key not in _CHOICE_PARAMETERS:
        raise InvalidRequestError(f"unknown parameter {key!r}")
    name, choices = _CHOICE_PARAMETERS[key]
    if value not in choices:
        raise InvalidRequestError(f"{key} is one of {', '.join(choices)}, not {value!r}")
    return name, choices[value]


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise InvalidRequestError(f"{what} {text!r} is no number")
    return int(text)


def _unquote(text: str) -> str:
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        raise InvalidRequestError(f"{text!r}: '%' begins no two hexadecimal digits")
    try:
        data = unquote_to_bytes(text.encode("utf-8", "surrogateescape"))
    except UnicodeError as error:
        raise InvalidRequestError(f"{text!r} is no text") from error
    return data.decode("utf-8", "surrogateescape")


def _check_host(host: str) -> None:
    """Refuse what no resolver can be asked for, such as a label of more than 63 characters."""
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise InvalidRequestError(f"{host!r} is no name of a host: {error}") from error
    if "\0" in host:
        raise InvalidRequestError(f"{host!r} is no name of a host: it has a NUL in it")


def _check_utf8(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeError as error:
        raise InvalidRequestError(f"{text!r} is not UTF-8") from error


# --- formatting -----------------------------------------------------------------------------------


def format_uri(uri: NbdUri) -> str:
    """The URI that :func:`parse_uri` turns into *uri* again."""
    path = f"/{_quote(uri.export)}" if uri.export or uri.transport is Transport.UNIX else ""
    query = "&".join(f"{_quote(key)}={_quote(value)}" for key, value in _parameters(uri))
    return f"{uri.scheme}://{_authority(uri)}{path}" + (f"?{query}" if query else "")


def _authority(uri: NbdUri) -> str:
    user = "" if uri.user is None else f"{_quote(uri.user, safe='')}@"
    host = _quote(uri.host, safe="")
    if ":" in uri.host:
        host = f"[{_quote(uri.host, safe=':')}]"
    if uri.transport is Transport.VSOCK:
        host = str(uri.cid)
    port = "" if uri.port == NBD_DEFAULT_PORT else f":{uri.port}"
    return user + host + port


def _parameters(uri: NbdUri) -> Iterator[tuple[str, str]]:
    for key, name in _TEXT_PARAMETERS.items():
        value = getattr(uri, name)
        if value is not None and value != _PLACE.get(name):
            yield key, value
    for key, (name, choices) in _CHOICE_PARAMETERS.items():
        for text, choice in choices.items():
            if getattr(uri, name) is choice:
                yield key, text
    yield from uri.experimental


def _quote(text: str, safe: str = "/:@") -> str:
    """Percent-encode, as for a path or a query, where RFC 3986 lets these three be."""
    return quote(text, safe=safe, errors="surrogateescape")
