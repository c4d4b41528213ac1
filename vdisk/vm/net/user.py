"""The gateway of a guest's own small network, which needs no right of the host.

::

    10.0.2.0/24     .2 gateway, DHCP server, and the host's own services
                    .3 name server
                    .15 the guest (what it is told by DHCP)

A connection or datagram to anywhere else is made by a socket of this process; to .2 it goes to the
host's loopback.  The other way, ports of the host can be led to ports of the guest.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from vdisk.vm.net import dhcp, dns, packets
from vdisk.vm.net.forwards import LOOPBACK, parse_network
from vdisk.vm.net.host_ports import HostPorts
from vdisk.vm.net.reactor import HostSocket, Reactor
from vdisk.vm.net.tcp import Connection
from vdisk.vm.net.udp import UdpFlows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vdisk.vm.clock import Clock
    from vdisk.vm.net.forwards import Forward
    from vdisk.vm.net.packets import Ipv4, Segment
    from vdisk.vm.net.udp import Address

GATEWAY_MAC: Final = b"\x52\x55\x0a\x00\x02\x02"
MAX_CONNECTIONS: Final = 256
"""Connections at once; the one that was quiet longest makes room for another."""
MAX_NAMES: Final = 32
"""Questions about names that wait for the host's resolver."""
TICK: Final = 100_000_000
FIRST_FORWARD_PORT: Final = 62000
PORTS_FOR_FORWARDS: Final = 3000
SEQUENCE_STEP: Final = 0x0100_0193  # spreads the first sequence numbers of connections


