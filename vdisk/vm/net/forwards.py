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
        """``tcp:[HOST]:PORT-[GUEST]:PORT``, as QEMU writes it."""
        protocol, _, rest = text.partition(":")
        ours, _, theirs = rest.partition("-")
        host, _, host_port = ours.rpartition(":")
        guest, _, guest_port = theirs.rpartition(":")
        try:
            ports = int(host_port), int(guest_port)
        except ValueError:
            ports = (-1, -1)
        known = protocol in ("tcp", "udp") and 0 <= ports[0] < 65536 and 0 < ports[1] < 65536
        if not known:
            raise InvalidRequestError(
                f"forward {text!r}: tcp or udp:[host]:port-[guest]:port, such as tcp::2222-:22"
            )
        return cls(protocol, host or LOOPBACK, ports[0], guest or None, ports[1])


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
