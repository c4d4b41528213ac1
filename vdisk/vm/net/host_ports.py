"""Ports of the host that lead to ports of the guest, added and taken away while it runs."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import InvalidRequestError, NotFoundError, from_os_error
from vdisk.vm.net.forwards import parse_address
from vdisk.vm.net.udp import UdpForward

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.net.forwards import Forward
    from vdisk.vm.net.reactor import Reactor
    from vdisk.vm.net.udp import Address, Deliver

MOST_PORTS = 256
"""Sockets that listen: far more than anybody forwards by hand."""


class _Port(NamedTuple):
    """``forward``: with the port that it has, where that was left to the host."""

    forward: Forward
    sock: socket.socket
    udp: UdpForward | None


class HostPorts:
    """``guest``: the address that DHCP gives.  ``accept(listener, guest)``: somebody calls.

    Everything is called with the bus lock held.
    """

    def __init__(
        self,
        reactor: Reactor,
        guest: bytes,
        gateway: bytes,
        accept: Callable[[socket.socket, Address], None],
        deliver: Deliver,
    ) -> None:
        self._reactor = reactor
        self._guest, self._gateway = guest, gateway
        self._accept, self._deliver = accept, deliver
        self._ports: list[_Port] = []

    @property
    def forwards(self) -> list[Forward]:
        """In the order in which they were added."""
        return [port.forward for port in self._ports]

    def add(self, forward: Forward) -> None:
        """Listen, and lead whoever comes to the guest."""
        if len(self._ports) == MOST_PORTS:
            raise InvalidRequestError(f"{MOST_PORTS} ports lead to the guest already")
        address = self._guest if forward.guest is None else parse_address(forward.guest)
        guest = (address, forward.guest_port)
        place, udp = (forward.host, forward.host_port), None
        try:
            if forward.protocol == "udp":
                udp = UdpForward(self._reactor, place, guest, self._gateway, self._deliver)
                sock = udp.sock
            else:
                sock = socket.create_server(place, backlog=16)
        except OSError as error:
            raise from_os_error(
                error, path=f"{place[0]}:{place[1]}", operation="listen for the guest"
            ) from error
        if udp is None:
            sock.setblocking(False)
            self._reactor.watch(sock, lambda: self._accept(sock, guest))
        known = forward._replace(host_port=int(sock.getsockname()[1]))
        self._ports.append(_Port(known, sock, udp))

    def remove(self, protocol: str, host: str, host_port: int) -> None:
        """Listen there no more; connections that were made stay."""
        for port in self._ports:
            if port.forward[:3] == (protocol, host, host_port):
                self._ports.remove(port)
                self._reactor.close_socket(port.sock)
                return
        raise NotFoundError(f"no port of the guest is forwarded at {protocol}:{host}:{host_port}")

    def answer(self, guest: Address, port: int, data: bytes) -> bool:
        """A datagram of the guest to the gateway: is it an answer to one of ours?"""
        return any(one.udp is not None and one.udp.answer(guest, port, data) for one in self._ports)
