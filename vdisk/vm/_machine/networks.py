"""What a machine's network card is connected to, in words: ``user[,…]`` or ``tap[,…]``.

The words are those of QEMU's ``-nic`` and ``-netdev`` where it has them.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from vdisk.errors import InvalidRequestError, UnsupportedFeatureError
from vdisk.options import as_bool, as_size, split_commas
from vdisk.vm.devices.virtio_net import DEFAULT_MAC
from vdisk.vm.net.dhcp import LONGEST_BOOTFILE

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from vdisk.vm.clock import Clock
    from vdisk.vm.net.tap import TapNetwork
    from vdisk.vm.net.user import UserNetwork

NETWORKS: Final = ("none", "user", "tap")
MODELS: Final = ("virtio", "virtio-net-pci")
_MAC: Final = re.compile(r"[0-9a-f]{2}([:-][0-9a-f]{2}){5}", re.IGNORECASE)


@dataclass(slots=True, kw_only=True)
class NetworkSpec:
    """The machine's network card and what is behind it.

    ``kind``: ``none``, ``user`` or ``tap``.  ``mac``: the card's address, six bytes.
    User: ``forwards``: ``tcp:[HOST]:PORT-[GUEST]:PORT``; ``restrict``: the guest reaches nobody
    else; ``tftp``: a folder whose files it may fetch; ``bootfile``: what it is told to boot.
    Tap: ``ifname``: the interface, made if there is none; empty: the kernel names a new one.
    ``fd``: of a TAP that is open already, instead; a duplicate is used.  ``vnet_hdr`` False: no
    offloads; None: where the TAP can.
    """

    kind: str = "none"
    mac: bytes = DEFAULT_MAC
    forwards: list[str] = field(default_factory=list)
    restrict: bool = False
    tftp: str | None = None
    bootfile: str = ""
    ifname: str = ""
    fd: int | None = None
    vnet_hdr: bool | None = None

    def __post_init__(self) -> None:
        if self.kind not in NETWORKS:
            raise InvalidRequestError(f"network {self.kind!r}: one of {', '.join(NETWORKS)}")
        if self.forwards and self.kind != "user":
            raise InvalidRequestError("forwarded ports need a user network")
        if len(self.bootfile.encode()) > LONGEST_BOOTFILE:
            raise InvalidRequestError(f"bootfile= has {LONGEST_BOOTFILE} bytes at most")
        if self.fd is not None and self.ifname:
            raise InvalidRequestError("a tap is named by ifname= or by fd=, not by both")


def parse_mac(text: str) -> bytes:
    """``52:54:00:12:34:56``; raises :class:`InvalidRequestError`, also for a group's address."""
    if not _MAC.fullmatch(text):
        raise InvalidRequestError(f"mac={text}: an address such as 52:54:00:12:34:56")
    mac = bytes.fromhex(text.replace(":", "").replace("-", ""))
    if mac[0] & 1:
        raise InvalidRequestError(f"mac={text}: a card cannot have a multicast address")
    return mac


def network_spec(network: str | NetworkSpec) -> NetworkSpec:
    """What ``Machine(network=…)`` means."""
    return parse_network(network) if isinstance(network, str) else network


def parse_network(text: str) -> NetworkSpec:
    """``none``, ``user,hostfwd=…`` or ``tap,ifname=…``.

    Raises :class:`InvalidRequestError` for a word that does not exist or has no such value.
    """
    kind, *words = split_commas(text)
    spec = NetworkSpec(kind=kind)
    read: dict[str, Callable[[NetworkSpec, str], None]] = {"mac": _read_mac, "model": _read_model}
    read |= _WORDS.get(kind, {})
    for word in words:
        name, equals, value = word.partition("=")
        if name not in read or kind == "none":
            raise InvalidRequestError(f"network {kind} has no option {name!r}")
        if not equals:
            raise InvalidRequestError(f"network {kind}: {name}=… needs a value")
        read[name](spec, value)
    return replace(spec)  # checked as a whole


def _read_mac(spec: NetworkSpec, value: str) -> None:
    spec.mac = parse_mac(value)


def _read_model(_spec: NetworkSpec, value: str) -> None:
    if value not in MODELS:
        raise InvalidRequestError(f"model={value}: a network card is {' or '.join(MODELS)} here")


def _read_forward(spec: NetworkSpec, value: str) -> None:
    spec.forwards.append(value)


def _read_restrict(spec: NetworkSpec, value: str) -> None:
    spec.restrict = as_bool(value, "restrict")


def _read_tftp(spec: NetworkSpec, value: str) -> None:
    spec.tftp = value


def _read_bootfile(spec: NetworkSpec, value: str) -> None:
    spec.bootfile = value


def _read_ifname(spec: NetworkSpec, value: str) -> None:
    spec.ifname = value


def _read_fd(spec: NetworkSpec, value: str) -> None:
    spec.fd = as_size(value, "fd")


def _read_vnet_hdr(spec: NetworkSpec, value: str) -> None:
    spec.vnet_hdr = as_bool(value, "vnet_hdr")


def _read_vhost(_spec: NetworkSpec, value: str) -> None:
    if as_bool(value, "vhost"):
        raise InvalidRequestError("vhost=on: frames go through this process here")


def _read_script(_spec: NetworkSpec, value: str) -> None:
    if value != "no":
        raise InvalidRequestError(f"script {value!r}: none is run here, the host sets its TAP up")


_WORDS: Final[dict[str, dict[str, Callable[[NetworkSpec, str], None]]]] = {
    "user": {
        "hostfwd": _read_forward,
        "restrict": _read_restrict,
        "tftp": _read_tftp,
        "bootfile": _read_bootfile,
    },
    "tap": {
        "ifname": _read_ifname,
        "fd": _read_fd,
        "vnet_hdr": _read_vnet_hdr,
        "vhost": _read_vhost,
        "script": _read_script,
        "downscript": _read_script,
    },
}


def make_network(
    spec: NetworkSpec, clock: Clock, lock: threading.RLock, host_name: str
) -> UserNetwork | TapNetwork:
    """What the card is plugged into; raises :class:`VdiskError`, and then nothing stays open."""
    if spec.kind == "tap":
        return _make_tap(spec, lock)
    from vdisk.vm.net.forwards import Forward
    from vdisk.vm.net.user import UserNetwork

    forwards = [Forward.parse(text) for text in spec.forwards]
    return UserNetwork(
        clock, lock, forwards=forwards, host_name=host_name,
        restrict=spec.restrict, tftp=spec.tftp, bootfile=spec.bootfile,
    )  # fmt: skip


def _make_tap(spec: NetworkSpec, lock: threading.RLock) -> TapNetwork:
    if not sys.platform.startswith("linux"):
        raise UnsupportedFeatureError("a tap is Linux's: this host has none")
    from vdisk.vm.net.tap import TapNetwork

    if spec.fd is not None:
        return TapNetwork.adopt(spec.fd, lock, vnet_hdr=spec.vnet_hdr)
    return TapNetwork.create(spec.ifname, lock, vnet_hdr=spec.vnet_hdr)
