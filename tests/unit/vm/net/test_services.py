"""What the gateway itself answers: ARP, DHCP, names, echoes; and how its options are read."""

from __future__ import annotations

import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from fuzz.targets.user_network import (
    GATEWAY,
    GATEWAY6,
    GUEST,
    GUEST6,
    MAC,
    NAMES,
    NAMES6,
    Card,
    _frame,
    _icmp6,
    _ip,
    _ip6,
)
from vdisk.errors import InvalidRequestError, NotFoundError, VdiskError
from vdisk.vm.clock import VirtualClock
from vdisk.vm.net import dhcp, dns, ipv6, packets
from vdisk.vm.net.forwards import Forward
from vdisk.vm.net.user import GATEWAY_MAC, UserNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BROADCAST = b"\xff" * 4


@pytest.fixture
def network() -> Iterator[tuple[UserNetwork, Card]]:
    made = UserNetwork(VirtualClock(), threading.RLock(), server="", host_name="guest")
    card = Card()
    made.attach(card)
    yield made, card
    made.close()


def udp_of(frame: bytes) -> packets.Udp:
    packet = packets.parse_ipv4(memoryview(frame)[14:])
    assert packet is not None
    datagram = packets.parse_udp(packet.payload)
    assert datagram is not None
    return datagram


def dhcp_message(kind: int, more: bytes = b"") -> bytes:
    head = bytes([1, 1, 6, 0]) + b"xid!" + bytes(20) + MAC.ljust(16, b"\0") + bytes(192)
    return head + dhcp.MAGIC + bytes([53, 1, kind]) + more + b"\xff"


def asked(network: UserNetwork, card: Card, message: bytes) -> dict[int, bytes]:
    card.frames.clear()
    body = packets.udp((bytes(4), 68), (BROADCAST, 67), message)
    network.receive(_ip(packets.UDP, body, BROADCAST))
    if not card.frames:
        return {}
    answer = bytes(udp_of(card.frames[0]).payload)
    assert answer[4:8] == b"xid!" and card.frames[0][:6] == packets.BROADCAST_MAC
    return dhcp.parse_options(answer[240:]) | {0: answer[16:20]}


def test_a_guest_gets_its_address(network: tuple[UserNetwork, Card]) -> None:
    offer = asked(*network, dhcp_message(dhcp.DISCOVER))
    assert offer[0] == GUEST and offer[53] == bytes([dhcp.OFFER])
    assert offer[1] == bytes([255, 255, 255, 0])
    assert offer[3] == GATEWAY and offer[6] == NAMES and offer[12] == b"guest"
    wanted = bytes([50, 4]) + GUEST + bytes([54, 4]) + GATEWAY
    assert asked(*network, dhcp_message(dhcp.REQUEST, wanted))[53] == bytes([dhcp.ACK])
    other = bytes([50, 4, 10, 0, 2, 99])
    assert asked(*network, dhcp_message(dhcp.REQUEST, other))[53] == bytes([dhcp.NAK])
    elsewhere = bytes([50, 4]) + GUEST + bytes([54, 4, 1, 2, 3, 4])
    assert asked(*network, dhcp_message(dhcp.REQUEST, elsewhere)) == {}
    informed = asked(*network, dhcp_message(dhcp.INFORM))
    assert informed[53] == bytes([dhcp.ACK]) and informed[0] == bytes(4)
    assert asked(*network, dhcp_message(dhcp.RELEASE)) == {}


def test_what_a_guest_is_told_to_boot(tmp_path: Path) -> None:
    (tmp_path / "loader").write_bytes(b"content")
    made, card = (
        UserNetwork(
            VirtualClock(), threading.RLock(), server="", tftp=str(tmp_path), bootfile="loader"
        ),
        Card(),
    )
    made.attach(card)
    offer = asked(made, card, dhcp_message(dhcp.DISCOVER))
    assert offer[66] == b"10.0.2.2" and offer[67] == b"loader"
    message = bytes(udp_of(card.frames[0]).payload)
    assert message[20:24] == GATEWAY and message[108:236] == b"loader".ljust(128, b"\0")
    card.frames.clear()
    made.receive(_ip(packets.UDP, packets.udp((GUEST, 99), (GATEWAY, 69), b"\0\1loader\0octet\0")))
    (answer,) = map(udp_of, card.frames)
    assert bytes(answer.payload) == b"\0\3\0\1content" and answer.target_port == 99
    made.reset()
    card.frames.clear()
    made.receive(
        _ip(packets.UDP, packets.udp((GUEST, 99), (GATEWAY, answer.source_port), b"\0\4\0\1"))
    )
    assert bytes(udp_of(card.frames[0]).payload).startswith(b"\0\5\0\5")
    made.close()


