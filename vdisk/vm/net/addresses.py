"""Who is who in a guest's network, and what that is on the host.

Addresses are bytes, four or sixteen; a place is an address and a port.  On the host a place is
what sockets take: text and a port.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from vdisk.vm.net.forwards import LOOPBACK, parse_network

if TYPE_CHECKING:
    from vdisk.vm.net.udp import Address

LOOPBACK6: Final = "::1"
PREFIX: Final = socket.inet_pton(socket.AF_INET6, "fec0::")
"""Of 64 bits, site-local as QEMU's: who has both prefers IPv4 to reach the Internet (RFC 6724)."""
LINK_LOCAL: Final = socket.inet_pton(socket.AF_INET6, "fe80::")
MAPPED_IPV4: Final = bytes(10) + b"\xff\xff"


def family(host: str) -> socket.AddressFamily:
    """What kind of socket goes to ``host``, an address as text."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class Addresses:
    """``network``: of IPv4.  ``restrict``: nobody but the gateway's own services is reached.

    ``server``: the name server to ask; None: the host's resolver answers.
    """

    def __init__(self, network: str, *, restrict: bool, server: str | None) -> None:
        base = parse_network(network)
        self.mask = base.netmask.packed
        self.gateway, self.name_server, self.guest = (base[number].packed for number in (2, 3, 15))
        self.prefix = PREFIX
        self.gateway6, self.name_server6 = (PREFIX[:15] + bytes([number]) for number in (2, 3))
        self.link_local = LINK_LOCAL[:15] + b"\x02"
        self._gateways = {self.gateway, self.gateway6, self.link_local}
        self._name_servers = {self.name_server, self.name_server6, LINK_LOCAL[:15] + b"\x03"}
        self.ours = self._gateways | self._name_servers
        self._network = base
        self._restrict = restrict
        self._server = server

    def is_name_server(self, address: bytes) -> bool:
        return address in self._name_servers

    def is_gateway(self, address: bytes) -> bool:
        return address in self._gateways

    def reachable(self, address: bytes) -> bool:
        """Whether sockets may go there: the host itself, or outside of this network."""
        if self._restrict:
            return False
        if address in self._gateways:
            return True
        if len(address) == 4:
            special = address[0] >= 224 or address[0] == 0
            return not special and int.from_bytes(address) not in self._inside
        special = address[0] == 0xFF or address[:8] in (PREFIX[:8], LINK_LOCAL[:8])
        return not special and address[:12] not in (bytes(12), MAPPED_IPV4)

    @property
    def _inside(self) -> range:
        first = int(self._network.network_address)
        return range(first, first + self._network.num_addresses)

    def to_host(self, place: Address) -> tuple[str, int]:
        """Where a socket of the host has to go."""
        address, port = place
        if address in self._name_servers and self._server:
            return self._server, port
        if len(address) == 4:
            return LOOPBACK if address in self._gateways else socket.inet_ntoa(address), port
        host = socket.inet_ntop(socket.AF_INET6, address)
        return LOOPBACK6 if address in self._gateways else host, port

    def to_guest(self, place: tuple[str, int]) -> Address:
        """How a guest sees who sent from there."""
        host, port = place
        if family(host) == socket.AF_INET:
            address = socket.inet_aton(host)
            return (self.gateway if address[0] == 127 else address), port
        address = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        return (self.gateway6 if host == LOOPBACK6 else address), port
