"""Any frames of a guest: the gateway answers whole packets and keeps its bounds; ≤ 256 MiB, ≤ 2 s.

Input: frames, each with its length before it in two bytes.  Half of the inputs go to a gateway
that reaches nobody, the others to one connection whose socket takes what it likes.
"""

from __future__ import annotations

import random
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from fuzz.mutate import change_bytes
from vdisk.vm.clock import VirtualClock
from vdisk.vm.net import ipv6, packets, tcp, tftp
from vdisk.vm.net.user import UserNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST = 16 << 10
MOST = 300
"""Frames of one input."""
GUEST, GATEWAY, NAMES = bytes([10, 0, 2, 15]), bytes([10, 0, 2, 2]), bytes([10, 0, 2, 3])
MAC = b"\x52\x54\0\0\0\1"
GUEST6 = bytes.fromhex("fe800000000000005054000000000001")
GATEWAY6, NAMES6 = (bytes.fromhex("fec0") + bytes(13) + bytes([number]) for number in (2, 3))


FOLDER = str(Path(__file__).parent)
FETCH = b"\0\1user_network.py\0octet\0blksize\x001000\0tsize\x000\0timeout\x003\0"


class Card:
    """The guest's adapter: looks at what comes."""

    mac = MAC
    completes_checksums = False
    room = True

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def largest_segment(self, *, ipv6: bool) -> int:
        return 1440 if ipv6 else 1460

    def deliver(self, frame: bytes, *, partial: bool = False, segment: int = 0) -> None:
        self.frames.append(frame)
        view = memoryview(frame)
        assert len(frame) <= 1514 and not partial and not segment
        if frame[12:14] == b"\x08\x06":
            assert packets.parse_arp(view[14:]) is not None
        elif frame[12:14] == b"\x08\x00":
            assert packets.checksum(frame[14:34]) == 0xFFFF
            _look_at(packets.parse_ipv4(view[14:]), packets.TCP)
        else:
            _look_at(packet := ipv6.parse(view[14:]), packets.TCP, packets.UDP, ipv6.ICMP)
            assert packet is not None


def _look_at(packet: packets.Packet | None, *with_checksum: int) -> None:
    """``packet`` None: a fragment."""
    if packet is not None and packet.protocol in with_checksum:
        if packet.protocol == packets.TCP:
            assert packets.parse_tcp(packet.payload) is not None
        total = packets.pseudo_sum(
            packet.source, packet.target, packet.protocol, len(packet.payload)
        )
        assert packets.checksum(bytes(packet.payload), total) == 0xFFFF


class Host:
    """A socket whose behaviour the input chooses."""

    def __init__(self, settings: int) -> None:
        self._rng = random.Random(settings)
        self.closed = False

    def send(self, data: memoryview) -> int:
        assert not self.closed
        return self._rng.choice([0, 1, len(data), len(data)]) if len(data) else 0

    def receive(self, limit: int) -> bytes | None:
        assert limit >= 0
        return self._rng.choice([None, b"x" * min(limit, 5000), b"y", b""])

    def shut_down(self) -> None:
        assert not self.closed

    def close(self, *, abort: bool = False) -> None:
        self.closed = True

    def want(self, *, read: bool, write: bool) -> None:
        assert not self.closed


class Wire:
    """Takes the connection's segments."""

    room = True

    def __init__(self) -> None:
        self.ended = False
        self.sent = 0

    def largest_segment(self, connection: tcp.Connection) -> int:
        return 60 << 10

    def send(
        self,
        connection: tcp.Connection,
        sequence: int,
        flags: int,
        payload: bytes = b"",
        options: bytes = b"",
    ) -> None:
        assert not self.ended
        assert 0 <= sequence < 1 << 32 and 0 <= connection.window() < 1 << 16
        self.sent += 1

    def finished(self, connection: tcp.Connection) -> None:
        self.ended = True


def _frame(kind: int, body: bytes) -> bytes:
    return packets.ethernet(packets.BROADCAST_MAC, MAC, kind) + body


def _ip(protocol: int, body: bytes, target: bytes = GATEWAY) -> bytes:
    return _frame(0x0800, packets.ipv4_header(GUEST, target, protocol, len(body)) + body)


def _ip6(protocol: int, body: bytes, target: bytes = GATEWAY6, hops: int = 255) -> bytes:
    header = ipv6.header(GUEST6, target, protocol, len(body), hops)
    return _frame(ipv6.ETHERTYPE, header + body)


def _icmp6(kind: int, rest: bytes, target: bytes = GATEWAY6) -> bytes:
    return _ip6(ipv6.ICMP, ipv6.icmp(GUEST6, target, kind, rest).body, target)


def _tcp(sequence: int, ack: int, flags: int, payload: bytes = b"", options: bytes = b"") -> bytes:
    header = packets.tcp_header(40000, 80, sequence, ack, flags, 65535, options)
    return _ip(packets.TCP, header + payload)


def _joined(*frames: bytes) -> bytes:
    return b"".join(struct.pack("!H", len(frame)) + frame for frame in frames)


FIRST = 0x1000
"""Our first sequence number."""


