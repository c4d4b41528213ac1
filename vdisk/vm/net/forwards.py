"""Options of a user-mode network: ports of the host that lead to the guest, and its addresses."""

from __future__ import annotations

import ipaddress
from typing import Final, NamedTuple

from vdisk.errors import InvalidRequestError

LOOPBACK: Final = "127.0.0.1"


class Forward(NamedTuple):
    """A port of the host that leads to one of the guest.  ``guest`` None: where DHCP put it."""

    protocol: str
    host: str
    host_port: int
    guest: str | None
    guest_port: int

    @classmethod
    def parse(cls, text: str) -> Forward:
        """``[tcp|udp]:[HOST]:PORT-[GUEST]:PORT``, as QEMU writes it."""
        ours, _, theirs = text.partition("-")
        place = _place(ours)
        guest, _, guest_port = theirs.rpartition(":")
        if place is None or not (guest_port.isdecimal() and 0 < int(guest_port) < 65536):
            raise InvalidRequestError(
                f"forward {text!r}: tcp or udp:[host]:port-[guest]:port, such as tcp::2222-:22"
            )
        return cls(*place, guest or None, int(guest_port))

    def __str__(self) -> str:
        ours = f"{self.protocol} {self.host}:{self.host_port}"
        return f"{ours} -> {self.guest or 'the guest'}:{self.guest_port}"


def parse_place(text: str) -> tuple[str, str, int]:
    """``[tcp|udp]:[HOST]:PORT``: the protocol, host and port of a forward."""
    place = _place(text)
    if place is None:
        raise InvalidRequestError(f"{text!r}: tcp or udp:[host]:port, such as tcp::2222")
    return place


def _place(text: str) -> tuple[str, str, int] | None:
    protocol, colon, rest = text.partition(":")
    host, _, port = rest.rpartition(":")
    if protocol not in ("tcp", "udp", "") or not colon or not port.isdecimal():
        return None
    return (protocol or "tcp", host or LOOPBACK, int(port)) if int(port) < 65536 else None


def parse_network(text: str) -> ipaddress.IPv4Network:
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise InvalidRequestError(f"network {text!r}: {error}") from error
    if not 8 <= network.prefixlen <= 27:
        raise InvalidRequestError(f"network {text!r}: a prefix of 8 to 27 bits")
    return network


def parse_address(text: str) -> bytes:
    try:
        return ipaddress.IPv4Address(text).packed
    except ValueError as error:
        raise InvalidRequestError(f"guest address {text!r}: {error}") from error
