"""Datagrams between a guest and the host's sockets: one for each port that the guest sends from.

An IPv6 guest that asks the host's IPv4 name server has two of them: one for each family.

A flow is forgotten when it was quiet for a minute, or when another needs its place.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from vdisk.vm.net.addresses import family

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.net.reactor import Reactor

    Address = tuple[bytes, int]
    Deliver = Callable[[Address, Address, bytes], None]

MAX_FLOWS: Final = 256
IDLE: Final = 60_000_000_000  # nanoseconds
LARGEST: Final = 65507
DATAGRAMS_AT_ONCE: Final = 16
"""Taken from one socket before the others have their turn."""


class Flow:
    """One socket of the host, used for one port of the guest."""

    def __init__(self, kind: socket.AddressFamily, guest: Address) -> None:
        self.sock = socket.socket(kind, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.guest = guest
        self.last_active = 0
        self.shown: dict[tuple[str, int], Address] = {}
        """Where the guest sent to, by where that was on the host: answers come from there."""


class UdpFlows:
    """``to_host`` and ``to_guest`` translate addresses; ``deliver(source, guest, data)``."""

    def __init__(
        self,
        reactor: Reactor,
        to_host: Callable[[Address], tuple[str, int]],
        to_guest: Callable[[tuple[str, int]], Address],
        deliver: Deliver,
        now: Callable[[], int],
    ) -> None:
        self._reactor = reactor
        self._to_host = to_host
        self._to_guest = to_guest
        self._deliver = deliver
        self._now = now
        self._flows: dict[tuple[Address, socket.AddressFamily], Flow] = {}

    def send(self, guest: Address, target: Address, data: bytes) -> None:
        """A datagram of the guest."""
        place = self._to_host(target)
        try:
            flow = self._flows.get((guest, family(place[0]))) or self._open(guest, place[0])
        except OSError:  # the host has no IPv6
            return
        flow.last_active = self._now()
        if len(flow.shown) >= MAX_FLOWS and place not in flow.shown:
            flow.shown.pop(next(iter(flow.shown)))
        flow.shown[place] = target
        with suppress(OSError):  # a datagram may be lost
            flow.sock.sendto(data, place)

    def _open(self, guest: Address, host: str) -> Flow:
        now = self._now()
        for old in [flow for flow in self._flows.values() if now - flow.last_active > IDLE]:
            self._close(old)
        if len(self._flows) >= MAX_FLOWS:
            self._close(min(self._flows.values(), key=lambda flow: flow.last_active))
        flow = Flow(family(host), guest)
        self._flows[guest, flow.sock.family] = flow
        self._reactor.watch(flow.sock, lambda: self._receive(flow))
        return flow

    def _close(self, flow: Flow) -> None:
        del self._flows[flow.guest, flow.sock.family]
        self._reactor.close_socket(flow.sock)

    def _receive(self, flow: Flow) -> None:
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                data, place = flow.sock.recvfrom(LARGEST)
            except OSError:  # none, or an error report about one that was sent
                return
            flow.last_active = self._now()
            source = flow.shown.get(place[:2]) or self._to_guest(place[:2])
            if len(source[0]) == len(flow.guest[0]):
                self._deliver(source, flow.guest, data)

    def close(self) -> None:
        """Forget all flows."""
        for flow in list(self._flows.values()):
            self._close(flow)


class UdpForward:
    """Datagrams that come to a port of the host, for a port of the guest.

    Each sender is shown to the guest as a port of the gateway, to which it answers.
    """

    def __init__(
        self,
        reactor: Reactor,
        place: tuple[str, int],
        guest: Address,
        gateway: bytes,
        deliver: Deliver,
    ) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(place)
        self.sock.setblocking(False)
        self._guest = guest
        self._gateway = gateway
        self._deliver = deliver
        self._senders: dict[tuple[str, int], int] = {}
        self._ports: dict[int, tuple[str, int]] = {}
        self._next_port = FIRST_PORT
        reactor.watch(self.sock, self._receive)

    def _receive(self) -> None:
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                data, sender = self.sock.recvfrom(LARGEST)
            except OSError:
                return
            port = self._senders.get(sender) or self._shown(sender)
            self._deliver((self._gateway, port), self._guest, data)

    def _shown(self, sender: tuple[str, int]) -> int:
        """A port for a new sender; the oldest one's when there are many."""
        port = self._next_port
        self._next_port = FIRST_PORT + (port + 1 - FIRST_PORT) % MAX_FLOWS
        former = self._ports.get(port)
        if former is not None:
            del self._senders[former]
        self._ports[port], self._senders[sender] = sender, port
        return port

    def answer(self, guest: Address, port: int, data: bytes) -> bool:
        """A datagram of the guest to the gateway: is it an answer to one of ours?"""
        sender = self._ports.get(port)
        if guest[1] != self._guest[1] or sender is None:
            return False
        with suppress(OSError):
            self.sock.sendto(data, sender)
        return True


FIRST_PORT: Final = 61000
