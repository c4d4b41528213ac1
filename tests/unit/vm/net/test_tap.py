"""A TAP behind a card, played by a pair of sockets that keep frames apart."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.tools.virtio_pci_driver import PciDriver
from vdisk.cli._vm._devices import parse_devices
from vdisk.errors import InvalidRequestError
from vdisk.vm._machine.networks import NetworkSpec, network_spec, parse_network
from vdisk.vm.devices.virtio_net import (
    LARGEST_FRAME,
    OFFLOADS,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_MRG_RXBUF,
    VirtioNet,
)
from vdisk.vm.net import tun
from vdisk.vm.net.tap import TapNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RECEIVE, TRANSMIT = 0, 1
SECONDS = 30
NEEDS_CSUM = struct.pack("<BBHHHH", 1, 1, 54, 1460, 34, 16)


class FakeTap(tun.Tap):
    """What would be asked of the kernel is written down."""

    asked: list[tuple[int, int | bytes]]
    gone = False

    def _set(self, request: int, value: int | bytes) -> None:
        self.__dict__.setdefault("asked", []).append((request, value))
        if self.gone:
            raise tun.TapGoneError("deleted")


class Rig:
    """A card, its driver, and the host's end of the cable."""

    def __init__(self, *, vnet_hdr: bool, legacy: bool = False, without: int = 0) -> None:
        self.host, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.host.settimeout(SECONDS)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
        self.tap = FakeTap(ours.detach(), "tap9", vnet_hdr=vnet_hdr, largest=LARGEST_FRAME)
        self.lock = threading.RLock()
        self.network = TapNetwork(self.tap, self.lock)
        with self.lock:
            self.driver = PciDriver(
                lambda board: VirtioNet(self.network, board.memory, board.clock), legacy=legacy
            )
            self.driver.wake(without=without)

    @property
    def card(self) -> VirtioNet:
        assert isinstance(self.driver.device, VirtioNet)
        return self.driver.device

    def until(self, there: Callable[[], bool]) -> None:
        """Wait for what the reactor's thread does."""
        deadline = time.monotonic() + SECONDS
        while True:
            with self.lock:
                if there():
                    return
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def send(self, frame: bytes, header: bytes = bytes(12)) -> None:
        """The guest sends a frame."""
        with self.lock:
            self.driver.add([header + frame], [], queue=TRANSMIT)
            self.driver.kick(TRANSMIT, always=True)


@pytest.fixture
def make() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def rig(**options: bool | int) -> Rig:
        made.append(Rig(**options))  # type: ignore[arg-type]
        return made[-1]

    yield rig
    for one in made:
        one.network.close()
        one.host.close()


def test_frames_pass_both_ways_with_their_headers(make: Callable[..., Rig]) -> None:
    rig = make(vnet_hdr=True)
    assert rig.card.offered & OFFLOADS == OFFLOADS
    rig.send(b"frame", NEEDS_CSUM + b"\0\0")
    assert rig.host.recv(100) == NEEDS_CSUM + b"\0\0" + b"frame"
    with rig.lock:
        _, places = rig.driver.add([], [2000])
        rig.driver.kick(RECEIVE)
    rig.host.send(NEEDS_CSUM + b"\xff\xff" + b"answer")
    rig.until(lambda: bool(used := rig.driver.queues[RECEIVE].used()) and used[0].written == 18)
    assert rig.driver.memory.read(places[0][0], 18) == NEEDS_CSUM + b"\1\0answer"


def test_a_tap_without_headers_offers_no_offloads(make: Callable[..., Rig]) -> None:
    rig = make(vnet_hdr=False)
    assert not rig.card.offered & OFFLOADS
    rig.send(b"frame")
    assert rig.host.recv(100) == b"frame"
    with rig.lock:
        _, places = rig.driver.add([], [2000])
        rig.driver.kick(RECEIVE)
    rig.host.send(b"answer")
    rig.until(lambda: bool(rig.driver.queues[RECEIVE].used()))
    assert rig.driver.memory.read(places[0][0], 18) == bytes(10) + b"\1\0answer"


