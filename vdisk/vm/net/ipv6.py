"""IPv6 (RFC 8200), its ICMP (RFC 4443), and what a router tells its link (RFC 4861, 8106)::

    0 version, class, flow label   4 payload length (16)   6 next header   7 hop limit
    8 source (16)   24 target (16)   40 extension headers, payload

    ICMP: 0 type  1 code  2 checksum  4 ...
    133 router solicitation        4 reserved, options
    134 router advertisement       4 hop limit  5 flags  6 lifetime  8 times  16 options
    135 neighbour solicitation     4 reserved  8 target  24 options
    136 neighbour advertisement    4 flags  8 target  24 options

A guest makes its own address of the prefix that is advertised; there is no DHCPv6, and nothing says
that there were.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from vdisk.vm.net.packets import MTU, Packet, checksum, pseudo_sum

if TYPE_CHECKING:
    from vdisk.vm.net.addresses import Addresses

ETHERTYPE: Final = 0x86DD
HEADER: Final = 40
ICMP: Final = 58
HOP_BY_HOP, FRAGMENT, DESTINATION_OPTIONS = 0, 44, 60
ECHO_REQUEST, ECHO_REPLY = 128, 129
ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT = 133, 134
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136
FROM_ROUTER, SOLICITED, OVERRIDE = 0x80, 0x40, 0x20
ON_LINK, AUTONOMOUS = 0x80, 0x40
SOURCE_ADDRESS, TARGET_ADDRESS, PREFIX, NAME_SERVERS = 1, 2, 3, 25
ON_THIS_LINK: Final = 255
"""Hop limit of what no router has passed on."""
HOPS: Final = 64
UNSPECIFIED: Final = bytes(16)
ALL_NODES: Final = bytes.fromhex("ff02" + 13 * "00" + "01")

ADVERTISED_EVERY: Final = 300_000_000_000
"""Nanoseconds; what is advertised lasts six times as long, or longer."""
LIFETIME: Final = 1800
VALID, PREFERRED = 86400, 14400
"""Seconds: of the router, and of addresses made of its prefix."""

_HEADER: Final = struct.Struct("!IHBB16s16s")
_FRAGMENT: Final = struct.Struct("!BBHI")


class Icmp(NamedTuple):
    """A message of ICMP, with its checksum."""

    source: bytes
    target: bytes
    body: bytes


def parse(data: memoryview) -> Packet | None:
    """Options are skipped; fragments are not put together, as with IPv4."""
    if len(data) < HEADER:
        return None
    version, length, protocol, hops, source, target = _HEADER.unpack_from(data)
    if version >> 28 != 6 or length > len(data) - HEADER:
        return None
    payload = data[HEADER : HEADER + length]
    while protocol in (HOP_BY_HOP, DESTINATION_OPTIONS):
        size = 8 * payload[1] + 8 if len(payload) >= 8 else 0
        if not 0 < size <= len(payload):
            return None
        protocol, payload = payload[0], payload[size:]
    return Packet(source, target, protocol, payload, hops)


def header(source: bytes, target: bytes, protocol: int, length: int, hops: int = HOPS) -> bytes:
    """For ``length`` bytes of payload, or 0 where they are more than the field holds."""
    return _HEADER.pack(6 << 28, length & 0xFFFF, protocol, hops, source, target)


def fragments(
    source: bytes, target: bytes, protocol: int, body: bytes, identifier: int
) -> list[bytes]:
    """Packets of at most :data:`MTU` bytes that together carry ``body``."""
    if len(body) <= MTU - HEADER:
        hops = ON_THIS_LINK if protocol == ICMP else HOPS
        return [header(source, target, protocol, len(body), hops) + body]
    step = (MTU - HEADER - _FRAGMENT.size) // 8 * 8
    found = []
    for start in range(0, len(body), step):
        piece = body[start : start + step]
        place = start | (start + step < len(body))
        found.append(
            header(source, target, FRAGMENT, _FRAGMENT.size + len(piece))
            + _FRAGMENT.pack(protocol, 0, place, identifier)
            + piece
        )
    return found


def icmp(source: bytes, target: bytes, kind: int, rest: bytes) -> Icmp:
    """``rest``: what stands behind the checksum."""
    body = bytes([kind, 0, 0, 0]) + rest
    total = ~checksum(body, pseudo_sum(source, target, ICMP, len(body))) & 0xFFFF
    return Icmp(source, target, body[:2] + total.to_bytes(2) + rest)


def multicast_mac(address: bytes) -> bytes | None:
    """Where a frame for a group goes (RFC 2464, 7); None for an address of one host."""
    return b"\x33\x33" + address[12:] if address[0] == 0xFF else None


class Router:
    """``mac``: the gateway's, and the name server's."""

    def __init__(self, addresses: Addresses, mac: bytes) -> None:
        self._addresses = addresses
        self._mac = mac

    def answer(self, packet: Packet) -> Icmp | None:
        """The answer to a message of ICMP; None: there is none."""
        body = packet.payload
        if len(body) < 8:
            return None
        if body[0] == ECHO_REQUEST and packet.target in self._addresses.ours:
            return icmp(packet.target, packet.source, ECHO_REPLY, bytes(body[4:]))
        if packet.hops != ON_THIS_LINK or body[1]:
            return None
        if body[0] == ROUTER_SOLICITATION:
            return self.advertisement()
        target = bytes(body[8:24])
        if body[0] == NEIGHBOUR_SOLICITATION and target in self._addresses.ours:
            return self._neighbour(packet.source, target)
        return None

    def _neighbour(self, who: bytes, target: bytes) -> Icmp:
        """``who``: unspecified where a guest asks whether it may have the address."""
        flags = FROM_ROUTER | OVERRIDE | (SOLICITED if who != UNSPECIFIED else 0)
        to = who if who != UNSPECIFIED else ALL_NODES
        rest = bytes([flags, 0, 0, 0]) + target + bytes([TARGET_ADDRESS, 1]) + self._mac
        return icmp(target, to, NEIGHBOUR_ADVERTISEMENT, rest)

    def advertisement(self) -> Icmp:
        """What makes guests take an address, this router and the name server."""
        addresses = self._addresses
        rest = struct.pack("!BBHII", HOPS, 0, LIFETIME, 0, 0)
        rest += bytes([SOURCE_ADDRESS, 1]) + self._mac
        rest += struct.pack("!BBBBIII", PREFIX, 4, 64, ON_LINK | AUTONOMOUS, VALID, PREFERRED, 0)
        rest += addresses.prefix
        rest += struct.pack("!BBHI", NAME_SERVERS, 3, 0, LIFETIME) + addresses.name_server6
        return icmp(addresses.link_local, ALL_NODES, ROUTER_ADVERTISEMENT, rest)