def test_nothing_to_boot(network: tuple[UserNetwork, Card]) -> None:
    offer = asked(*network, dhcp_message(dhcp.DISCOVER))
    assert 66 not in offer and 67 not in offer
    made, card = network
    card.frames.clear()
    request = packets.udp((GUEST, 99), (GATEWAY, 69), b"\0\1loader\0octet\0")
    made.receive(_ip(packets.UDP, request))
    assert not card.frames


def test_arp_for_the_gateway_and_nobody_else(network: tuple[UserNetwork, Card]) -> None:
    made, card = network
    for target in (GATEWAY, NAMES, bytes([10, 0, 2, 77])):
        body = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, MAC, GUEST, bytes(6), target)
        made.receive(_frame(0x0806, body))
    assert [frame[28:32] for frame in card.frames] == [GATEWAY, NAMES]
    assert card.frames[0][22:28] == GATEWAY_MAC and card.frames[0][:6] == MAC


def test_a_fragment_and_what_is_cut_short_is_dropped(network: tuple[UserNetwork, Card]) -> None:
    made, card = network
    whole = _ip(packets.ICMP, bytes([8, 0, 0, 0, 0, 1, 0, 1]))
    for length in range(len(whole)):
        made.receive(whole[:length])
    fragment = bytearray(whole)
    fragment[20] = 0x20
    made.receive(bytes(fragment))
    assert not card.frames
    made.receive(whole)
    assert len(card.frames) == 1


def test_long_datagrams_leave_in_fragments() -> None:
    body = bytes(range(256)) * 20
    parts = packets.fragments(GATEWAY, GUEST, packets.UDP, body, 7)
    assert all(len(part) <= 1500 for part in parts)
    assert b"".join(part[20:] for part in parts) == body
    offsets = [struct.unpack_from("!H", part, 6)[0] for part in parts]
    assert [offset & 0x1FFF for offset in offsets] == [0, 185, 370, 555]
    assert [offset >> 13 for offset in offsets] == [1, 1, 1, 0]


def packet_of(frame: bytes) -> packets.Packet:
    packet = ipv6.parse(memoryview(frame)[14:])
    assert packet is not None
    return packet


ALL_ROUTERS = bytes.fromhex("ff02") + bytes(13) + b"\2"


def test_a_router_advertises_its_prefix_and_the_name_server(
    network: tuple[UserNetwork, Card],
) -> None:
    made, card = network
    made.receive(_ip6(ipv6.ICMP, bytes([133, 0, 0, 0, 0, 0, 0, 0]), ALL_ROUTERS, hops=64))
    assert not card.frames  # of another link
    made.receive(_icmp6(ipv6.ROUTER_SOLICITATION, bytes(4), ALL_ROUTERS))
    (frame,) = card.frames
    packet = packet_of(frame)
    assert frame[:6] == bytes.fromhex("333300000001") and packet.hops == 255
    assert packet.source == bytes.fromhex("fe80") + bytes(13) + b"\2"
    # as QEMU 7.2 says it: 64 hops, no flags, 1800 s; the prefix for a day, 4 h of them preferred
    told = bytes(packet.payload)
    assert told[4:16] == bytes.fromhex("400007080000000000000000")
    assert told[16:24] == b"\1\1" + GATEWAY_MAC
    assert told[24:56] == bytes.fromhex("030440c0000151800000384000000000") + GATEWAY6[:8] + bytes(
        8
    )
    assert told[56:] == bytes.fromhex("1903000000000708") + NAMES6


def test_the_router_is_heard_of_before_it_is_forgotten() -> None:
    clock = VirtualClock()
    made, card = UserNetwork(clock, threading.RLock(), server=""), Card()
    made.attach(card)
    clock.advance(10**12)
    assert not card.frames  # nobody asked
    made.receive(_icmp6(ipv6.ROUTER_SOLICITATION, bytes(4), ALL_ROUTERS))
    clock.advance(clock.now() + ipv6.LIFETIME * 10**9)
    assert len(card.frames) == 1 + 6
    made.close()


def test_neighbours(network: tuple[UserNetwork, Card]) -> None:
    made, card = network
    for target in (GATEWAY6, NAMES6, GUEST6):
        made.receive(_icmp6(ipv6.NEIGHBOUR_SOLICITATION, bytes(4) + target, ALL_ROUTERS))
    assert len(card.frames) == 2
    for frame, target in zip(card.frames, (GATEWAY6, NAMES6), strict=True):
        packet = packet_of(frame)
        assert (frame[:6], packet.source, packet.target) == (MAC, target, GUEST6)
        told = bytes(packet.payload)
        assert told[:2] == b"\x88\0" and told[4:] == b"\xe0\0\0\0" + target + b"\2\1" + GATEWAY_MAC


