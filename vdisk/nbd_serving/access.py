"""Who may use what: what is known of a client, and the rules it is held against.

========================  ==================================================================
``uid:1000``              the process at the other end of a unix socket belongs to this user
``cn:laptop.example.com``  a common name of the client's certificate
``dn:CN=laptop,O=Example`` its distinguished name, as RFC 4514 writes it (most specific first)
========================  ==================================================================

Rules are alternatives: one that fits is enough, and no rules at all let everybody in.
"""

from __future__ import annotations

import re
import socket
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PEER_CREDENTIALS = struct.Struct("3i")
"""struct ucred of Linux: pid, uid, gid."""

_SHORT_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}


class Peer(NamedTuple):
    """What the server knows about a client.  ``uid``: of a unix socket's other end."""

    address: str
    uid: int | None = None
    common_names: tuple[str, ...] = ()
    distinguished_name: str | None = None

    def __str__(self) -> str:
        who = self.distinguished_name
        return f"{self.address} ({who})" if who else self.address

    def with_certificate(self, certificate: Mapping[str, Any] | None) -> Peer:
        """The peer, named by what ``SSLSocket.getpeercert`` gave (None, empty: nothing)."""
        if not certificate:
            return self
        subject = certificate["subject"]
        names = tuple(value for group in subject for key, value in group if key == "commonName")
        return self._replace(common_names=names, distinguished_name=format_name(subject))


class Rule(NamedTuple):
    """One of the module's rules; ``value`` as text."""

    kind: str
    value: str

    def fits(self, peer: Peer) -> bool:
        if self.kind == "uid":
            return peer.uid is not None and peer.uid == int(self.value)
        if self.kind == "cn":
            return self.value in peer.common_names
        return self.value == peer.distinguished_name


def parse_rule(text: str) -> Rule:
    """The rule that ``text`` spells.  Raises :class:`InvalidRequestError`."""
    kind, colon, value = text.partition(":")
    if not colon or kind not in ("uid", "cn", "dn") or not value:
        raise InvalidRequestError(f"{text!r} is no rule: uid:NUMBER, cn:NAME or dn:NAME")
    if kind == "uid" and not (value.isascii() and value.isdigit()):
        raise InvalidRequestError(f"{text!r}: a user id is a number")
    return Rule(kind, value)


def permits(rules: Iterable[Rule], peer: Peer) -> bool:
    """Whether one of the rules fits, or there are none."""
    rules = tuple(rules)
    return not rules or any(rule.fits(peer) for rule in rules)


def peer_of(connection: socket.socket, address: Any) -> Peer:
    """What an accepted connection tells by itself."""
    if connection.family == socket.AF_UNIX:
        uid = _unix_uid(connection)
        return Peer("unix socket" if uid is None else f"unix socket, uid {uid}", uid)
    if isinstance(address, tuple) and connection.family in (socket.AF_INET, socket.AF_INET6):
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return Peer(f"{host}:{address[1]}")
    return Peer(f"vsock {address[0]}:{address[1]}" if isinstance(address, tuple) else str(address))


def _unix_uid(connection: socket.socket) -> int | None:
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    data = connection.getsockopt(socket.SOL_SOCKET, option, _PEER_CREDENTIALS.size)
    _pid, uid, _gid = _PEER_CREDENTIALS.unpack(data)
    return int(uid)


def format_name(subject: Iterable[Iterable[tuple[str, str]]]) -> str:
    """A subject as Python's ssl gives it (most general first), as RFC 4514 writes it."""
    groups = [
        "+".join(f"{_SHORT_NAMES.get(key, key)}={_escape(value)}" for key, value in group)
        for group in subject
    ]
    return ",".join(reversed(groups))


def _escape(value: str) -> str:
    value = re.sub(r'([\\",;+<>])', r"\\\1", value)
    if value.startswith(("#", " ")):
        value = "\\" + value
    return value[:-1] + "\\ " if value.endswith(" ") and len(value) > 1 else value
