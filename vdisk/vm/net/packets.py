"""Packets of the layers below a connection, as bytes and back.

RFC 894 and 826 (Ethernet, ARP), 791 (IPv4), 792 (ICMP), 768 (UDP), 9293 (TCP).  Parsers are total:
any bytes give a packet, or None for what is no packet or cut short.  Addresses are bytes: four, or
sixteen of IPv6, whose own packets ``ipv6.py`` has.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

ETHERTYPE_IPV4, ETHERTYPE_ARP = 0x0800, 0x0806
ICMP, TCP, UDP = 1, 6, 17
BROADCAST_MAC: Final = b"\xff" * 6
MTU: Final = 1500
IPV4_HEADER, UDP_HEADER, TCP_HEADER, ETHERNET_HEADER = 20, 8, 20, 14

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
ARP_REQUEST, ARP_REPLY = 1, 2
ECHO_REPLY, ECHO_REQUEST = 0, 8

_ARP: Final = struct.Struct("!HHBBH6s4s6s4s")
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_UDP: Final = struct.Struct("!HHHH")
_TCP: Final = struct.Struct("!HHIIBBHHH")


def checksum(data: bytes, start: int = 0) -> int:
    """The Internet checksum (RFC 1071) of ``data``, added to the sum ``start``."""
    if len(data) % 2:
        data += b"\0"
    total: int = start + sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_sum(source: bytes, target: bytes, protocol: int, length: int) -> int:
    """The sum over what TCP and UDP add of the IP header."""
    return checksum(source + target + struct.pack("!HH", protocol, length))


class Arp(NamedTuple):
    """``operation``: ARP_REQUEST or ARP_REPLY."""

    operation: int
    sender_mac: bytes
    sender: bytes
    target: bytes


class Packet(NamedTuple):
    """An IP packet that is no fragment.  ``hops``: how many more it may make."""

    source: bytes
    target: bytes
    protocol: int
    payload: memoryview
    hops: int


class Udp(NamedTuple):
    """A datagram."""

    source_port: int
    target_port: int
    payload: memoryview


class Segment(NamedTuple):
    """A TCP segment.  ``mss`` and ``scale``: options of a SYN, None where there are none."""

    source_port: int
    target_port: int
    sequence: int
    acknowledgment: int
    flags: int
    window: int
    mss: int | None
    scale: int | None
    payload: memoryview


def parse_arp(data: memoryview) -> Arp | None:
    """Of Ethernet and IPv4 only."""
    if len(data) < _ARP.size:
        return None
    kind, protocol, sizes, sizep, operation, mac, sender, _, target = _ARP.unpack_from(data)
    if (kind, protocol, sizes, sizep) != (1, ETHERTYPE_IPV4, 6, 4):
        return None
    return Arp(operation, mac, sender, target)


def arp_reply(mac: bytes, address: bytes, asked: Arp) -> bytes:
    """Tell who asked that ``address`` is at ``mac``."""
    head = (1, ETHERTYPE_IPV4, 6, 4, ARP_REPLY)
    return _ARP.pack(*head, mac, address, asked.sender_mac, asked.sender)


def parse_ipv4(data: memoryview) -> Packet | None:
    """Fragments are not put together: no guest sends them to its own gateway by itself."""
    if len(data) < IPV4_HEADER:
        return None
    version, _, total, _, fragment, hops, protocol, _, source, target = _IPV4.unpack_from(data)
    header = (version & 0xF) * 4
    if version >> 4 != 4 or header < IPV4_HEADER or not header <= total or fragment & 0x3FFF:
        return None
    if total > len(data):
        return None
    return Packet(source, target, protocol, data[header:total], hops)


def ipv4_header(
    source: bytes, target: bytes, protocol: int, length: int, *, identifier: int = 0, part: int = 0
) -> bytes:
    """For ``length`` bytes of payload.  ``part``: fragment offset and flags as they stand there."""
    fields = (0x45, 0, IPV4_HEADER + length & 0xFFFF, identifier, part, 64, protocol)
    header = _IPV4.pack(*fields, 0, source, target)
    return header[:10] + struct.pack("!H", ~checksum(header) & 0xFFFF) + header[12:]


def fragments(
    source: bytes, target: bytes, protocol: int, body: bytes, identifier: int
) -> list[bytes]:
    """Packets of at most :data:`MTU` bytes that together carry ``body``."""
    step = (MTU - IPV4_HEADER) // 8 * 8
    found = []
    for start in range(0, max(len(body), 1), step):
        piece = body[start : start + step]
        more = 0x2000 if start + step < len(body) else 0
        header = ipv4_header(
            source, target, protocol, len(piece), identifier=identifier, part=start // 8 | more
        )
        found.append(header + piece)
    return found


def parse_udp(data: memoryview) -> Udp | None:
    if len(data) < UDP_HEADER:
        return None
    source, target, length, _ = _UDP.unpack_from(data)
    if not UDP_HEADER <= length <= len(data):
        return None
    return Udp(source, target, data[UDP_HEADER:length])


def udp(source: tuple[bytes, int], target: tuple[bytes, int], payload: bytes) -> bytes:
    """A datagram with its checksum."""
    length = UDP_HEADER + len(payload)
    total = pseudo_sum(source[0], target[0], UDP, length)
    header = _UDP.pack(source[1], target[1], length, 0)
    value = ~checksum(header + payload, total) & 0xFFFF or 0xFFFF
    return _UDP.pack(source[1], target[1], length, value) + payload


def echo_reply(request: memoryview) -> bytes | None:
    """The answer to an ICMP echo request; None for anything else."""
    if len(request) < 8 or request[0] != ECHO_REQUEST:
        return None
    body = bytes([ECHO_REPLY, 0, 0, 0]) + request[4:]
    return body[:2] + struct.pack("!H", ~checksum(body) & 0xFFFF) + body[4:]


def parse_tcp(data: memoryview) -> Segment | None:
    if len(data) < TCP_HEADER:
        return None
    source, target, sequence, ack, offset, flags, window, _, _ = _TCP.unpack_from(data)
    header = (offset >> 4) * 4
    if not TCP_HEADER <= header <= len(data):
        return None
    mss, scale = _options(data[TCP_HEADER:header]) if flags & SYN else (None, None)
    return Segment(source, target, sequence, ack, flags, window, mss, scale, data[header:])


def _options(data: memoryview) -> tuple[int | None, int | None]:
    """Maximum segment size and window scale (RFC 9293 3.2, RFC 7323 2.2)."""
    mss = scale = None
    place = 0
    while place + 1 < len(data) and data[place]:
        if data[place] == 1:
            place += 1
            continue
        length = data[place + 1]
        if length < 2 or place + length > len(data):
            break
        if data[place] == 2 and length == 4:
            mss = data[place + 2] << 8 | data[place + 3]
        elif data[place] == 3 and length == 3:
            scale = min(data[place + 2], 14)
        place += length
    return mss, scale


def tcp_header(
    source_port: int,
    target_port: int,
    sequence: int,
    acknowledgment: int,
    flags: int,
    window: int,
    options: bytes = b"",
) -> bytes:
    """Without its checksum."""
    offset = (TCP_HEADER + len(options)) // 4 << 4
    return (
        _TCP.pack(source_port, target_port, sequence, acknowledgment, offset, flags, window, 0, 0)
        + options
    )


def ethernet(target: bytes, source: bytes, kind: int) -> bytes:
    """The header of a frame."""
    return target + source + struct.pack("!H", kind)
