"""A TAP of the host behind a guest's card: a cable to a bridge, or to the host itself.

Whose addresses are behind it, and where packets go, is the host's affair: no script is run.
Frames pass with virtio-net's header where the TAP has it, so that the guest may leave checksums
and segmentation undone, and takes frames of which the host has.

What the guest has no room for waits in the TAP's own queue, of ``txqueuelen`` frames, and is lost
there as on any network; what the TAP has no room for waits in the guest's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vdisk.vm.devices.virtio_net import (
    LARGEST_FRAME,
    NO_OFFLOAD,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
)
from vdisk.vm.net import tun
from vdisk.vm.net.reactor import Reactor

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from vdisk.vm.devices.virtio_net import VirtioNet

BATCH: Final = 64
"""Frames that are read before others get the bus."""
MOST_STALE: Final = 10_000
"""Frames from before the driver was ready: more than a queue is long.  They are thrown away, for
they came to a card that nobody had switched on, and may leave undone what this driver expects."""


class TapNetwork:
    """``tap``: taken over.  ``lock``: of the bus, held wherever anything but close is called."""

    def __init__(self, tap: tun.Tap, lock: threading.RLock) -> None:
        self.offloads = tap.vnet_hdr
        self._tap = tap
        self._lock = lock
        self._reactor = Reactor(lock)
        self._adapter: VirtioNet | None = None
        self._listening = self._full = False
        self._gone = False

    @classmethod
    def create(cls, name: str, lock: threading.RLock, *, vnet_hdr: bool | None) -> TapNetwork:
        """With the interface ``name``, made if there is none; raises :class:`VdiskError`."""
        return cls(tun.create(name, vnet_hdr=vnet_hdr, largest=LARGEST_FRAME), lock)

    @classmethod
    def adopt(cls, descriptor: int, lock: threading.RLock, *, vnet_hdr: bool | None) -> TapNetwork:
        """With a TAP that is open already; raises :class:`VdiskError`."""
        return cls(tun.adopt(descriptor, vnet_hdr=vnet_hdr, largest=LARGEST_FRAME), lock)

    @property
    def name(self) -> str:
        """Of the interface."""
        return self._tap.name

    def describe(self) -> list[str]:
        """A line for the network."""
        gone = ", which was deleted" if self._gone else ""
        return [f"net0: tap, ifname={self.name}{gone}"]

    def attach(self, adapter: VirtioNet) -> None:
        """Plug the guest's card in."""
        self._adapter = adapter

    def start(self) -> None:
        """The driver is ready: let the host know what it takes, and listen."""
        if self._adapter is None or self._gone:
            return
        try:
            if self.offloads:
                self._tap.set_header_length(self._adapter.header_length)
                self._tap.set_offloads(_offloads(self._adapter.features))
            for _ in range(MOST_STALE):
                if self._tap.read() is None:
                    break
        except tun.TapGoneError:
            self._lost()
        self._watch(listening=True, full=False)

    def reset(self) -> None:
        """The card was reset; the cable stays."""
        self._watch(listening=False, full=False)

    def close(self) -> None:
        """Close the TAP, which goes unless it is persistent; called without the lock."""
        with self._lock:
            self._adapter = None
            if not self._gone:
                self._reactor.close_socket(self._tap)
        self._reactor.close()

    # -- from the guest ----------------------------------------------------------------------

    def transmit(self, header: bytes | memoryview, parts: Sequence[memoryview]) -> bool:
        """Write a frame straight from guest memory; False: the TAP has no room now."""
        if self._gone:
            return True
        try:
            taken = self._tap.write([header, *parts] if self.offloads else parts)
        except tun.TapGoneError:
            self._lost()
            return True
        if not taken:
            self._watch(listening=self._listening, full=True)
        return taken

    def _writable(self) -> None:
        self._watch(listening=self._listening, full=False)
        if self._adapter is not None:
            self._adapter.send_again()

    # -- to the guest ------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            for _ in range(BATCH):
                if not self._take():
                    return
        except tun.TapGoneError:
            self._lost()

    def _take(self) -> bool:
        """Give one frame to the guest; False where there is none, or no room for it."""
        adapter = self._adapter
        if adapter is None or not self._listening:
            return False
        if not adapter.room:
            self._watch(listening=False, full=self._full)
            return False
        read = self._tap.read()
        if read is None:
            return False
        header, frame = read
        if frame:
            adapter.pass_on(header[: len(NO_OFFLOAD)] or NO_OFFLOAD, frame)
        return True

    def room_again(self) -> None:
        """The card takes frames again."""
        self._watch(listening=True, full=self._full)

    def _watch(self, *, listening: bool, full: bool) -> None:
        if (listening, full) == (self._listening, self._full) or self._gone:
            return
        self._listening, self._full = listening, full
        readable = self._readable if listening else None
        self._reactor.watch(self._tap, readable, self._writable if full else None)

    def _lost(self) -> None:
        """The interface was deleted: as if somebody had cut the cable."""
        if not self._gone:
            self._gone = True
            self._reactor.close_socket(self._tap)
            if self._adapter is not None:
                self._adapter.set_link(False)


def _offloads(features: int) -> int:
    """What a driver with these features takes (VIRTIO 1.2, 5.1.3.1: all need the first)."""
    if not features & VIRTIO_NET_F_GUEST_CSUM:
        return 0
    four = tun.TUN_F_TSO4 if features & VIRTIO_NET_F_GUEST_TSO4 else 0
    six = tun.TUN_F_TSO6 if features & VIRTIO_NET_F_GUEST_TSO6 else 0
    return tun.TUN_F_CSUM | four | six