@pytest.mark.parametrize(
    ("mode", "offloads", "length"),
    [
        ({}, tun.TUN_F_CSUM | tun.TUN_F_TSO4 | tun.TUN_F_TSO6, 12),
        ({"without": VIRTIO_NET_F_GUEST_TSO4}, tun.TUN_F_CSUM | tun.TUN_F_TSO6, 12),
        ({"without": VIRTIO_NET_F_GUEST_CSUM}, 0, 12),
        ({"without": VIRTIO_NET_F_MRG_RXBUF, "legacy": True}, 7, 10),
    ],
    ids=str,
)
def test_the_host_is_told_what_the_driver_takes(
    make: Callable[..., Rig], mode: dict[str, int], offloads: int, length: int
) -> None:
    rig = make(vnet_hdr=True, **mode)
    assert rig.tap.asked[-2:] == [
        (tun.TUNSETVNETHDRSZ, struct.pack("i", length)),
        (tun.TUNSETOFFLOAD, offloads),
    ]


def test_nothing_is_said_of_checksums_to_a_driver_that_looks_at_them(
    make: Callable[..., Rig],
) -> None:
    rig = make(vnet_hdr=True, without=VIRTIO_NET_F_GUEST_CSUM)
    with rig.lock:
        _, places = rig.driver.add([], [2000])
        rig.driver.kick(RECEIVE)
    rig.host.send(b"\2" + bytes(11) + b"answer")  # 2: DATA_VALID
    rig.until(lambda: bool(rig.driver.queues[RECEIVE].used()))
    assert rig.driver.memory.read(places[0][0], 12) == bytes(10) + b"\1\0"


def test_what_the_tap_has_no_room_for_waits_in_the_guest(make: Callable[..., Rig]) -> None:
    rig = make(vnet_hdr=False)
    frames = [bytes([number]) * 1400 for number in range(100)]  # more than the sockets take
    for frame in frames:
        rig.send(frame)
    assert len(rig.card._unsent) == 1
    slot = rig.card.slots[TRANSMIT]
    assert len(slot.held) == 1 and slot.stalled
    assert [rig.host.recv(2000) for _ in frames] == frames
    rig.until(lambda: not slot.held)
    assert len(rig.driver.queues[TRANSMIT].used()) == len(frames)
    assert not rig.card._unsent and not slot.stalled
    rig.send(b"another")
    assert rig.host.recv(2000) == b"another"


def test_a_frame_that_had_no_room_is_saved(make: Callable[..., Rig]) -> None:
    rig, other = make(vnet_hdr=False), make(vnet_hdr=False)
    while not rig.card._unsent:
        rig.send(b"x" * 1000)
    rig.send(b"y" * 1000)
    with rig.lock:
        state = rig.driver.function.save_state()
        memory = bytes(rig.driver.memory.view(0, rig.driver.memory.size))
    with other.lock:
        other.driver.memory.view(0, len(memory))[:] = memory
        other.driver.function.load_state(state)
        other.driver.board.clock.advance(1)
    assert [other.host.recv(2000)[:1] for _ in range(2)] == [b"x", b"y"]


def test_what_the_guest_has_no_room_for_waits_in_the_tap(make: Callable[..., Rig]) -> None:
    rig = make(vnet_hdr=False)
    frames = [bytes([number]) * 60_000 for number in range(20)]
    rig.host.settimeout(SECONDS)
    sender = threading.Thread(target=lambda: [rig.host.send(frame) for frame in frames])
    sender.start()
    rig.until(lambda: not rig.card.room)
    assert len(rig.card._pending) < len(frames)
    received: list[bytes] = []

    def more() -> bool:
        _, places = rig.driver.add([], [65562])
        rig.driver.kick(RECEIVE, always=True)
        for used in rig.driver.queues[RECEIVE].used():
            received.append(rig.driver.memory.read(places[0][0] + 12, used.written - 12))
        return len(received) == len(frames)

    rig.until(more)
    sender.join()
    assert received == frames


