"""DHCP: telling a guest its address (RFC 2131; options of RFC 2132).

::

    0 op  1 htype  2 hlen  3 hops  4 xid  8 secs  10 flags  12 ciaddr  16 yiaddr  20 siaddr
    24 giaddr  28 chaddr (16)  44 sname (64)  108 file (128)  236 magic  240 options
"""

from __future__ import annotations

import socket
import struct
from typing import Final, NamedTuple

SERVER_PORT, CLIENT_PORT = 67, 68
BOOTREQUEST, BOOTREPLY = 1, 2
MAGIC: Final = b"\x63\x82\x53\x63"
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
LEASE_SECONDS: Final = 86400

OPTION_MASK, OPTION_ROUTER, OPTION_DNS, OPTION_HOST_NAME = 1, 3, 6, 12
OPTION_TFTP_SERVER, OPTION_BOOTFILE = 66, 67
OPTION_REQUESTED, OPTION_LEASE, OPTION_TYPE, OPTION_SERVER = 50, 51, 53, 54
OPTION_END: Final = 255

LONGEST_BOOTFILE: Final = 127
"""Bytes of ``file``, with a NUL behind them."""

_FIXED: Final = 240


class Lease(NamedTuple):
    """What a guest is told; addresses of four bytes."""

    address: bytes
    mask: bytes
    router: bytes
    dns: bytes
    host_name: str = ""
    bootfile: str = ""
    """What to boot, by TFTP from the server itself, or a URI."""


class Reply(NamedTuple):
    """``kind``: OFFER, ACK or NAK; ``message``: the payload of the datagram."""

    kind: int
    message: bytes


def parse_options(data: bytes) -> dict[int, bytes]:
    """The options, as far as they are whole."""
    found: dict[int, bytes] = {}
    place = 0
    while place + 1 < len(data) and data[place] != OPTION_END:
        if not data[place]:
            place += 1
            continue
        length = data[place + 1]
        value = data[place + 2 : place + 2 + length]
        if len(value) == length:
            found[data[place]] = value
        place += 2 + length
    return found


def answer(request: bytes, lease: Lease) -> Reply | None:
    """What the server says to a client's message; None: nothing."""
    if len(request) < _FIXED or request[0] != BOOTREQUEST or request[236:240] != MAGIC:
        return None
    options = parse_options(request[_FIXED:])
    kind = _kind(request, options, lease)
    if kind is None:
        return None
    informed = kind == NAK or options.get(OPTION_TYPE) == bytes([INFORM])
    yours = bytes(4) if informed else lease.address
    head = bytes([BOOTREPLY, 1, 6, 0]) + request[4:8] + bytes(2) + request[10:12]
    head += request[12:16] + yours + lease.router + request[24:28] + request[28:44]
    head += bytes(64) + lease.bootfile.encode().ljust(128, b"\0")
    body = MAGIC + bytes([OPTION_TYPE, 1, kind, OPTION_SERVER, 4]) + lease.router
    if kind != NAK:
        body += _told(lease)
    return Reply(kind, (head + body + bytes([OPTION_END])).ljust(300, b"\0"))


def _kind(request: bytes, options: dict[int, bytes], lease: Lease) -> int | None:
    message = options.get(OPTION_TYPE, bytes([DISCOVER]))
    if message == bytes([DISCOVER]):
        return OFFER
    if message == bytes([INFORM]):
        return ACK
    if message != bytes([REQUEST]) or options.get(OPTION_SERVER, lease.router) != lease.router:
        return None
    wanted = options.get(OPTION_REQUESTED, request[12:16])
    return ACK if wanted == lease.address else NAK


def _told(lease: Lease) -> bytes:
    found = b""
    for option, value in (
        (OPTION_MASK, lease.mask),
        (OPTION_ROUTER, lease.router),
        (OPTION_DNS, lease.dns),
        (OPTION_LEASE, struct.pack("!I", LEASE_SECONDS)),
        (OPTION_HOST_NAME, lease.host_name.encode("ascii", "replace")[:63]),
        (OPTION_TFTP_SERVER, lease.bootfile and socket.inet_ntoa(lease.router).encode()),
        (OPTION_BOOTFILE, lease.bootfile.encode()),
    ):
        if value:
            found += bytes([option, len(value)]) + value
    return found