class Adapter(Protocol):
    """The guest's network card.

    ``largest_segment``: bytes of payload in a TCP segment that it takes, and cuts itself;
    ``completes_checksums``: TCP checksums may be left to it.
    """

    mac: bytes

    @property
    def largest_segment(self) -> int: ...
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
    name server to ask (None: the host's; "": answer by the host's resolver).  ``clock`` and
    ``lock`` are the machine's; everything but :meth:`close` is called with the lock held.
    """

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
    ) -> None:
        self._clock = clock
        self._lock = lock
        self._restrict = restrict
        self._name_server = dns.host_server() if server is None else server or None
        base = parse_network(network)
        self._mask = base.netmask.packed
        self.gateway, self.name_server, self.guest = (base[number].packed for number in (2, 3, 15))
        self._lease = dhcp.Lease(self.guest, self._mask, self.gateway, self.name_server, host_name)
        self._adapter: Adapter | None = None
        self._guest_mac = b""
        self._reactor = Reactor(lock)
        self._connections: dict[tuple[Address, Address], Connection] = {}
        self._sequence = 0
        self._identifier = 0
        self._timer = clock.timer(self._tick)
        self._udp = UdpFlows(
            self._reactor, self._to_host, self._to_guest, self._send_udp, clock.now
        )
        self._names: deque[tuple[Address, dns.Question]] = deque()
        self._resolver: threading.Thread | None = None
        self._forward_port = 0
        self._host_ports = HostPorts(
            self._reactor, self.guest, self.gateway, self._accept, self._send_udp
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

    # -- from the guest ----------------------------------------------------------------------

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
            packet = packets.parse_ipv4(body)
            if packet is not None:
                self._ipv4(packet)

    def _arp(self, body: memoryview) -> None:
        asked = packets.parse_arp(body)
        if asked is None or asked.operation != packets.ARP_REQUEST:
            return
        if asked.target in (self.gateway, self.name_server):
            reply = packets.arp_reply(GATEWAY_MAC, asked.target, asked)
            self._deliver(packets.ETHERTYPE_ARP, reply)

    def _ipv4(self, packet: Ipv4) -> None:
        if packet.protocol == packets.TCP:
            segment = packets.parse_tcp(packet.payload)
            if segment is not None:
                self._tcp(packet, segment)
        elif packet.protocol == packets.UDP:
            self._datagram(packet)
        elif packet.protocol == packets.ICMP and packet.target in (self.gateway, self.name_server):
            reply = packets.echo_reply(packet.payload)
            if reply is not None:
                self._send_ipv4(packet.target, packet.source, packets.ICMP, reply)

    def _deliver(self, kind: int, body: bytes, *, target: bytes | None = None) -> None:
        if self._adapter is not None:
            header = packets.ethernet(target or self._guest_mac, GATEWAY_MAC, kind)
            self._adapter.deliver(header + body)

    def _send_ipv4(self, source: bytes, target: bytes, protocol: int, body: bytes) -> None:
        self._identifier = (self._identifier + 1) & 0xFFFF
        everybody = target == b"\xff" * 4
        for packet in packets.fragments(source, target, protocol, body, self._identifier):
            mac = packets.BROADCAST_MAC if everybody else None
            self._deliver(packets.ETHERTYPE_IPV4, packet, target=mac)

    # -- addresses ---------------------------------------------------------------------------

    def _inside(self, address: bytes) -> bool:
        mine = int.from_bytes(self.gateway) & int.from_bytes(self._mask)
        return int.from_bytes(address) & int.from_bytes(self._mask) == mine

    def _reachable(self, address: bytes) -> bool:
        """Whether sockets may go there: the host itself, or outside of this network."""
        if address == self.gateway:
            return not self._restrict
        special = address[0] >= 224 or address[0] == 0
        return not (self._restrict or special or self._inside(address))

    def _to_host(self, place: Address) -> tuple[str, int]:
        address, port = place
        if address == self.name_server and self._name_server:
            return self._name_server, port
        return LOOPBACK if address == self.gateway else socket.inet_ntoa(address), port

    def _to_guest(self, place: tuple[str, int]) -> Address:
        address = socket.inet_aton(place[0])
        return (self.gateway if address[0] == 127 else address), place[1]

    # -- UDP ---------------------------------------------------------------------------------

    def _datagram(self, packet: Ipv4) -> None:
        datagram = packets.parse_udp(packet.payload)
        if datagram is None:
            return
        guest = (packet.source, datagram.source_port)
        target, port, data = packet.target, datagram.target_port, bytes(datagram.payload)
        if port == dhcp.SERVER_PORT and target in (b"\xff" * 4, self.gateway):
            self._dhcp(data)
        elif target == self.name_server:
            if port == dns.PORT:
                self._name(guest, data)
        elif target == self.gateway and self._host_ports.answer(guest, port, data):
            return
        elif self._reachable(target):
            self._udp.send(guest, (target, port), data)

    def _send_udp(self, source: Address, target: Address, data: bytes) -> None:
        self._send_ipv4(source[0], target[0], packets.UDP, packets.udp(source, target, data))

    def _dhcp(self, data: bytes) -> None:
        reply = dhcp.answer(data, self._lease)
        if reply is not None:
            target = (b"\xff" * 4, dhcp.CLIENT_PORT)
            self._send_udp((self.gateway, dhcp.SERVER_PORT), target, reply.message)

    def _name(self, guest: Address, query: bytes) -> None:
        """Ask the host's name server; where it has none, its resolver."""
        if self._name_server and not self._restrict:
            self._udp.send(guest, (self.name_server, dns.PORT), query)
            return
        question = dns.parse(query)
        if question is None or len(self._names) >= MAX_NAMES:
            return
        if self._restrict:
            answer = dns.response(question, dns.NAME_ERROR, [])
            self._send_udp((self.name_server, dns.PORT), guest, answer)
            return
        self._names.append((guest, question))
        if self._resolver is None:
            self._resolver = threading.Thread(target=self._resolve, name="vdisk-dns", daemon=True)
            self._resolver.start()

    def _resolve(self) -> None:
        """In a thread of its own: answer what waits, then end."""
        while True:
            with self._lock:
                if not self._names:
                    self._resolver = None
                    return
                guest, question = self._names.popleft()
            answer = dns.resolve(question)
            with self._lock:
                self._send_udp((self.name_server, dns.PORT), guest, answer)

    # -- TCP ---------------------------------------------------------------------------------

    def _tcp(self, packet: Ipv4, segment: Segment) -> None:
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
        asks_names = remote[0] == self.name_server and self._name_server and remote[1] == dns.PORT
        if not (self._reachable(remote[0]) or (asks_names and not self._restrict)):
            self._reset(guest, remote, syn)
            return
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection = self._new_connection(sock, guest, remote)
        try:
            sock.connect(self._to_host(remote))
        except BlockingIOError:
            pass  # on its way
        except OSError:
            connection.answer(syn)
            connection.refused()
            return
        connection.answer(syn)

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

    @property
    def largest_segment(self) -> int:
        return 0 if self._adapter is None else self._adapter.largest_segment

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
        frame = packets.ethernet(self._guest_mac, GATEWAY_MAC, packets.ETHERTYPE_IPV4)
        self._identifier = (self._identifier + 1) & 0xFFFF
        frame += packets.ipv4_header(
            remote[0], guest[0], packets.TCP, length, identifier=self._identifier, part=0x4000
        )
        adapter.deliver(frame + header + payload, partial=adapter.completes_checksums, segment=cut)

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
            remote = (self.gateway, FIRST_FORWARD_PORT + self._forward_port)
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
        self._adapter = adapter

    def close(self) -> None:
        """Close every socket; called without the lock."""
        with self._lock:
            self.reset()
            self._adapter = None
            self._timer.cancel()
        self._reactor.close()