def test_frames_from_before_the_driver_was_there_are_gone(make: Callable[..., Rig]) -> None:
    rig = make(vnet_hdr=False)
    rig.driver.status = 0
    rig.host.send(b"old")
    with rig.lock:
        rig.driver.wake()
        _, places = rig.driver.add([], [2000])
        rig.driver.kick(RECEIVE)
    rig.host.send(b"new")
    rig.until(lambda: bool(rig.driver.queues[RECEIVE].used()))
    assert rig.driver.memory.read(places[0][0] + 12, 3) == b"new"


def test_a_frame_that_is_too_long_is_lost(make: Callable[..., Rig]) -> None:
    rig = make(vnet_hdr=False)
    with rig.lock:
        _, places = rig.driver.add([], [2000])
        rig.driver.kick(RECEIVE)
    rig.host.send(bytes(LARGEST_FRAME + 1))
    rig.host.send(b"next")
    rig.until(lambda: bool(rig.driver.queues[RECEIVE].used()))
    assert rig.driver.memory.read(places[0][0] + 12, 4) == b"next"


@pytest.mark.parametrize("found", ["reading", "writing", "waking"])
def test_a_deleted_interface_is_a_cut_cable(
    make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    rig = make(vnet_hdr=True)

    def gone(*_arguments: object) -> int:
        raise OSError(tun._GONE[0], os.strerror(tun._GONE[0]))

    assert rig.driver.config(6, 2) == 1
    if found == "waking":
        rig.tap.gone = True
        with rig.lock:
            rig.driver.wake()
    else:
        monkeypatch.setattr(os, "readv" if found == "reading" else "writev", gone)
        if found == "reading":
            rig.host.send(b"something")
        else:
            rig.send(b"frame")
    rig.until(lambda: rig.driver.config(6, 2) == 0)
    assert rig.network.describe() == ["net0: tap, ifname=tap9, which was deleted"]
    rig.send(b"frame")
    rig.driver.status = 0
    with rig.lock:
        rig.driver.wake()
    assert rig.driver.config(6, 2) == 0


# -- how it is asked for -----------------------------------------------------------------------


def test_the_words_of_a_network() -> None:
    tap = parse_network("tap,ifname=br,,0,mac=52-54-00-AB-cd-ef,vnet_hdr=off,script=no,vhost=off")
    assert tap == NetworkSpec(
        kind="tap", ifname="br,0", mac=bytes.fromhex("525400abcdef"), vnet_hdr=False
    )
    assert parse_network("tap,fd=7").fd == 7
    assert network_spec("user,hostfwd=a,model=virtio,hostfwd=b").forwards == ["a", "b"]
    assert network_spec(tap) is tap


def test_the_words_of_qemus_devices() -> None:
    netdev = "tap,id=n,ifname=a,,b,mac=52:54:00:00:00:01"
    device = "virtio-net-pci,netdev=n,id=card,mac=52:54:00:00:00:02"
    found = parse_devices([], [device], [netdev], "none").network
    assert found == NetworkSpec(kind="tap", ifname="a,b", mac=bytes.fromhex("525400000002"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bridge", "one of none, user, tap"),
        ("none,mac=52:54:00:00:00:01", "network none has no option 'mac'"),
        ("tap,br=br0", "network tap has no option 'br'"),
        ("user,ifname=tap0", "network user has no option 'ifname'"),
        ("tap,ifname", "ifname=… needs a value"),
        ("tap,ifname=a,fd=3", "not by both"),
        ("tap,fd=x", "fd"),
        ("tap,vhost=on", "go through this process"),
        ("tap,script=/etc/qemu-ifup", "none is run"),
        ("tap,mac=52:54:00:00:00", "an address such as"),
        ("tap,mac=53:54:00:00:00:01", "multicast"),
        ("tap,model=e1000", "a network card is virtio"),
    ],
)
def test_words_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parse_network(text)


def test_forwards_need_a_user_network() -> None:
    with pytest.raises(InvalidRequestError, match="user network"):
        NetworkSpec(kind="tap", forwards=["tcp::0-:22"])


@pytest.mark.parametrize("name", ["a/b", "sixteen-letters-", "a b", "a:b", "a\0"])
def test_names_that_no_interface_has(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="an interface has a name"):
        tun.create(name, vnet_hdr=None, largest=1514)
