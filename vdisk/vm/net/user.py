"""The gateway of a guest's own small network, which needs no right of the host.

::

    10.0.2.0/24     .2 gateway, DHCP server, and the host's own services
                    .3 name server
                    .15 the guest (what it is told by DHCP)
    fec0::/64       ::2 and ::3 the same; a guest makes its own address (ipv6.py)

A connection or datagram to anywhere else is made by a socket of this process; to .2 it goes to the
host's loopback.  The other way, ports of the host can be led to ports of the guest, by IPv4.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, Protocol

from vdisk.vm.net import dhcp, dns, ipv6, packets
from vdisk.vm.net.addresses import Addresses, family
from vdisk.vm.net.host_ports import HostPorts
from vdisk.vm.net.names import Names
from vdisk.vm.net.reactor import HostSocket, Reactor
from vdisk.vm.net.tcp import Connection
from vdisk.vm.net.tftp import TftpServer
from vdisk.vm.net.udp import UdpFlows

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Sequence

    from vdisk.vm.clock import Clock
    from vdisk.vm.net.forwards import Forward
    from vdisk.vm.net.packets import Packet, Segment
    from vdisk.vm.net.udp import Address

GATEWAY_MAC: Final = b"\x52\x55\x0a\x00\x02\x02"
MAX_CONNECTIONS: Final = 256
"""Connections at once; the one that was quiet longest makes room for another."""
TICK: Final = 100_000_000
FIRST_FORWARD_PORT: Final = 62000
PORTS_FOR_FORWARDS: Final = 3000
SEQUENCE_STEP: Final = 0x0100_0193  # spreads the first sequence numbers of connections


class Adapter(Protocol):
    """The guest's network card.

    ``completes_checksums``: TCP checksums may be left to it.
    """

    mac: bytes

    def largest_segment(self, *, ipv6: bool) -> int:
        """Bytes of payload in a TCP segment that it takes, and cuts itself."""

    @property
    def completes_checksums(self) -> bool: ...
    @property
    def room(self) -> bool:
        """Whether it takes another frame now."""

    def deliver(self, frame: bytes, *, partial: bool = False, segment: int = 0) -> None:
        """A frame for the guest; ``partial``: its TCP checksum covers the pseudo header only.

        ``segment``: cut it into TCP segments of this much payload; 0: it is one.
        """


class UserNetwork:
    """``network``: of at least 32 addresses.  ``forwards``: from the host to the guest.

    ``restrict``: the guest reaches the gateway's own services and nothing else.  ``server``: the
    name server to ask (None: the host's; "": answer by the host's resolver).  ``tftp``: a folder
    whose files it may fetch; ``bootfile``: what DHCP tells it to boot.  ``clock`` and ``lock`` are
    the machine's; everything but :meth:`close` is called with the lock held.
    """

    offloads = True

    def __init__(
        self,
        clock: Clock,
        lock: threading.RLock,
        *,
        network: str = "10.0.2.0/24",
        forwards: Iterable[Forward] = (),
        restrict: bool = False,
        server: str | None = None,
        host_name: str = "",
        tftp: str | None = None,
        bootfile: str = "",
    ) -> None:
        self._clock = clock
        self._lock = lock
        self._restrict = restrict
        self._name_server = dns.host_server() if server is None else server or None
        who = self.addresses = Addresses(network, restrict=restrict, server=self._name_server)
        self._lease = dhcp.Lease(
            who.guest, who.mask, who.gateway, who.name_server, host_name, bootfile
        )
        self._tftp = None if tftp is None else TftpServer(tftp, clock, self._send_udp)
        self._router = ipv6.Router(who, GATEWAY_MAC)
        self._advertising = clock.timer(self._advertise)
        self._adapter: Adapter | None = None
        self._guest_mac = b""
        self._reactor = Reactor(lock)
        self._connections: dict[tuple[Address, Address], Connection] = {}
        self._sequence = 0
        self._identifier = 0
        self._timer = clock.timer(self._tick)
        self._udp = UdpFlows(self._reactor, who.to_host, who.to_guest, self._send_udp, clock.now)
        ask = self._udp.send if self._name_server and not restrict else None
        self._names = Names(lock, ask, self._send_udp, restrict=restrict)
        self._forward_port = 0
        self._host_ports = HostPorts(
            self._reactor, who.guest, who.gateway, self._accept, self._send_udp
        )
        try:
            for forward in forwards:
                self._host_ports.add(forward)
        except BaseException:
            self._reactor.close()
            raise

    def attach(self, adapter: Adapter) -> None:
        """Plug the guest's card in."""
        self._adapter = adapter
        self._guest_mac = adapter.mac

    def start(self) -> None:
        """The card's driver is ready."""

    # -- from the guest ----------------------------------------------------------------------

    def transmit(self, _header: bytes | memoryview, parts: Sequence[memoryview]) -> bool:
        """A frame of the guest, in parts; segments of any size pass, checksums nobody looks at."""
        self.receive(b"".join(parts))
        return True

    def receive(self, frame: bytes) -> None:
        """A frame of the guest; what is not understood is dropped, as on any network."""
        view = memoryview(frame)
        if len(view) < packets.ETHERNET_HEADER:
            return
        self._guest_mac = bytes(view[6:12])
        kind = view[12] << 8 | view[13]
        body = view[packets.ETHERNET_HEADER :]
        if kind == packets.ETHERTYPE_ARP:
            self._arp(body)
        elif kind == packets.ETHERTYPE_IPV4:
            self._packet(packets.parse_ipv4(body))
        elif kind == ipv6.ETHERTYPE:
            self._packet(ipv6.parse(body))

    def _arp(self, body: memoryview) -> None:
        asked = packets.parse_arp(body)
        if asked is None or asked.operation != packets.ARP_REQUEST:
            return
        if asked.target in self.addresses.ours:
            reply = packets.arp_reply(GATEWAY_MAC, asked.target, asked)
            self._deliver(packets.ETHERTYPE_ARP, reply)

    def _packet(self, packet: Packet | None) -> None:
        if packet is None:
            return
        if packet.protocol == packets.TCP:
            segment = packets.parse_tcp(packet.payload)
            if segment is not None:
                self._tcp(packet, segment)
        elif packet.protocol == packets.UDP:
            self._datagram(packet)
        elif packet.protocol == packets.ICMP and packet.target in self.addresses.ours:
            reply = packets.echo_reply(packet.payload)
            if reply is not None:
                self._send(packet.target, packet.source, packets.ICMP, reply)
        elif packet.protocol == ipv6.ICMP:
            self._icmp6(self._router.answer(packet))

    def _icmp6(self, message: ipv6.Icmp | None) -> None:
        """Send a message; from the first on the router says again and again that it is there."""
        if message is not None:
            self._send(message.source, message.target, ipv6.ICMP, message.body)
            if self._advertising.deadline is None:
                self._advertising.arm(self._clock.now() + ipv6.ADVERTISED_EVERY)

    def _advertise(self) -> None:
        self._icmp6(self._router.advertisement())

    def _deliver(self, kind: int, body: bytes, *, target: bytes | None = None) -> None:
        if self._adapter is not None:
            header = packets.ethernet(target or self._guest_mac, GATEWAY_MAC, kind)
            self._adapter.deliver(header + body)

    def _send(self, source: bytes, target: bytes, protocol: int, body: bytes) -> None:
        self._identifier = (self._identifier + 1) & 0xFFFF
        if len(target) == 4:
            kind, fragments = packets.ETHERTYPE_IPV4, packets.fragments
            mac = packets.BROADCAST_MAC if target == b"\xff" * 4 else None
        else:
            kind, fragments, mac = ipv6.ETHERTYPE, ipv6.fragments, ipv6.multicast_mac(target)
        for packet in fragments(source, target, protocol, body, self._identifier):
            self._deliver(kind, packet, target=mac)

    # -- UDP ---------------------------------------------------------------------------------

    def _datagram(self, packet: Packet) -> None:
        datagram = packets.parse_udp(packet.payload)
        if datagram is None:
            return
        guest = (packet.source, datagram.source_port)
        target, port, data = packet.target, datagram.target_port, bytes(datagram.payload)
        who = self.addresses
        if port == dhcp.SERVER_PORT and target in (b"\xff" * 4, who.gateway):
            self._dhcp(data)
        elif who.is_name_server(target):
            if port == dns.PORT:
                self._names.ask(guest, target, data)
        elif self._is_for_us(guest, (target, port), data):
            return
        elif who.reachable(target):
            self._udp.send(guest, (target, port), data)

    def _is_for_us(self, guest: Address, gateway: Address, data: bytes) -> bool:
        """Whether it asks for a file, or answers to one of our own ports."""
        if not self.addresses.is_gateway(gateway[0]):
            return False
        if self._tftp is not None and self._tftp.datagram(guest, gateway, data):
            return True
        ours = gateway[0] == self.addresses.gateway
        return ours and self._host_ports.answer(guest, gateway[1], data)

    def _send_udp(self, source: Address, target: Address, data: bytes) -> None:
        self._send(source[0], target[0], packets.UDP, packets.udp(source, target, data))

    def _dhcp(self, data: bytes) -> None:
        reply = dhcp.answer(data, self._lease)
        if reply is not None:
            target = (b"\xff" * 4, dhcp.CLIENT_PORT)
            self._send_udp((self.addresses.gateway, dhcp.SERVER_PORT), target, reply.message)

    # -- TCP ---------------------------------------------------------------------------------

    def _tcp(self, packet: Packet, segment: Segment) -> None:
        guest = (packet.source, segment.source_port)
        remote = (packet.target, segment.target_port)
        connection = self._connections.get((guest, remote))
        now = self._clock.now()
        if connection is not None:
            connection.segment(segment, now)
        elif segment.flags & packets.RST:
            return
        elif segment.flags & (packets.SYN | packets.ACK) == packets.SYN:
            self._open(guest, remote, segment)
            return
        else:
            self._reset(guest, remote, segment)
        self._schedule(now)

    def _reset(self, guest: Address, remote: Address, segment: Segment) -> None:
        """There is no such connection (RFC 9293 3.10.7.1)."""
        length = len(segment.payload) + bool(segment.flags & (packets.SYN | packets.FIN))
        if segment.flags & packets.ACK:
            fields = (segment.acknowledgment, 0, packets.RST)
        else:
            ack = (segment.sequence + length) & 0xFFFF_FFFF
            fields = (0, ack, packets.RST | packets.ACK)
        self._send_segment(guest, remote, *fields, 0)

    def _open(self, guest: Address, remote: Address, syn: Segment) -> None:
        """The guest wants to reach somebody."""
        place = self.addresses.to_host(remote)
        sock = self._socket(place[0]) if self._open_to(remote) else None
        if sock is None:
            self._reset(guest, remote, syn)
            return
        connection = self._new_connection(sock, guest, remote)
        try:
            sock.connect(place)
        except BlockingIOError:
            pass  # on its way
        except OSError:
            connection.answer(syn)
            connection.refused()
            return
        connection.answer(syn)

    def _open_to(self, remote: Address) -> bool:
        """Whether the guest may connect there."""
        if not self.addresses.is_name_server(remote[0]):
            return self.addresses.reachable(remote[0])
        return bool(self._name_server) and remote[1] == dns.PORT and not self._restrict

    @staticmethod
    def _socket(host: str) -> socket.socket | None:
        try:
            return socket.socket(family(host), socket.SOCK_STREAM)
        except OSError:  # the host has no IPv6
            return None

    def _new_connection(self, sock: socket.socket, guest: Address, remote: Address) -> Connection:
        if len(self._connections) >= MAX_CONNECTIONS:
            min(self._connections.values(), key=lambda one: one.last_active).abort()
        self._sequence = (self._sequence + SEQUENCE_STEP) & 0xFFFF_FFFF
        host = HostSocket(self._reactor, sock)
        connection = Connection(self, host, guest, remote, self._sequence)
        connection.last_active = self._clock.now()
        host.on_readable = lambda: self._readable(connection)
        host.on_writable = lambda: self._writable(connection, sock)
        self._connections[(guest, remote)] = connection
        return connection

    def _readable(self, connection: Connection) -> None:
        now = self._clock.now()
        connection.readable(now)
        self._schedule(now)

    def _writable(self, connection: Connection, sock: socket.socket) -> None:
        now = self._clock.now()
        if connection.waits_for_host:
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                connection.refused()
            else:
                connection.connected(now)
        else:
            connection.writable()
        self._schedule(now)

    # what a connection needs of its wire

    def largest_segment(self, connection: Connection) -> int:
        if self._adapter is None:
            return 0
        return self._adapter.largest_segment(ipv6=len(connection.guest[0]) == 16)

    @property
    def room(self) -> bool:
        return self._adapter is not None and self._adapter.room

    def send(
        self,
        connection: Connection,
        sequence: int,
        flags: int,
        payload: bytes = b"",
        options: bytes = b"",
    ) -> None:
        window = connection.window()
        acknowledgment = connection.acknowledgment if flags & packets.ACK else 0
        cut = connection.segment_size() if len(payload) > connection.segment_size() else 0
        self._send_segment(
            connection.guest,
            connection.remote,
            sequence,
            acknowledgment,
            flags,
            window,
            payload,
            options,
            cut,
        )

    def finished(self, connection: Connection) -> None:
        self._connections.pop((connection.guest, connection.remote), None)

    def _send_segment(
        self,
        guest: Address,
        remote: Address,
        sequence: int,
        acknowledgment: int,
        flags: int,
        window: int,
        payload: bytes = b"",
        options: bytes = b"",
        cut: int = 0,
    ) -> None:
        adapter = self._adapter
        if adapter is None:
            return
        header = packets.tcp_header(
            remote[1], guest[1], sequence, acknowledgment, flags, window, options
        )
        length = len(header) + len(payload)
        total = packets.pseudo_sum(remote[0], guest[0], packets.TCP, length)
        if adapter.completes_checksums:
            value = total
        else:
            value = ~packets.checksum(header + payload, total) & 0xFFFF
        header = header[:16] + value.to_bytes(2) + header[18:]
        frame = self._headers(remote[0], guest[0], length)
        adapter.deliver(frame + header + payload, partial=adapter.completes_checksums, segment=cut)

    def _headers(self, source: bytes, target: bytes, length: int) -> bytes:
        """What stands before a TCP header."""
        if len(target) == 16:
            kind, header = ipv6.ETHERTYPE, ipv6.header(source, target, packets.TCP, length)
        else:
            self._identifier = (self._identifier + 1) & 0xFFFF
            kind, header = (
                packets.ETHERTYPE_IPV4,
                packets.ipv4_header(
                    source, target, packets.TCP, length, identifier=self._identifier, part=0x4000
                ),
            )
        return packets.ethernet(self._guest_mac, GATEWAY_MAC, kind) + header

    def room_again(self) -> None:
        """The adapter takes frames again."""
        now = self._clock.now()
        for connection in list(self._connections.values()):
            connection.output(now)
        self._schedule(now)

    # -- time --------------------------------------------------------------------------------

    def _schedule(self, now: int) -> None:
        if self._timer.deadline is None and self._connections:
            self._timer.arm(now + TICK)

    def _tick(self) -> None:
        now = self._clock.now()
        for connection in list(self._connections.values()):
            connection.timer(now)
        if any(connection.deadline is not None for connection in self._connections.values()):
            self._timer.arm(now + TICK)

    # -- from the host to the guest ----------------------------------------------------------

    @property
    def forwards(self) -> list[Forward]:
        """Ports of the host that lead to the guest."""
        return self._host_ports.forwards

    def describe(self) -> list[str]:
        """What the network is, a line for it and one for each forward."""
        return ["net0: user", *(f"  {forward}" for forward in self.forwards)]

    def add_forward(self, forward: Forward) -> None:
        """Lead another port of the host to the guest."""
        self._host_ports.add(forward)

    def remove_forward(self, protocol: str, host: str, host_port: int) -> None:
        """Take a port back; it can be used again when this returns.  The lock is taken here."""
        with self._lock:
            self._host_ports.remove(protocol, host, host_port)
            self._reactor.settle()

    def _accept(self, listener: socket.socket, guest: Address) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        now = self._clock.now()
        for _ in range(PORTS_FOR_FORWARDS):
            self._forward_port = (self._forward_port + 1) % PORTS_FOR_FORWARDS
            remote = (self.addresses.gateway, FIRST_FORWARD_PORT + self._forward_port)
            if (guest, remote) not in self._connections:
                self._new_connection(sock, guest, remote).call(now)
                self._schedule(now)
                return
        sock.close()

    # -- life --------------------------------------------------------------------------------

    def reset(self) -> None:
        """The guest's card was reset: whoever was connected is no more."""
        adapter, self._adapter = self._adapter, None
        for connection in list(self._connections.values()):
            connection.abort()
        self._udp.close()
        self._names.clear()
        if self._tftp is not None:
            self._tftp.reset()
        self._adapter = adapter

    def close(self) -> None:
        """Close every socket; called without the lock."""
        with self._lock:
            self.reset()
            self._adapter = None
            self._timer.cancel()
            self._advertising.cancel()
        self._reactor.close()