def test_an_ipv6_echo_and_what_is_cut_short(network: tuple[UserNetwork, Card]) -> None:
    made, card = network
    echo = ipv6.icmp(GUEST6, GATEWAY6, ipv6.ECHO_REQUEST, b"\0\1\0\2ping").body
    for protocol, extension in ((ipv6.ICMP, b""), (0, b"\x3a\0\1\4\0\0\0\0")):
        whole = _ip6(protocol, extension + echo)
        for length in range(len(whole)):
            made.receive(whole[:length])
        assert not card.frames
        made.receive(whole)
        assert bytes(packet_of(card.frames.pop()).payload)[4:] == b"\0\1\0\2ping"
    endless = b"\0\0\1\4\0\0\0\0" * 8
    made.receive(_ip6(0, endless))
    made.receive(_ip6(ipv6.FRAGMENT, b"\x3a\0\0\0\0\0\0\1" + echo))
    assert not card.frames


def test_long_datagrams_leave_in_ipv6_fragments() -> None:
    body = bytes(range(256)) * 20
    parts = ipv6.fragments(GATEWAY6, GUEST6, packets.UDP, body, 7)
    assert all(len(part) <= 1500 and part[6] == ipv6.FRAGMENT for part in parts)
    assert all(len(part) == 40 + struct.unpack_from("!H", part, 4)[0] for part in parts)
    assert b"".join(part[48:] for part in parts) == body
    fields = [struct.unpack_from("!BBHI", part, 40) for part in parts]
    assert fields == [(17, 0, 1448 * n | (n < 3), 7) for n in range(4)]


def query(name: str, kind: int = dns.TYPE_A) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)


def test_names() -> None:
    question = dns.parse(query("localhost"))
    assert question is not None and question.name == "localhost"
    answer = dns.resolve(question)
    assert answer[:2] == b"\0\7" and answer.endswith(socket.inet_aton("127.0.0.1"))
    other = dns.parse(query("localhost", 15))
    assert other is not None
    assert struct.unpack_from("!H", dns.resolve(other), 6) == (0,)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        query("a")[:-1],
        b"\0" * 12,
        query("x" * 64),
        query("a")[:2] + b"\x80\0" + query("a")[4:],
    ],
)
def test_what_is_no_question(bad: bytes) -> None:
    assert dns.parse(bad) is None


def test_the_hosts_name_server(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("# comment\nnameserver ::1\nnameserver 192.0.2.1\n")
    assert dns.host_server(str(path)) == "192.0.2.1"
    assert dns.host_server(str(tmp_path / "none")) is None


def test_forwards_are_written_as_in_qemu() -> None:
    assert Forward.parse("tcp::2222-:22") == ("tcp", "127.0.0.1", 2222, None, 22)
    assert Forward.parse("udp:0.0.0.0:53-10.0.2.16:5353") == (
        *("udp", "0.0.0.0", 53),
        *("10.0.2.16", 5353),
    )
    assert Forward.parse(":1.2.3.4:22-:23") == ("tcp", "1.2.3.4", 22, None, 23)
    assert str(Forward.parse("udp::7-:8")) == "udp 127.0.0.1:7 -> the guest:8"
    for text in (
        "",
        "tcp:22",
        ":1-:2-",
        "22-:22",
        "tcp::-1-:2",
        "sctp::1-:2",
        "tcp::x-:2",
        "tcp::1-:0",
        "tcp::70000-:1",
    ):
        with pytest.raises(InvalidRequestError):
            Forward.parse(text)


def test_options_that_cannot_be() -> None:
    for options in (
        {"network": "10.0.2.0"},
        {"network": "10.0.2.1/24"},
        {"network": "10.0.0.0/28"},
    ):
        with pytest.raises(InvalidRequestError):
            UserNetwork(VirtualClock(), threading.RLock(), **options)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(VdiskError):
            UserNetwork(
                VirtualClock(), threading.RLock(), forwards=[Forward.parse(f"tcp::{port}-:22")]
            )


def test_ports_come_and_go() -> None:
    network = UserNetwork(VirtualClock(), lock := threading.RLock())
    with lock:
        network.add_forward(Forward.parse("tcp::0-:22"))
        network.add_forward(Forward.parse("udp::0-:53"))
    tcp, udp = network.forwards
    socket.create_connection(("127.0.0.1", tcp.host_port), 10).close()
    network.remove_forward(*udp[:3])
    network.remove_forward(*tcp[:3])
    assert network.forwards == []
    for place, kind in ((tcp, socket.SOCK_STREAM), (udp, socket.SOCK_DGRAM)):
        with pytest.raises(NotFoundError):
            network.remove_forward(*place[:3])
        with socket.socket(socket.AF_INET, kind) as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(place[1:3])
    network.close()