def seeds() -> dict[str, bytes]:
    arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, MAC, GUEST, bytes(6), GATEWAY)
    discover = bytes([1, 1, 6, 0]) + b"xid!" + bytes(20) + MAC.ljust(16, b"\0") + bytes(192)
    discover += b"\x63\x82\x53\x63\x35\1\1\x37\2\1\3\xff"
    query = bytes.fromhex("12340100000100000000000004686f73740000010001")
    echo = bytes([8, 0, 0, 0, 0, 1, 0, 1]) + b"ping"
    asked = packets.udp((GUEST, 68), (b"\xff" * 4, 67), discover)
    syn = _tcp(7, 0, packets.SYN, options=bytes([2, 4, 5, 0xB4, 1, 3, 3, 7]))
    data = [_tcp(8 + 100 * n, FIRST + 1, packets.ACK, b"d" * 100) for n in (0, 1, 0, 3, 2)]
    fin = _tcp(8, FIRST + 1, packets.ACK | packets.FIN)
    services = _joined(
        _frame(0x0806, arp),
        _ip(packets.UDP, asked, b"\xff" * 4),
        _ip(packets.UDP, packets.udp((GUEST, 999), (NAMES, 53), query), NAMES),
        _ip(packets.UDP, packets.udp((GUEST, 998), (GATEWAY, 69), FETCH)),
        _ip(packets.UDP, packets.udp((GUEST, 998), (GATEWAY, 60001), b"\0\4\0\0")),
        _ip(packets.ICMP, echo),
        syn,
    )
    routers = bytes.fromhex("ff02") + bytes(13) + b"\2"
    syn6 = packets.tcp_header(40000, 80, 7, 0, packets.SYN, 65535)
    asked6 = packets.udp((GUEST6, 999), (NAMES6, 53), query)
    services6 = _joined(
        _icmp6(ipv6.ROUTER_SOLICITATION, bytes(4), routers),
        _icmp6(ipv6.NEIGHBOUR_SOLICITATION, bytes(4) + GATEWAY6),
        _icmp6(ipv6.ECHO_REQUEST, b"\0\1\0\1ping"),
        _ip6(packets.UDP, asked6, NAMES6),
        _ip6(packets.TCP, syn6),
    )
    return {
        "services": b"\0" + services,
        "services6": b"\0" + services6,
        "connection": b"\1" + _joined(syn, *data, fin),
        "reset": b"\3" + _joined(syn, data[0], _tcp(108, FIRST + 1, packets.RST)),
    }


def mutate(data: bytes, rng: random.Random) -> bytes:
    frames = list(_frames(data[1:]))
    for _ in range(rng.choice([1, 1, 3])):
        place = rng.randrange(len(frames) + 1)
        kind = rng.randrange(4)
        if kind == 0 and frames:
            del frames[place : place + 1]
        elif kind == 1 and frames:
            frames.insert(place, rng.choice(frames))
        elif kind == 2:
            other = rng.choice(list(seeds().values()))
            frames[place:place] = list(_frames(other[1:]))
        elif place < len(frames):
            changed = bytearray(frames[place])
            change_bytes(changed, rng, 1)
            frames[place] = bytes(changed)
    settings = rng.randrange(256) if rng.random() < 0.1 else data[0] if data else 0
    return bytes([settings]) + _joined(*(frame[:2000] for frame in frames))


def _frames(data: bytes) -> Iterator[bytes]:
    place = 0
    for _ in range(MOST):
        if place + 2 > len(data):
            return
        length = data[place] << 8 | data[place + 1]
        yield data[place + 2 : place + 2 + length]
        place += 2 + length


def run(data: bytes) -> None:
    settings = data[0] if data else 0
    if settings & 1:
        _run_connection(settings, data[1:])
    else:
        _run_gateway(data[1:])


def _run_gateway(data: bytes) -> None:
    lock, clock = threading.RLock(), VirtualClock()
    network = UserNetwork(clock, lock, restrict=True, server="", tftp=FOLDER, bootfile="target.py")
    card = Card()
    try:
        network.attach(card)
        for frame in _frames(data):
            before = len(card.frames)
            network.receive(frame)
            assert len(card.frames) - before <= 3
        clock.advance(10**9)
        assert not network._connections
        transfers = network._tftp
        assert transfers is not None and len(transfers._transfers) <= tftp.MAX_TRANSFERS
    finally:
        network.close()


def _run_connection(settings: int, data: bytes) -> None:
    wire, host = Wire(), Host(settings)
    connection = tcp.Connection(wire, host, (GUEST, 40000), (GATEWAY, 80), FIRST)
    now, begun = 0, False
    for frame in _frames(data):
        packet = packets.parse_ipv4(memoryview(frame)[14:])
        segment = None if packet is None else packets.parse_tcp(packet.payload)
        if segment is None or connection.closed:
            continue
        now += 50_000_000
        if not begun:
            connection.answer(segment)
            connection.connected(now)
            begun = True
            continue
        connection.segment(segment, now)
        if not connection.closed:
            connection.readable(now)
        if not connection.closed:
            connection.writable()
        connection.timer(now)
        assert len(connection._in) <= tcp.TO_HOST and len(connection._out) <= tcp.TO_GUEST
    for _ in range(40):
        now += 10**10
        connection.timer(now)
    assert wire.ended == connection.closed == host.closed
